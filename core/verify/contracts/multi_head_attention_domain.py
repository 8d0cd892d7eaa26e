"""The domain of multi-head attention: cases, inputs, how a side runs them, their truth.

The bound is that of its parts, one after the other.

(1) q, k, v = x·Wᵀ + b as in `contracts.linear`, cast. (2) Rotary positions rotate q and k
    (`contracts.rotary`), cast again. (3) Attention's bound (`attention_bound`) takes q, k and v
    known up to an error: the score's is |q|E_k + E_q(|k| + E_k) plus the product's own. (4) The
    output projection of heads known to E_o.

Backward: dheads = dout·W_out, cast; dW_out = doutᵀ·heads and db_out = Σ dout; attention's gradients
with dout known to E; rotary rotated back; dW_qkv, db_qkv and dx as products and sums of those.
Every kernel's result is cast before the next reads it.

Errors multiply along the chain: a rounding of q is amplified by |k| into the score, by P into a
weight, by v into the output, and backward meets it again along other paths, all of which are added
up. So the bound is loose by orders of magnitude (`twofold verify tightness` says by how much); it
is there for what goes wrong between the parts, whose own bounds are tight.

Heads that share keys change none of this: queries of G heads are rows of one matrix for attention's
bound, so its dk and dv are sums over them, and (1) has fewer columns. Attention's other options are
drawn and bounded as in `attention_domain`; its bound takes each packed sequence as a batch.

`B` batch, `M` queries, `N` keys, `E` features, `H` heads, `K` heads of keys and values, `G` = H/K,
`D` head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import attention_bound, domains
from twofold.core.verify.contracts import attention_domain as attention
from twofold.core.verify.contracts import attention_rotary
from twofold.core.verify.contracts.attention_packed import pack_approx, unpack_approx
from twofold.core.verify.contracts.attention_scoring import Scoring
from twofold.core.verify.contracts.rotary import turn
from twofold.core.verify.rounding import Approx, concatenate, exact, machine, matmul
from twofold.reference.attention_scores import BlockSize, Window, attended

Array = domains.Array

PARAMETERS = ("dw_qkv", "db_qkv", "dw_out", "db_out")


@dataclass(frozen=True)
class Case:
    """Lengths, and everything that varies about a call.

    `groups` is how many heads share one head of keys and values; `seqlen_k` is None for
    self-attention, else the length of a context; `fused` says that attention itself applies rotary
    positions, as it must with a context; `biases` are those of the projections. The rest is
    attention's.
    """

    dtype: str = "float32"
    batch: int = 1
    heads: int = 2
    groups: int = 1
    seqlen_q: int = 4
    seqlen_k: int | None = None
    head_dim: int = 8
    biases: bool = True
    magnitude: str = "unit"
    layout: str = "contiguous"
    softmax_scale: float | None = None
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
    dropout_p: float = 0.0
    rotary: str | None = None
    fused: bool = False
    allow_tf32: bool = False
    seed: int = 0
    into: str = ""  # dtype of the arrays that backward writes parameters' gradients into
    # Whose gradients backward is told that nobody reads: x, context, weights, bias.
    unread: tuple[str, ...] = ()

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
    """Float64 arrays that the case's dtype holds exactly; `call` has attention's options."""

    x: Array
    w_qkv: Array
    b_qkv: Array | None
    w_out: Array
    b_out: Array | None
    context: Array | None
    dout: Array
    call: attention.Inputs


def whole(case: Case) -> attention.Case:
    """Return the call of attention between the projections."""
    return attention.call_within(case, seqlen_k=case.keys)


def inputs(case: Case) -> Inputs:
    """Make a case's arrays; the weights keep v about as large as x, q and k about 1."""
    rng = np.random.default_rng(case.seed)
    call, E = attention.inputs(whole(case)), case.features
    if case.seqlen_k is None:
        call = call._replace(cu_seqlens_k=call.cu_seqlens_q)
    if call.rotary is not None and (case.seqlen_k is None or not case.fused):
        call = call._replace(rotary=call.rotary._replace(k_cos=None, k_sin=None))
    (B, _, M, _), N = call.q.shape, call.k.shape[2]

    def draw(*shape: int, magnitude: str = "unit", scale: Array | float = 1.0) -> Array:
        x = domains.values(rng, shape, magnitude, case.dtype)
        return domains.representable(x * scale, case.dtype)

    x = draw(B, M, E, magnitude=case.magnitude)
    size = max(1.0, float(np.sqrt((x * x).mean())))
    widths = (E, case.shared, case.shared)
    scale = E**-0.5 / np.repeat([size, size, 1.0], widths)[:, None]
    w_qkv, w_out = draw(sum(widths), E, scale=scale), draw(E, E, scale=E**-0.5)
    b_qkv, b_out, dout = draw(sum(widths)), draw(E), draw(B, M, E)
    return Inputs(
        x=x,
        w_qkv=w_qkv,
        b_qkv=b_qkv if case.biases else None,
        w_out=w_out,
        b_out=b_out if case.biases else None,
        context=None if case.seqlen_k is None else draw(B, N, E, magnitude=case.magnitude),
        dout=dout,
        call=call,
    )


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    placed = partial(domains.place, side, dtype=case.dtype, layout=case.layout)
    options = attention.placed(side, whole(case), given.call)
    how: dict[str, Any] = options._asdict()
    if options.rotary is not None and not case.fused:
        how["rotary"] = options.rotary.of_q
    if side.name != "reference":
        how["allow_tf32"] = case.allow_tf32
    out, cache = side.multi_head_attention.forward(
        *(placed(a) for a in given[:5]),
        num_heads=case.heads,
        num_kv_heads=None if case.groups == 1 else case.heads // case.groups,
        context=placed(given.context),
        **how,
    )
    names = ("w_qkv", "b_qkv", "w_out", "b_out")
    parameters = dict(zip(names, given[1:5], strict=True))
    shapes = {f"d{name}": None if x is None else x.shape for name, x in parameters.items()}
    written = {} if "weights" in case.unread else domains.receivers(side, case, **shapes)
    read = domains.into(written) | {f"of_{name}": False for name in case.unread}
    gradients = side.multi_head_attention.backward(placed(given.dout), cache, **read)
    outputs = {"out": out, **gradients._asdict(), **written}
    return {name: x for name, x in outputs.items() if x is not None}


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds: the steps of the kernels, in running error analysis."""
    given, on, E = given or inputs(case), machine(case.dtype, case.allow_tf32), case.features
    x, dout = exact(given.x, on).reshape(-1, E), exact(given.dout, on).reshape(-1, E)
    context = x if given.context is None else exact(given.context, on).reshape(-1, E)
    w_qkv, w_out = exact(given.w_qkv, on), exact(given.w_out, on)
    # (1) projections
    q, k, v = (
        split(linear(a, given.w_qkv[part], given.b_qkv, part).stored(), case)
        for a, part in zip((x, context, context), parts(case), strict=True)
    )
    # (2) positions
    if given.call.rotary is not None:
        q, k = turned(q, given.call.rotary.of_q), turned(k, given.call.rotary.of_k)
    # (3) attention of every head
    problem = attention_problem(case, given, q, k, v)
    forward = attention_bound.forward(problem)
    # (4) output projection
    heads = join(pack_approx(forward.out, given.call.cu_seqlens_q))
    out = linear(heads, given.w_out, given.b_out, slice(0, E))
    # backward (4) output projection
    dheads, dw_out, db_out = matmul(dout, w_out).stored(), matmul(dout.mT, heads), dout.sum(0)
    # backward (3) attention of every head
    no_dlse = exact(np.zeros((case.batch, case.heads, case.seqlen_q, 1)), on)
    dheads = unpack_approx(split(dheads, case), given.call.cu_seqlens_q, case.seqlen_q)
    dq, dk, dv, dbias, dsinks = attention_bound.backward(problem, forward, dheads, no_dlse)
    dq = pack_approx(dq, given.call.cu_seqlens_q)
    dk, dv = (pack_approx(a, given.call.cu_seqlens_k) for a in (dk, dv))
    # backward (2) positions
    if given.call.rotary is not None:
        dq = turned(dq, given.call.rotary.of_q, -1)
        dk = turned(dk, given.call.rotary.of_k, -1)
    # backward (1) projections
    dq, dkv = join(dq), concatenate([join(dk), join(dv)], axis=1)
    outputs = {"out": out.reshape(*given.dout.shape), "dw_out": dw_out}
    outputs["dw_qkv"] = concatenate([matmul(dq.mT, x), matmul(dkv.mT, context)])
    if given.context is None:
        dx = matmul(concatenate([dq, dkv], axis=1), w_qkv)
    else:
        dx = matmul(dq, w_qkv[:E])
        outputs["dcontext"] = matmul(dkv, w_qkv[E:]).reshape(*given.context.shape)
    outputs["dx"] = dx.reshape(*given.x.shape)
    if case.biases:
        outputs |= {"db_out": db_out, "db_qkv": concatenate([dq.sum(0), dkv.sum(0)])}
    stored = {name: a for name, a in (("dbias", dbias), ("dsinks", dsinks)) if a is not None}
    found = domains.returned(case, outputs, *PARAMETERS) | stored
    unread = {*PARAMETERS} if "weights" in case.unread else set()
    unread |= {f"d{name}" for name in case.unread}
    return {name: a for name, a in found.items() if name not in unread}


def linear(x: Approx, weight: Array, bias: Array | None, part: slice) -> Approx:
    """Return x·Wᵀ + b as stored, with this `part` of the bias."""
    z = matmul(x, exact(weight, x.on).mT)
    return z if bias is None else z + exact(bias[part], x.on)


def parts(case: Case) -> tuple[slice, slice, slice]:
    """Return the slices of queries, keys and values in the packed projection."""
    E, values = case.features, case.features + case.shared
    return slice(E), slice(E, values), slice(values, None)


def attention_problem(
    case: Case, given: Inputs, q: Approx, k: Approx, v: Approx
) -> attention_bound.Problem:
    """Return the call of attention as its bound takes it."""
    pairs, call = (case.batch, case.heads, case.seqlen_q, case.keys), whole(case)
    options, dropped = attention.options(call, given.call), attention.dropped(call)
    q = unpack_approx(q, given.call.cu_seqlens_q, case.seqlen_q)
    k, v = (unpack_approx(a, given.call.cu_seqlens_k, case.keys) for a in (k, v))
    live = attended(pairs, options)
    live = np.broadcast_to(True if live is None else live, pairs)
    weights = np.ones(pairs) if dropped is None else dropped
    return attention_bound.Problem(q, k, v, live, weights, attention.scale(call), options)


def turned(x: Approx, turns: attention_rotary.Turns, way: int = 1) -> Approx:
    """Return queries or keys rotated by the angles of their rows, or back (`way` is −1)."""
    cos, sin, interleaved = turns
    return turn(x, exact(cos, x.on), exact(way * sin, x.on), interleaved)


def split(x: Approx, case: Case) -> Approx:
    """View rows (B·L, H·D) as heads (B, H, L, D)."""
    batches = 1 if case.packed else case.batch
    shape = (batches, x.value.shape[0] // batches, -1, case.head_dim)
    return x.moved(lambda a: a.reshape(shape).swapaxes(1, 2))


def join(x: Approx) -> Approx:
    """Put heads (B, H, L, D) side by side again, as rows (B·L, H·D)."""
    B, H, L, D = x.value.shape
    return x.moved(lambda a: a.swapaxes(1, 2).reshape(B * L, H * D))


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
    """Return the operator's domain: plain calls, and calls with any of attention's options."""
    return st.one_of(
        calls(causal=st.booleans(), mask=st.sampled_from([None, "MN", "B11N", "1H1N"])),
        calls(
            softmax_scale=st.sampled_from([None, 1.0, 0.01]),
            **attention.features(),
            mask=attention.maybe_axes(),
            blocks=attention.maybe_blocks(),
            packed=st.booleans(),
        ),
    )


def calls(**features: st.SearchStrategy[Any]) -> st.SearchStrategy[Case]:
    """Return cases with these features of attention."""

    def build(
        precision: tuple[str, bool],
        heads: tuple[int, int],
        rotary: tuple[str, bool] | None,
        seqlen_k: int | None,
        blocks: tuple[str, BlockSize] | None = None,
        **rest: Any,
    ) -> Case:
        dtype, allow_tf32 = precision
        form, fused = rotary or (None, False)
        axes, size = blocks or (None, None)
        return Case(
            dtype=dtype, allow_tf32=allow_tf32, heads=heads[0], groups=heads[1],
            seqlen_k=seqlen_k, rotary=form, fused=fused or seqlen_k is not None,
            block_mask=axes, block_size=size, **rest,
        )  # fmt: skip

    forms = [(form, fused) for form in attention_rotary.FORMS for fused in (False, True)]
    return st.builds(
        build,
        precision=st.sampled_from(domains.PRECISIONS),
        batch=st.integers(1, 2),
        heads=st.sampled_from(((1, 1), (2, 1), (3, 1), (2, 2), (3, 3), (4, 2))),
        seqlen_q=domains.lengths(40),
        seqlen_k=st.one_of(st.none(), domains.lengths(40)),
        head_dim=domains.lengths(20),
        biases=st.booleans(),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(domains.LAYOUTS),
        key_lengths=st.booleans(),
        dropout_p=st.sampled_from([0.0, 0.1, 0.5]),
        rotary=st.sampled_from([None, *forms]),
        seed=domains.seeds(),
        into=st.sampled_from(domains.INTO),
        **features,
    )
