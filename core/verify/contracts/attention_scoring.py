"""Functions of the scores for attention's contracts, which use everything that one may use.

They also serve as examples: a user writes a function of arrays and its derivative in the scores,
both in NumPy and in Triton, and its second derivative where gradients of gradients are needed. The
bound runs the NumPy functions on numbers that carry their errors (`rounding.Approx`), which
operators and NumPy's elementary functions accept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from twofold.reference.attention_scores import ScoreMod


@dataclass(frozen=True)
class Scoring:
    """A function of the scores as each side takes it; only calling `triton` needs Triton."""

    name: str
    reference: Callable[[], ScoreMod]
    triton: Callable[[], ScoreMod]

    def __repr__(self) -> str:
        return self.name


def squashed(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """Keep scores within ±limit, lower by a slope of the distance, which grows with the head."""
    limit, slope = args
    return limit * (s / (1.0 + np.abs(s))) - slope * (h + 1) * np.abs(i - j) + b


def squashed_slope(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """Return the derivative of `squashed` in s."""
    limit, _ = args
    room = 1.0 + np.abs(s)
    return limit / (room * room)


def smooth(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """Do as `squashed` does, with a function that has a second derivative at 0, too."""
    limit, slope = args
    return limit * s / np.sqrt(1.0 + s * s) - slope * (h + 1) * np.abs(i - j) + b


def smooth_slope(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """Return the derivative of `smooth` in s."""
    limit, _ = args
    room = 1.0 + s * s
    return limit / (room * np.sqrt(room))


def smooth_bend(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """Return the second derivative of `smooth` in s."""
    limit, _ = args
    room = 1.0 + s * s
    return -3.0 * limit * s / (room * room * np.sqrt(room))


def steep_slope(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """Return `smooth`'s slope, but ∞ at keys after the query or more than FAR before it."""
    return smooth_slope(s, b, h, i, j, args) * np.where((j > i) | (j < i - FAR), np.inf, 1.0)


def steep_bend(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """Return `smooth`'s second derivative, but ∞ where `steep_slope` is."""
    return smooth_bend(s, b, h, i, j, args) * np.where((j > i) | (j < i - FAR), np.inf, 1.0)


FAR = 8
ARGS = (3.0, 0.125)  # the slope is a power of two, so that its products with integers are exact


def _triton() -> ScoreMod:
    from twofold.core.verify.contracts import attention_scoring_kernels as kernels

    return ScoreMod(kernels.squashed, kernels.squashed_slope, ARGS)


def _steep_triton() -> ScoreMod:
    from twofold.core.verify.contracts import attention_scoring_kernels as kernels

    return ScoreMod(kernels.smooth, kernels.steep_slope, ARGS, kernels.steep_bend)


def _smooth_triton() -> ScoreMod:
    from twofold.core.verify.contracts import attention_scoring_kernels as kernels

    return ScoreMod(kernels.smooth, kernels.smooth_slope, ARGS, kernels.smooth_bend)


SQUASHED = Scoring("SQUASHED", lambda: ScoreMod(squashed, squashed_slope, ARGS), _triton)
STEEP = Scoring("STEEP", lambda: ScoreMod(smooth, steep_slope, ARGS, steep_bend), _steep_triton)
SMOOTH = Scoring(
    "SMOOTH", lambda: ScoreMod(smooth, smooth_slope, ARGS, smooth_bend), _smooth_triton
)
