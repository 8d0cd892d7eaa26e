"""Multi-head attention, projections included, as one custom torch operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from twofold.adapters.arguments import autocast
from twofold.adapters.attention import OPTIONS, listed, options
from twofold.adapters.custom import Operator, Tensors
from twofold.adapters.sides import Place
from twofold.reference.multi_head_attention import check_turns
from twofold.reference.rotary import Rotary

WEIGHTS = ("w_qkv", "b_qkv", "w_out", "b_out")
LEARNED = ("x", *WEIGHTS, "context", "bias", "sinks")


def multi_head_attention(
    x: torch.Tensor,
    w_qkv: torch.Tensor,
    b_qkv: torch.Tensor | None,
    w_out: torch.Tensor,
    b_out: torch.Tensor | None,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    context: torch.Tensor | None = None,
    rotary: tuple[torch.Tensor, torch.Tensor, bool] | Rotary | None = None,
    bias: torch.Tensor | None = None,
    **how: Any,
) -> torch.Tensor:
    """Attend from x (B, M, E) to itself or to a context (B, N, E).

    Arguments are those of `reference.multi_head_attention.forward`; `how` takes the other ones of
    `adapters.attention.attention` except `return_lse`. Weights, biases, x, the context, bias and
    sinks have gradients. Under autocast x, the context, weights, biases and `bias` are cast.
    Backward recomputes the projections: only the arguments are saved. If any weight or bias learns,
    the gradients of all are computed, even that of w_qkv if only w_out learns.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    x, w_qkv, b_qkv, w_out, b_out, context, bias = autocast(
        x, w_qkv, b_qkv, w_out, b_out, context, bias
    )
    check_turns(rotary)
    once = False
    if rotary is not None and not isinstance(rotary, Rotary):
        rotary, once = Rotary(rotary[0], rotary[1], interleaved=rotary[2]), True
    return OPERATOR(
        x, w_qkv, b_qkv, w_out, b_out, num_heads, num_kv_heads, context, once,
        *listed(x, rotary=rotary, bias=bias, **how),
    )  # fmt: skip


def _computed(place: Place, given: SimpleNamespace) -> tuple[Any, Any]:
    """Return the output and the cache."""
    how = options(place, given)
    if given.once:
        how["rotary"] = (given.cos, given.sin, given.interleaved)
    return place.side.multi_head_attention.forward(
        given.x,
        given.w_qkv,
        given.b_qkv,
        given.w_out,
        given.b_out,
        num_heads=given.num_heads,
        num_kv_heads=given.num_kv_heads,
        context=given.context,
        **how,
    )


def _forward(place: Place, a: SimpleNamespace, given: SimpleNamespace) -> Tensors:
    return (place.take(_computed(place, given)[0], a.x),)


def _shapes(a: SimpleNamespace) -> Tensors:
    return (a.x.new_empty(a.x.shape),)


def _backward(
    place: Place,
    a: SimpleNamespace,
    given: SimpleNamespace,
    outputs: Sequence[Any],
    grads: Sequence[Any],
) -> Mapping[str, Any]:
    cache = _computed(place, given)[1]
    asked = {f"of_{name}": name in a.wanted for name in ("x", "context", "bias")}
    of_weights = any(name in a.wanted for name in WEIGHTS)
    found = place.side.multi_head_attention.backward(
        place.give(grads[0]), cache, of_weights=of_weights, **asked
    )
    return {name: getattr(found, f"d{name}") for name in LEARNED}


OPERATOR = Operator(
    "multi_head_attention",
    "Tensor x, Tensor w_qkv, Tensor? b_qkv, Tensor w_out, Tensor? b_out, int num_heads, "
    f"int? num_kv_heads, Tensor? context, bool once, {OPTIONS}",
    1,
    forward=_forward,
    shapes=_shapes,
    alike=("x", *WEIGHTS, "context", "bias"),
    backward=_backward,
    differentiable=LEARNED,
)
