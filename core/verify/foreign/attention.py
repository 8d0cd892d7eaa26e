"""Attention as a plain call: f(q, k, v, options…) -> out, or out and lse, or out and the weights.

Every query has a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core import ops
from twofold.core.verify import attention_bound, domains
from twofold.core.verify.contract import Inapplicable
from twofold.core.verify.contracts import attention, attention_packed
from twofold.core.verify.foreign import orders
from twofold.core.verify.foreign.calls import Call, shape_of
from twofold.core.verify.foreign.packed import OPTION, Sequences
from twofold.core.verify.foreign.plain import Handed, Plain
from twofold.core.verify.rounding import Approx

BLOCKS = ("block_mask", "block_size")


def inputs(case: attention.Case) -> attention.Inputs:
    """Return the contract's inputs, changed so that every query attends to its first key.

    A packed sequence has as many keys as queries, or more, where causal or a window needs it.
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


def call(side: ops.Side, case: attention.Case, given: attention.Inputs) -> Call:
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
    """Return options with values that change nothing, for functions that require them."""
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
    """Return a mask as a bias: −∞ where it is False, 0 where it is True."""
    import torch

    nothing = torch.zeros(mask.shape, dtype=q.dtype, device=mask.device)
    return nothing.masked_fill(~mask, float("-inf"))


def outputs_named(tensors: Mapping[str, Any], outputs: Sequence[Any]) -> Sequence[str]:
    """Name the outputs: one with an element for every query and key is weights, not lse.

    With one key, weights (B, H, M, 1) may be an lse with an extra axis: they are not judged.
    """
    q, k = tensors["q"], tensors["k"]
    if len(outputs) > 1 and shape_of(outputs[1]) == (*q.shape[:3], k.shape[2]):
        return ("out", "weights" if k.shape[2] > 1 else "")
    return ("out", "lse")


def weights(case: attention.Case, given: attention.Inputs) -> Mapping[str, Approx]:
    """Return the normalised weights that multiply v, with their bound.

    The bound allows a cast to v's dtype; they may be more exact.
    """
    with np.errstate(all="ignore"):
        p = attention_bound.forward(attention.problem(case, given)).weights  # (B, H, M, N)
    divided = p.on.u_function * (np.abs(p.value) + p.error)
    return {"weights": Approx(p.value, p.error + np.where(p.value > 0, divided, 0.0), p.on)}


def narrowed(case: attention.Case, size: int | None) -> attention.Case:
    """Give masks and biases four axes, and make causal attention square unless it is aligned.

    Packed sequences have neither.

    `size` is a head_dim, usually a power of two. Beside a window nothing else hides keys, so that
    every query has one, as it has where causal is aligned at the bottom right of enough keys.
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


def small(case: attention.Case) -> attention.Case:
    """Cut down what is costly, mask nothing, and make every other case square."""
    small = replace(attention.small(case), head_dim=case.head_dim, mask=None, key_lengths=False)
    square = small.causal or small.window_size is not None or case.seed % 2 == 0
    return replace(small, seqlen_k=small.seqlen_q) if square else small


SMALL: dict[str, Any] = {"batch": 2, "heads": 3, "seqlen_q": 21, "seqlen_k": 37, "head_dim": 16}
# What is left out where the order of axes has no heads.
OF_ONE_HEAD: dict[str, Any] = {
    "groups": 1, "mask": None, "key_lengths": False, "alibi": None, "bias": None, "sinks": False,
}  # fmt: skip
SQUARE: dict[str, Any] = {**SMALL, "seqlen_q": 49, "seqlen_k": 49}
SHOWS, HIDES = "True where a key is attended", "True where a key is not attended"
OF_KEYS = {"mask": "B11N"}
# What a mask may say: with four axes, or (batch, keys) as padding masks of torch or Hugging Face.
MASKS = {
    SHOWS: Handed(lambda mask, q: mask),
    HIDES: Handed(lambda mask, q: ~mask),
    "1 where a key is attended": Handed(lambda mask, q: mask.long()),
    "added, −∞ where a key is not attended": Handed(added),
    f"(batch, keys), {SHOWS}": Handed(key_mask, OF_KEYS),
    f"(batch, keys), {HIDES}": Handed(lambda mask, q: ~key_mask(mask, q), OF_KEYS),
    "(batch, keys), 1 where a key is attended": Handed(
        lambda mask, q: key_mask(mask, q).long(), OF_KEYS
    ),
}
PLAIN = Plain(
    call=call,
    shapes="q, k, v (batch, heads, seqlen, head_dim)",
    outputs=("out", "lse"),
    instead={"lse": "weights"},
    named=outputs_named,
    truth=weights,
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
        OPTION: {"packed": False},
    },
    always={
        "dropout_p": 0.0,
        "dlse": False,
        "tile": None,
        "into": "",
        "score_mod": None,
        "block_mask": None,
        "rotary": None,
        "block_size": None,
    },
    pinned=(
        {"seqlen_q": 33, "seqlen_k": 131, "head_dim": 16},
        {"seqlen_q": 65, "seqlen_k": 65, "head_dim": 64, "causal": True, "batch": 2},
        {"seqlen_q": 259, "seqlen_k": 259, "head_dim": 16, "causal": True},
        {"seqlen_q": 67, "seqlen_k": 300, "head_dim": 16},
        {"seqlen_q": 3, "seqlen_k": 4099, "head_dim": 16},
        {"seqlen_q": 1, "seqlen_k": 1025, "head_dim": 64},
        {"batch": 5, "heads": 9, "seqlen_q": 3, "seqlen_k": 5, "head_dim": 16},
        # Values of one sign, in which the roundings of successive tiles add up.
        {"seqlen_q": 3, "seqlen_k": 2051, "head_dim": 16, "magnitude": "constant"},
        # Whole tiles only, for which kernels have a code path without masks.
        {"seqlen_q": 128, "seqlen_k": 256, "head_dim": 64},
        {"seqlen_q": 256, "seqlen_k": 256, "head_dim": 16, "causal": True},
    ),
    long=(
        {"seqlen_q": 1029, "seqlen_k": 5, "head_dim": 16},
        {"seqlen_q": 3, "seqlen_k": 67, "head_dim": 256},
        {"seqlen_q": 3, "seqlen_k": 9001, "head_dim": 16},
    ),
    far=(
        {"batch": 3, "head_dim": 16, "layout": "far batches"},
        {"heads": 3, "head_dim": 16, "layout": "far heads"},
        {"seqlen_q": 3, "seqlen_k": 3, "head_dim": 16, "layout": "far rows"},
    ),
    exercised={
        "softmax_scale": ({**SMALL, "softmax_scale": 0.1},),
        "mask": (
            {**SMALL, "mask": "B11N"},
            {**SMALL, "mask": "BHMN"},
            {**SMALL, "mask": "111N"},
        ),
        "key_lengths": ({**SMALL, "key_lengths": True},),
        "causal": ({"seqlen_q": 5, "seqlen_k": 1029, "head_dim": 16, "causal": True},),
        "window_size": (
            {**SQUARE, "window_size": (16, 3)},
            {**SQUARE, "window_size": (5, 0)},
            {"seqlen_q": 193, "seqlen_k": 193, "head_dim": 16, "window_size": (130, 0)},
            {"seqlen_q": 193, "seqlen_k": 193, "head_dim": 16, "window_size": (3, 130)},
        ),
        "softcap": ({**SMALL, "softcap": 1.0, "logits": 10.0},),
        "alibi_slopes": ({**SMALL, "alibi": "H"}, {**SQUARE, "alibi": "H", "causal": True}),
        "bias": ({**SMALL, "bias": "BHMN"}, {**SMALL, "bias": "1H1N"}),
        "sinks": ({**SMALL, "sinks": True},),
        "enable_gqa": ({**SMALL, "heads": 4, "groups": 2},),
        OPTION: (
            {**SMALL, "batch": 5, "packed": True},
            {**SQUARE, "batch": 5, "packed": True, "causal": True},
            {**SMALL, "batch": 3, "seqlen_q": 131, "seqlen_k": 131, "packed": True},
        ),
    },
    implied={"enable_gqa": {**SMALL, "heads": 4, "groups": 2}},
    meant={"causal": ({**SMALL, "causal": "bottom-right"}, {**SMALL, "causal": "top-left"})},
    either={
        "causal": tuple(
            {**SMALL, "causal": how} for how in (False, "bottom-right", "top-left", True)
        )
    },
    handed={"mask": MASKS},
    arranged={"(batch, seqlen, heads, head_dim)": orders.heads_inside},
    fewer={
        "(batch · heads, seqlen, head_dim)": (orders.heads_as_batch, OF_ONE_HEAD),
        "(seqlen, head_dim)": (orders.one_head, OF_ONE_HEAD),
    },
    arranged_case={"batch": 2, "heads": 5, "seqlen_q": 5, "seqlen_k": 5, "head_dim": 16},
    beyond={("causal", "bottom-right"): "causal with fewer keys than queries"},
    outside={
        "causal": "causal with more keys than queries, or fewer",
        "mask": "a query without keys",
        "key_lengths": "a query without keys",
        "window_size": "a window with a mask, or with more keys than queries, or fewer",
        "lse": "the gradient of lse",
    },
    narrowed=narrowed,
    inputs=inputs,
    small=small,
    any_dtype=("weights",),
    conventions=("masked rows", "clipped lengths"),
)
