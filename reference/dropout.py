r"""Dropout, and the counter-based generator that both sides draw their masks from.

    y = x · keep / (1 − p),   keep ~ Bernoulli(1 − p)

Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", in the
inverted form that needs no scaling at test time.

The bits come from Philox 4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2,
3", section 3.3), the generator behind `tl.rand`: a bijection of a 128-bit counter, so the mask
of any element is a function of (seed, index) alone. Backward draws it again instead of storing it,
and the kernel draws the same bits, whatever its tiles.

One call of Philox gives eight 16-bit draws; element `n` takes draw ``n % 8`` of counter ``n // 8``,
so `p` is rounded to the nearest 1/65536 and the scale is that of the rounded `p`: E[y] = x exactly.

A dropped ±∞ or NaN becomes NaN, as 0·∞ is; in the kernel, which selects instead of multiplying, it
becomes 0.

The steps are numbered; the kernel carries the same numbers where it does the same thing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]

ROUND_A, ROUND_B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # multipliers of the round
KEY_A, KEY_B = 0x9E3779B9, 0xBB67AE85  # Weyl increments: golden ratio and √3 − 1
ROUNDS = 10
HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
DRAWS = 8  # 16-bit draws in one counter's 128 bits
BLOCK = 1 << 14  # counters worked on at a time, so that the state stays in the L2 cache


class Cache(NamedTuple):
    """What `backward` needs: two numbers and the shape, no mask."""

    p: float
    seed: int
    shape: tuple[int, ...]


class Gradients(NamedTuple):
    """Gradient of the input, shaped as the input."""

    dx: Array


def check(x: Any, p: float, seed: Any) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.array("x", x)
    checks.floating(x=x)
    checks.probability("p", p)
    checks.seed(seed, x)


def forward(x: Array, p: float, seed: int) -> tuple[Array, Cache]:
    """Zero each element of `x` with probability `p` and scale the rest by 1/(1 − p).

    Args:
        x: any shape, floating. A dropped ±∞ or NaN gives NaN, as in torch; the kernel gives 0.
        p: probability of dropping an element, 0 ≤ p < 1.
        seed: determines the mask, 0 ≤ seed < 2⁶³: a number, or a 0-d int64 array that holds it. As
            with every other seed, kernels read such an array again in backward: it must still hold
            the same number then.

    Returns:
        out, shaped as x, and the cache.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(x, p, seed)
    # (1) draws, (2) mask, (3) scale
    return _dropped(x, p, seed), Cache(p, int(seed), tuple(x.shape))


def backward(dout: Array, cache: Cache) -> Gradients:
    """Return dx = dout·keep/(1 − p), with the mask drawn again from the seed.

    Args:
        dout: shaped as x, floating.
        cache: from `forward`.

    Returns:
        dx, shaped as x, of the dtype of dout.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.gradient("dout", dout, cache.shape)
    return Gradients(_dropped(dout, cache.p, cache.seed))


def _dropped(x: Array, p: float, seed: int) -> Array:
    wide = widened(x)  # float16 has no scale of 65,536
    return rounded(wide * scaled_mask(x.shape, p, seed, wide.dtype), x.dtype)


def scaled_mask(shape: tuple[int, ...], p: float, seed: int, dtype: Any) -> Array:
    """Return keep/(1 − p) as floats of `dtype`: what dropout multiplies by."""
    # (3) scale
    return np.multiply(keep_mask(shape, p, seed), scale(p), dtype=dtype)


def attention_scaled_mask(
    shape: tuple[int, int, int, int], p: float, seed: int, dtype: Any, first: int = 0
) -> Array:
    """Return keep/(1 − p) of attention weights (B, H, M, N) as floats of `dtype`.

    Batches count from `first`.
    """
    # (3) scale
    return np.multiply(attention_keep_mask(shape, p, seed, first), scale(p), dtype=dtype)


def threshold(p: float) -> int:
    """Return p in units of 1/65536: an element is kept iff its 16-bit draw is at least this."""
    return min(round(float(p) * 65536), 65535)


def scale(p: float) -> float:
    """Return 1/(1 − p) for the rounded p."""
    return 65536 / (65536 - threshold(p))


def keep_mask(shape: tuple[int, ...], p: float, seed: int) -> Array:
    """Return the boolean mask of a tensor, elements counted in row-major order."""
    size = int(np.prod(shape))
    counters = -(-size // DRAWS)
    keep = np.empty(counters * DRAWS, bool)
    for start in range(0, counters, BLOCK):
        index = np.arange(start, min(start + BLOCK, counters), dtype=np.uint64)
        low, high = index.astype(np.uint32), (index >> HALF).astype(np.uint32)
        zero = np.zeros_like(low)
        # (1) draws, (2) mask
        draws = philox_draws(low, high, zero, zero, seed)
        keep[start * DRAWS : (start + BLOCK) * DRAWS] = draws >= threshold(p)
    return keep[:size].reshape(shape)


def attention_keep_mask(
    shape: tuple[int, int, int, int], p: float, seed: int, first: int = 0
) -> Array:
    """Return the boolean mask of attention weights (B, H, M, N), whose batches count from `first`.

    Weight (b, h, i, j) takes draw ``j % 8`` of the counter ``(j // 8, i, h, b)``: since that is its
    place and not a linear index, the mask depends neither on tiles nor on lengths.
    """
    B, H, M, N = shape
    groups = -(-N // DRAWS)
    keep = np.empty(B * H * M * groups * DRAWS, bool)
    for start in range(0, B * H * M * groups, BLOCK):
        index = np.arange(start, min(start + BLOCK, B * H * M * groups))
        b, h, i, j = (c.astype(np.uint32) for c in np.unravel_index(index, (B, H, M, groups)))
        # (1) draws, (2) mask
        draws = philox_draws(j, i, h, b + np.uint32(first), seed)
        keep[start * DRAWS : (start + BLOCK) * DRAWS] = draws >= threshold(p)
    return keep.reshape(B, H, M, groups * DRAWS)[..., :N]


def philox_draws(c0: Array, c1: Array, c2: Array, c3: Array, seed: int) -> Array:
    """Return eight consecutive 16-bit draws per counter: the words in order, low half first."""
    return np.stack(philox(c0, c1, c2, c3, seed), axis=-1).astype("<u4").view("<u2").reshape(-1)


def philox(
    c0: Array, c1: Array, c2: Array, c3: Array, seed: int
) -> tuple[Array, Array, Array, Array]:
    """Return the four words of Philox 4x32-10 at counter (c0, c1, c2, c3), key = `seed`, as uint32.

    A round multiplies two words, swaps the halves of the 64-bit products and mixes in the other two
    words and the key; ten rounds pass BigCrush. Words stay in uint64, so that no product is cast.
    """
    c0, c1, c2, c3 = (c.astype(np.uint64) for c in (c0, c1, c2, c3))
    key0, key1 = int(seed) & 0xFFFFFFFF, int(seed) >> 32
    for _ in range(ROUNDS):
        product_a, product_b = c0 * ROUND_A, c2 * ROUND_B
        np.right_shift(product_b, HALF, out=c0)
        c0 ^= c1
        c0 ^= np.uint64(key0)
        np.right_shift(product_a, HALF, out=c2)
        c2 ^= c3
        c2 ^= np.uint64(key1)
        c1, c3 = product_b & LOW, product_a & LOW
        key0, key1 = (key0 + KEY_A) & 0xFFFFFFFF, (key1 + KEY_B) & 0xFFFFFFFF
    return tuple(c.astype(np.uint32) for c in (c0, c1, c2, c3))  # type: ignore[return-value]
