"""Root mean square layer normalisation as a custom torch operator, one launch forward.

It corresponds to `layers.layer_norm`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from twofold.adapters.arguments import autocast
from twofold.adapters.custom import Operator, Tensors, nothing, statistics_dtype
from twofold.adapters.sides import Place


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    return_stream: bool = False,
) -> Any:
    """Add x to the residual and divide the sum by its root mean square over the last axis.

    Arguments are those of `reference.rms_norm.forward`. Under autocast all are cast to float32, as
    torch does on a GPU.

    Returns:
        out, shaped as x, and with `return_stream` what was normalised, residual + x.
    """
    x, weight, residual = autocast(x, weight, residual, dtype=torch.float32)
    out, stream, _ = RMS_NORM(x, weight, residual, eps, offset)
    if not return_stream:
        return out
    return out, x if residual is None else stream


def _forward(place: Place, a: SimpleNamespace, given: SimpleNamespace) -> Tensors:
    out, cache = place.side.rms_norm.forward(
        given.x, given.weight, residual=given.residual, eps=a.eps, offset=a.offset
    )
    stream = nothing(a.x) if a.residual is None else place.take(cache.h, a.x)
    rstd = place.take(cache.rstd.reshape(-1), a.x, statistics_dtype(a.x))
    return place.take(out, a.x), stream, rstd


def _shapes(a: SimpleNamespace) -> Tensors:
    out = a.x.new_empty(a.x.shape)
    stream = nothing(a.x) if a.residual is None else torch.empty_like(out)
    return out, stream, a.x.new_empty(math.prod(a.x.shape[:-1]), dtype=statistics_dtype(a.x))


def _backward(
    place: Place,
    a: SimpleNamespace,
    given: SimpleNamespace,
    outputs: Sequence[Any],
    grads: Sequence[Any],
) -> Mapping[str, Any]:
    operator, has_residual = place.side.rms_norm, a.residual is not None
    _, stream, rstd = outputs
    h, rstd = place.give(stream if has_residual else a.x.contiguous()), place.give(rstd)
    if place.side.name == "reference":
        rstd = rstd[:, None].astype(h.dtype)
    cache = operator.Cache(h, rstd, given.weight, a.offset, has_residual)
    dout, dstream = (place.give(g) for g in grads[:2])
    if not has_residual:
        dstream = None  # of an empty tensor
    found = operator.backward(dout, cache, dstream)
    return {"x": found.dx, "weight": found.dweight, "residual": found.dresidual}


RMS_NORM = Operator(
    "rms_norm",
    "Tensor x, Tensor weight, Tensor? residual, float eps, float offset",
    3,
    forward=_forward,
    shapes=_shapes,
    alike=("x", "weight", "residual"),
    backward=_backward,
    differentiable=("x", "weight", "residual"),
    unread=lambda a: () if a.residual is None else ("x", "residual"),
    read=lambda a: (2,) if a.residual is None else (1, 2),
    steady=(2,),
    optional=(1,),
    same=lambda a: {"residual": "x"},
)
