"""The operators that `foreign` can judge as a plain call on torch tensors, and how."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from twofold.core import ops
from twofold.core.verify.foreign import attention, calls, decoding, merging, orders, pooling
from twofold.core.verify.foreign.operators import OURS_ALONE
from twofold.core.verify.foreign.plain import Plain
from twofold.core.verify.report import contract_module
from twofold.reference.activation import KINDS

# For rows that are independent, the widest past what a single block usually holds. The last two are
# whole tiles only: kernels have a code path for them, without masks.
ROWS = (
    {"rows": 37, "columns": 257},
    {"rows": 2, "columns": 4099},
    {"rows": 515, "columns": 17},
    {"rows": 1201, "columns": 3},
    {"rows": 256, "columns": 64},
    {"rows": 2, "columns": 8192},
)
# No wider: functions with a row in one block usually take at most 16,384, or 65,536, columns.
WIDE_NORM, WIDE_SOFTMAX = {"rows": 1, "columns": 12301}, {"rows": 1, "columns": 40009}
# For an activation: every kind is exercised, and a smaller case tells which one it is.
EVERY_KIND = {"kind": tuple({"rows": 41, "columns": 25, "kind": kind} for kind in KINDS)}
KIND = {"kind": tuple({"rows": 5, "columns": 33, "kind": kind} for kind in KINDS)}
# For a norm, the fields without the residual stream, the sum that is normalised.
RESIDUAL = {"residual": False, "stream_gradient": False}
STREAMS = (
    {"rows": 37, "columns": 257, "residual": True},
    {"rows": 5, "columns": 33, "residual": True, "stream_gradient": True},
)
UNROUNDED = {
    "it normalises the sum with a residual before that is rounded; ours normalise what is stored": (
        ({"rows": 37, "columns": 257, "residual": True},),
        {"unrounded": True},
    )
}
ROUNDED = {
    "it rounds what is normalised before the gain, as models of Llama do; ours round once": (
        ({"rows": 37, "columns": 257}, {"rows": 37, "columns": 64}),
        {"rounded": True},
    )
}
ROUNDED_GATE = {
    "it rounds the activated gate before the product with up; ours round once": (
        EVERY_KIND["kind"],
        {"rounded": True},
    )
}
# For a norm without a gain or a shift: the value that changes nothing, and what others change.
NO_WEIGHT, NO_BIAS = (1.0, ("out", "dx", "dresidual")), (0.0, ("out",))
# For a norm without the option: the values in use, in rows so small that eps shows.
EPS = {
    "eps": tuple(
        {"rows": 5, "columns": 33, "magnitude": "tiny", "eps": eps}
        for eps in (1e-5, 1e-6, 1e-8, 1e-12, 1e-3)
    )
}
# For RMS norm, whether it multiplies by its weight or, like Gemma's, by 1 + weight.
OFFSET = {"offset": tuple({"rows": 5, "columns": 33, "offset": offset} for offset in (0.0, 1.0))}

PLAIN = {
    "attention": attention.PLAIN,
    "attention_decode": decoding.PLAIN,
    "merge_attention": merging.PLAIN,
    "layer_norm": Plain(
        call=calls.layer_norm_call,
        shapes="x (…, columns), weight and bias (columns,)",
        outputs=("out", "h"),
        named=calls.norm_outputs,
        options={"eps": {"eps": 1e-5}, "residual": RESIDUAL},
        learned=("residual",),
        neutral={"weight": NO_WEIGHT, "bias": NO_BIAS},
        insisted={"residual": {"residual": True}},
        always={"dropout_p": 0.0, "tile": None, "into": "", "unrounded": False},
        pinned=ROWS,
        long=(WIDE_NORM,),
        far=({"rows": 3, "columns": 17, "layout": "far rows"},),
        exercised={
            "eps": ({"rows": 5, "columns": 33, "magnitude": "tiny", "eps": 1e-3},),
            "residual": STREAMS,
        },
        either=EPS,
        instead_of_ours=UNROUNDED,
        narrowed=calls.norm_narrowed,
    ),
    "rms_norm": Plain(
        call=calls.rms_norm_call,
        shapes="x (…, columns), weight (columns,)",
        outputs=("out", "h"),
        named=calls.norm_outputs,
        options={"eps": {"eps": 1e-6}, "offset": {"offset": 0.0}, "residual": RESIDUAL},
        learned=("residual",),
        neutral={"weight": NO_WEIGHT},
        insisted={"residual": {"residual": True}},
        always={"tile": None, "into": "", "unrounded": False, "rounded": False},
        pinned=ROWS,
        long=(WIDE_NORM,),
        far=({"rows": 3, "columns": 17, "layout": "far rows"},),
        exercised={
            "eps": ({"rows": 5, "columns": 33, "magnitude": "tiny", "eps": 1e-3},),
            "offset": ({"rows": 5, "columns": 33, "offset": 1.0},),
            "residual": STREAMS,
        },
        either={**OFFSET, **EPS},
        instead_of_ours={**ROUNDED, **UNROUNDED},
        narrowed=calls.norm_narrowed,
    ),
    "linear": Plain(
        call=calls.linear_call,
        shapes="x (…, in), weight (out, in), bias (out,)",
        outputs=("out",),
        options={"activation": {"activation": None}},
        optional={"bias": ({"bias": False}, {"bias": True})},
        arranged={"weight (in, out)": orders.weight_of_columns},
        fewer={
            "x (rows, in)": (orders.rows_alone, {}),
            "x (rows, in), weight (in, out)": (
                lambda function: orders.rows_alone(orders.weight_of_columns(function)),
                {},
            ),
        },
        arranged_case={"rows": 5, "features_in": 33, "features_out": 33},
        either={
            "activation": tuple(
                {"rows": 5, "features_in": 33, "activation": kind} for kind in (None, *KINDS)
            )
        },
        always=OURS_ALONE,
        pinned=(
            {"rows": 37, "features_in": 257, "features_out": 67},
            {"rows": 259, "features_in": 17, "features_out": 261},
            {"rows": 3, "features_in": 515, "features_out": 5},
            {"rows": 128, "features_in": 256, "features_out": 128},
        ),
        long=({"rows": 3, "features_in": 4161, "features_out": 5},),
        far=({"rows": 3, "features_in": 17, "features_out": 3, "layout": "far rows"},),
        exercised={
            "activation": tuple(
                {"rows": 5, "features_in": 33, "activation": kind} for kind in KINDS
            )
        },
    ),
    "embedding": Plain(
        call=calls.embedding_call,
        shapes="ids (…), table (rows, columns)",
        outputs=("out",),
        options={},
        always={"tile": None, "into": ""},
        pinned=(
            {"length": 199, "columns": 129, "spread": "frequent"},
            {"length": 515, "rows": 300, "columns": 17},
            {"length": 5, "columns": 4099},
            {"length": 64, "columns": 256},
        ),
        long=({"length": 37, "rows": 70001, "columns": 3},),
        far=({"length": 3, "rows": 3, "columns": 17, "layout": "far rows"},),
        tables={"dtable": {"length": 40, "rows": 5}},
        outside={"out": "ids outside the table"},
        conventions=("outside the table",),
    ),
    "pooling": pooling.PLAIN,
    "rotary": Plain(
        call=calls.rotary_call,
        shapes="q, k (batch, heads, length, head_dim), cos, sin (length, pairs)",
        outputs=("q", "k"),
        options={"interleaved": {"interleaved": False}},
        either={
            "interleaved": tuple(
                {"length": 5, "head_dim": 16, "pairs": 8, "interleaved": x} for x in (False, True)
            )
        },
        arranged={
            "q, k (batch, length, heads, head_dim)": orders.rotary_heads_inside,
            "cos, sin (length, head_dim)": orders.tables_of_features,
            "cos, sin (length, head_dim), those of a pair beside each other": partial(
                orders.tables_of_features, beside=True
            ),
            "cos, sin (batch, length, head_dim)": partial(orders.tables_of_features, batches=True),
            "cos, sin (batch, length, head_dim), those of a pair beside each other": partial(
                orders.tables_of_features, batches=True, beside=True
            ),
        },
        fewer={"q, k (length, heads, head_dim)": (orders.rotary_tokens, {})},
        arranged_case={
            "batch": 2,
            "heads": 3,
            "key_heads": 3,
            "length": 5,
            "head_dim": 16,
            "pairs": 8,
        },
        limits={
            "it turns whole heads alone, and is judged where head_dim is 2·pairs": (
                {"length": 5, "head_dim": 17, "pairs": 4},
                calls.whole_heads,
            ),
            "its cos and sin have the dtype of q": (
                {"length": 5, "head_dim": 16, "pairs": 8},
                lambda case: replace(case, own_tables=True),
            ),
        },
        always={"tile": None, "batched": False},
        pinned=(
            {"length": 65, "head_dim": 64, "pairs": 32},
            {"batch": 2, "length": 1},
            {"length": 259, "head_dim": 16, "pairs": 8},
            {"length": 128, "head_dim": 128, "pairs": 64},
        ),
        long=({"heads": 1, "key_heads": 1, "length": 4099, "head_dim": 16, "pairs": 8},),
        far=(
            {"batch": 3, "head_dim": 16, "pairs": 8, "layout": "far batches"},
            {"length": 3, "head_dim": 16, "pairs": 8, "layout": "far rows"},
        ),
        exercised={
            "interleaved": (
                {"batch": 2, "length": 37, "head_dim": 16, "pairs": 8, "interleaved": True},
            )
        },
    ),
    "softmax": Plain(
        call=calls.softmax_call,
        shapes="x (…, columns)",
        outputs=("out",),
        options={},
        fewer={"(columns,)": (orders.each_row, {})},
        arranged_case={"rows": 3, "columns": 5},
        outside={"out": "elements that are −∞, but for those in front of all others"},
        always={"masked": False, "tile": None},
        pinned=ROWS,
        long=(WIDE_SOFTMAX,),
        far=({"rows": 3, "columns": 17, "layout": "far rows"},),
    ),
    "softmax_cross_entropy": Plain(
        call=calls.cross_entropy_call,
        shapes="logits (rows, classes), targets (rows,)",
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
            "keep": True,
            "tile": None,
        },
        pinned=(
            {"rows": 37, "classes": 257},
            {"rows": 2, "classes": 4099},
            {"rows": 1, "classes": 19, "magnitude": "offset"},
            {"rows": 37, "classes": 2, "magnitude": "huge"},  # some rows have both far below 0
            {"rows": 515, "classes": 17},
            {"rows": 2, "classes": 8192},
        ),
        long=({"rows": 1, "classes": 70001},),
        far=({"rows": 3, "classes": 17, "layout": "far rows"},),
        exercised={
            "label_smoothing": ({"rows": 5, "classes": 33, "label_smoothing": 0.1},),
            "reduction": tuple(
                {"rows": 5, "classes": 33, "reduction": how} for how in ("sum", "none")
            ),
            "ignore_index": ({"rows": 37, "classes": 33, "ignored": 0.3},),
        },
        either={
            "reduction": tuple(
                {"rows": 5, "classes": 33, "reduction": how} for how in ("mean", "sum", "none")
            )
        },
        implied={"ignore_index": {"rows": 37, "classes": 33, "ignored": 0.3}},
        unsaid={"ignore_index": calls.usually_ignored},
        outside={
            "loss": "logits that are −∞, but for those in front of all others; targets that are "
            "probabilities",
            "ignore_index": "a mean of no rows",
        },
        inputs=calls.cross_entropy_inputs,
        any_dtype=("loss",),
        conventions=("no such class",),
        spared={"label_smoothing": (0.0, "impossible classes")},  # which are 0·∞ without
    ),
    "activation": Plain(
        call=calls.activation_call,
        shapes="x (…)",
        outputs=("out",),
        options={"kind": {"kind": "gelu"}},
        always={"bias": False, "split": None},
        pinned=(
            {"rows": 41, "columns": 25},
            {"rows": 515, "columns": 17},
            {"rows": 64, "columns": 128},
        ),
        far=({"rows": 3, "columns": 17, "layout": "far rows"},),
        exercised=EVERY_KIND,
        either=KIND,
        conventions=("bias in every row", "bias elsewhere"),
    ),
    "gated_activation": Plain(
        call=calls.gated_activation_call,
        shapes="gate, up (…, columns)",
        outputs=("out",),
        options={"kind": {"kind": "silu"}},
        always={"into": "", "tile": None, "rounded": False},
        pinned=(
            {"rows": 41, "columns": 25},
            {"rows": 3, "columns": 4099, "packed": True},
            {"rows": 515, "columns": 17},
            {"rows": 64, "columns": 128},
        ),
        far=({"rows": 3, "columns": 17, "layout": "far rows"},),
        exercised=EVERY_KIND,
        either=KIND,
        instead_of_ours=ROUNDED_GATE,
        arranged={"up before gate": orders.up_before_gate},
        fewer={
            "gate, up (rows, columns)": (partial(orders.rows_alone, tensors=2), {}),
            "up, gate (rows, columns)": (
                lambda function: orders.rows_alone(orders.up_before_gate(function), 2),
                {},
            ),
        },
        arranged_case={"rows": 5, "columns": 33},
    ),
    "optimizers": Plain(
        call=calls.optimizer_call,
        shapes="params (n,), grads (steps, n): a step for each row, from moments of 0",
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
            {"numel": 5, "steps": 40},
            {"numel": 8192, "steps": 2},
        ),
        exercised={
            "lr": ({"lr": 0.1, "steps": 2},),
            "beta1": ({"momentum": 0.5, "steps": 3},),
            "beta2": ({"beta2": 0.9, "steps": 3},),
            "eps": ({"eps": 1e-3, "magnitude": "tiny"},),
            "weight_decay": ({"optimizer": "adam", "weight_decay": 0.1, "steps": 2},),
            "decoupled": ({"weight_decay": 0.1, "steps": 2},),
        },
        either={
            "decoupled": tuple(
                {"optimizer": optimizer, "weight_decay": 0.1, "numel": 5, "lr": 0.1, "steps": 3}
                for optimizer in ("adam", "adamw")
            )
        },
        outside={"params": "moments that are not zero at first"},
        narrowed=calls.optimizer_narrowed,
    ),
}


def tensor_names(operator: str) -> tuple[str, ...]:
    """Return the names of the tensors that a plain call of an operator takes, in order."""
    entry, module = PLAIN[operator], contract_module(operator)
    case = module.Case(**entry.pinned[0])
    given = (entry.inputs or module.inputs)(case)
    return tuple(entry.call(ops.load("reference"), case, given).tensors)
