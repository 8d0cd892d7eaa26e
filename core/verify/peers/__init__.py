"""Functions of other libraries, each wrapped in the call that a contract judges; see `table`."""
