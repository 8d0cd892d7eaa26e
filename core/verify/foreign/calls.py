"""Cases of contracts as plain calls on torch tensors; `table` says which operators can be judged.

Those of attention are in `attention`, of decoding in `decoding`, of merging in `merging`, of
pooling in `pooling`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from twofold.core import ops
from twofold.core.verify import domains
from twofold.core.verify.contract import Inapplicable
from twofold.core.verify.report import contract_module


class Call(NamedTuple):
    """A case as a plain call: tensors in order, options by name, and the outputs' gradients.

    `values` gives a value for each option that is None, for functions that do not accept None.
    """

    tensors: Mapping[str, Any]
    options: Mapping[str, Any]
    gradients: Mapping[str, Any]
    values: Mapping[str, Any] = {}


STALE = -7.0  # what memory held before
USUAL = -100  # the index that is ignored by torch, and by functions not told which


def with_stale(x: domains.Array, live: domains.Array) -> domains.Array:
    """Return x with a stale number where it is NaN and not live."""
    return np.where(live | ~np.isnan(x), x, STALE)


def shape_of(x: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor, None for anything else."""
    return tuple(x.shape) if hasattr(x, "shape") else None


def layer_norm_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return layer normalisation as a plain call."""
    return _norm_call(side, case, given, ("x", "weight", "bias"), ("eps",))


def rms_norm_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return root mean square layer normalisation as a plain call."""
    return _norm_call(side, case, given, ("x", "weight"), ("eps", "offset"))


def _norm_call(
    side: ops.Side, case: Any, given: Any, tensors: Sequence[str], options: Sequence[str]
) -> Call:
    def placed(name: str) -> Any:
        return domains.place(side, getattr(given, name), case.dtype, case.layout)

    given_to = {name: placed(name) for name in tensors}  # first: inputs are counted in this order
    how = {name: getattr(case, name) for name in options} | {"residual": placed("residual")}
    gradients = {"out": placed("dout")}
    if case.stream_gradient:
        gradients["h"] = placed("dh")
    return Call(given_to, how, gradients)


def norm_outputs(tensors: Mapping[str, Any], outputs: Sequence[Any]) -> Sequence[str]:
    """Name the outputs: one besides out with the shape of x is the stream h; statistics are not."""
    stream = len(outputs) > 1 and shape_of(outputs[1]) == tuple(tensors["x"].shape)
    return ("out", "h" if stream else "")


def norm_narrowed(case: Any, size: int | None) -> Any:
    """Give the stream a gradient of its own only where there is a residual."""
    return replace(case, stream_gradient=case.residual and case.stream_gradient)


def linear_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return x·Wᵀ + b, activated, as a plain call."""
    placed = {
        n: domains.place(side, x, case.dtype, case.layout) for n, x in given._asdict().items()
    }
    dout = placed.pop("dout")
    return Call(placed, {"activation": case.activation}, {"out": dout})


def embedding_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return a look-up as a plain call."""
    ids = side.asarray(given.ids, case.ids_dtype)
    table, dout = (
        domains.place(side, x, case.dtype, case.layout) for x in (given.table, given.dout)
    )
    return Call({"ids": ids, "table": table}, {}, {"out": dout})


def rotary_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return the rotation of q and k as a plain call; cos and sin are (L, pairs)."""
    module = contract_module("rotary")
    q, k = module.place(side, given.q, given.k, case)
    dq, dk = module.place(side, given.dq_out, given.dk_out, case)
    cos, sin = (side.asarray(x, module.table_dtype(case)) for x in (given.cos, given.sin))
    tensors = {"q": q, "k": k, "cos": cos, "sin": sin}
    return Call(tensors, {"interleaved": case.interleaved}, {"q": dq, "k": dk})


def whole_heads(case: Any) -> Any:
    """Make every feature one of a pair that is rotated."""
    pairs = max(1, case.head_dim // 2)
    return replace(case, head_dim=2 * pairs, pairs=pairs)


def softmax_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return softmax over the last axis as a plain call."""
    x, dout = (domains.place(side, a, case.dtype, case.layout) for a in given)
    return Call({"x": x}, {}, {"out": dout})


def cross_entropy_inputs(case: Any) -> Any:
    """Return the contract's inputs, changed so that the first row is not ignored."""
    module = contract_module("softmax_cross_entropy")
    made = module.inputs(case)
    if made.targets[0] == module.IGNORE_INDEX:
        made.targets[0] = 0
    return made


def cross_entropy_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return softmax cross-entropy as a plain call; raise `Inapplicable` for a mean of no rows."""
    module = contract_module("softmax_cross_entropy")
    if case.reduction == "mean" and np.all(given.targets == module.IGNORE_INDEX):
        raise Inapplicable("a mean of no rows is what its conventions make it")
    logits = domains.place(side, given.logits, case.dtype, case.layout)
    tensors = {"logits": logits, "targets": side.asarray(given.targets, "int64")}
    options = {
        "label_smoothing": case.label_smoothing,
        "reduction": case.reduction,
        "ignore_index": module.IGNORE_INDEX,
    }
    return Call(tensors, options, {"loss": side.asarray(given.dloss, case.dtype)})


def usually_ignored(call: Call) -> Call:
    """Return the call with targets of `USUAL` in ignored rows."""
    targets = call.tensors["targets"]
    targets = targets.masked_fill(targets == call.options["ignore_index"], USUAL)
    return call._replace(tensors={**call.tensors, "targets": targets})


def activation_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return an activation as a plain call."""
    x, dout = (domains.place(side, a, case.dtype, case.layout) for a in (given.x, given.dout))
    return Call({"x": x}, {"kind": case.kind}, {"out": dout})


def gated_activation_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return f(gate)·up as a plain call."""
    gate, up = contract_module("gated_activation").placed(side, case, given.gate, given.up)
    dout = domains.place(side, given.dout, case.dtype, case.layout)
    return Call({"gate": gate, "up": up}, {"kind": case.kind}, {"out": dout})


def optimizer_call(side: ops.Side, case: Any, given: Any) -> Call:
    """Return steps of Adam, from moments of zero, as a plain call; grads are (steps, n)."""
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
    """Make every optimizer Adam or AdamW, with moments small enough for float16 (or in float32)."""
    case = case if case.optimizer == "adamw" else replace(case, optimizer="adam")
    overflows = case.dtype == "float16" and case.magnitude in ("huge", "offset")
    return replace(case, magnitude="unit") if overflows else case
