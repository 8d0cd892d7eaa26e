"""Checks of calls with empty batches: as neither side takes them, a small full batch is tried."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch


def check(run: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise what is wrong with a call, apart from its empty axes.

    The call is run with another length in place of 0, one that occurs nowhere else in the call, so
    that lengths that differ do not come to agree.

    Args:
        run: computes the result from the arguments in order.
        given: the arguments by name.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    tensors = [x for x in given.values() if isinstance(x, torch.Tensor)]
    had = {n for x in tensors for n in x.shape} | {x for x in given.values() if isinstance(x, int)}
    length = next(n for n in itertools.count(2) if n not in had)
    try:
        run(*(_stand_in(x, length) for x in given.values()))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} (with {length} for what is empty)") from None


def _stand_in(x: Any, length: int) -> Any:
    """Return zeros, with this length along every empty axis, for a tensor without elements."""
    if not isinstance(x, torch.Tensor) or x.numel() > 0:
        return x
    return x.new_zeros([n or length for n in x.shape])
