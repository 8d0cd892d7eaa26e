"""Gated activation as a custom torch operator: SwiGLU, GEGLU, ReGLU without the projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from twofold.adapters.arguments import autocast
from twofold.adapters.custom import Operator, Tensors
from twofold.adapters.sides import Place


def gated_activation(gate: torch.Tensor, up: torch.Tensor, kind: str = "silu") -> torch.Tensor:
    """Return f(gate)·up for two tensors (..., C), such as the halves of one projection.

    Arguments are those of `reference.gated_activation.forward`. Under autocast both are cast to the
    wider of their dtypes, as torch's product does.
    """
    if isinstance(gate, torch.Tensor) and isinstance(up, torch.Tensor):
        gate, up = autocast(gate, up, dtype=torch.promote_types(gate.dtype, up.dtype))
    out: torch.Tensor = GATED_ACTIVATION(gate, up, kind)
    return out


def _forward(place: Place, a: SimpleNamespace, given: SimpleNamespace) -> Tensors:
    out, _ = place.side.gated_activation.forward(given.gate, given.up, a.kind)
    return (place.take(out, a.gate),)


def _shapes(a: SimpleNamespace) -> Tensors:
    return (a.gate.new_empty(a.gate.shape),)


def _backward(
    place: Place,
    a: SimpleNamespace,
    given: SimpleNamespace,
    outputs: Sequence[Any],
    grads: Sequence[Any],
) -> Mapping[str, Any]:
    up = given.up if "gate" in a.wanted else given.gate  # a stand-in: dup does not depend on it
    cache = place.side.gated_activation.Cache(given.gate, up, a.kind)
    found = place.side.gated_activation.backward(place.give(grads[0]), cache)
    return {"gate": found.dgate, "up": found.dup}


GATED_ACTIVATION = Operator(
    "gated_activation",
    "Tensor gate, Tensor up, str kind",
    1,
    forward=_forward,
    shapes=_shapes,
    alike=("gate", "up"),
    backward=_backward,
    differentiable=("gate", "up"),
    unread=lambda a: () if "gate" in a.wanted else ("up",),
)
