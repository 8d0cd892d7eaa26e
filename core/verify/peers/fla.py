"""flash-linear-attention's Triton kernels (PyPI: fla-core): those that are also operators here.

Its attention is causal, takes (B, L, H, D), and multiplies float32 in tf32, Triton's default.
"""

from __future__ import annotations

import warnings
from typing import Any

from twofold.core.verify.peers import interpreted

interpreted.prepare()

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no GPU
    from fla.modules.activations import swiglu as fused_swiglu
    from fla.modules.fused_cross_entropy import cross_entropy_loss
    from fla.modules.norm.layernorm import layer_norm as fused_layer_norm
    from fla.modules.norm.layernorm import rms_norm as fused_rms_norm
    from fla.modules.rotary import rotary_embedding
    from fla.ops.attn.parallel import parallel_attn


def attention(
    q: Any, k: Any, v: Any, softmax_scale: float | None = None, causal: bool = False
) -> Any:
    """Compute softmax(q·kᵀ·scale)·v, causal."""
    if not causal:
        raise NotImplementedError("it is causal")
    turned = (x.transpose(1, 2) for x in (q, k, v))
    return parallel_attn(*turned, scale=softmax_scale).transpose(1, 2)


def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Normalise the rows."""
    return fused_layer_norm(x, weight, bias, eps=eps)


def layer_norm_of_full_blocks(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Normalise rows whose length is a power of two, which leaves no lane of a block masked."""
    _fills_a_block(x)
    return layer_norm(x, weight, bias, eps)


def rms_norm(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """Divide the rows by their root mean square."""
    return fused_rms_norm(x, weight, None, eps=eps)


def rms_norm_of_full_blocks(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """Divide rows whose length is a power of two by their root mean square."""
    _fills_a_block(x)
    return rms_norm(x, weight, eps)


def _fills_a_block(x: Any) -> None:
    columns = x.shape[-1]
    if columns & (columns - 1):
        raise NotImplementedError("of rows that fill a block")


def cross_entropy(
    logits: Any, targets: Any, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Any:
    """Take softmax cross-entropy; the loss per row is reduced as in the library's module."""
    loss, _ = cross_entropy_loss(logits, targets, label_smoothing=label_smoothing)
    if reduction == "none":
        return loss
    ignore_index = -100
    counted = (targets != ignore_index).sum() if reduction == "mean" else 1
    return loss.sum() / counted


def swiglu(gate: Any, up: Any) -> Any:
    """Compute SwiGLU."""
    return fused_swiglu(gate, up)


def rotary(q: Any, k: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    """Rotate q and k, with tables of their dtype."""
    q, k = (
        rotary_embedding(x.transpose(1, 2), cos, sin, interleaved=interleaved).transpose(1, 2)
        for x in (q, k)
    )
    return q, k
