"""A call of attention as its bound takes it: the inputs, and the scores computed from them.

See `attention_bound` for what is derived from them. `B` batch, `H` heads, `K` heads of keys and
values, `G` = H/K, `M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import numpy as np

from twofold.core.verify.rounding import Approx, Array, Machine, exact, grown, matmul, tanh
from twofold.reference.attention_scores import Options, attended, band, lengths

LN2 = math.log(2.0)
Numbers = TypeVar("Numbers", Approx, Array)


class Problem(NamedTuple):
    """One call of attention: the inputs that the kernel holds, and what it knows exactly.

    `live` says which keys a query may attend, `dropout` what its weights are multiplied by: 0 or
    1/(1 − p). `rows` numbers the queries among `queries` in all, where these are only some.
    `factor` multiplies the products of a head before anything else does. q and k may be in another
    arithmetic than v; the weights are in v's.
    """

    q: Approx  # (B, H, M, D)
    k: Approx  # (B, K, N, D)
    v: Approx  # (B, K, N, D)
    live: Array  # (B, H, M, N) bool
    dropout: Array  # (B, H, M, N)
    scale: float
    options: Options = Options()
    rows: Array | None = None  # (M,)
    queries: int = 0
    factor: Approx | None = None  # (B, H, 1, 1)

    @property
    def kept(self) -> Array:
        """Pairs that are neither masked nor dropped."""
        return self.live & (self.dropout > 0)


def problem(
    q: Array,
    k: Array,
    v: Array,
    on: Machine,
    options: Options | None = None,
    dropout: Array | None = None,
) -> Problem:
    """Collect a call of attention on float64 arrays that the kernel's dtype holds exactly."""
    options, pairs = options or Options(), (*q.shape[:3], k.shape[2])
    live = attended(pairs, options)
    return Problem(
        exact(q, on),
        exact(k, on),
        exact(v, on),
        np.broadcast_to(True if live is None else live, pairs),
        np.ones(pairs) if dropout is None else dropout,
        q.shape[-1] ** -0.5 if options.softmax_scale is None else options.softmax_scale,
        options,
    )


def scores(x: Problem) -> tuple[Approx, Approx | None]:
    """Return the scores in base 2, (B, H, M, N), and their slope in q·k·scale, None for 1."""
    on, options = x.q.on, x.options
    product = unfold_groups(matmul(fold_groups(x.q, x), x.k.mT), x)
    if x.factor is not None:
        product = product * x.factor
    if not options.changes_scores:
        return product * folded(x.scale, on), None
    s, slope = product * x.scale, None
    B, H, M, N = s.value.shape
    b, h, i, j = np.ogrid[:B, :H, :M, :N]
    if x.rows is not None:
        i = x.rows[:, None]
    if options.softcap is not None:
        ratio = tanh(s / options.softcap)
        s, slope = ratio * options.softcap, 1.0 - ratio * ratio
    if options.score_mod is not None:
        function, derivative, args, _ = options.score_mod
        change = derivative(s, b, h, i, j, args)
        s, slope = function(s, b, h, i, j, args), change if slope is None else change * slope
    if options.alibi_slopes is not None:
        shift = band(options, *lengths(options, x.queries or M, N)).shift
        distance = np.abs(i + shift - j).astype(np.float64)
        s = s - exact(options.alibi_slopes[..., None, None], on) * exact(distance, on)
    if options.bias is not None:
        s = s + exact(options.bias, on)
    return s * folded(1.0, on), slope


def sinks(x: Problem) -> Approx:
    """Return the sinks as scores in base 2, (H, 1, 1)."""
    return exact(np.asarray(x.options.sinks)[:, None, None], x.q.on) * folded(1.0, x.q.on)


def with_sinks(x: Problem, t: Approx) -> tuple[Approx, Array]:
    """Put the sinks beside the scores; return both, and which of them may be attended."""
    if x.options.sinks is None:
        return t, x.live
    column, shape = sinks(x), (*t.value.shape[:-1], 1)
    value, error = (
        np.concatenate((a, np.broadcast_to(c, shape)), axis=-1)
        for a, c in ((t.value, column.value), (t.error, column.error))
    )
    return Approx(value, error, t.on), np.concatenate((x.live, np.ones(shape, bool)), axis=-1)


def fold_groups(a: Numbers, x: Problem) -> Numbers:
    """Put the queries of the heads that share keys below each other: (B, K, G·M, …)."""
    (B, H, M), K = x.live.shape[:3], x.k.value.shape[1]
    return a.reshape(B, K, H // K * M, -1)


def unfold_groups(a: Numbers, x: Problem) -> Numbers:
    """Undo `fold_groups`: (B, H, M, …)."""
    return a.reshape(*x.live.shape[:3], -1)


def unbroadcast(a: Approx, shape: tuple[int, ...]) -> Approx:
    """Sum over the axes along which an array of this shape was broadcast, in any order."""
    own = (1,) * (a.value.ndim - len(shape)) + shape
    axes = [i for i, n in enumerate(own) if n == 1]
    rest = [i for i, n in enumerate(own) if n != 1]
    size = math.prod(a.value.shape[i] for i in axes)
    kept = [a.value.shape[i] for i in rest] or [1]
    return a.moved(lambda y: y.transpose(*rest, *axes).reshape(*kept, size)).sum(-1).reshape(*shape)


def folded(scale: float, on: Machine) -> Approx:
    """Return scale·log₂e as the kernel has it: the scale, log₂e and their product are rounded."""
    c = np.asarray(scale / LN2)
    return Approx(c, 3 * on.u * np.abs(c), on)


def exp2(x: Approx) -> Approx:
    """Bound 2^x: 2^x̂ ≤ 2^(x + e), and below 2^x the error is smaller."""
    value = np.exp2(x.value)
    error = grown(value, LN2 * x.value, LN2 * x.error)
    return Approx(value, error + x.on.u_function * (value + error) + x.on.tiny, x.on)
