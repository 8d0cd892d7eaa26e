"""What the kernels run on, asked in one place."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from triton import knobs
from triton.runtime import driver


def architecture() -> str:
    """Return the current device's, "sm_90" or "gfx942"; none, "", in Triton's interpreter.

    It is the one that Triton compiles for, also where the device itself is not there.
    """
    if knobs.runtime.interpret:
        return ""
    active = driver.active
    return _architecture(active, active.get_current_device())


@lru_cache(maxsize=16)
def _architecture(active: Any, device: int) -> str:
    """Return the architecture of a driver's current device; the driver is slow to say it."""
    target = active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)
