r"""The error function, which NumPy lacks.

float64: Cody 1969, "Rational Chebyshev approximations for the error function", Math. Comp. 23:
one rational function for |x| < 0.46875, exp(−x²) times another up to 4 and a third beyond; right
to about 1e-16. float32: one rational function of x² on [0, 4], fitted here by iteratively
reweighted least squares (relative error 2.5e-8) and evaluated within 6 units of 2⁻²⁴; past 4, erf
is 1 in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# Coefficients by rising power; (numerator, denominator).
SINGLE = (
    (1.12837914, 0.193537819, 0.0531004852, 0.00388294251, 0.000284542379, 1.98665734e-06),
    (1.0, 0.504850985, 0.115346731, 0.0152064679, 0.001185446, 3.74176249e-05),
)
SMALL = (
    (3209.37758913846947, 377.485237685302021, 113.864154151050156, 3.16112374387056560,
     0.185777706184603153),
    (2844.23683343917062, 1282.61652607737228, 244.024637934444173, 23.6012909523441209, 1.0),
)  # fmt: skip
MIDDLE = (
    (1230.33935479799725, 2051.07837782607147, 1712.04761263407058, 881.952221241769090,
     298.635138197400131, 66.1191906371416295, 8.88314979438837594, 0.564188496988670089,
     2.15311535474403846e-8),
    (1230.33935480374942, 3439.36767414372164, 4362.61909014324716, 3290.79923573345963,
     1621.38957456669019, 537.181101862009858, 117.693950891312499, 15.7449261107098347, 1.0),
)  # fmt: skip
LARGE = (
    (6.58749161529837803e-4, 1.60837851487422766e-2, 0.125781726111229246, 0.360344899949804439,
     0.305326634961232344, 1.63153871373020978e-2),
    (2.33520497626869185e-3, 6.05183413124413191e-2, 0.527905102951428412, 1.87295284992346725,
     2.56852019228982242, 1.0),
)  # fmt: skip
INVERSE_SQRT_PI = 0.564189583547756287


def erf(x: Array) -> Array:
    """Return (2/√π)·∫₀ˣ exp(−t²) dt, element by element, in the dtype of x."""
    return _single(x) if x.dtype == np.float32 else _double(x)


def _single(x: Array) -> Array:
    x = np.clip(x, -4, 4)
    square = np.square(x)
    result = _horner(SINGLE[0], square)
    result *= x
    result /= _horner(SINGLE[1], square)
    return np.clip(result, -1, 1, out=result)


def _double(x: Array) -> Array:
    size = np.abs(x)
    square = np.square(np.minimum(size, 0.5))
    small = x * _horner(SMALL[0], square) / _horner(SMALL[1], square)
    at = np.clip(size, 0.25, 4.0)
    middle = _horner(MIDDLE[0], at) / _horner(MIDDLE[1], at)
    inverse = 1 / np.square(np.clip(size, 4.0, 30.0))
    large = INVERSE_SQRT_PI - inverse * _horner(LARGE[0], inverse) / _horner(LARGE[1], inverse)
    large *= np.sqrt(inverse)
    tail = np.where(size <= 4.0, middle, large) * np.exp(-np.square(np.minimum(size, 30.0)))
    return np.where(size <= 0.46875, small, np.copysign(1 - tail, x))


def _horner(coefficients: Sequence[float], x: Array) -> Array:
    result = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        result *= x
        result += c
    return result
