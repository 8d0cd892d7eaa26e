"""What device the kernels run on, asked in one place."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from triton import knobs
from triton.runtime import driver


def architecture() -> str:
    """Return the current device's architecture, "sm_90" or "gfx942"; "" if Triton interprets.

    It is the one that Triton compiles for, even if the device itself is absent.
    """
    if knobs.runtime.interpret:
        return ""
    active = driver.active
    return _architecture(active, active.get_current_device())


@lru_cache(maxsize=16)
def _architecture(active: Any, device: int) -> str:
    """Return the architecture of a driver's current device; asking the driver is slow."""
    target = active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def bare_interpreter() -> bool:
    """Return whether kernels run in Triton's interpreter as it is, where bfloat16 is wrong.

    It multiplies the bits of bfloat16 as if they were integers, and casts to bfloat16 truncate.
    """
    if not knobs.runtime.interpret:
        return False
    from triton.runtime import interpreter

    return type(interpreter.interpreter_builder) is interpreter.InterpreterBuilder


def within_reach(x: torch.Tensor) -> bool:
    """Return whether kernels can read a tensor: on the CPU if the device itself is absent."""
    return bool(x.device.type == driver.active.get_active_torch_device().type)


H100_CACHE, H100_MULTIPROCESSORS = 50 * 2**20, 132
# For the interpreter: so small that even small calls fall into several groups.
INTERPRETED_CACHE = 24 * 2**10


def cache_bytes() -> int:
    """Return the size of the current device's L2 cache, an H100's if the device is absent."""
    if knobs.runtime.interpret:
        return INTERPRETED_CACHE
    if not torch.cuda.is_available():
        return H100_CACHE
    return _cache_bytes(torch.cuda.current_device())


@lru_cache(maxsize=16)
def _cache_bytes(device: int) -> int:
    """Return what a device reports."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def multiprocessors(device: int | None) -> int:
    """Return how many multiprocessors a device has, an H100's number for None."""
    return H100_MULTIPROCESSORS if device is None else _multiprocessors(device)


@lru_cache(maxsize=16)
def _multiprocessors(device: int) -> int:
    """Return what a device reports."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
