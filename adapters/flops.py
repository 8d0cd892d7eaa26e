"""How `torch.utils.flop_counter.FlopCounterMode` counts our operators, as it counts torch's.

    from twofold.adapters import flops

    flops.register()

A multiplication and an addition are two operations. Causal attention counts as the whole square, as
in torch; packed sequences count with every query paired with every key.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from twofold.adapters import attention, layers, multi_head_attention
from twofold.adapters.custom import Operator

Shape = tuple[int, ...]
FORWARD, BACKWARD = 2, 5  # products of queries and keys: scores again, and four gradients


@functools.cache
def register() -> None:
    """Register linear layers, attention and multi-head attention with torch's operation counter.

    The counter imports Triton: if kernels are to be interpreted, call `sides.use("triton")` first.
    """
    from torch.utils.flop_counter import register_flop_formula

    for operator, formula in (
        (layers.LINEAR, _linear),
        (attention.OPERATOR, _attention),
        (multi_head_attention.OPERATOR, _multi_head_attention),
    ):
        name = operator.op.name().partition("::")[2]
        packet, back = (getattr(torch.ops.twofold, n) for n in (name, f"{name}_backward"))
        register_flop_formula(packet)(functools.partial(_of_forward, operator, formula))
        register_flop_formula(back)(functools.partial(_of_backward, operator, formula))


def _of_forward(operator: Operator, formula: Any, *args: Any, **_: Any) -> int:
    return int(formula(vars(operator.named(args)), None))


def _of_backward(
    operator: Operator,
    formula: Any,
    grads: Any,
    which: Any,
    outputs: Any,
    wanted: list[bool],
    *args: Any,
    **_: Any,
) -> int:
    named = zip(operator.differentiable, wanted, strict=True)
    return int(formula(vars(operator.named(args)), {n for n, asked in named if asked}))


def _product(x: Shape, weight: Shape, wanted: set[str] | None, *names: str) -> int:
    """Return the operations of x·Wᵀ, or of its gradients that are wanted, by name."""
    passes = 1 if wanted is None else sum(name in wanted for name in names)
    return 2 * math.prod(x) * weight[0] * passes


def _linear(a: dict[str, Any], wanted: set[str] | None) -> int:
    return _product(a["x"], a["weight"], wanted, "x", "weight")


def _attention(a: dict[str, Any], wanted: set[str] | None) -> int:
    (B, H, M, D), N = a["q"], a["k"][2]
    products = FORWARD if wanted is None else BACKWARD
    return 2 * B * H * M * N * D * products


def _multi_head_attention(a: dict[str, Any], wanted: set[str] | None) -> int:
    x, context, H = a["x"], a["context"] or a["x"], a["num_heads"]
    D = x[-1] // H
    q = (H * D, x[-1])
    kv = (a["w_qkv"][0] - H * D, x[-1])
    total = _product(x, q, wanted, "x", "w_qkv") + _product(x, a["w_out"], wanted, "x", "w_out")
    total += _product(context, kv, wanted, "context" if a["context"] else "x", "w_qkv")
    heads = {"q": (x[0], H, x[1], D), "k": (x[0], H, context[1], D)}
    return total + _attention(heads, wanted)
