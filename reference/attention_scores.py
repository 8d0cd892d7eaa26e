"""What becomes of q·k before the softmax, and which pairs of query and key take part.

The scores of a call are, in this order: scaled; capped; changed by a function of the user's; moved
by ALiBi; moved by a bias; −∞ where a query may not attend.

`B` batch, `H` heads, `M` queries, `N` keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks

Array = np.ndarray[Any, np.dtype[Any]]
Window = tuple[int | None, int | None]

ALIGNMENTS = ("bottom-right", "top-left")


class ScoreMod(NamedTuple):
    """A function of the scores, element by element, and its derivative by them.

    Both are called as f(s, b, h, i, j, args): the scores, the numbers of batch, head, query and key
    of each of them (integers that broadcast with s), and `args`. On the NumPy side they are NumPy
    functions of arrays, on the other `@triton.jit` functions of tiles.
    """

    function: Callable[..., Any]
    derivative: Callable[..., Any]
    args: tuple[Any, ...] = ()


class Options(NamedTuple):
    """Everything that a call of attention may ask for beside q, k and v; see `forward`."""

    softmax_scale: float | None = None
    causal: bool | str = False
    window_size: Window | None = None
    softcap: float | None = None
    score_mod: ScoreMod | None = None
    alibi_slopes: Any = None
    bias: Any = None
    sinks: Any = None
    mask: Any = None
    key_lengths: Any = None
    dropout_p: float = 0.0
    seed: int = 0

    @property
    def changes_scores(self) -> bool:
        """Whether anything is done to the scores beside scaling and masking."""
        changes = (self.softcap, self.score_mod, self.alibi_slopes, self.bias)
        return any(x is not None for x in changes)


class Band(NamedTuple):
    """Query i may attend to keys from i + shift − left to i + shift + right; None is no end."""

    shift: int
    left: int | None
    right: int | None


def check(options: Options, B: int, H: int, M: int, N: int) -> None:
    """Refuse what either side cannot take."""
    scale, softcap = options.softmax_scale, options.softcap
    if scale is not None:
        checks.require(math.isfinite(scale), "softmax_scale", scale, "finite")
    if isinstance(options.causal, str):
        checks.choice("causal", options.causal, ALIGNMENTS)
    if options.window_size is not None:
        checks.require(len(options.window_size) == 2, "window_size", options.window_size, "a pair")
        for end in options.window_size:
            fits = end is None or (isinstance(end, int) and 0 <= end < 2**31 - 1)
            checks.require(fits, "window_size", options.window_size, "of ints ≥ 0 or None")
    if softcap is not None:
        fits = math.isfinite(softcap) and softcap > 0
        checks.require(fits, "softcap", softcap, "finite and above 0")
    if options.score_mod is not None and not isinstance(options.score_mod, ScoreMod):
        raise TypeError(f"score_mod is a {type(options.score_mod).__name__}; it must be a ScoreMod")
    if options.alibi_slopes is not None:
        checks.floating(alibi_slopes=options.alibi_slopes)
        checks.broadcastable("alibi_slopes", options.alibi_slopes, (B, H))
    if options.bias is not None:
        checks.broadcastable("bias", options.bias, (B, H, M, N))
    if options.sinks is not None:
        checks.floating(sinks=options.sinks)
        checks.shape("sinks", options.sinks, (H,))
    if options.mask is not None:
        checks.boolean(mask=options.mask)
        checks.broadcastable("mask", options.mask, (B, H, M, N))
    if options.key_lengths is not None:
        checks.integer(key_lengths=options.key_lengths)
        checks.shape("key_lengths", options.key_lengths, (B,))
    checks.probability("dropout_p", options.dropout_p)
    checks.seed(options.seed)


def scores(
    s: Array, options: Options, first: int = 0, queries: int | None = None
) -> tuple[Array, Array | None]:
    """Turn q·k·scale (B, H, M, N) into scores.

    Where s is of some queries only, `first` is the number of the first of them, of `queries` in
    all; a bias is of those.

    Returns:
        the scores, and their derivative by q·k·scale, None where that is 1.
    """
    b, h, i, j = np.ogrid[tuple(slice(n) for n in s.shape)]
    i = i + first
    M, N = queries or s.shape[-2], s.shape[-1]
    slope = None
    if options.softcap is not None:
        capped = np.tanh(s / options.softcap)
        s, slope = options.softcap * capped, 1 - capped * capped
    if options.score_mod is not None:
        function, derivative, args = options.score_mod
        change = derivative(s, b, h, i, j, args)
        s, slope = function(s, b, h, i, j, args), change if slope is None else slope * change
    if options.alibi_slopes is not None:
        distance = abs(i + band(options, M, N).shift - j).astype(s.dtype)  # (1, 1, M, N)
        s = s - options.alibi_slopes[..., None, None].astype(s.dtype) * distance
    if options.bias is not None:
        s = s + options.bias
    return s, slope


def attended(
    shape: tuple[int, ...], options: Options, first: int = 0, queries: int | None = None
) -> Array | None:
    """Return which pairs take part, broadcastable to (B, H, M, N); None if all do.

    `first` and `queries` are those of `scores`; a mask is of the queries of the shape.
    """
    M, N = shape[-2:]
    shift, left, right = band(options, queries or M, N)
    rows = np.arange(first, first + M)[:, None]
    distance = np.arange(N) - rows - shift  # (M, N), of the key behind the query
    parts = [] if options.mask is None else [options.mask]
    if left is not None:
        parts.append(distance >= -left)
    if right is not None:
        parts.append(distance <= right)
    if options.key_lengths is not None:
        parts.append(np.arange(N) < options.key_lengths[:, None, None, None])  # (B, 1, 1, N)
    live = None
    for part in parts:
        live = part if live is None else live & part
    return live


def band(options: Options, M: int, N: int) -> Band:
    """Return the band that `causal` and `window_size` leave.

    Its diagonal ends at the last query and the last key, or where "top-left" is asked for begins at
    the first of both.
    """
    left, right = options.window_size or (None, None)
    if options.causal:
        right = 0
    return Band(0 if options.causal == "top-left" else N - M, left, right)
