"""The domain of multi-head attention: cases, inputs, how a side runs them, what is true.

The bound is its parts' bounds, one after the other.

(1) q, k, v = x·Wᵀ + b as `contracts.linear` has it, cast. (2) Rotary turns q and k
    (`contracts.rotary`), cast again. (3) Attention's bound (`attention_bound`) takes q, k and v
    known up to an error: the score's is |q|E_k + E_q(|k| + E_k) and the product's own. (4) The
    output projection of heads known to E_o.

Backward: dheads = dout·W_out, cast; dW_out = doutᵀ·heads and db_out = Σ dout; attention's gradients
with dout known to E; rotary turned back; dW_qkv, db_qkv and dx as products and sums of those. Every
kernel's result is cast before the next reads it.

Errors multiply along the chain: a rounding of q is amplified by |k| into the score, by P into a
weight, by v into the output, and backward meets it again on other roads, all of which are added up.
So the bound is loose by orders of magnitude (`twofold verify tightness` says by how much); it is
there for what goes wrong between the parts, whose own bounds are tight.

Heads that share keys change nothing of that: queries of G heads are rows of one matrix for
attention's bound, so its dk and dv are sums over them, and (1) has that many columns less.

`B` batch, `M` queries, `N` keys, `E` features, `H` heads, `K` heads of keys and values, `G` = H/K,
`D` head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import attention_bound, domains
from twofold.core.verify.contracts.rotary import turn
from twofold.core.verify.rounding import Approx, exact, machine, matmul
from twofold.reference import dropout, rotary
from twofold.reference.attention_scores import Options, attended

Array = domains.Array

PRECISIONS = (("float32", False), ("float32", True), ("float16", False), ("bfloat16", False))


@dataclass(frozen=True)
class Case:
    """Lengths, and everything that varies about a call.

    `groups` is how many heads share one of keys and values; `seqlen_k` is None for self-attention,
    else the length of a context; `rotary` is None, "half" or "interleaved", with `pairs` features
    turning; `mask` names the axes a mask has, "1" for one that is broadcast.
    """

    dtype: str = "float32"
    batch: int = 1
    heads: int = 2
    groups: int = 1
    seqlen_q: int = 4
    seqlen_k: int | None = None
    head_dim: int = 8
    bias: bool = True
    magnitude: str = "unit"
    layout: str = "contiguous"
    causal: bool = False
    mask: str | None = None
    key_lengths: bool = False
    dropout_p: float = 0.0
    rotary: str | None = None
    pairs: int = 1
    allow_tf32: bool = False
    seed: int = 0

    @property
    def features(self) -> int:
        """E, the width of the model."""
        return self.heads * self.head_dim

    @property
    def shared(self) -> int:
        """K·D, the width of the keys and that of the values."""
        return self.features // self.groups

    @property
    def keys(self) -> int:
        """N, the number of keys."""
        return self.seqlen_q if self.seqlen_k is None else self.seqlen_k


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtype holds exactly, and what says who attends whom."""

    x: Array
    w_qkv: Array
    b_qkv: Array | None
    w_out: Array
    b_out: Array | None
    context: Array | None
    dout: Array
    mask: Array | None
    key_lengths: Array | None
    cos: Array | None
    sin: Array | None


def inputs(case: Case) -> Inputs:
    """Make a case's arrays; the weights keep v about as large as x, q and k about 1."""
    rng = np.random.default_rng(case.seed)
    B, M, N, E = case.batch, case.seqlen_q, case.keys, case.features

    def draw(*shape: int, magnitude: str = "unit", scale: Array | float = 1.0) -> Array:
        x = domains.values(rng, shape, magnitude, case.dtype)
        return domains.representable(x * scale, case.dtype)

    x = draw(B, M, E, magnitude=case.magnitude)
    size = max(1.0, float(np.sqrt((x * x).mean())))
    widths = (E, case.shared, case.shared)
    scale = E**-0.5 / np.repeat([size, size, 1.0], widths)[:, None]
    w_qkv, w_out = draw(sum(widths), E, scale=scale), draw(E, E, scale=E**-0.5)
    b_qkv, b_out, dout = draw(sum(widths)), draw(E), draw(B, M, E)
    mask = cos = sin = None
    if case.mask is not None:
        sizes = {"B": B, "H": case.heads, "M": M, "N": N, "1": 1}
        mask = rng.random([sizes[axis] for axis in case.mask]) < 0.7
    if case.rotary is not None:
        table_dtype = "float64" if case.dtype == "float64" else "float32"
        tables = rotary.tables(np.arange(M), 2 * case.pairs)
        cos, sin = (domains.representable(a, table_dtype) for a in tables)
    return Inputs(
        x=x,
        w_qkv=w_qkv,
        b_qkv=b_qkv if case.bias else None,
        w_out=w_out,
        b_out=b_out if case.bias else None,
        context=None if case.seqlen_k is None else draw(B, N, E, magnitude=case.magnitude),
        dout=dout,
        mask=mask,
        key_lengths=rng.integers(0, N + 1, B) if case.key_lengths else None,
        cos=cos,
        sin=sin,
    )


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, from `given` where the inputs are not the case's own."""
    given = given or inputs(case)

    def placed(x: Array | None) -> Any:
        return None if x is None else domains.place(side, x, case.dtype, case.layout)

    how: dict[str, Any] = {} if side.name == "reference" else {"allow_tf32": case.allow_tf32}
    if given.cos is not None:
        tables = (
            side.asarray(a, "float64" if case.dtype == "float64" else "float32")
            for a in (given.cos, given.sin)
        )
        how["rotary"] = (*tables, case.rotary == "interleaved")
    out, cache = side.multi_head_attention.forward(
        *(placed(a) for a in given[:5]),
        num_heads=case.heads,
        num_kv_heads=None if case.groups == 1 else case.heads // case.groups,
        context=placed(given.context),
        causal=case.causal,
        mask=None if given.mask is None else side.asarray(given.mask),
        key_lengths=None if given.key_lengths is None else side.asarray(given.key_lengths),
        dropout_p=case.dropout_p,
        seed=case.seed,
        **how,
    )
    gradients = side.multi_head_attention.backward(placed(given.dout), cache)
    outputs = {"out": out, **gradients._asdict()}
    return {name: x for name, x in outputs.items() if x is not None}


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds: the steps of the kernels, in running error analysis."""
    given, on, E = given or inputs(case), machine(case.dtype, case.allow_tf32), case.features
    x, dout = exact(given.x, on).reshape(-1, E), exact(given.dout, on).reshape(-1, E)
    context = x if given.context is None else exact(given.context, on).reshape(-1, E)
    w_qkv, w_out = exact(given.w_qkv, on), exact(given.w_out, on)
    interleaved = case.rotary == "interleaved"
    # (1) projections
    q, k, v = (
        split(linear(a, given.w_qkv[part], given.b_qkv, part).stored(), case)
        for a, part in zip((x, context, context), parts(case), strict=True)
    )
    # (2) positions
    if given.cos is not None and given.sin is not None:
        cos, sin = exact(given.cos, on), exact(given.sin, on)
        q, k = turn(q, cos, sin, interleaved), turn(k, cos, sin, interleaved)
    # (3) attention of every head
    problem = attention_problem(case, given, q, k, v)
    forward = attention_bound.forward(problem)
    # (4) output projection
    heads = join(forward.out)
    out = linear(heads, given.w_out, given.b_out, slice(0, E))
    # backward (4) output projection
    dheads, dw_out, db_out = matmul(dout, w_out).stored(), matmul(dout.mT, heads), dout.sum(0)
    # backward (3) attention of every head
    no_dlse = exact(np.zeros((case.batch, case.heads, case.seqlen_q, 1)), on)
    dq, dk, dv, *_ = attention_bound.backward(problem, forward, split(dheads, case), no_dlse)
    # backward (2) positions
    if given.cos is not None:
        dq, dk = turn(dq, cos, -sin, interleaved), turn(dk, cos, -sin, interleaved)
    # backward (1) projections
    dq, dkv = join(dq), concatenate(join(dk), join(dv), axis=1)
    outputs = {"out": out.reshape(*given.dout.shape), "dw_out": dw_out}
    outputs["dw_qkv"] = concatenate(matmul(dq.mT, x), matmul(dkv.mT, context), axis=0)
    if given.context is None:
        dx = matmul(concatenate(dq, dkv, axis=1), w_qkv)
    else:
        dx = matmul(dq, w_qkv[:E])
        outputs["dcontext"] = matmul(dkv, w_qkv[E:]).reshape(*given.context.shape)
    outputs["dx"] = dx.reshape(*given.x.shape)
    if case.bias:
        outputs |= {"db_out": db_out, "db_qkv": concatenate(dq.sum(0), dkv.sum(0), axis=0)}
    return {name: a.returned() for name, a in outputs.items()}


def linear(x: Approx, weight: Array, bias: Array | None, part: slice) -> Approx:
    """Return x·Wᵀ + b as stored; `part` of the bias is meant."""
    z = matmul(x, exact(weight, x.on).mT)
    return z if bias is None else z + exact(bias[part], x.on)


def parts(case: Case) -> tuple[slice, slice, slice]:
    """Return where queries, keys and values stand in the packed projection."""
    E, values = case.features, case.features + case.shared
    return slice(E), slice(E, values), slice(values, None)


def attention_problem(
    case: Case, given: Inputs, q: Approx, k: Approx, v: Approx
) -> attention_bound.Problem:
    """Return the call of attention as its bound takes it."""
    pairs = (case.batch, case.heads, case.seqlen_q, case.keys)
    options = Options(causal=case.causal, mask=given.mask, key_lengths=given.key_lengths)
    live = attended(pairs, options)
    weights = np.ones(pairs)
    if case.dropout_p > 0.0:
        kept = dropout.attention_keep_mask(pairs, case.dropout_p, case.seed)
        weights = kept * dropout.scale(case.dropout_p)
    live = np.broadcast_to(True if live is None else live, pairs)
    return attention_bound.Problem(q, k, v, live, weights, case.head_dim**-0.5)


def split(x: Approx, case: Case) -> Approx:
    """View rows (B·L, H·D) as heads (B, H, L, D)."""
    shape = (case.batch, x.value.shape[0] // case.batch, -1, case.head_dim)
    return x.moved(lambda a: a.reshape(shape).swapaxes(1, 2))


def join(x: Approx) -> Approx:
    """Put heads (B, H, L, D) side by side again, as rows (B·L, H·D)."""
    B, H, L, D = x.value.shape
    return x.moved(lambda a: a.swapaxes(1, 2).reshape(B * L, H * D))


def concatenate(*parts: Approx, axis: int) -> Approx:
    """Put arrays one after the other."""
    value = np.concatenate([p.value for p in parts], axis)
    error = np.concatenate([p.error for p in parts], axis)
    return Approx(value, error, parts[0].on)


def small(case: Case) -> Case:
    """Return the case cut down to a size at which properties cost little."""
    heads = min(case.heads, 2)
    return replace(
        case,
        batch=1,
        heads=heads,
        groups=min(case.groups, heads),
        seqlen_q=min(case.seqlen_q, 9),
        seqlen_k=None if case.seqlen_k is None else min(case.seqlen_k, 9),
    )


def cases() -> st.SearchStrategy[Case]:
    """The operator's domain."""

    def build(
        precision: tuple[str, bool],
        heads: tuple[int, int],
        seqlen_k: int | None,
        rotary: str | None,
        head_dim: int,
        share: float,
        **rest: Any,
    ) -> Case:
        if seqlen_k is not None or head_dim < 2:
            rotary = None
        (dtype, allow_tf32), pairs = precision, max(1, int(share * head_dim) // 2)
        return Case(
            dtype=dtype,
            allow_tf32=allow_tf32,
            heads=heads[0],
            groups=heads[1],
            seqlen_k=seqlen_k,
            rotary=rotary,
            head_dim=head_dim,
            pairs=pairs,
            **rest,
        )

    return st.builds(
        build,
        precision=st.sampled_from(PRECISIONS),
        batch=st.integers(1, 2),
        heads=st.sampled_from(((1, 1), (2, 1), (3, 1), (2, 2), (3, 3), (4, 2))),
        seqlen_q=domains.lengths(40),
        seqlen_k=st.one_of(st.none(), domains.lengths(40)),
        head_dim=domains.lengths(20),
        bias=st.booleans(),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(domains.LAYOUTS),
        causal=st.booleans(),
        mask=st.sampled_from([None, "MN", "B11N", "1H1N"]),
        key_lengths=st.booleans(),
        dropout_p=st.sampled_from([0.0, 0.1, 0.5]),
        rotary=st.sampled_from([None, "half", "interleaved"]),
        share=st.sampled_from([0.5, 1.0]),
        seed=domains.seeds(),
    )
