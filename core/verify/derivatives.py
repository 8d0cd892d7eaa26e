"""Gradients against finite differences: an oracle independent of how a backward was derived.

Ridders 1982, "Accurate computation of F′(x) and F′(x)F″(x)", Adv. Eng. Software 4(2): central
differences at shrinking steps, extrapolated to step 0 by Neville's scheme. The spread of the
tableau says how well the derivative is known, so no tolerance is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
STEP = 0.02  # the first one
DIRECTIONS = 3


def ridders(f: Callable[[float], float]) -> tuple[float, float]:
    """Return f′(0) and an estimate of its error; `f` in float64, smooth over ±STEP."""
    shrink, rows = 1.6, 10
    tableau = np.zeros((rows, rows))
    best, error = np.nan, np.inf
    for i in range(rows):
        h = STEP / shrink**i
        above, below = f(h), f(-h)
        tableau[i, 0] = (above - below) / (2 * h)
        rounding = 2.0**-50 * max(abs(above), abs(below)) / h  # what the subtraction may lose
        for j in range(1, i + 1):
            factor = shrink ** (2 * j)
            tableau[i, j] = (factor * tableau[i, j - 1] - tableau[i - 1, j - 1]) / (factor - 1)
            spread = max(
                abs(tableau[i, j] - tableau[i, j - 1]), abs(tableau[i, j] - tableau[i - 1, j - 1])
            )
            if spread + rounding < error:
                best, error = tableau[i, j], spread + rounding
    return float(best), float(error)


def check_gradients(
    value: Callable[..., float],
    arguments: Mapping[str, Array],
    gradients: Mapping[str, Array],
    rng: np.random.Generator,
) -> None:
    """Raise AssertionError unless each gradient gives the slopes of `value` in random directions.

    Args:
        value: scalar function of the arguments by name, in float64.
        arguments: where to differentiate.
        gradients: what is claimed, by the arguments' names.
        rng: draws the directions, `DIRECTIONS` for each argument.
    """
    for name, gradient in gradients.items():
        x = arguments[name]
        assert gradient.shape == x.shape, f"gradient of {name} has shape {gradient.shape}"
        for _ in range(DIRECTIONS):
            direction = np.asarray(rng.standard_normal(x.shape))

            def along(t: float, name: str = name, direction: Array = direction) -> float:
                return value(**{**arguments, name: arguments[name] + t * direction})

            slope, error = ridders(along)
            claimed = float((gradient * direction).sum())
            # Ridders' spread is an estimate, not a bound, hence ten times it; the gradients and
            # their sum carry float64 roundings, and 2⁻⁴⁰ of all that is added has room for 8192.
            allowed = 10 * error + 2.0**-40 * float(np.abs(gradient * direction).sum())
            assert abs(claimed - slope) <= allowed, (
                f"gradient of {name} along a random direction is {claimed:.12g}; "
                f"differences give {slope:.12g} ± {error:.2g}"
            )
