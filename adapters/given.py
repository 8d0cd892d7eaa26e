"""Argument checks for functions with torch's signatures, under torch's names for the arguments.

The operators also check everything themselves, under their own names.
"""

from __future__ import annotations

from typing import Any

import torch

from twofold.adapters.arguments import autocasts
from twofold.reference import checks

FLOATING = tuple(getattr(torch, name) for name in checks.FLOATING)


def tensors(**given: Any) -> None:
    """Raise `TypeError` unless each is a tensor."""
    for name, x in given.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")


def alike(**given: Any) -> None:
    """Check that all are floating tensors on one device and, except under autocast, of one dtype.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    tensors(**given)
    first = next(iter(given.values()))
    cast = autocasts(first)
    if all(
        x.dtype in FLOATING and (cast or x.dtype == first.dtype) and x.device == first.device
        for x in given.values()
    ):
        return  # before the checks below, whose names are cached: torch.compile warns of a cache
    for alone in [{name: x} for name, x in given.items()] if cast else [given]:
        checks.floating(**alone)
    checks.same_device(**given)


def masks(like: torch.Tensor, name_like: str, **given: Any) -> None:
    """Check that each is a boolean or floating tensor on `like`'s device; None is skipped.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    for name, x in given.items():
        if x is None:
            continue
        tensors(**{name: x})
        if x.dtype != torch.bool and not x.is_floating_point():  # 0 and 1 would be added
            must = "it must be bool or floating"
            raise TypeError(f"{name} has dtype {checks.dtype_name(x)}; {must}")
        checks.same_device(**{name_like: like, name: x})
