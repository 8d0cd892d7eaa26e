"""Calls with empty batches: neither side takes them, so a small full batch is tried instead."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch


def sound(run: Callable[..., Any], given: Mapping[str, Any]) -> bool:
    """Return whether all is well with a call but that axes are empty.

    It is run with a length in place of their 0. That is one that nothing in the call has, or
    lengths that differ would agree by it.

    Args:
        run: computes, of the arguments in order.
        given: the arguments by name.

    Returns:
        True, or False where what is wrong has no words without that length: a side has them.

    Raises:
        TypeError, ValueError: what is wrong with the call.
    """
    tensors = [x for x in given.values() if isinstance(x, torch.Tensor)]
    had = {n for x in tensors for n in x.shape} | {x for x in given.values() if isinstance(x, int)}
    length = next(n for n in itertools.count(2) if n not in had)
    try:
        run(*(_stand_in(x, length) for x in given.values()))
    except ValueError as e:
        words = str(e)
        said = re.sub(rf"\b(?<!\.){length}\b(?![.*])", "0", words)  # 2.5 and 2**63 are no lengths
        if said == words:
            raise
        refused = given.get(words.partition(".shape is ")[0])
        if isinstance(refused, torch.Tensor) and refused.numel():
            raise ValueError(said) from None
        return False
    return True


def _stand_in(x: Any, length: int) -> Any:
    """Return zeros, of this length along every empty axis, for a tensor that has no elements."""
    if not isinstance(x, torch.Tensor) or x.numel() > 0:
        return x
    return x.new_zeros([n or length for n in x.shape])
