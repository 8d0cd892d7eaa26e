"""`scaled_dot_product_attention`, with the signature of torch's own."""

from __future__ import annotations

import math
from typing import Any

import torch

from twofold.adapters.attention import attention
from twofold.adapters.given import alike, masks
from twofold.adapters.sides import refuse_nested
from twofold.reference import checks

HEADS, BATCH = slice(-3, -2), slice(0, -3)  # axes of a shape, which may be absent


def mask_and_bias(
    given: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return torch's mask as a mask if it is boolean, otherwise as a bias of this dtype."""
    if given is None or given.dtype == torch.bool:
        return given, None
    return None, given.to(dtype)


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attend, with the arguments of `torch.nn.functional.scaled_dot_product_attention`.

    A row that may attend to nothing is 0. A floating mask has a gradient. The seed of the dropout
    mask is drawn from torch's generator for the query's device.

    Args:
        query: (..., H, M, E); H and the axes before it may be absent.
        key, value: (..., K, N, E) and (..., K, N, V); the axes before N are broadcastable with
            query's, except that with `enable_gqa` K divides H.
        attn_mask: broadcastable to (..., H, M, N): True where a query may attend, or floating and
            added to the scores; or torch's `causal_upper_left` or `causal_lower_right`.
        dropout_p: probability of dropping a weight, whether a model is in training or not.
        is_causal: query i attends to keys j ≤ i; not allowed with a mask.
        scale: 1/√E by default.
        enable_gqa: whether heads may share keys.

    Returns:
        (..., H, M, V).

    Raises:
        RuntimeError: a mask was given with `is_causal`, as in torch.
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    if is_causal and attn_mask is not None:
        raise RuntimeError("attn_mask was given with is_causal; it must be None then")
    given = {"query": query, "key": key, "value": value}
    refuse_nested(given.items())
    alike(**given)
    for name, x in given.items():
        if x.ndim < 2:
            raise ValueError(f"{name}.shape is {tuple(x.shape)}; it must have two axes or more")
    if scale is not None:
        checks.number("scale", scale)
        checks.require(math.isfinite(scale), "scale", scale, "finite")
    causal: bool | str = "top-left" if is_causal else False
    mask_given = attn_mask
    # By name: importing its module would import Triton before the interpreter can be chosen.
    if attn_mask is not None and type(attn_mask).__name__ == "CausalBias":
        diagonal: Any = attn_mask
        lengths = (diagonal.seq_len_q, diagonal.seq_len_kv)
        expected = (query.shape[-2], key.shape[-2])
        checks.require(lengths == expected, "attn_mask's lengths", lengths, str(expected))
        upper = diagonal.variant.name == "UPPER_LEFT"
        causal, attn_mask = "top-left" if upper else "bottom-right", None
    masks(query, "query", attn_mask=attn_mask)
    if 0 in (query.numel(), key.numel(), value.numel()):  # torch has only to make the shape
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, mask_given, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    (M, E), (N, V) = query.shape[-2:], value.shape[-2:]
    if key.shape[-2:] != (N, E):
        raise ValueError(f"key.shape is {tuple(key.shape)}; it must be (…, {N}, {E})")
    batch = _broadcast("batch", BATCH, **given)
    H: tuple[int, ...]  # empty if all have two axes
    if enable_gqa:
        H, K = query.shape[HEADS], _broadcast("heads", HEADS, key=key, value=value)
        if math.prod(H) % math.prod(K):
            words = f"it must divide query's heads, {math.prod(H)}"
            raise ValueError(f"key.shape[-3] is {math.prod(K)}; {words}")
    else:
        H = K = _broadcast("heads, unless enable_gqa,", HEADS, **given)
    B, width = math.prod(batch), max(E, V)
    if scale is None and width != E:  # else attention's default, with no guard in a graph
        scale = 1 / math.sqrt(E)
    q = _heads(query, (*batch, *H, M, E), B, width)
    k = _heads(key, (*batch, *K, N, E), B, width)
    v = _heads(value, (*batch, *K, N, V), B, width)
    mask, bias = mask_and_bias(attn_mask, query.dtype)
    if attn_mask is not None:
        whole = (*batch, *H, M, N)
        if _broadcast_or_none(attn_mask.shape, whole) != whole:
            was = tuple(attn_mask.shape)
            raise ValueError(f"attn_mask.shape is {was}; it must be broadcastable to {whole}")
        if len(batch) > 1 and attn_mask.ndim > 3:
            mask, bias = (
                None if x is None else x.expand(whole).reshape(B, *whole[-3:]) for x in (mask, bias)
            )
    out = attention(
        q, k, v,
        softmax_scale=scale,
        causal=causal,
        mask=mask,
        bias=bias,
        dropout_p=dropout_p,
    )  # fmt: skip
    return out[..., :V].reshape(*batch, *H, M, V)


def _broadcast_or_none(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that shapes broadcast to, or None if they do not."""
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        return None


def _broadcast(what: str, axes: slice, **given: torch.Tensor) -> tuple[int, ...]:
    """Return the shape that some axes of all tensors broadcast to; `what` names these axes."""
    shape: tuple[int, ...] = ()
    for name, x in given.items():
        found = _broadcast_or_none(shape, x.shape[axes])
        if found is None:
            must = f"its {what} must be broadcastable with {shape}"
            raise ValueError(f"{name}.shape is {tuple(x.shape)}; {must}")
        shape = found
    return shape


def _heads(x: torch.Tensor, shape: tuple[int, ...], B: int, width: int) -> torch.Tensor:
    """Return x as (B, heads, length, width); with one head if the shape has none."""
    heads = shape[HEADS] or (1,)
    return wide(x.expand(shape).reshape(B, *heads, *shape[-2:]), width)


def wide(x: torch.Tensor, width: int) -> torch.Tensor:
    """Pad the features of x with zeros to `width`."""
    missing = width - x.shape[-1]
    return torch.nn.functional.pad(x, (0, missing)) if missing else x
