"""Gated activation as models of torch write it: two operations, of which each reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "tanh": F.tanh,
}


def torch_gated_activation(gate: Any, up: Any, kind: str = "silu") -> Any:
    """torch's activation of the gate, times up."""
    return ACTIVATIONS[kind](gate) * up
