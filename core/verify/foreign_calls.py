"""Cases of contracts as plain calls on torch tensors; which are judged is in `foreign_table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from twofold.core import ops
from twofold.core.verify import attention_bound, domains
from twofold.core.verify.contract import Inapplicable
from twofold.core.verify.contracts import attention, attention_packed
from twofold.core.verify.foreign_packed import OPTION, Sequences
from twofold.core.verify.report import contract_module
from twofold.core.verify.rounding import Approx

BLOCKS = ("block_mask", "block_size")


class Call(NamedTuple):
    """A case as a plain call: tensors in order, options by name, and the outputs' gradients.

    `values` are those of options that are None, for functions that do not take None for them.
    """

    tensors: Mapping[str, Any]
    options: Mapping[str, Any]
    gradients: Mapping[str, Any]
    values: Mapping[str, Any] = {}


def attention_inputs(case: attention.Case) -> attention.Inputs:
    """Return the contract's inputs, but every query has its first key.

    A packed sequence has as many keys as queries, or more, where causal or a window says so.
    """
    made = attention.inputs(replace(case, packed=False))
    if made.mask is not None:
        made.mask[..., :1] = True
    lengths = made.key_lengths
    made = made._replace(key_lengths=None if lengths is None else np.maximum(lengths, 1))
    if not case.packed:
        return made
    rng = np.random.default_rng(case.seed)
    queries, keys = (
        np.diff(attention_packed.starts(rng, case.batch, n)) for n in (case.seqlen_q, case.seqlen_k)
    )
    return attention_packed.packed(made, queries, _enough(case, queries, keys))


def _enough(case: attention.Case, queries: domains.Array, keys: domains.Array) -> domains.Array:
    """Return how many keys packed sequences must have for every query to have one."""
    if case.causal is True or case.window_size is not None:
        return queries
    least = queries if case.causal == "bottom-right" else np.minimum(queries, 1)
    return np.maximum(keys, least)


def attention_call(side: ops.Side, case: attention.Case, given: attention.Inputs) -> Call:
    """Return softmax(q·kᵀ·scale)·v as a plain call.

    Raises:
        Inapplicable: a query of a packed sequence has no key.
    """
    if given.cu_seqlens_q is not None and given.cu_seqlens_k is not None:
        queries, keys = np.diff(given.cu_seqlens_q), np.diff(given.cu_seqlens_k)
        if np.any(keys != _enough(case, queries, keys)):
            raise Inapplicable("a query without keys is what its conventions make it")
    tensors = {n: attention.place(side, getattr(given, n), case) for n in ("q", "k", "v")}
    options = attention.placed(side, case, given)._asdict()
    options |= {"enable_gqa": case.groups > 1, "causal": bool(case.causal)}
    sequences = Sequences(*(options.pop(name) for name in Sequences._fields))
    options[OPTION] = sequences if case.packed else None
    for name in ("score_mod", "dropout_p", "seed", "rotary", *BLOCKS):
        options.pop(name)
    gradients = {"out": attention.place(side, given.dout, case)}
    return Call(tensors, options, gradients, _whole(side, case))


def _whole(side: ops.Side, case: attention.Case) -> dict[str, Any]:
    """Return what options say that change nothing, for those who insist on them."""
    batch, queries, keys = case.batch, case.seqlen_q, case.seqlen_k
    return {
        "softmax_scale": attention.scale(case),
        "mask": side.asarray(np.ones((batch, 1, 1, keys), bool)),
        "key_lengths": side.asarray(np.full(batch, keys, np.int32)),
        "bias": side.asarray(np.zeros((batch, 1, queries, keys)), case.dtype),
    }


def key_mask(mask: Any, q: Any) -> Any:
    """Return a mask (batch, 1, 1, keys) as (batch, keys)."""
    return mask[:, 0, 0].expand(q.shape[0], -1)


def added(mask: Any, q: Any) -> Any:
    """Return what is added to scores where a mask is False, −∞, and where it is True, 0."""
    import torch

    nothing = torch.zeros(mask.shape, dtype=q.dtype, device=mask.device)
    return nothing.masked_fill(~mask, float("-inf"))


def attention_outputs(tensors: Mapping[str, Any], outputs: Sequence[Any]) -> Sequence[str]:
    """Name the outputs: one for every pair of query and key is weights, not lse.

    With one key, weights (B, H, M, 1) may be an lse of one axis too many: they are not judged.
    """
    q, k = tensors["q"], tensors["k"]
    if len(outputs) > 1 and _shape(outputs[1]) == (*q.shape[:3], k.shape[2]):
        return ("out", "weights" if k.shape[2] > 1 else "")
    return ("out", "lse")


def attention_weights(case: attention.Case, given: attention.Inputs) -> Mapping[str, Approx]:
    """Return the weights with their bound: those that are multiplied with v, divided by their sum.

    They are cast to v's dtype, or more exact.
    """
    with np.errstate(all="ignore"):
        p = attention_bound.forward(attention.problem(case, given)).weights  # (B, H, M, N)
    divided = p.on.u_function * (np.abs(p.value) + p.error)
    return {"weights": Approx(p.value, p.error + np.where(p.value > 0, divided, 0.0), p.on)}


def attention_narrowed(case: attention.Case, size: int | None) -> attention.Case:
    """Give masks and biases four axes, and make causal attention square but where it is aligned.

    Packed sequences have neither.

    `size` is a head_dim, mostly a power of two. A window is then all that hides a key, so that
    every query has one, and so it has where it is aligned at the bottom right of as many keys.
    """
    case = case if size is None else replace(case, head_dim=size)
    if case.window_size is not None:
        case = replace(case, mask=None, key_lengths=False)
    if case.packed:
        case = replace(case, mask=None, bias=None)
    if case.mask is not None:
        case = replace(case, mask=case.mask.rjust(4, "1"))
    if case.bias is not None:
        case = replace(case, bias=case.bias.rjust(4, "1"))
    if case.causal is True or case.window_size is not None:
        return replace(case, seqlen_k=case.seqlen_q)
    if case.causal == "bottom-right":
        case = replace(case, seqlen_k=max(case.seqlen_q, case.seqlen_k))
    alike = case.seqlen_q == case.seqlen_k and not case.packed
    return replace(case, causal=bool(case.causal)) if alike else case


def attention_small(case: attention.Case) -> attention.Case:
    """Cut down what costs, mask nothing, and make every other case square."""
    small = replace(attention.small(case), head_dim=case.head_dim, mask=None, key_lengths=False)
    square = small.causal or small.window_size is not None or case.seed % 2 == 0
    return replace(small, seqlen_k=small.seqlen_q) if square else small


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
        x = getattr(given, name)
        return None if x is None else domains.place(side, x, case.dtype, case.layout)

    gradients = {"out": placed("dout")}
    if case.stream_gradient:
        gradients["h"] = placed("dh")
    how = {name: getattr(case, name) for name in options} | {"residual": placed("residual")}
    return Call({name: placed(name) for name in tensors}, how, gradients)


def norm_outputs(tensors: Mapping[str, Any], outputs: Sequence[Any]) -> Sequence[str]:
    """Name the outputs: what is shaped as x beside out is the stream h; statistics are not."""
    stream = len(outputs) > 1 and _shape(outputs[1]) == tuple(tensors["x"].shape)
    return ("out", "h" if stream else "")


def norm_narrowed(case: Any, size: int | None) -> Any:
    """Let the stream have a gradient of its own only where there is a residual."""
    return replace(case, stream_gradient=case.residual and case.stream_gradient)


def _shape(x: Any) -> tuple[int, ...] | None:
    return tuple(x.shape) if hasattr(x, "shape") else None


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
    """Return softmax with cross-entropy as a plain call; raise `Inapplicable` for no rows' mean."""
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
    """Make every optimizer an Adam, whose moments float16 can hold: they may be float32."""
    case = case if case.optimizer == "adamw" else replace(case, optimizer="adam")
    overflows = case.dtype == "float16" and case.magnitude in ("huge", "offset")
    return replace(case, magnitude="unit") if overflows else case
