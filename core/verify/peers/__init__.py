"""Functions of other libraries, each behind the call that a contract judges; `table` lists them."""
