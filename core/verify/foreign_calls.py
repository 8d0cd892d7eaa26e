"""The operators that `foreign` can judge as a plain call on torch tensors, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from twofold.core import ops
from twofold.core.verify import domains
from twofold.core.verify.contracts import attention
from twofold.core.verify.report import contract_module
from twofold.reference.activation import KINDS

PACKED = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
BLOCKS = ("block_mask", "block_size")
ALIASES = {
    "softmax_scale": ("softmax_scale", "sm_scale", "scale"),
    "causal": ("causal", "is_causal"),
    "mask": ("mask", "attn_mask"),
}


class Call(NamedTuple):
    """A case as a plain call: tensors in order, options by name, and the outputs' gradients."""

    tensors: Mapping[str, Any]
    options: Mapping[str, Any]
    gradients: Mapping[str, Any]


@dataclass(frozen=True)
class Plain:
    """How an operator's contract becomes a plain call.

    Attributes:
        call: makes it of (side, case, inputs).
        outputs: what the function returns, in order; the first is a tensor or all of it.
        options: the options a function may have, each with the values that the case's fields take
            where it has not.
        always: the values that fields of the case have in every plain call.
        pinned: cases that are always run, some of them past the first tile of an ordinary kernel.
        exercised: cases that are always run of a function that has the option.
        implied: a case of an option that a function may do without, reading it from the shapes.
        outside: what no case has, by the option or output without which it means nothing.
        narrowed: brings a case into the plain domain, where `always` cannot say how.
        inputs: where they are not the contract's.
        small: cuts a case down for the properties, where the contract's asks for too much.
        any_dtype: outputs whose dtype need not be their input's.
        conventions: properties that no plain call is held to.
    """

    call: Callable[[ops.Side, Any, Any], Call]
    outputs: Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    always: Mapping[str, Any]
    pinned: Sequence[Mapping[str, Any]]
    exercised: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    implied: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    narrowed: Callable[[Any, int | None], Any] = lambda case, size: case
    inputs: Callable[[Any], Any] | None = None
    small: Callable[[Any], Any] | None = None
    any_dtype: Sequence[str] = ()
    conventions: Sequence[str] = ()


def attention_inputs(case: attention.Case) -> attention.Inputs:
    """Return the contract's inputs, but every query has its first key."""
    made = attention.inputs(case)
    if made.mask is not None:
        made.mask[..., :1] = True
    lengths = made.key_lengths
    return made._replace(key_lengths=None if lengths is None else np.maximum(lengths, 1))


def attention_call(side: ops.Side, case: attention.Case, given: attention.Inputs) -> Call:
    """Return softmax(q·kᵀ·scale)·v as a plain call."""
    tensors = {n: attention.place(side, getattr(given, n), case) for n in ("q", "k", "v")}
    options = attention.placed(side, case, given)._asdict()
    options |= {"softmax_scale": attention.scale(case), "enable_gqa": case.groups > 1}
    for name in ("score_mod", "dropout_p", "seed", *PACKED, "rotary", *BLOCKS):
        options.pop(name)
    return Call(tensors, options, {"out": attention.place(side, given.dout, case)})


def attention_narrowed(case: attention.Case, size: int | None) -> attention.Case:
    """Give masks and biases four axes, and make causal attention square.

    `size` is a head_dim, mostly a power of two. A window is then all that hides a key, so that
    every query has one.
    """
    case = replace(case, causal=bool(case.causal))
    case = case if size is None else replace(case, head_dim=size)
    if case.window_size is not None:
        case = replace(case, mask=None, key_lengths=False)
    if case.mask is not None:
        case = replace(case, mask=case.mask.rjust(4, "1"))
    if case.bias is not None:
        case = replace(case, bias=case.bias.rjust(4, "1"))
    square = case.causal or case.window_size is not None
    return replace(case, seqlen_k=case.seqlen_q) if square else case


def attention_small(case: attention.Case) -> attention.Case:
    """Cut down what costs, mask nothing, and make every other case square."""
    small = replace(attention.small(case), head_dim=case.head_dim, mask=None, key_lengths=False)
    square = small.causal or small.window_size is not None or case.seed % 2 == 0
    return replace(small, seqlen_k=small.seqlen_q) if square else small


def layer_norm_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return layer normalisation as a plain call."""
    placed = {
        n: domains.place(side, getattr(given, n), case.dtype, case.layout)
        for n in ("x", "weight", "bias", "dout")
    }
    dout = placed.pop("dout")
    return Call(placed, {"eps": case.eps}, {"out": dout})


def linear_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return x·Wᵀ + b, activated, as a plain call."""
    placed = {
        n: None if x is None else domains.place(side, x, case.dtype, case.layout)
        for n, x in given._asdict().items()
    }
    dout = placed.pop("dout")
    return Call(placed, {"activation": case.activation}, {"out": dout})


def embedding_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return a look-up as a plain call."""
    table, dout = (
        domains.place(side, x, case.dtype, case.layout) for x in (given.table, given.dout)
    )
    ids = side.asarray(given.ids, case.ids_dtype)
    return Call({"ids": ids, "table": table}, {}, {"out": dout})


def rotary_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return the rotation of q and k as a plain call; cos and sin are (L, pairs)."""
    module = contract_module("rotary")
    q, k = module.place(side, given.q, given.k, case)
    dq, dk = module.place(side, given.dq_out, given.dk_out, case)
    cos, sin = (side.asarray(x, module.table_dtype(case)) for x in (given.cos, given.sin))
    tensors = {"q": q, "k": k, "cos": cos, "sin": sin}
    return Call(tensors, {"interleaved": case.interleaved}, {"q": dq, "k": dk})


def softmax_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return softmax over the last axis as a plain call."""
    x, dout = (domains.place(side, a, case.dtype, case.layout) for a in given)
    return Call({"x": x}, {}, {"out": dout})


def cross_entropy_inputs(case: Any) -> Any:
    """Return the contract's inputs, but the first row counts."""
    module = contract_module("softmax_cross_entropy")
    made = module.inputs(case)
    if made.targets[0] == module.IGNORE_INDEX:
        made.targets[0] = 0
    return made


def cross_entropy_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return softmax with cross-entropy as a plain call."""
    logits = domains.place(side, given.logits, case.dtype, case.layout)
    tensors = {"logits": logits, "targets": side.asarray(given.targets, "int64")}
    options = {
        "label_smoothing": case.label_smoothing,
        "reduction": case.reduction,
        "ignore_index": contract_module("softmax_cross_entropy").IGNORE_INDEX,
    }
    return Call(tensors, options, {"loss": side.asarray(given.dloss, case.dtype)})


def activation_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return an activation as a plain call."""
    x, dout = (domains.place(side, a, case.dtype, case.layout) for a in (given.x, given.dout))
    return Call({"x": x}, {"kind": case.kind}, {"out": dout})


def optimizer_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return the steps of Adam, from moments of zero, as a plain call; grads are (steps, n)."""
    tensors = {n: side.asarray(getattr(given, n), case.dtype) for n in ("params", "grads")}
    options = {
        "lr": case.lr,
        "beta1": case.momentum,
        "beta2": case.beta2,
        "eps": case.eps,
        "weight_decay": case.weight_decay,
        "decoupled": case.optimizer == "adamw",
    }
    return Call(tensors, options, {})


def optimizer_narrowed(case: Any, size: int | None) -> Any:
    """Make every optimizer an Adam."""
    return case if case.optimizer == "adamw" else replace(case, optimizer="adam")


SMALL: dict[str, Any] = {"batch": 2, "heads": 3, "seqlen_q": 21, "seqlen_k": 37, "head_dim": 16}
SQUARE: dict[str, Any] = {**SMALL, "seqlen_q": 49, "seqlen_k": 49}

PLAIN = {
    "attention": Plain(
        call=attention_call,
        outputs=("out", "lse"),
        options={
            "softmax_scale": {"softmax_scale": None},
            "causal": {"causal": False},
            "mask": {"mask": None},
            "key_lengths": {"key_lengths": False},
            "window_size": {"window_size": None},
            "softcap": {"softcap": None},
            "alibi_slopes": {"alibi": None},
            "bias": {"bias": None},
            "sinks": {"sinks": False},
            "enable_gqa": {"groups": 1},
        },
        always={
            "dropout_p": 0.0,
            "dlse": False,
            "tile": None,
            "score_mod": None,
            "packed": False,
            "block_mask": None,
            "rotary": None,
            "block_size": None,
        },
        pinned=(
            {"seqlen_q": 33, "seqlen_k": 131, "head_dim": 16},
            {"seqlen_q": 65, "seqlen_k": 65, "head_dim": 64, "causal": True, "batch": 2},
            {"seqlen_q": 259, "seqlen_k": 259, "head_dim": 16, "causal": True},
            {"seqlen_q": 67, "seqlen_k": 300, "head_dim": 16},
        ),
        exercised={
            "softmax_scale": ({**SMALL, "softmax_scale": 0.1},),
            "mask": ({**SMALL, "mask": "BHMN"}, {**SMALL, "mask": "111N"}),
            "key_lengths": ({**SMALL, "key_lengths": True},),
            "window_size": ({**SQUARE, "window_size": (16, 3)}, {**SQUARE, "window_size": (5, 0)}),
            "softcap": ({**SMALL, "softcap": 1.0, "logits": 10.0},),
            "alibi_slopes": ({**SMALL, "alibi": "H"}, {**SQUARE, "alibi": "H", "causal": True}),
            "bias": ({**SMALL, "bias": "BHMN"}, {**SMALL, "bias": "1H1N"}),
            "sinks": ({**SMALL, "sinks": True},),
            "enable_gqa": ({**SMALL, "heads": 4, "groups": 2},),
        },
        implied={"enable_gqa": {**SMALL, "heads": 4, "groups": 2}},
        outside={
            "causal": "causal with more keys than queries, or fewer",
            "mask": "a query without keys",
            "key_lengths": "a query without keys",
            "window_size": "a window with a mask, or with more keys than queries, or fewer",
            "lse": "the gradient of lse",
        },
        narrowed=attention_narrowed,
        inputs=attention_inputs,
        small=attention_small,
        conventions=("masked rows",),
    ),
    "layer_norm": Plain(
        call=layer_norm_call,
        outputs=("out",),
        options={"eps": {"eps": 1e-5}},
        always={"dropout_p": 0.0, "residual": False, "stream_gradient": False, "tile": None},
        pinned=(
            {"rows": 37, "columns": 257},
            {"rows": 2, "columns": 1031},
            {"rows": 515, "columns": 17},
        ),
        exercised={"eps": ({"rows": 5, "columns": 33, "magnitude": "tiny", "eps": 1e-3},)},
    ),
    "linear": Plain(
        call=linear_call,
        outputs=("out",),
        options={"activation": {"activation": None}},
        always={"tile": None, "into": False},
        pinned=(
            {"rows": 37, "features_in": 257, "features_out": 67},
            {"rows": 259, "features_in": 17, "features_out": 261},
            {"rows": 3, "features_in": 515, "features_out": 5},
        ),
        exercised={
            "activation": tuple(
                {"rows": 5, "features_in": 33, "activation": kind} for kind in KINDS
            )
        },
    ),
    "embedding": Plain(
        call=embedding_call,
        outputs=("out",),
        options={},
        always={"tile": None},
        pinned=(
            {"length": 199, "columns": 129, "spread": "frequent"},
            {"length": 515, "rows": 300, "columns": 17},
        ),
        outside={"out": "ids outside the table"},
        conventions=("outside the table",),
    ),
    "rotary": Plain(
        call=rotary_call,
        outputs=("q", "k"),
        options={"interleaved": {"interleaved": False}},
        always={"tile": None, "batched": False},
        pinned=(
            {"length": 65, "head_dim": 64, "pairs": 32},
            {"batch": 2, "length": 1},
            {"length": 259, "head_dim": 16, "pairs": 8},
        ),
        exercised={
            "interleaved": (
                {"batch": 2, "length": 37, "head_dim": 16, "pairs": 8, "interleaved": True},
            )
        },
    ),
    "softmax": Plain(
        call=softmax_call,
        outputs=("out",),
        options={},
        outside={"out": "elements that are −∞"},
        always={"masked": False, "tile": None},
        pinned=(
            {"rows": 37, "columns": 257},
            {"rows": 2, "columns": 4099},
            {"rows": 515, "columns": 17},
        ),
    ),
    "softmax_cross_entropy": Plain(
        call=cross_entropy_call,
        outputs=("loss",),
        options={
            "label_smoothing": {"label_smoothing": 0.0},
            "reduction": {"reduction": "mean"},
            "ignore_index": {"ignored": 0.0},
        },
        always={
            "index_dtype": "int64",
            "probabilities": False,
            "masked": False,
            "weight": False,
            "tile": None,
        },
        pinned=(
            {"rows": 37, "classes": 257},
            {"rows": 2, "classes": 4099},
            {"rows": 1, "classes": 19, "magnitude": "offset"},
            {"rows": 515, "classes": 17},
        ),
        exercised={
            "label_smoothing": ({"rows": 5, "classes": 33, "label_smoothing": 0.1},),
            "reduction": tuple(
                {"rows": 5, "classes": 33, "reduction": how} for how in ("sum", "none")
            ),
            "ignore_index": ({"rows": 37, "classes": 33, "ignored": 0.3},),
        },
        outside={
            "loss": "logits that are −∞; targets that are probabilities",
            "ignore_index": "a mean of no rows",
        },
        inputs=cross_entropy_inputs,
        any_dtype=("loss",),
        conventions=("no such class",),
    ),
    "activation": Plain(
        call=activation_call,
        outputs=("out",),
        options={"kind": {"kind": "gelu"}},
        always={"bias": False, "split": None},
        pinned=({"rows": 41, "columns": 25}, {"rows": 515, "columns": 17}),
        exercised={"kind": tuple({"rows": 41, "columns": 25, "kind": kind} for kind in KINDS)},
        conventions=("bias in every row", "bias elsewhere"),
    ),
    "optimizers": Plain(
        call=optimizer_call,
        outputs=("params",),
        options={
            "lr": {"lr": 1e-3},
            "beta1": {"momentum": 0.9},
            "beta2": {"beta2": 0.999},
            "eps": {"eps": 1e-8},
            "weight_decay": {"weight_decay": 0.0},
            "decoupled": {"optimizer": "adam"},
        },
        always={"first_step": 1, "clip": None, "decaying": 1.0, "layout": "contiguous"},
        pinned=(
            {"numel": 1025, "steps": 4, "optimizer": "adamw", "weight_decay": 0.1},
            {"numel": 4099},
        ),
        exercised={
            "lr": ({"lr": 0.1, "steps": 2},),
            "beta1": ({"momentum": 0.5, "steps": 3},),
            "beta2": ({"beta2": 0.9, "steps": 3},),
            "eps": ({"eps": 1e-3, "magnitude": "tiny"},),
            "weight_decay": ({"optimizer": "adam", "weight_decay": 0.1, "steps": 2},),
            "decoupled": ({"weight_decay": 0.1, "steps": 2},),
        },
        outside={"params": "moments that are not zero at first"},
        narrowed=optimizer_narrowed,
    ),
}
