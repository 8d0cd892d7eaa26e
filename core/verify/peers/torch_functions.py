"""PyTorch's layer normalisation, RMSNorm, softmax, cross-entropy, activations and Adam."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from twofold.core.verify.foreign.optimizers import stepping


def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Normalise the rows."""
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """Divide the rows by their root mean square."""
    return functional.rms_norm(x, x.shape[-1:], weight, eps)


def softmax(x: Any) -> Any:
    """Take the softmax over the last axis."""
    return functional.softmax(x, dim=-1)


def cross_entropy(
    logits: Any, targets: Any, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Any:
    """Take softmax cross-entropy."""
    return functional.cross_entropy(
        logits, targets, reduction=reduction, label_smoothing=label_smoothing
    )


def _activation(name: str, function: Callable[[Any], Any]) -> Callable[..., Any]:
    def activation(x: Any, kind: str) -> Any:
        """Apply one of the activations; the others are refused."""
        if kind != name:
            raise NotImplementedError(f"it is {name}")
        return function(x)

    return activation


relu = _activation("relu", functional.relu)
gelu = _activation("gelu", functional.gelu)
silu = _activation("silu", functional.silu)
gelu_tanh = _activation("gelu_tanh", lambda x: functional.gelu(x, approximate="tanh"))


def swiglu(gate: Any, up: Any) -> Any:
    """Compute SwiGLU as SiLU of the gate and a product."""
    return functional.silu(gate) * up


def _adam(**how: bool) -> Callable[..., Any]:
    def adam(
        params: Any,
        grads: Any,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> Any:
        """Take a step of Adam, or AdamW if the decay is decoupled, for each row of grads."""
        kind: Any = torch.optim.AdamW if decoupled else torch.optim.Adam
        steps = stepping(functools.partial(kind, **how))
        return steps(
            params, grads, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay
        )

    return adam


adam = _adam(foreach=False, fused=False)
adam_foreach = _adam(foreach=True)
adam_fused = _adam(fused=True)
