"""Multi-head attention, projections and all, as one custom operator of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from twofold.adapters.custom import Operator, Tensors, autocast, seed_tensor
from twofold.adapters.sides import Place


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
    causal: bool = False,
    mask: torch.Tensor | None = None,
    key_lengths: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor | None = None,
    rotary: tuple[torch.Tensor, torch.Tensor, bool] | None = None,
    allow_tf32: bool = False,
) -> torch.Tensor:
    """Attend from x (B, M, E) to itself or to a context (B, N, E).

    Arguments are those of `reference.multi_head_attention.forward`; a seed of None is drawn by
    torch. All but the angles and masks have gradients. Under autocast they are cast. Backward
    computes the projections again: saved is what was given.
    """
    x, w_qkv, b_qkv, w_out, b_out, context = autocast(x, w_qkv, b_qkv, w_out, b_out, context)
    cos, sin, interleaved = rotary or (None, None, False)
    return OPERATOR(
        x, w_qkv, b_qkv, w_out, b_out, num_heads, num_kv_heads, context, causal, mask, key_lengths,
        dropout_p, seed_tensor(dropout_p, seed), cos, sin, interleaved, allow_tf32,
    )  # fmt: skip


def _computed(place: Place, a: SimpleNamespace, given: SimpleNamespace) -> tuple[Any, Any]:
    """Return the output and the cache."""
    more = {} if place.side.name == "reference" else {"allow_tf32": a.allow_tf32}
    found: tuple[Any, Any] = place.side.multi_head_attention.forward(
        given.x,
        given.w_qkv,
        given.b_qkv,
        given.w_out,
        given.b_out,
        num_heads=a.num_heads,
        num_kv_heads=a.num_kv_heads,
        context=given.context,
        causal=a.causal,
        mask=given.mask,
        key_lengths=given.key_lengths,
        dropout_p=a.dropout_p,
        seed=0 if a.seed is None else int(a.seed),
        rotary=None if a.cos is None else (given.cos, given.sin, a.interleaved),
        **more,
    )
    return found


def _forward(place: Place, a: SimpleNamespace, given: SimpleNamespace) -> Tensors:
    return (place.take(_computed(place, a, given)[0], a.x),)


def _shapes(a: SimpleNamespace) -> Tensors:
    return (a.x.new_empty(a.x.shape),)


def _backward(
    place: Place,
    a: SimpleNamespace,
    given: SimpleNamespace,
    outputs: Sequence[Any],
    grads: Sequence[Any],
) -> Mapping[str, Any]:
    cache = _computed(place, a, given)[1]
    found = place.side.multi_head_attention.backward(place.give(grads[0]), cache)
    return {name.removeprefix("d"): gradient for name, gradient in found._asdict().items()}


OPERATOR = Operator(
    "multi_head_attention",
    "Tensor x, Tensor w_qkv, Tensor? b_qkv, Tensor w_out, Tensor? b_out, int num_heads, "
    "int? num_kv_heads, Tensor? context, bool causal, Tensor? mask, Tensor? key_lengths, "
    "float dropout_p, Tensor? seed, Tensor? cos, Tensor? sin, bool interleaved, bool allow_tf32",
    1,
    forward=_forward,
    shapes=_shapes,
    backward=_backward,
    differentiable=("x", "w_qkv", "b_qkv", "w_out", "b_out", "context"),
)
