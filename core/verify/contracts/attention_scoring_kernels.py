"""The functions of `attention_scoring` in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from twofold.core.verify.contracts import attention_scoring as scoring

FAR = tl.constexpr(scoring.FAR)


@triton.jit
def squashed(s, b, h, i, j, args):
    """Keep scores within ±limit, lower by a slope of the distance, which grows with the head."""
    limit, slope = args
    return limit * (s / (1.0 + tl.abs(s))) - slope * (h + 1) * tl.abs(i - j) + b


@triton.jit
def squashed_slope(s, b, h, i, j, args):
    """Return the derivative of `squashed` in s."""
    limit, slope = args
    room = 1.0 + tl.abs(s)
    return limit / (room * room)


@triton.jit
def smooth(s, b, h, i, j, args):
    """Do as `squashed` does, with a function that has a second derivative at 0, too."""
    limit, slope = args
    return limit * s / tl.sqrt(1.0 + s * s) - slope * (h + 1) * tl.abs(i - j) + b


@triton.jit
def smooth_slope(s, b, h, i, j, args):
    """Return the derivative of `smooth` in s."""
    limit, _ = args
    room = 1.0 + s * s
    return limit / (room * tl.sqrt(room))


@triton.jit
def smooth_bend(s, b, h, i, j, args):
    """Return the second derivative of `smooth` in s."""
    limit, _ = args
    room = 1.0 + s * s
    return -3.0 * limit * s / (room * room * tl.sqrt(room))


@triton.jit
def steep_slope(s, b, h, i, j, args):
    """Return `smooth`'s slope, but ∞ at keys after the query or more than FAR before it."""
    return smooth_slope(s, b, h, i, j, args) * tl.where((j > i) | (j < i - FAR), float("inf"), 1.0)


@triton.jit
def steep_bend(s, b, h, i, j, args):
    """Return `smooth`'s second derivative, but ∞ where `steep_slope` is."""
    return smooth_bend(s, b, h, i, j, args) * tl.where((j > i) | (j < i - FAR), float("inf"), 1.0)
