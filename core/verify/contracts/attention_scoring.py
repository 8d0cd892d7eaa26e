"""Functions of the scores for attention's contracts: they look at everything that one may look at.

As examples: what a user writes is a function of arrays and its derivative by the scores, twice, in
NumPy and in Triton, and its second derivative where gradients of gradients are asked for. The bound
is made of the NumPy functions, which are run on numbers that carry their errors
(`rounding.Approx`): operators, and NumPy's elementary functions, take them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from twofold.reference.attention_scores import ScoreMod


@dataclass(frozen=True)
class Scoring:
    """A function of the scores as each side takes it; `triton` makes it, so that none is needed."""

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
    """Return the derivative of `squashed` by s."""
    limit, _ = args
    room = 1.0 + np.abs(s)
    return limit / (room * room)


def smooth(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """Do as `squashed` with a function that has a second derivative at 0, too."""
    limit, slope = args
    return limit * s / np.sqrt(1.0 + s * s) - slope * (h + 1) * np.abs(i - j) + b


def smooth_slope(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """Return the derivative of `smooth` by s."""
    limit, _ = args
    room = 1.0 + s * s
    return limit / (room * np.sqrt(room))


def smooth_bend(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """Return the second derivative of `smooth` by s."""
    limit, _ = args
    room = 1.0 + s * s
    return -3.0 * limit * s / (room * room * np.sqrt(room))


def steep_slope(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """That of `smooth`, but ∞ at keys after the query, and at those more than FAR before it."""
    return smooth_slope(s, b, h, i, j, args) * np.where((j > i) | (j < i - FAR), np.inf, 1.0)


def steep_bend(s: Any, b: Any, h: Any, i: Any, j: Any, args: Any) -> Any:
    """Return as `steep_slope` does the second derivative."""
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
