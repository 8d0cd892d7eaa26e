"""Attention's domain: its cases, their inputs, how a side runs them, and their truth.

`attention` makes the contract of it; the bound is `attention_bound`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import attention_bound, domains
from twofold.core.verify.contracts import attention_rotary
from twofold.core.verify.contracts.attention_packed import (
    pack_approx,
    packed,
    padded,
    repacked,
    starts,
)
from twofold.core.verify.contracts.attention_scoring import SQUASHED, Scoring
from twofold.core.verify.rounding import Approx, exact, machine
from twofold.kernels.attention_tiles import ENTRIES
from twofold.reference import dropout
from twofold.reference.attention import fold_groups
from twofold.reference.attention_scores import BlockSize, Options, Window, blocks
from twofold.reference.rotary import Rotary

Array = domains.Array

LAYOUTS = (*domains.LAYOUTS, "heads inside")  # (B, L, H, D) in memory: a packed projection
OWN = (*domains.OWN, "heads inside")
MASKS = tuple(
    "".join(axes)
    for n in range(5)
    for axes in itertools.product(*("1" + a for a in "BHMN"[4 - n :]))
)
# A call as models make it: what `verify compile` compiles, with the tiles that are chosen.
MODELS: dict[str, Any] = {
    "batch": 2, "heads": 3, "seqlen_q": 128, "seqlen_k": 128, "layout": "heads inside",
    "causal": True,
}  # fmt: skip
LOGITS = (1e-6, 1e-2, 1.0, 10.0, 100.0, 1e4)


@dataclass(frozen=True)
class Case:
    """Lengths, and everything that varies about a call.

    `logits` is the size of the largest product; `groups` is how many heads share one head of keys;
    `mask`, `block_mask`, `bias` and `alibi` name the axes that each has, "1" for one that is
    broadcast ("" is a mask without axes, None no mask). If `packed`, each batch is a sequence no
    longer than `seqlen_q` and `seqlen_k`, and possibly empty.
    """

    dtype: str = "float32"
    batch: int = 1
    heads: int = 1
    seqlen_q: int = 4
    seqlen_k: int = 4
    head_dim: int = 8
    logits: float = 1.0
    magnitude: str = "unit"
    layout: str = "contiguous"
    softmax_scale: float | None = None
    groups: int = 1
    causal: bool | str = False
    window_size: Window | None = None
    softcap: float | None = None
    score_mod: Scoring | None = None
    alibi: str | None = None
    bias: str | None = None
    sinks: bool = False
    mask: str | None = None
    key_lengths: bool = False
    block_mask: str | None = None
    block_size: BlockSize | None = None
    packed: bool = False
    rotary: str | None = None  # "half" or "interleaved"
    dropout_p: float = 0.0
    dlse: bool = False
    allow_tf32: bool = False
    seed: int = 0
    tile: int | None = None  # entry of the kernels' tile tables
    into: str = ""  # "own" where backward writes dq, dk and dv into arrays that it is given


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtype holds exactly, and what says which pairs attend."""

    q: Array
    k: Array
    v: Array
    dout: Array
    dlse: Array | None
    mask: Array | None
    key_lengths: Array | None
    alibi_slopes: Array | None = None
    bias: Array | None = None
    sinks: Array | None = None
    cu_seqlens_q: Array | None = None
    cu_seqlens_k: Array | None = None
    rotary: Rotary | None = None
    block_mask: Array | None = None


def inputs(case: Case) -> Inputs:
    """Make a case's arrays. The mask leaves some queries without a key."""
    rng = np.random.default_rng(case.seed)
    sizes = {"B": case.batch, "H": case.heads, "M": case.seqlen_q, "N": case.seqlen_k, "1": 1}
    q, k, v, dout = (
        domains.values(rng, (case.batch, heads, n, case.head_dim), magnitude, case.dtype)
        for heads, n, magnitude in (
            (case.heads, case.seqlen_q, case.magnitude),
            (case.heads // case.groups, case.seqlen_k, case.magnitude),
            (case.heads // case.groups, case.seqlen_k, case.magnitude),
            (case.heads, case.seqlen_q, "unit"),
        )
    )
    largest = abs(scale(case)) * _most(q, k)
    if largest > 0:
        balance = math.sqrt(np.abs(q).max() / np.abs(k).max())
        factor = math.sqrt(case.logits / largest)
        q, k = q * (factor / balance), k * (factor * balance)
    mask = None
    if case.mask is not None:
        mask = rng.random([sizes[axis] for axis in case.mask]) < 0.7
        if case.mask[-1:] == "N":
            mask &= rng.random(mask.shape[:-1])[..., None] < 0.8

    def drawn(axes: str | None, dtype: str) -> Array | None:
        if axes is None:
            return None
        return domains.representable(rng.standard_normal([sizes[a] for a in axes]), dtype)

    made = Inputs(
        q=domains.representable(q, case.dtype),
        k=domains.representable(k, case.dtype),
        v=domains.representable(v, case.dtype),
        dout=domains.representable(dout, case.dtype),
        dlse=domains.representable(rng.standard_normal(q.shape[:-1]), "float32")
        if case.dlse
        else None,
        mask=mask,
        key_lengths=rng.integers(0, case.seqlen_k + 1, case.batch) if case.key_lengths else None,
        alibi_slopes=drawn(case.alibi, "float32"),
        bias=drawn(case.bias, case.dtype),
        sinks=drawn("H" if case.sinks else None, case.dtype),
    )
    if case.block_mask is not None:
        grid = blocks(Options(block_size=case.block_size), case.seqlen_q, case.seqlen_k)
        sizes |= dict(zip("MN", grid, strict=True))
        live = rng.random([sizes[axis] for axis in case.block_mask]) < 0.6
        made = made._replace(block_mask=live)
    if case.packed:
        queries, keys = (starts(rng, case.batch, n) for n in (case.seqlen_q, case.seqlen_k))
        made = packed(made, np.diff(queries), np.diff(keys))
    return made._replace(rotary=attention_rotary.drawn(rng, case, made))


def _most(q: Array, k: Array) -> float:
    """Return the largest |q·k|, head by head: scores of long sequences would not fit in memory."""
    batches = zip(fold_groups(q, k), k, strict=True)
    return max(float(np.abs(a @ b.T).max()) for of in batches for a, b in zip(*of, strict=True))


def call_within(case: Any, **own: Any) -> Case:
    """Return the call of attention within a larger case: the fields that both have, and `own`."""
    both = vars(case).keys() & {f.name for f in fields(Case)}
    return Case(**{name: getattr(case, name) for name in both} | own)


def scale(case: Case) -> float:
    """Return a case's softmax scale, its default filled in."""
    return case.head_dim**-0.5 if case.softmax_scale is None else case.softmax_scale


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    forward: dict[str, Any] = {}
    backward: dict[str, Any] = {}
    if side.name != "reference" and case.tile is not None:
        (kernel, _, _), tile = ENTRIES[case.tile]
        how, name = (forward, "tile") if kernel == "forward" else (backward, f"{kernel}_tile")
        how[name] = tile
    out, cache = called(side, case, given, **forward)
    dlse = domains.beside(side, given.dlse, case, statistics(case))
    shapes = {"dq": given.q.shape, "dk": given.k.shape, "dv": given.v.shape}
    backward |= domains.into(domains.receivers(side, case, **shapes))
    gradients = side.attention.backward(place(side, given.dout, case), cache, dlse, **backward)
    found = {n: x for n, x in gradients._asdict().items() if x is not None}
    return {"out": out, "lse": cache.lse, **found}


def called(side: Side, case: Case, given: Inputs, **how: Any) -> tuple[Any, Any]:
    """Return the output and the cache of the call on a side."""
    if side.name != "reference":
        how["allow_tf32"] = case.allow_tf32
    tensors = (place(side, x, case) for x in (given.q, given.k, given.v))
    out, cache = side.attention.forward(*tensors, **placed(side, case, given)._asdict(), **how)
    return out, cache


def placed(side: Side, case: Case, given: Inputs) -> Options:
    """Return the options of the call on a side."""
    return options(case, given)._replace(
        score_mod=None if case.score_mod is None else getattr(case.score_mod, side.name)(),
        alibi_slopes=domains.beside(side, given.alibi_slopes, case, statistics(case)),
        bias=place_mask(side, given.bias, case, case.dtype),
        sinks=domains.beside(side, given.sinks, case, case.dtype),
        mask=place_mask(side, given.mask, case),
        key_lengths=domains.beside(side, given.key_lengths, case),
        cu_seqlens_q=domains.beside(side, given.cu_seqlens_q, case),
        cu_seqlens_k=domains.beside(side, given.cu_seqlens_k, case),
        rotary=attention_rotary.placed(side, given.rotary, case, statistics(case)),
        block_mask=place_mask(side, given.block_mask, case),
    )


def options(case: Case, given: Inputs) -> Options:
    """Return the options of the call, its arrays in float64."""
    return Options(
        softmax_scale=case.softmax_scale,
        causal=case.causal,
        window_size=case.window_size,
        softcap=case.softcap,
        score_mod=None if case.score_mod is None else case.score_mod.reference(),
        alibi_slopes=given.alibi_slopes,
        bias=given.bias,
        sinks=given.sinks,
        mask=given.mask,
        key_lengths=given.key_lengths,
        dropout_p=case.dropout_p,
        seed=case.seed,
        cu_seqlens_q=given.cu_seqlens_q,
        cu_seqlens_k=given.cu_seqlens_k,
        max_seqlen_q=case.seqlen_q if case.packed else None,
        max_seqlen_k=case.seqlen_k if case.packed else None,
        rotary=given.rotary,
        block_mask=given.block_mask,
        block_size=case.block_size,
    )


def statistics(case: Case) -> str:
    """Return the dtype of the arrays that are not in the case's own."""
    return "float64" if case.dtype == "float64" else "float32"


def place(side: Side, x: Array, case: Case) -> Any:
    """Return (B, H, L, D) on a side in the case's layout."""
    layout = domains.own(x, OWN) if case.layout == domains.MIXED else case.layout
    if layout == "heads inside":
        return side.asarray(x.swapaxes(1, 2), case.dtype).swapaxes(1, 2)
    return domains.place(side, x, case.dtype, layout)


def place_mask(side: Side, x: Array | None, case: Case, dtype: str | None = None) -> Any:
    """Return a mask or bias on a side, its last two axes swapped in memory where the case's are."""
    if x is not None and case.layout == "transposed" and x.ndim > 1:
        return side.asarray(np.ascontiguousarray(x.mT), dtype).swapaxes(-1, -2)
    return domains.beside(side, x, case, dtype)


def problem(case: Case, given: Inputs) -> attention_bound.Problem:
    """Return the bound's problem; packed sequences are batches whose dead pairs add only length."""
    batches, on = padded(case, given), machine(case.dtype, case.allow_tf32)
    x = attention_bound.problem(
        batches.q, batches.k, batches.v, on, options(case, given), dropped(case)
    )
    return attention_rotary.turning(x, given, on)


def dropped(case: Case) -> Array | None:
    """Return what dropout multiplies the weights (B, H, M, N) by, None if there is no dropout."""
    if case.dropout_p == 0.0:
        return None
    pairs = (case.batch, case.heads, case.seqlen_q, case.seqlen_k)
    kept = dropout.attention_keep_mask(pairs, case.dropout_p, case.seed)
    return np.asarray(kept * dropout.scale(case.dropout_p))


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds."""
    given = given or inputs(case)
    x = problem(case, given)
    batches = padded(case, given)
    dlse = np.zeros(batches.q.shape[:-1]) if batches.dlse is None else batches.dlse
    forward = attention_bound.forward(x)
    gradients = attention_bound.backward(
        x, forward, exact(batches.dout, x.q.on), exact(dlse[..., None], x.q.on)
    )
    found = {n: x for n, x in gradients._asdict().items() if x is not None}
    found = {"out": forward.out, "lse": forward.lse[..., 0], **found}
    found = repacked(found, given, pack_approx)
    return attention_rotary.gradients(found, given)


def small(case: Case) -> Case:
    """Return the case cut down to a size at which properties cost little."""
    batch = min(case.batch, 2)
    heads = min(case.heads, 3 - batch)
    return replace(
        case,
        batch=batch,
        heads=heads,
        groups=min(case.groups, heads),
        seqlen_q=min(case.seqlen_q, 37),
        seqlen_k=min(case.seqlen_k, 37),
        head_dim=min(case.head_dim, 24),
        rotary=None,  # what holds of all queries and keys holds of rotated ones
    )


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain: plain calls, and ones with all that may be done to scores."""
    heads = st.sampled_from(((1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 3, 1), (3, 1, 1), (2, 2, 1)))
    grouped = st.sampled_from(((1, 1, 1), (2, 2, 1), (1, 2, 2), (1, 4, 2), (1, 3, 3), (2, 4, 2)))
    return st.one_of(
        calls(heads=heads, causal=st.booleans()),
        calls(
            heads=grouped,
            **features(),
            rotary=st.sampled_from([None, None, *attention_rotary.FORMS]),
            blocks=maybe_blocks(),
        ),
    )


def features(score_mod: Scoring = SQUASHED) -> dict[str, st.SearchStrategy[Any]]:
    """Return strategies, by field name, of all that may be done to scores in any attention."""
    window = st.tuples(*[st.one_of(st.none(), domains.lengths(40))] * 2)
    return {
        "causal": st.sampled_from([False, True, "top-left", "bottom-right"]),
        "window_size": st.one_of(st.none(), window),
        "softcap": st.sampled_from([None, None, 1.0, 30.0]),
        "score_mod": st.sampled_from([None, None, score_mod]),
        "alibi": st.sampled_from([None, None, "H", "BH", "B1"]),
        "bias": maybe_axes(),
        "sinks": st.booleans(),
    }


def maybe_axes() -> st.SearchStrategy[str | None]:
    """Draw which axes a mask or bias has; often there is no mask or bias."""
    return st.sampled_from([None, None, *MASKS])


def maybe_blocks() -> st.SearchStrategy[tuple[str, BlockSize] | None]:
    """Draw which axes a block mask has, and the size of blocks; most often there is no mask."""
    size = domains.lengths(40)
    drawn = st.tuples(st.sampled_from(MASKS), st.one_of(size, st.tuples(size, size)))
    return st.one_of(st.none(), st.none(), drawn)


def calls(
    heads: st.SearchStrategy[tuple[int, int, int]], **features: st.SearchStrategy[Any]
) -> st.SearchStrategy[Case]:
    """Return cases of drawn (batch, heads, heads per head of keys), with these features."""

    def build(
        precision: tuple[str, bool],
        heads: tuple[int, int, int],
        blocks: tuple[str, BlockSize] | None = None,
        **rest: Any,
    ) -> Case:
        (dtype, allow_tf32), (batch, heads_, groups) = precision, heads
        axes, size = blocks or (None, None)
        return Case(
            dtype=dtype, allow_tf32=allow_tf32, batch=batch, heads=heads_, groups=groups,
            block_mask=axes, block_size=size, **rest,
        )  # fmt: skip

    return st.builds(
        build,
        precision=st.sampled_from(domains.PRECISIONS),
        heads=heads,
        seqlen_q=domains.lengths(70),
        seqlen_k=domains.lengths(70),
        head_dim=st.one_of(domains.lengths(64), domains.lengths(64), domains.lengths(256)),
        logits=st.sampled_from(LOGITS),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(LAYOUTS),
        softmax_scale=st.sampled_from([None, 1.0, 0.01]),
        mask=st.sampled_from([None, *MASKS]),
        key_lengths=st.booleans(),
        packed=st.sampled_from([False, False, True]),
        dropout_p=st.sampled_from([0.0, 0.1, 0.5]),
        dlse=st.booleans(),
        seed=domains.seeds(),
        **features,
    )
