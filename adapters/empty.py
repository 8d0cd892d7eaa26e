"""Checks of calls with empty batches: as neither side takes them, a small full batch is tried."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch


def check(run: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise what is wrong with a call beside that axes are empty.

    It is run with a length in place of their 0. That is one that nothing in the call has, or
    lengths that differ would agree by it.

    Args:
        run: computes, of the arguments in order.
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
    """Return zeros, of this length along every empty axis, for a tensor that has no elements."""
    if not isinstance(x, torch.Tensor) or x.numel() > 0:
        return x
    return x.new_zeros([n or length for n in x.shape])
