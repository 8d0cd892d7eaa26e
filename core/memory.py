"""Keep freed memory for later allocations, where the C library is glibc.

NumPy's temporary arrays are large and short-lived. glibc returns freed ones to the system,
which zeroes the memory page by page when it is allocated again: a tenth of the time of a
forward pass.
"""

from __future__ import annotations

import ctypes
import sys

ALL = 2**31 - 1  # bytes
# mallopt(3): how much is kept, up to what array size, and how many arenas threads share.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = (-1, ALL), (-3, 2**30), (-8, 1)


def keep_freed() -> bool:
    """Let this process keep the memory it frees; return whether that worked.

    For programs, not for libraries: the process never shrinks.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl has none
        return False
    return all(mallopt(*what) for what in (TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX))
