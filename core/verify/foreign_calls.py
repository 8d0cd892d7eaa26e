"""The operators that `foreign` can judge, each as a plain call on torch tensors."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from twofold.core import ops
from twofold.core.verify import attention_bound, domains
from twofold.core.verify.contracts import attention
from twofold.core.verify.rounding import Approx, exact

ALIASES = {
    "softmax_scale": ("softmax_scale", "sm_scale", "scale"),
    "causal": ("causal", "is_causal"),
    "mask": ("mask", "attn_mask"),
}


class Call(NamedTuple):
    """A case as a plain call: tensors in order, options by name, and the output's gradient."""

    tensors: Mapping[str, Any]
    options: Mapping[str, Any]
    dout: Any


@dataclass(frozen=True)
class Plain:
    """How an operator's contract becomes a plain call.

    Attributes:
        call: makes it of a case.
        outputs: what the function returns, in order; the first is a tensor or all of it.
        options: the options a function may have, each with the values that the case's fields take
            where it has not.
        always: the values that fields of the case have in every plain call.
        pinned: cases that are always run.
        narrowed: brings a case into the plain domain, where `always` cannot say how.
        truth: where it is not the contract's.
    """

    call: Callable[[ops.Side, Any], Call]
    outputs: Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    always: Mapping[str, Any]
    pinned: Sequence[Mapping[str, Any]]
    narrowed: Callable[[Any, int | None], Any] = lambda case, size: case
    truth: Callable[[Any], dict[str, Approx]] | None = None


def contract_module(operator: str) -> Any:
    """Return the module of an operator's contract."""
    return importlib.import_module(f"twofold.core.verify.contracts.{operator}")


def attention_inputs(case: attention.Case) -> attention.Inputs:
    """Return the contract's inputs, but every query has its first key."""
    made = attention.inputs(case)
    if made.mask is not None:
        made.mask[..., :1] = True
    lengths = made.key_lengths
    return made._replace(key_lengths=None if lengths is None else np.maximum(lengths, 1))


def attention_call(side: ops.Side, case: attention.Case) -> Call:
    """Return softmax(q·kᵀ·scale)·v as a plain call."""
    made = attention_inputs(case)
    tensors = {n: attention.place(side, getattr(made, n), case) for n in ("q", "k", "v")}
    options: dict[str, Any] = {"softmax_scale": attention.scale(case), "causal": case.causal}
    options["mask"] = attention.place_mask(side, made.mask, case)
    lengths = made.key_lengths
    options["key_lengths"] = None if lengths is None else side.asarray(lengths)
    return Call(tensors, options, attention.place(side, made.dout, case))


def attention_truth(case: attention.Case) -> dict[str, Approx]:
    """Return the contract's truth of `attention_inputs`."""
    made = attention_inputs(case)
    x = attention.problem(case, made)
    forward = attention_bound.forward(x)
    dlse = np.zeros((*made.q.shape[:-1], 1))
    gradients = attention_bound.backward(x, forward, exact(made.dout, x.q.on), exact(dlse, x.q.on))
    return {"out": forward.out, "lse": forward.lse[..., 0], **gradients._asdict()}


def attention_narrowed(case: attention.Case, size: int | None) -> attention.Case:
    """Give masks four axes, make causal attention square, and most head_dims powers of two."""
    case = case if size is None else replace(case, head_dim=size)
    if case.mask is not None:
        case = replace(case, mask=case.mask.rjust(4, "1"))
    return replace(case, seqlen_k=case.seqlen_q) if case.causal else case


def layer_norm_call(side: ops.Side, case: Any) -> Call:
    """Return layer normalisation as a plain call."""
    made = contract_module("layer_norm").inputs(case)
    placed = {
        n: domains.place(side, getattr(made, n), case.dtype, case.layout)
        for n in ("x", "weight", "bias", "dout")
    }
    dout = placed.pop("dout")
    return Call(placed, {"eps": case.eps}, dout)


def cross_entropy_call(side: ops.Side, case: Any) -> Call:
    """Return softmax with cross-entropy as a plain call."""
    made = contract_module("softmax_cross_entropy").inputs(case)
    logits = domains.place(side, made.logits, case.dtype, case.layout)
    tensors = {"logits": logits, "targets": side.asarray(made.targets, "int64")}
    options = {"label_smoothing": case.label_smoothing, "reduction": case.reduction}
    return Call(tensors, options, side.asarray(made.dloss, case.dtype))


def activation_call(side: ops.Side, case: Any) -> Call:
    """Return an activation as a plain call."""
    x, dout = (
        domains.place(side, a, case.dtype, case.layout)
        for a in contract_module("activation").inputs(case)
    )
    return Call({"x": x}, {"kind": case.kind}, dout)


PLAIN = {
    "attention": Plain(
        call=attention_call,
        outputs=("out", "lse"),
        options={
            "softmax_scale": {"softmax_scale": None},
            "causal": {"causal": False},
            "mask": {"mask": None},
            "key_lengths": {"key_lengths": False},
        },
        always={"dropout_p": 0.0, "dlse": False, "tile": None},
        pinned=(
            {"seqlen_q": 33, "seqlen_k": 131, "head_dim": 16},
            {"seqlen_q": 65, "seqlen_k": 65, "head_dim": 64, "causal": True, "batch": 2},
        ),
        narrowed=attention_narrowed,
        truth=attention_truth,
    ),
    "layer_norm": Plain(
        call=layer_norm_call,
        outputs=("out",),
        options={"eps": {"eps": 1e-5}},
        always={"dropout_p": 0.0, "residual": False, "stream_gradient": False, "tile": None},
        pinned=({"rows": 37, "columns": 257}, {"rows": 2, "columns": 1031}),
    ),
    "softmax_cross_entropy": Plain(
        call=cross_entropy_call,
        outputs=("loss",),
        options={
            "label_smoothing": {"label_smoothing": 0.0},
            "reduction": {"reduction": "mean"},
        },
        always={
            "index_dtype": "int64",
            "probabilities": False,
            "ignored": 0.0,
            "masked": False,
            "weight": False,
        },
        pinned=({"rows": 37, "classes": 257}, {"rows": 2, "classes": 4099}),
    ),
    "activation": Plain(
        call=activation_call,
        outputs=("out",),
        options={"kind": {"kind": "gelu"}},
        always={},
        pinned=({"rows": 41, "columns": 25},),
    ),
}
