"""Kernels compiled for GPUs that are not there: `twofold verify compile`.

`compiles` has a contract's cases compiled instead of run, `jobs` many at a time; `compiled` says
what is wrong with one, `table` keeps the committed table of all; `chips` has the GPUs' limits, and
`machine_code` counts what a loop keeps busy.
"""
