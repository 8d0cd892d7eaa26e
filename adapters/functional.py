"""`scaled_dot_product_attention`, called as torch's own is."""

from __future__ import annotations

import math

import torch

from twofold.adapters.attention import attention
from twofold.reference.checks import dtype_name


def check_mask(name: str, mask: torch.Tensor) -> None:
    """Raise `TypeError` unless a mask is boolean or something to add: 0 and 1 would be added."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{name} has dtype {dtype_name(mask)}; it must be bool or floating")


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

    A row that may attend to nothing is 0. A mask of floating numbers has a gradient. The mask of
    dropout is drawn from a seed that is drawn from torch's generator of the CPU.

    Args:
        query: (..., H, M, E); what stands before H, and H, may be missing.
        key, value: (..., K, N, E) and (..., K, N, V), what stands before K broadcastable with
            query's; K is H unless `enable_gqa`, and then divides it.
        attn_mask: broadcastable to (..., H, M, N): True where a query may attend, or floating and
            added to the scores.
        dropout_p: probability of dropping a weight, whether a model is in training or not.
        is_causal: query i attends to keys j ≤ i; not along with a mask.
        scale: 1/√E by default.
        enable_gqa: whether heads may share keys.

    Returns:
        (..., H, M, V).

    Raises:
        RuntimeError: a mask and `is_causal`, as torch.
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    if is_causal and attn_mask is not None:
        raise RuntimeError("attn_mask was given with is_causal; it must be None then")
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim < 2:
            raise ValueError(f"{name}.shape is {tuple(x.shape)}; it must have two axes or more")
    M, E = query.shape[-2:]
    N, V = key.shape[-2], value.shape[-1]
    H, K = (x.shape[-3] if x.ndim > 2 else 1 for x in (query, key))
    if H != K and not enable_gqa:
        if K == 1 or H == 1:
            H = K = max(H, K)
        else:
            raise ValueError(f"key.shape[-3] is {K}; it must be {H} unless enable_gqa")
    batch = torch.broadcast_shapes(*(x.shape[:-3] for x in (query, key, value)))
    B, width = math.prod(batch), max(E, V)
    q = _heads(query, (*batch, H, M, E), B, width)
    k = _heads(key, (*batch, K, N, E), B, width)
    v = _heads(value, (*batch, K, N, V), B, width)
    mask = bias = None
    if attn_mask is not None:
        check_mask("attn_mask", attn_mask)
        if attn_mask.ndim > 4:
            attn_mask = attn_mask.expand(*batch, H, M, N).reshape(B, H, M, N)
        if attn_mask.dtype == torch.bool:
            mask = attn_mask
        else:
            bias = attn_mask.to(query.dtype)
    out = attention(
        q, k, v,
        softmax_scale=1 / math.sqrt(E) if scale is None else scale,
        causal="top-left" if is_causal else False,
        mask=mask,
        bias=bias,
        dropout_p=dropout_p,
    )  # fmt: skip
    out = out[..., :V].reshape(*batch, H, M, V)
    return out if max(query.ndim, key.ndim, value.ndim) > 2 else out.reshape(M, V)


def _heads(x: torch.Tensor, shape: tuple[int, ...], B: int, width: int) -> torch.Tensor:
    """Return x as (B, heads, length, width)."""
    return wide(x.expand(shape).reshape(B, *shape[-3:]), width)


def wide(x: torch.Tensor, width: int) -> torch.Tensor:
    """Put zeros behind the features of x until it has so many."""
    missing = width - x.shape[-1]
    return torch.nn.functional.pad(x, (0, missing)) if missing else x
