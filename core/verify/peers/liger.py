"""Liger-Kernel's Triton kernels.

Its cross-entropy is documented to overwrite the logits by the gradient, to save memory; its GEGLU,
its SwiGLU and its rotary embedding overwrite their inputs too, the latter in some memory layouts.
Each gets a copy, so that the judge's inputs stay unchanged.
"""

from __future__ import annotations

from typing import Any

import torch

from twofold.core.verify.peers import interpreted

interpreted.prepare()

from liger_kernel.ops import (  # noqa: E402  (the interpreter is made fit for it first)
    LigerCrossEntropyFunction,
    LigerGELUMulFunction,
    LigerLayerNormFunction,
    LigerRMSNormFunction,
    LigerRopeFunction,
    LigerSiLUMulFunction,
    LigerSoftmaxFunction,
)


def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Normalise the rows."""
    return LigerLayerNormFunction.apply(x, weight, bias, eps)


def rms_norm(x: Any, weight: Any, eps: float = 1e-6, offset: float = 0.0) -> Any:
    """Divide the rows by their root mean square, all of it in float32."""
    return LigerRMSNormFunction.apply(x, weight, eps, offset, "gemma", False)


def rms_norm_of_llama(x: Any, weight: Any, eps: float = 1e-6, offset: float = 0.0) -> Any:
    """Divide the rows by their root mean square, casting them before the gain."""
    return LigerRMSNormFunction.apply(x, weight, eps, offset, "llama", False)


def rms_norm_in_place(x: Any, weight: Any, eps: float = 1e-6, offset: float = 0.0) -> Any:
    """Divide the rows by their root mean square, with the defaults: dx overwrites dout."""
    return LigerRMSNormFunction.apply(x, weight, eps, offset)


def softmax(x: Any) -> Any:
    """Take the softmax over the last axis."""
    return LigerSoftmaxFunction.apply(x)


def cross_entropy(
    logits: Any, targets: Any, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Any:
    """Take softmax cross-entropy, on a copy in the same memory layout."""
    return _cross_entropy(logits.clone(), targets, label_smoothing, reduction)


def cross_entropy_of_contiguous(
    logits: Any, targets: Any, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Any:
    """Take softmax cross-entropy, on a contiguous copy."""
    copy = logits.clone(memory_format=torch.contiguous_format)
    return _cross_entropy(copy, targets, label_smoothing, reduction)


def cross_entropy_in_place(
    logits: Any, targets: Any, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Any:
    """Take softmax cross-entropy, on the logits themselves."""
    return _cross_entropy(logits, targets, label_smoothing, reduction)


def gelu_tanh(x: Any, kind: str) -> Any:
    """Compute tanh GELU as GEGLU, with the other half of its input 1."""
    if kind != "gelu_tanh":
        raise NotImplementedError("it is gelu_tanh")
    return LigerGELUMulFunction.apply(x.clone(), torch.ones_like(x))


def swiglu(gate: Any, up: Any) -> Any:
    """Compute SwiGLU, on copies."""
    return LigerSiLUMulFunction.apply(gate.clone(), up.clone())


def geglu_tanh(gate: Any, up: Any, kind: str) -> Any:
    """Compute GEGLU in its tanh form, on copies."""
    if kind != "gelu_tanh":
        raise NotImplementedError("it is gelu_tanh")
    return LigerGELUMulFunction.apply(gate.clone(), up.clone())


def rotary(q: Any, k: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    """Rotate q and k, the two halves of a head against each other."""
    if interleaved:
        raise NotImplementedError("it turns halves")
    position_ids, unsqueeze_dim, rotary_dim = None, 1, 2 * cos.shape[-1]
    return LigerRopeFunction.apply(
        q.clone(), k.clone(), cos, sin, position_ids, unsqueeze_dim, rotary_dim
    )


def rotary_with_own_gradients(q: Any, k: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    """Rotate q and k; a product gives the incoming gradients memory of their own."""
    return tuple(x * 1.0 for x in rotary(q, k, cos, sin, interleaved))


def _cross_entropy(logits: Any, targets: Any, label_smoothing: float, reduction: str) -> Any:
    ignore_index, lse_square_scale = -100, 0.0
    loss, *_ = LigerCrossEntropyFunction.apply(
        logits, targets, None, ignore_index, lse_square_scale, label_smoothing, reduction
    )
    return loss
