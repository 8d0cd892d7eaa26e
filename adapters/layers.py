"""The other operators of a Transformer as custom torch operators, each one launch or a few."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from twofold.adapters.arguments import autocast, read_seed, recorded, seed_tensor
from twofold.adapters.custom import Operator, Tensors, nothing, side_by_side, statistics_dtype
from twofold.adapters.sides import Place

# Arguments of an operator by name, as tensors or as the side takes them.
Arguments = SimpleNamespace


def _products(place: Place, a: Arguments) -> dict[str, Any]:
    """Return the option for float32 products, which only the kernels have."""
    return {} if place.side.name == "reference" else {"allow_tf32": a.allow_tf32}


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    allow_tf32: bool = False,
) -> torch.Tensor:
    """Multiply x (..., K) by the transposed weight (N, K), add the bias, apply the activation.

    Arguments are those of `reference.linear.forward`. Under autocast all are cast. If autograd does
    not record the call, what backward would need is not written.
    """
    x, weight, bias = autocast(x, weight, bias)
    out, _ = LINEAR(x, weight, bias, activation, recorded(x, weight, bias), allow_tf32)
    return out


def _has_z(a: Arguments) -> bool:
    """Return whether the activation's input is saved; ReLU needs only its output."""
    return a.keep and a.activation not in (None, "relu")


def _linear(place: Place, a: Arguments, given: Arguments) -> Tensors:
    out, cache = place.side.linear.forward(
        given.x, given.weight, given.bias, a.activation, keep=a.keep, **_products(place, a)
    )
    N = a.weight.shape[0]
    z = place.take(cache.z, a.x).reshape(-1, N) if _has_z(a) else nothing(a.x)
    return place.take(out, a.x), z


def _linear_shapes(a: Arguments) -> Tensors:
    N, rows = a.weight.shape[0], math.prod(a.x.shape[:-1])
    out = a.x.new_empty((*a.x.shape[:-1], N))
    return out, a.x.new_empty((rows, N)) if _has_z(a) else nothing(a.x)


def _linear_backward(
    place: Place, a: Arguments, given: Arguments, outputs: Sequence[Any], grads: Sequence[Any]
) -> Mapping[str, Any]:
    side, (out, z) = place.side, outputs
    made, has_bias = None if a.activation is None else z if _has_z(a) else out, a.bias is not None
    if side.name != "reference":
        made = None if made is None else made.reshape(-1, made.shape[-1])
        cache = side.linear.Cache(given.x, given.weight, made, a.activation, has_bias, a.allow_tf32)
    else:
        made = None if made is None else place.give(made).reshape(*a.x.shape[:-1], -1)
        kept = None if made is None else side.activation.activate(made, a.activation)[1]
        cache = side.linear.Cache(given.x, given.weight, made, kept, a.activation, has_bias)
    asked = {f"of_{name}": name in a.wanted for name in ("x", "weight", "bias")}
    found = side.linear.backward(place.give(grads[0]), cache, **asked)
    return {"x": found.dx, "weight": found.dweight, "bias": found.dbias}


LINEAR = Operator(
    "linear",
    "Tensor x, Tensor weight, Tensor? bias, str? activation, bool keep, bool allow_tf32",
    2,
    forward=_linear,
    shapes=_linear_shapes,
    alike=("x", "weight", "bias"),
    backward=_linear_backward,
    differentiable=("x", "weight", "bias"),
    # Each factor is read only by the other one's gradient.
    unread=lambda a: (
        "bias",
        *(() if "weight" in a.wanted else ("x",)),
        *(() if "x" in a.wanted else ("weight",)),
    ),
    read=lambda a: () if a.activation is None else (1,) if _has_z(a) else (0,),
    steady=(1,),
)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor | None = None,
    eps: float = 1e-5,
    return_stream: bool = False,
) -> Any:
    """Add dropout(x) to the residual and normalise over the last axis.

    Arguments are those of `reference.layer_norm.forward`; torch draws the seed if it is None. Under
    autocast all are cast to float32, as torch does on a GPU.

    Returns:
        out, shaped as x, and with `return_stream` what was normalised, residual + dropout(x).
    """
    x, weight, bias, residual = autocast(x, weight, bias, residual, dtype=torch.float32)
    seed = seed_tensor(dropout_p, seed, x)
    out, stream, *_ = LAYER_NORM(x, weight, bias, residual, dropout_p, seed, eps)
    if not return_stream:
        return out
    return out, stream if _has_stream(residual, dropout_p) else x


def _has_stream(residual: Any, dropout_p: float) -> bool:
    return residual is not None or dropout_p > 0.0


def _norm_options(a: Arguments, given: Arguments) -> dict[str, Any]:
    seed = read_seed(given.seed)
    return {"residual": given.residual, "dropout_p": a.dropout_p, "seed": seed, "eps": a.eps}


def _layer_norm(place: Place, a: Arguments, given: Arguments) -> Tensors:
    out, cache = place.side.layer_norm.forward(
        given.x, given.weight, given.bias, **_norm_options(a, given)
    )
    has_stream = _has_stream(a.residual, a.dropout_p)
    stream = place.take(cache.h, a.x) if has_stream else nothing(a.x)
    mean, rstd = (
        place.take(t.reshape(-1), a.x, statistics_dtype(a.x)) for t in (cache.mean, cache.rstd)
    )
    return place.take(out, a.x), stream, mean, rstd


def _layer_norm_shapes(a: Arguments) -> Tensors:
    rows = a.x.new_empty(math.prod(a.x.shape[:-1]), dtype=statistics_dtype(a.x))
    out = a.x.new_empty(a.x.shape)
    has_stream = _has_stream(a.residual, a.dropout_p)
    return out, torch.empty_like(out) if has_stream else nothing(a.x), rows, torch.empty_like(rows)


def _layer_norm_backward(
    place: Place, a: Arguments, given: Arguments, outputs: Sequence[Any], grads: Sequence[Any]
) -> Mapping[str, Any]:
    side, (_, stream, mean, rstd) = place.side, outputs
    seed, has_residual = read_seed(a.seed), a.residual is not None
    h = place.give(stream if _has_stream(a.residual, a.dropout_p) else a.x.contiguous())
    if side.name == "reference":
        mean, rstd = (place.give(x)[:, None].astype(h.dtype) for x in (mean, rstd))
        scaled_mask = None
        if a.dropout_p > 0.0:
            scaled_mask = side.dropout.scaled_mask(h.shape, a.dropout_p, seed, h.dtype)
        cache = side.layer_norm.Cache(h, mean, rstd, given.weight, has_residual, scaled_mask)
    else:
        cache = side.layer_norm.Cache(h, mean, rstd, given.weight, has_residual, a.dropout_p, seed)
    dout, dstream = (place.give(g) for g in grads[:2])
    if not _has_stream(a.residual, a.dropout_p):
        dstream = None  # of an empty tensor
    found = side.layer_norm.backward(dout, cache, dstream)
    return {
        "x": found.dx, "weight": found.dweight, "bias": found.dbias, "residual": found.dresidual
    }  # fmt: skip


LAYER_NORM = Operator(
    "layer_norm",
    "Tensor x, Tensor weight, Tensor bias, Tensor? residual, float dropout_p, Tensor? seed, "
    "float eps",
    4,
    forward=_layer_norm,
    shapes=_layer_norm_shapes,
    alike=("x", "weight", "bias", "residual"),
    backward=_layer_norm_backward,
    differentiable=("x", "weight", "bias", "residual"),
    unread=lambda a: (
        ("x", "bias", "residual") if _has_stream(a.residual, a.dropout_p) else ("bias",)
    ),
    read=lambda a: (1, 2, 3) if _has_stream(a.residual, a.dropout_p) else (2, 3),
    steady=(2, 3),
    optional=(1,),
    same=lambda a: {"residual": "x"} if a.dropout_p == 0.0 else {},
)


def rotary(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate the first features of q and k (B, H, L, D) by their positions.

    Arguments are those of `reference.rotary.forward`; the angles are constants.
    """
    turned_q, turned_k = ROTARY(q, k, cos, sin, interleaved)
    return turned_q, turned_k


def _rotary(place: Place, a: Arguments, given: Arguments) -> Tensors:
    turned, _ = place.side.rotary.forward(
        given.q, given.k, given.cos, given.sin, interleaved=a.interleaved
    )
    return tuple(place.take(x, a.q) for x in turned)


def _rotary_shapes(a: Arguments) -> Tensors:
    return side_by_side(a.q), side_by_side(a.k)


def _rotary_backward(
    place: Place, a: Arguments, given: Arguments, outputs: Sequence[Any], grads: Sequence[Any]
) -> Mapping[str, Any]:
    cache = place.side.rotary.Cache(given.cos, given.sin, a.interleaved)
    dq, dk = (place.give(g) for g in grads)
    found = place.side.rotary.backward(dq, dk, cache)
    return {"q": found.dq, "k": found.dk}


ROTARY = Operator(
    "rotary",
    "Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved",
    2,
    forward=_rotary,
    shapes=_rotary_shapes,
    alike=("q", "k"),
    backward=_rotary_backward,
    differentiable=("q", "k"),
    unread=lambda a: ("q", "k"),
    rows=True,
)


def embedding(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Look up a row of the table (V, D) for every id; its gradient is dense and deterministic."""
    return EMBEDDING(ids, table)


def _embedding(place: Place, a: Arguments, given: Arguments) -> Tensors:
    out, _ = place.side.embedding.forward(given.ids, given.table)
    return (place.take(out, a.table),)


def _embedding_shapes(a: Arguments) -> Tensors:
    return (a.table.new_empty((*a.ids.shape, a.table.shape[1])),)


def _embedding_backward(
    place: Place, a: Arguments, given: Arguments, outputs: Sequence[Any], grads: Sequence[Any]
) -> Mapping[str, Any]:
    cache = place.side.embedding.Cache(given.ids, *a.table.shape)
    return {"table": place.side.embedding.backward(place.give(grads[0]), cache).dtable}


EMBEDDING = Operator(
    "embedding",
    "Tensor ids, Tensor table",
    1,
    forward=_embedding,
    shapes=_embedding_shapes,
    alike=(),
    backward=_embedding_backward,
    differentiable=("table",),
    unread=lambda a: ("table",),
)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Return the softmax of x (..., C) over its last axis; a row of −∞ is 0.

    Under autocast x is cast to float32, as torch does on a GPU.
    """
    return SOFTMAX(*autocast(x, dtype=torch.float32))


def _softmax(place: Place, a: Arguments, given: Arguments) -> Tensors:
    out, _ = place.side.softmax.forward(given.x)
    return (place.take(out, a.x),)


def _softmax_shapes(a: Arguments) -> Tensors:
    return (a.x.new_empty(a.x.shape),)


def _softmax_backward(
    place: Place, a: Arguments, given: Arguments, outputs: Sequence[Any], grads: Sequence[Any]
) -> Mapping[str, Any]:
    cache = place.side.softmax.Cache(place.give(outputs[0]))
    return {"x": place.side.softmax.backward(place.give(grads[0]), cache).dx}


SOFTMAX = Operator(
    "softmax",
    "Tensor x",
    1,
    forward=_softmax,
    shapes=_softmax_shapes,
    alike=(),
    backward=_softmax_backward,
    differentiable=("x",),
    unread=lambda a: ("x",),
    read=lambda a: (0,),
)


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return the cross-entropy of softmax(logits) with the targets.

    Arguments are those of `reference.softmax_cross_entropy.forward`; the targets have no gradient.
    Under autocast all are cast to float32, as torch does on a GPU. The gradient is computed with
    the loss if autograd records the call.
    """
    logits, targets, weight = autocast(logits, targets, weight, dtype=torch.float32)
    options = label_smoothing, ignore_index, reduction, recorded(logits)
    loss, _ = CROSS_ENTROPY(logits, targets, weight, *options)
    return loss


def _cross_entropy(place: Place, a: Arguments, given: Arguments) -> Tensors:
    loss, cache = place.side.softmax_cross_entropy.forward(
        given.logits,
        given.targets,
        weight=given.weight,
        label_smoothing=a.label_smoothing,
        ignore_index=a.ignore_index,
        reduction=a.reduction,
        keep=a.keep,
    )
    saved = place.take(cache.dlogits, a.logits) if a.keep else nothing(a.logits)
    return place.take(loss, a.logits), saved


def _cross_entropy_shapes(a: Arguments) -> Tensors:
    rows = a.logits.shape[:1] if a.reduction == "none" else ()
    saved = a.logits.new_empty(a.logits.shape) if a.keep else nothing(a.logits)
    return a.logits.new_empty(rows), saved


def _cross_entropy_backward(
    place: Place, a: Arguments, given: Arguments, outputs: Sequence[Any], grads: Sequence[Any]
) -> Mapping[str, Any]:
    cache = place.side.softmax_cross_entropy.Cache(place.give(outputs[1]), a.reduction == "none")
    return {
        "logits": place.side.softmax_cross_entropy.backward(place.give(grads[0]), cache).dlogits
    }


CROSS_ENTROPY = Operator(
    "cross_entropy",
    "Tensor logits, Tensor targets, Tensor? weight, float label_smoothing, int ignore_index, "
    "str reduction, bool keep",
    2,
    forward=_cross_entropy,
    shapes=_cross_entropy_shapes,
    alike=("logits", "targets", "weight"),
    backward=_cross_entropy_backward,
    differentiable=("logits",),
    unread=lambda a: ("logits", "targets", "weight"),
    read=lambda a: (1,),
    steady=(1,),
)
