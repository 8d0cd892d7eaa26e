r"""The CDF of the standard normal, which NumPy lacks.

    Φ(z) = ½(1 + erf(z/√2)) = ∫ φ(t) dt over t ≤ z,   φ(t) = exp(−t²/2)/√(2π)

float64: Cody 1969, "Rational Chebyshev approximations for the error function", Math. Comp. 23, with
the coefficients for Φ itself of Cody 1993, "Algorithm 715: SPECFUN", ACM TOMS 19. One rational
function covers |z| < 0.67, two more the tail divided by exp(−z²/2), so that Φ(z) keeps its relative
accuracy until it underflows.

float32: Φ(z) = ½(1 + tanh(z·P(z²))), P of degree 6 fitted here by iteratively reweighted least
squares (absolute error 2.9e-8) and evaluated within 2.5 units of 2⁻²⁴; past ±5.75 it gives 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# Coefficients, highest power first.
SINGLE = (
    1.75616989e-09, -1.32263312e-07, 3.96474411e-06, -5.53061922e-05, -3.25949787e-05,
    0.0363330846, 0.797884941,
)  # fmt: skip
# Coefficients of numerator and denominator.
CENTRE = (
    (0.065682337918207449113, 2.2352520354606839287, 161.02823106855587881, 1067.6894854603709582,
     18154.981253343561249),
    (1.0, 47.20258190468824187, 976.09855173777669322, 10260.932208618978205,
     45507.789335026729956),
)  # fmt: skip
SHOULDER = (
    (1.0765576773720192317e-8, 0.39894151208813466764, 8.8831497943883759412,
     93.506656132177855979, 597.27027639480026226, 2494.5375852903726711, 6848.1904505362823326,
     11602.651437647350124, 9842.7148383839780218),
    (1.0, 22.266688044328115691, 235.38790178262499861, 1519.377599407554805,
     6485.558298266760755, 18615.571640885098091, 34900.952721145977266, 38912.003286093271411,
     19685.429676859990727),
)  # fmt: skip
TAIL = (
    (0.02307344176494017303, 0.21589853405795699, 0.1274011611602473639, 0.022235277870649807,
     0.001421619193227893466, 2.9112874951168792e-5),
    (1.0, 1.28426009614491121, 0.468238212480865118, 0.0659881378689285515,
     0.00378239633202758244, 7.29751555083966205e-5),
)  # fmt: skip
BLOCK = 1 << 16  # elements at a time
CENTRE_END, SHOULDER_END, TAIL_END = 0.67448975, math.sqrt(32), 40.0


def cdf(z: Array) -> Array:
    """Return Φ(z) element by element, in the dtype of z (float32 or float64)."""
    return _single(z) if z.dtype == np.float32 else _double(z)


def density(z: Array) -> Array:
    """Return φ(z) element by element, in the dtype of z."""
    result = np.clip(z, -TAIL_END, TAIL_END, out=np.empty_like(z))
    result *= result
    result *= -0.5
    np.exp(result, out=result)
    result *= 1 / math.sqrt(2 * math.pi)
    return result


def _single(z: Array) -> Array:
    result = np.empty(z.shape, z.dtype)
    flat, out = z.reshape(-1), result.reshape(-1)
    with np.errstate(over="ignore"):  # P is infinite where tanh has long been 1
        for start in range(0, len(flat), BLOCK):  # so that intermediate results stay in cache
            part, half = flat[start : start + BLOCK], out[start : start + BLOCK]
            argument = _polynomial(SINGLE, np.square(part))
            argument *= part
            np.tanh(argument, out=half)
            half *= 0.5
            half += 0.5
    return result


def _double(z: Array) -> Array:
    size = np.abs(z)
    near = np.clip(z, -CENTRE_END, CENTRE_END)
    centre = 0.5 + near * _ratio(CENTRE, np.square(near))
    shoulder = _ratio(SHOULDER, np.clip(size, CENTRE_END, SHOULDER_END))
    far = np.clip(size, SHOULDER_END, TAIL_END)
    inverse = 1 / np.square(far)
    tail = (1 / math.sqrt(2 * math.pi) - inverse * _ratio(TAIL, inverse)) / far
    # exp(−z²/2), z² split so that its rounding does not grow with z
    size = np.minimum(size, TAIL_END)
    coarse = np.trunc(16 * size) / 16
    decay = np.exp(-0.5 * np.square(coarse)) * np.exp(-0.5 * (size - coarse) * (size + coarse))
    outside = np.where(size <= SHOULDER_END, shoulder, tail) * decay
    return np.where(size <= CENTRE_END, centre, np.where(z < 0, outside, 1 - outside))


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Array) -> Array:
    return _polynomial(coefficients[0], x) / _polynomial(coefficients[1], x)


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    result = coefficients[0] * x
    for c in coefficients[1:-1]:
        result += c
        result *= x
    result += coefficients[-1]
    return result
