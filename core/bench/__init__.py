"""Races: kernels and their peers side by side, beside the machine's limits."""
