"""What is done to q·k before the softmax, and which pairs of query and key take part.

In this order, each only if requested:

    s = scale·q_i·k_j,   s = softcap·tanh(s/softcap),   s = f(s),   s = s − slope·|i + shift − j|,
    s = s + bias_ij,   s = −∞ where query i may not attend to key j

f is the user's function (`ScoreMod`), the slope is ALiBi's, and j = i + shift is the diagonal
(`band`).

Packed sequences are unpacked here into one batch element each, padded at the end.

`B` batch, `H` heads, `M` queries, `N` keys.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.rotary import Rotary

Array = np.ndarray[Any, np.dtype[Any]]
Window = tuple[int | None, int | None]
BlockSize = int | tuple[int, int]

ALIGNMENTS = ("bottom-right", "top-left")


class ScoreMod(NamedTuple):
    """An elementwise function of the scores, and its derivatives by the scores.

    All are called as f(s, b, h, i, j, args): the scores, their indices of batch, head, query and
    key (integers that broadcast with s), and `args`. On the NumPy side they are NumPy functions of
    arrays, on the Triton side `@triton.jit` functions of tiles. The second derivative is needed
    only for gradients of gradients.
    """

    function: Callable[..., Any]
    derivative: Callable[..., Any]
    args: tuple[Any, ...] = ()
    second_derivative: Callable[..., Any] | None = None


class Options(NamedTuple):
    """All options of a call of attention besides q, k and v; see `attention.forward`."""

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
    seed: Any = 0
    cu_seqlens_q: Any = None
    cu_seqlens_k: Any = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    rotary: Rotary | None = None
    block_mask: Any = None
    block_size: BlockSize | None = None

    @property
    def packed(self) -> bool:
        """Whether sequences of any lengths lie one after the other in one batch element."""
        return self.cu_seqlens_q is not None

    @property
    def block(self) -> tuple[int, int]:
        """How many queries and keys a block of the block mask has."""
        assert self.block_size is not None
        rows, columns = pair(self.block_size)
        return int(rows), int(columns)

    def scale(self, head_dim: int) -> float:
        """Return what the products are multiplied by, 1/√D by default."""
        scale = self.softmax_scale
        return 1 / math.sqrt(head_dim) if scale is None else float(scale)

    @property
    def cap(self) -> float | None:
        """Return softcap as a Python float: NumPy's float64 would promote float32 scores."""
        return None if self.softcap is None else float(self.softcap)

    @property
    def changes_scores(self) -> bool:
        """Whether anything is done to the scores besides scaling and masking."""
        changes = (self.softcap, self.score_mod, self.alibi_slopes, self.bias)
        return any(x is not None for x in changes)


class Band(NamedTuple):
    """Query i may attend to keys from i + shift − behind to i + shift + ahead; None: no limit."""

    shift: Any
    behind: int | None
    ahead: int | None


def check(options: Options, B: int, H: int, M: int, N: int) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    check_packing(options, B, M, N)
    B, M, N = sizes(options, B, M, N)
    scale, softcap = options.softmax_scale, options.softcap
    if scale is not None:
        checks.number("softmax_scale", scale)
        checks.require(math.isfinite(scale), "softmax_scale", scale, "finite")
    check_causal(options.causal)
    check_window(options.window_size)
    if softcap is not None:
        checks.positive("softcap", softcap)
    check_score_mod(options.score_mod)
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
    check_blocks(options, B, H, M, N)
    if options.key_lengths is not None:
        checks.integer(key_lengths=options.key_lengths)
        checks.shape("key_lengths", options.key_lengths, (B,))
    checks.probability("dropout_p", options.dropout_p)


def check_packing(options: Options, B: int, M: int, N: int) -> None:
    """Raise TypeError or ValueError for invalid packed sequences."""
    both = (options.cu_seqlens_k is None) == (options.cu_seqlens_q is None)
    was = "None" if options.cu_seqlens_k is None else "given"
    checks.require(both, "cu_seqlens_k", was, "given if cu_seqlens_q is, and only then")
    for end, starts, longest, rows in (
        ("q", options.cu_seqlens_q, options.max_seqlen_q, M),
        ("k", options.cu_seqlens_k, options.max_seqlen_k, N),
    ):
        name, name_longest = f"cu_seqlens_{end}", f"max_seqlen_{end}"
        if starts is None:
            checks.require(longest is None, name_longest, longest, f"None without {name}")
        else:
            checks.require(B == 1, "q.shape[0]", B, f"1 with {name}")
            checks.offsets(name, starts, rows, name_longest, longest)
            checks.shape(name, starts, tuple(options.cu_seqlens_q.shape))


def check_causal(causal: Any, alignments: tuple[str, ...] = ALIGNMENTS) -> None:
    """Refuse what is neither a bool nor the name of a diagonal."""
    if isinstance(causal, str):
        checks.choice("causal", causal, alignments)
    else:
        checks.flag("causal", causal, *alignments)


def check_score_mod(mod: Any) -> None:
    """Refuse what is neither a `ScoreMod` of functions nor None."""
    if mod is None:
        return
    if not isinstance(mod, ScoreMod):
        raise TypeError(f"score_mod is a {type(mod).__name__}; it must be a ScoreMod")
    functions = {"function": mod.function, "derivative": mod.derivative}
    if mod.second_derivative is not None:
        functions["second_derivative"] = mod.second_derivative
    for name, f in functions.items():
        if not callable(f):
            raise TypeError(f"score_mod.{name} is a {type(f).__name__}; it must be a function")
    if not isinstance(mod.args, tuple):
        raise TypeError(f"score_mod.args is a {type(mod.args).__name__}; it must be a tuple")


def check_window(size: Any) -> None:
    """Refuse a window that is not a pair of numbers of keys."""
    if size is None:
        return
    checks.require(isinstance(size, tuple | list) and len(size) == 2, "window_size", size, "a pair")
    for end in size:
        fits = end is None or (checks.whole(end) and 0 <= end < 2**31 - 1)
        checks.require(fits, "window_size", size, "of ints from 0 to 2**31 - 2, or None")


def check_block_size(size: Any) -> None:
    """Refuse a block size that is neither one number nor two."""
    both = pair(size)
    fits = isinstance(both, tuple) and len(both) == 2
    fits = fits and all(checks.whole(n) and n >= 1 for n in both)
    checks.require(fits, "block_size", size, "an int ≥ 1, or a tuple of two, with block_mask")


def check_blocks(options: Options, B: int, H: int, M: int, N: int) -> None:
    """Raise TypeError or ValueError for what is wrong with `block_mask` and `block_size`."""
    size = options.block_size
    if options.block_mask is None:
        checks.require(size is None, "block_size", size, "None without block_mask")
        return
    check_block_size(size)
    checks.boolean(block_mask=options.block_mask)
    checks.broadcastable("block_mask", options.block_mask, (B, H, *blocks(options, M, N)))


def pair(size: Any) -> Any:
    """Return a block's numbers of queries and of keys; one number stands for both."""
    return (size, size) if checks.whole(size) else size


def blocks(options: Options, M: int, N: int) -> tuple[int, int]:
    """Return how many blocks M queries make, and N keys."""
    rows, columns = options.block
    return -(-M // rows), -(-N // columns)


def sizes(options: Options, B: int, M: int, N: int) -> tuple[int, int, int]:
    """Return B, M and N of mask, bias, slopes and dropout: q's and k's, unless those are packed."""
    if options.max_seqlen_q is None or options.max_seqlen_k is None:
        return B, M, N
    S = int(options.cu_seqlens_q.shape[0]) - 1
    return S, int(options.max_seqlen_q), int(options.max_seqlen_k)


def lengths(options: Options, M: int, N: int) -> tuple[Any, Any]:
    """Return how many queries and keys there are; if packed, (S, 1, 1, 1), for each sequence."""
    if not options.packed:
        return M, N
    queries, keys = np.diff(options.cu_seqlens_q), np.diff(options.cu_seqlens_k)
    return queries[:, None, None, None], keys[:, None, None, None]


def unpack(x: Array, starts: Array | None, longest: int | None, behind: float = 0.0) -> Array:
    """Give each sequence in x (1, H, T, …) its own batch element, (S, H, longest, …), end-padded.

    Without `starts`, this and `pack` return x as it is.
    """
    if starts is None or longest is None:
        return x
    there = np.arange(longest) < np.diff(starts)[:, None]  # (S, longest)
    shape = (len(there), x.shape[1], there.shape[1], *x.shape[3:])
    batches = np.zeros(shape, x.dtype)
    if behind != 0.0:
        batches[...] = behind
    batches.swapaxes(1, 2)[there] = x[0].swapaxes(0, 1)  # (T, H, …)
    return batches


def pack(x: Array, starts: Array | None) -> Array:
    """Put the sequences of x (S, H, longest, …) one after the other, (1, H, T, …)."""
    if starts is None:
        return x
    there = np.arange(x.shape[2]) < np.diff(starts)[:, None]  # (S, longest)
    return x.swapaxes(1, 2)[there].swapaxes(0, 1)[None]


def scores(
    s: Array, options: Options, first: int = 0, queries: int | None = None
) -> tuple[Array, Array | None]:
    """Turn q·k·scale (B, H, M, N) into scores.

    If s has only some of the `queries`, `first` is the index of its first one, and `options.bias`
    has the same queries only.

    Returns:
        the scores, and their derivative by q·k·scale, None if that is 1.
    """
    b, h, i, j = np.ogrid[tuple(slice(n) for n in s.shape)]
    i = i + first
    M, N = queries or s.shape[-2], s.shape[-1]
    slope, dtype = None, s.dtype
    cap = options.cap
    if cap is not None:
        capped = np.tanh(s / cap)
        s, slope = cap * capped, 1 - capped * capped
    if options.score_mod is not None:
        function, derivative, args, _ = options.score_mod
        change = derivative(s, b, h, i, j, args)
        slope = change if slope is None else slope * change
        s = changed(function, s, b, h, i, j, args)
    if options.alibi_slopes is not None:
        shift = band(options, *lengths(options, M, N)).shift
        distance = abs(i + shift - j)  # (1 or B, 1, M, N)
        s = s - options.alibi_slopes[..., None, None].astype(s.dtype) * distance
    if options.bias is not None:
        s = s + options.bias
    return s.astype(dtype, copy=False), None if slope is None else np.asarray(slope, dtype)


def changed(function: Callable[..., Array], s: Array, *rest: Any) -> Array:
    """Return the scores as changed by the user's function, in the same shape.

    The result is a new array: what the function returns may be one of `score_mod.args`, or
    read-only.
    """
    found = function(s, *rest)
    checks.array("what score_mod.function returns", found)
    checks.shape("what score_mod.function returns", found, s.shape)
    return found if found is s else np.array(found)


def attended(
    shape: tuple[int, ...], options: Options, first: int = 0, queries: int | None = None
) -> Array | None:
    """Return which pairs take part, broadcastable to (B, H, M, N); None if all do.

    `first` and `queries` are as for `scores`; `options.mask` has the queries of the shape only.
    """
    M, N = shape[-2:]
    i, j = np.arange(first, first + M)[:, None], np.arange(N)
    length, keys = lengths(options, queries or M, N)
    shift, behind, ahead = band(options, length, keys)
    distance = j - i - shift  # (M, N) or (B, 1, M, N), from the diagonal to the key
    parts = [] if options.mask is None else [options.mask]
    if options.block_mask is not None:
        parts.append(pairs_of_blocks(options, queries or M, N)[..., first : first + M, :])
    if options.packed:
        parts.append((i < length) & (j < keys))
    if behind is not None:
        parts.append(distance >= -behind)
    if ahead is not None:
        parts.append(distance <= ahead)
    if options.key_lengths is not None:
        parts.append(j < options.key_lengths[:, None, None, None])  # (B, 1, 1, N)
    return functools.reduce(np.logical_and, parts) if parts else None


def pairs_of_blocks(options: Options, M: int, N: int) -> Array:
    """Return the block mask, pair by pair, broadcastable to (B, H, M, N)."""
    mask, (rows, columns) = options.block_mask, options.block
    mask = np.broadcast_to(mask, (*mask.shape[:-2], *blocks(options, M, N)))
    rows, columns = min(rows, M), min(columns, N)  # the rest of a larger block is not needed
    return np.asarray(mask.repeat(rows, axis=-2).repeat(columns, axis=-1)[..., :M, :N])


def band(options: Options, M: Any, N: Any) -> Band:
    """Return the band that `causal` and `window_size` leave of M queries and N keys.

    Its diagonal ends at the last query and the last key or, for "top-left", begins at the first
    query and the first key.
    """
    behind, ahead = (None if n is None else int(n) for n in options.window_size or (None, None))
    if options.causal:
        ahead = 0
    return Band(0 if options.causal == "top-left" else N - M, behind, ahead)
