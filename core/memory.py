"""Memory that has been freed is kept for what comes next, where the C library is glibc.

NumPy's temporary arrays are large and live for a moment. glibc hands freed ones back to the system,
which fills them with zeros page by page when they are asked for again: a tenth of the time of a
forward pass.
"""

from __future__ import annotations

import ctypes
import sys

ALL = 2**31 - 1  # bytes
# Of mallopt(3): what is kept, up to what size an array counts, and how many arenas threads share.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = (-1, ALL), (-3, 2**30), (-8, 1)


def keep_freed() -> bool:
    """Let this process keep what it frees, and return whether it does.

    It is for programs, not for libraries: the process stays as large as it ever was.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl has none
        return False
    return all(mallopt(*what) for what in (TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX))
