"""Running error analysis: numbers that carry a bound on a kernel's float32 rounding error.

An `Approx` is a pair (value, error) of float64 arrays. `value` is the mathematics; `error` bounds,
element by element, its distance to whatever the kernel may have computed:

    |computed − value| ≤ error

Every operation below propagates that invariant: the operands' errors pass through the operation,
and the operation's own rounding is added. An operator's bound is then its kernel's formula,
written once more in this arithmetic; the derivation can be read line by line, and no tolerance is
chosen by hand. The technique is Wilkinson's (1986, "Error analysis revisited"); the rules and γ_n
= nu/(1 − nu) are in Higham 2002, "Accuracy and Stability of Numerical Algorithms", chapters 3 and
4. The bounds hold for any order of summation and with or without fused multiply-add (a fused
operation rounds once where the rule counts twice). A number that may have overflowed has no bound:
its error is infinite. What hardware does beyond IEEE 754 is in `machines`.

**The probabilistic bound.** The error of a sum of n rounded terms is the sum of n roundings only if
they conspire. Under `machines.probabilistic` they are assumed not to, as far as that is defensible:

(a) A cast to nearest of a computed number errs uniformly over its unit in the last place,
    |ρ| ≤ c, and independently of other casts. A uniform ρ has E exp(tρ) = sinh(tc)/(tc)
    ≤ exp(t²c²/6), so Σ bⱼρⱼ exceeds λ·√(Σ bⱼ²cⱼ²/3) with probability at most 2·exp(−λ²/2)
    (Hoeffding 1963, theorem 2, with the variance of a uniform variable for that of its range).
    `Approx.fresh` is c: the part of `error` that is the number's own cast and nothing else's.
    `stored` sets it, `sum` and `matmul` use it up; any other operation drops it, which is safe, as
    `error` includes it. Errors that reach two terms of a sum from one source are never taken to be
    independent.
(b) Equal numbers are rounded equally, and nearly equal ones nearly so. Terms of one sum that differ
    by less than a quarter of a unit in the last place are taken to be rounded alike; n such terms
    count as one n times as large: (Σ bc)² ≤ n·Σ b²c² (Cauchy). Constant rows gain nothing.
(c) Additions of a float32 sum round to nearest: n of them err by λ·√(n/3)·u of what they reach
    (Higham & Mary 2019, "A new approach to probabilistic rounding error analysis", theorem 2.4;
    Connolly, Higham & Mary 2021 for roundings that depend on earlier ones), √n more where all terms
    are alike. A term below a unit in the last place of the sum that it is added to is rounded as
    that sum is, whatever its own bits: long sums of terms of two such sizes are not covered.
(d) What may be one-sided or systematic is not averaged: truncation in the matrix unit and of its
    operands, approximate functions, rounded constants, underflow.

The smaller of the two bounds is used everywhere. Both are asserted (`contract.judge`): the first is
a theorem about the machine, the second about casts of numbers without a pattern, and a violation of
the second alone is reported as such.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twofold.core.verify.machines import Machine, chance, machine, probabilistic
from twofold.core.verify.units import Array, alike, gamma, half_unit, overflow

__all__ = [
    "Approx",
    "Array",
    "Machine",
    "alike",
    "chance",
    "concatenate",
    "constant",
    "exact",
    "exp",
    "gamma",
    "grown",
    "log",
    "machine",
    "matmul",
    "maximum",
    "probabilistic",
    "sqrt",
    "stack",
    "tanh",
]


@dataclass(frozen=True)
class Approx:
    """A float64 array and a bound on its distance to whatever the kernel computed.

    `fresh` is the part of `error` that is a cast of the element itself (see the module), None if
    that part is unknown.
    """

    value: Array
    error: Array
    on: Machine
    fresh: Array | None = None

    def _other(self, x: Approx | Array | float) -> Approx:
        """Wrap an operand: an array is an input, held exactly; a number is rounded to float32."""
        if isinstance(x, Approx):
            return x
        return constant(x, self.on) if isinstance(x, float | int) else exact(x, self.on)

    def _rounded(self, value: Array, error: Array, u: float | None = None) -> Approx:
        """Add one rounding of the computed number, at most |value| + error; an exact 0 has none."""
        u = self.on.u if u is None else u
        reach = np.abs(value) + error
        with np.errstate(invalid="ignore"):
            error = error + u * reach + np.where(reach > 0, self.on.tiny, 0.0)
        return Approx(value, np.where(reach <= self.on.largest, error, np.inf), self.on)

    def __neg__(self) -> Approx:
        return Approx(-self.value, self.error, self.on, self.fresh)

    def __add__(self, x: Approx | Array | float) -> Approx:
        y = self._other(x)
        return self._rounded(self.value + y.value, self.error + y.error)

    def __sub__(self, x: Approx | Array | float) -> Approx:
        return self + (-self._other(x))

    def __rsub__(self, x: Array | float) -> Approx:
        return self._other(x) - self

    def __mul__(self, x: Approx | Array | float) -> Approx:
        y = self._other(x)
        error = np.abs(self.value) * y.error + self.error * (np.abs(y.value) + y.error)
        sure = y.value.ndim == 0 and not y.error.any()
        shift = sure and np.frexp(np.abs(y.value))[0] in (0.0, 0.5)  # by a power of 2
        return self._rounded(self.value * y.value, error, 0.0 if shift else None)

    def __truediv__(self, x: Approx | Array | float) -> Approx:
        """|x̂/ŷ − x/y| ≤ (e_x + |x/y|·e_y) / (|y| − e_y)."""
        y = self._other(x)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = self.value / y.value
            room = np.abs(y.value) - y.error
            error = np.where(
                room > 0, (self.error + np.abs(value) * y.error) / np.abs(room), np.inf
            )
        return self._rounded(value, error, self.on.u_function)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rtruediv__(self, x: Array | float) -> Approx:
        return self._other(x) / self

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Let a formula written with NumPy's functions run on numbers with errors."""
        rule = UFUNCS.get(ufunc.__name__)
        if rule is None or method != "__call__" or options:
            return NotImplemented
        return rule(*(self._other(x) for x in inputs))

    def __array_function__(self, f: Any, types: Any, args: Any, options: Any) -> Any:
        """Support `np.where` by a condition that the kernel knows exactly; no other function."""
        if f is not np.where or len(args) != 3 or options:
            return NotImplemented
        condition, x, y = args[0], *(self._other(x) for x in args[1:])
        return Approx(
            np.where(condition, x.value, y.value), np.where(condition, x.error, y.error), self.on
        )

    def __getitem__(self, index: Any) -> Approx:
        return self.moved(lambda x: x[index])

    @property
    def mT(self) -> Approx:
        """The matrices transposed."""
        return self.moved(lambda x: x.swapaxes(-1, -2))

    def reshape(self, *shape: int) -> Approx:
        """The same numbers in another shape."""
        return self.moved(lambda x: np.reshape(x, shape))

    def moved(self, f: Callable[[Array], Array]) -> Approx:
        """The numbers as rearranged, or copied, by a function that changes none of them."""
        fresh = None if self.fresh is None else f(self.fresh)
        return Approx(f(self.value), f(self.error), self.on, fresh)

    def sum(self, axis: int = -1, keepdims: bool = False) -> Approx:
        """Sum in any order: the errors add up, and n − 1 additions round (Higham 2002, (4.4)).

        Adding an exact zero does not round.
        """
        magnitude = np.abs(self.value) + self.error
        n = np.maximum((magnitude > 0).sum(axis=axis, keepdims=keepdims) - 1, 0)
        value, error, reach = (
            x.sum(axis=axis, keepdims=keepdims) for x in (self.value, self.error, magnitude)
        )
        with np.errstate(divide="ignore"):
            growth = np.where(n * self.on.u < 1, n * self.on.u / (1 - n * self.on.u), np.inf)
        if self.on.confidence is not None:
            share = self.on.confidence / math.sqrt(3)
            same = alike(self.value, self.on.u, axis)
            n_alike = n * same.max(axis=axis, keepdims=keepdims)
            growth = np.minimum(growth, share * np.sqrt(n_alike) * self.on.u * (1 + growth))
            if self.fresh is not None:
                same = alike(self.value, self.on.u_storage, axis)
                conspiring = self.fresh.sum(axis=axis, keepdims=keepdims)
                scattered = np.sqrt((same * self.fresh**2).sum(axis=axis, keepdims=keepdims))
                error = error - conspiring + np.minimum(conspiring, share * scattered)
        error = error + growth * reach + n * self.on.tiny
        return Approx(value, np.where(reach <= self.on.largest, error, np.inf), self.on)

    def mean(self, axis: int = -1, keepdims: bool = False) -> Approx:
        """The sum divided by the count."""
        return self.sum(axis, keepdims) / float(self.value.shape[axis])

    def max(self, axis: int = -1, keepdims: bool = False) -> Approx:
        """The largest, which is at most as wrong as the most wrong: a choice does not round."""
        value, error = (x.max(axis=axis, keepdims=keepdims) for x in (self.value, self.error))
        return Approx(value, error, self.on)

    def where(self, condition: Array, otherwise: float = 0.0) -> Approx:
        """Choose by a condition that the kernel knows exactly."""
        value = np.where(condition, self.value, otherwise)
        fresh = None if self.fresh is None else np.where(condition, self.fresh, 0.0)
        return Approx(value, np.where(condition, self.error, 0.0), self.on, fresh)

    def stored(self) -> Approx:
        """Cast to the storage dtype, to nearest: off by at most half a unit in the last place.

        A number that may overflow the dtype has no finite bound. Where a float16 underflows, casts
        lean to zero: that part is not `fresh`.
        """
        reach = np.abs(self.value) + self.error
        half = np.maximum(half_unit(reach, self.on.u_storage), self.on.tiny_storage)
        half = np.where(reach > 0, half, 0.0)
        error = np.where(reach < overflow(self.on), self.error + half, np.inf)
        fresh = None
        if self.on.confidence is not None and self.on.u_storage > 0:
            normal = np.abs(self.value) >= self.on.tiny_storage / self.on.u_storage
            fresh = np.where(normal & (error < np.inf), half, 0.0)
        return Approx(self.value, error, self.on, fresh)

    def returned(self, dtype: str | None = None) -> Approx:
        """Cast as an output, to the storage dtype or to another.

        What is certain to overflow the dtype is ±∞, exactly. In float64 `value`, itself computed in
        float64, is as far from the mathematics as the output.
        """
        if dtype is not None:
            return Approx(self.value, self.error, machine(dtype)).returned()
        stored = self.stored()
        if self.on.storage == "float64":
            return Approx(stored.value, 2 * stored.error, self.on)
        with np.errstate(invalid="ignore"):
            passes = np.abs(self.value) - self.error >= overflow(self.on)
        value = np.where(passes, np.copysign(np.inf, self.value), self.value)
        return Approx(value, np.where(passes, 0.0, stored.error), self.on)

    def function(
        self, f: Callable[[Array], Array], slope: Callable[[Array], Array], curvature: float
    ) -> Approx:
        """Apply a smooth f: |f(x̂) − f(x)| ≤ |f′(x)|·e + ½ max|f″|·e², then its own rounding."""
        value = f(self.value)
        error = np.abs(slope(self.value)) * self.error + 0.5 * curvature * self.error**2
        return self._rounded(value, error, self.on.u_function)


def exact(x: Array | float, on: Machine) -> Approx:
    """Return numbers that the kernel holds exactly: inputs in their own dtype."""
    value = np.asarray(x, np.float64)
    return Approx(value, np.zeros_like(value), on)


def constant(x: float, on: Machine) -> Approx:
    """Return a scalar argument as the kernel receives it: rounded once to float32."""
    error = 0.0 if on.storage == "float64" else abs(x - float(np.float32(x)))
    return Approx(np.asarray(float(x)), np.asarray(error), on)


def matmul(a: Approx, b: Approx) -> Approx:
    """Bound a @ b on the matrix unit: each product and each of K sums rounds (Higham 2002, (3.12)).

    A subnormal operand may be flushed, or lose its bits to tf32: 2⁻¹²⁶ of each. An operand within
    2⁻¹² of the largest float32 has no finite nearest tf32; NumPy does not use tf32.
    """
    on, k = a.on, a.value.shape[-1]
    size_a, size_b = np.abs(a.value), np.abs(b.value)
    reach_a, reach_b = size_a + a.error, size_b + b.error
    error = size_a @ b.error + a.error @ reach_b
    if on.confidence is not None and (a.fresh is not None or b.fresh is not None):
        fresh_a = np.zeros_like(size_a) if a.fresh is None else a.fresh
        fresh_b = np.zeros_like(size_b) if b.fresh is None else b.fresh
        conspiring = size_a @ fresh_b + fresh_a @ reach_b
        square = (alike(a.value, on.u_storage, -1) * fresh_a**2) @ reach_b**2
        square += size_a**2 @ (alike(b.value, on.u_storage, -2) * fresh_b**2)
        scattered = on.confidence * np.sqrt(square / 3) + fresh_a @ fresh_b
        error = error - conspiring + np.fmin(conspiring, scattered)
    if on.u_product > on.u:
        reach_a, reach_b = (
            np.where(x < on.largest * (1 - 2.0**-12), x, np.inf) for x in (reach_a, reach_b)
        )
    reach = reach_a @ reach_b
    growth = (1 + on.u_product) * (1 + gamma(k, on.u_sum))
    growth = growth * (1 + gamma(min(k, on.summed), on.u_summed)) - 1
    flushed = reach_a.sum(-1)[..., :, None] + reach_b.sum(-2)[..., None, :] + k
    error = error + growth * reach + np.where(reach > 0, on.tiny * flushed, 0.0)
    return Approx(a.value @ b.value, np.where(reach <= on.largest, error, np.inf), on)


def exp(x: Approx) -> Approx:
    """Bound e^x: e^x̂ ≤ e^(x + e), and below e^x the error is smaller.

    The kernel computes exp2(x·log₂e), whose product rounds: another 2u|x| in x.
    """
    value = np.exp(x.value)
    shift = x.error + 2 * x.on.u * np.where(np.isfinite(x.value), np.abs(x.value) + x.error, 0.0)
    return x._rounded(value, grown(value, x.value, shift), x.on.u_function)


def grown(value: Array, x: Array, shift: Array) -> Array:
    """Return e^(x + shift) − e^x, `value` being e^x, where one of the two may underflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(shift < 1, value * np.expm1(shift), np.exp(x + shift) - value)


def log(x: Approx) -> Approx:
    """Bound log x: |log x̂ − log x| ≤ −log(1 − e/x); near 1, where it is small, it errs absolutely.

    The kernel may compute log₂x·ln 2, where ln 2 is rounded, as is the product.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(x.error == 0, 0.0, x.error / x.value)
        error = np.where(relative < 1, -np.log1p(-np.minimum(relative, 1 - 2.0**-50)), np.inf)
        value = np.log(x.value)
    u = x.on.u_function
    return x._rounded(value, error + u, u + 2 * x.on.u)


def sqrt(x: Approx) -> Approx:
    """Bound √x: |√x̂ − √x| ≤ e/√x and never more than √e; a subnormal x̂ may be taken for 0."""
    value = np.sqrt(x.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(x.error == 0, 0.0, np.minimum(x.error / value, np.sqrt(x.error)))
    subnormal = (x.value > 0) & (x.value - x.error < x.on.tiny)
    error = error + np.where(subnormal, math.sqrt(x.on.tiny), 0.0)
    return x._rounded(value, error, x.on.u_function)


def tanh(a: Approx) -> Approx:
    """Bound tanh a = 1 − w with w = 2/(1 + e²ᵃ), as kernels compute it.

    tanh′ is at most its value at the point in reach nearest to 0. The exponential errs by δ of
    itself (two roundings of 2a·log₂e and its own), w by δ·e²ᵃ/(1 + e²ᵃ), a sum and a division;
    1 − w rounds once.
    """
    on, value = a.on, np.tanh(a.value)
    nearest = np.maximum(np.abs(a.value) - a.error, 0.0)
    moved = np.fmin((1 - np.tanh(nearest) ** 2) * a.error, 2.0)
    with np.errstate(over="ignore"):
        share = 1 / (1 + np.exp(-2 * a.value))
    w = 2 * (1 - share)
    wrong = on.u_function + 4 * on.u * np.where(np.isfinite(a.value), np.abs(a.value), 0.0)
    rounding = w * (share * wrong + 2 * on.u_function) + on.u * np.abs(value)
    return Approx(value, moved + rounding + on.tiny, on)


def absolute(x: Approx) -> Approx:
    """|x|: changing a sign is exact."""
    return Approx(np.abs(x.value), x.error, x.on)


def maximum(x: Approx, y: Approx) -> Approx:
    """The larger of two, which is at most as wrong as the more wrong."""
    return Approx(np.maximum(x.value, y.value), np.maximum(x.error, y.error), x.on)


def concatenate(parts: Sequence[Approx], axis: int = 0) -> Approx:
    """Join arrays along an axis."""
    value, error = (
        np.concatenate(x, axis) for x in ([p.value for p in parts], [p.error for p in parts])
    )
    return Approx(value, error, parts[0].on)


def stack(parts: Sequence[Approx]) -> Approx:
    """Join arrays along a new first axis."""
    return concatenate([x.moved(lambda a: a[None]) for x in parts])


# NumPy's functions, by name, for numbers with errors.
UFUNCS: dict[str, Callable[..., Approx]] = {
    "add": Approx.__add__,
    "subtract": Approx.__sub__,
    "multiply": Approx.__mul__,
    "divide": Approx.__truediv__,
    "negative": Approx.__neg__,
    "absolute": absolute,
    "exp": exp,
    "log": log,
    "sqrt": sqrt,
    "tanh": tanh,
    "maximum": maximum,
    "minimum": lambda x, y: -maximum(-x, -y),
}
