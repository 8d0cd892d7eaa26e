"""Running error analysis: numbers that carry how far a kernel's float32 arithmetic may take them.

An `Approx` is a pair (value, error) of float64 arrays. `value` is the mathematics; `error` bounds,
element by element, the distance of anything the kernel may have computed for it:

    |computed − value| ≤ error

Every operation below propagates that invariant: the operands' errors pass through the operation,
and the operation's own rounding is added. An operator's bound is then its kernel's formula,
written once more in this arithmetic; the derivation is read line by line, and no tolerance is
chosen by hand. The technique is Wilkinson's (1986, "Error analysis revisited"); the rules and γ_n
= nu/(1 − nu) are in Higham 2002, "Accuracy and Stability of Numerical Algorithms", chapters 3 and
4.

The bounds hold for any order of summation and with or without fused multiply-add (a fused operation
rounds once where the rule counts twice). What the hardware does beyond IEEE 754 is in `Machine`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Machine:
    """The arithmetic a kernel runs in, as worst cases over the hardware Triton compiles for.

    Attributes:
        storage: dtype of inputs and outputs.
        u: unit roundoff of elementwise arithmetic and of sums.
        u_storage: unit roundoff of the storage dtype.
        tiny: largest absolute error of an underflow in arithmetic (subnormals flushed to zero).
        tiny_storage: the same for a cast to the storage dtype.
        huge: largest finite number of the storage dtype.
        u_product: relative error of one product inside a matrix product.
        u_sum: roundoff of the matrix unit's accumulator, which may truncate (Fasi et al. 2021).
        u_function: relative error of division, square roots, exponentials and logarithms.
    """

    storage: str
    u: float
    u_storage: float
    tiny: float
    tiny_storage: float
    huge: float
    u_product: float
    u_sum: float
    u_function: float


def machine(dtype: str, allow_tf32: bool = False) -> Machine:
    """Return the arithmetic of kernels on `dtype`.

    float16 and bfloat16 products are exact in float32. A tf32 operand keeps 10 bits and may be
    truncated: (1 + 2⁻¹⁰)² − 1 per product. tf32x3 splits each operand in two rounded tf32 halves
    and drops low·low: 2⁻¹¹·2⁻¹¹, and each low half is itself rounded: twice more; 2⁻²⁰ covers the
    three. Division is `div.full` (2 ulp), exponential and logarithm `ex2.approx` and `lg2.approx`
    behind one multiplication, roots `rsqrt.approx`: 2⁻²² covers each (PTX ISA, floating-point
    instructions).
    """
    u, tiny = 2.0**-24, 2.0**-126
    if dtype == "float64":
        u = 2.0**-53
        return Machine(dtype, u, u, 2.0**-1022, 2.0**-1022, np.finfo(np.float64).max, u, u, 4 * u)
    product = (1 + 2.0**-10) ** 2 - 1 if allow_tf32 else 2.0**-20
    float32 = Machine(dtype, u, u, tiny, tiny, _FLOAT32_MAX, product, 2 * u, 2.0**-22)
    if dtype == "float32":
        return float32
    u_storage, tiny_storage, huge = {
        "float16": (2.0**-11, 2.0**-25, 65504.0),
        "bfloat16": (2.0**-8, 2.0**-126, (2 - 2.0**-7) * 2.0**127),
    }[dtype]
    return Machine(dtype, u, u_storage, tiny, tiny_storage, huge, 0.0, 2 * u, 2.0**-22)


_FLOAT32_MAX = (2 - 2.0**-23) * 2.0**127


def gamma(n: int, u: float) -> float:
    """Return γ_n = nu/(1 − nu), the relative error of n roundings (Higham 2002, lemma 3.1)."""
    return n * u / (1 - n * u) if n * u < 1 else np.inf


@dataclass(frozen=True)
class Approx:
    """A float64 array and a bound on the distance of whatever the kernel computed for it."""

    value: Array
    error: Array
    on: Machine

    def _other(self, x: Approx | Array | float) -> Approx:
        """An array is an input, held exactly; a number is a constant, rounded to float32."""
        if isinstance(x, Approx):
            return x
        return constant(x, self.on) if isinstance(x, float | int) else exact(x, self.on)

    def _rounded(self, value: Array, error: Array, u: float | None = None) -> Approx:
        """Add one rounding of the computed number, which is at most |value| + error."""
        u = self.on.u if u is None else u
        return Approx(value, error + u * (np.abs(value) + error) + self.on.tiny, self.on)

    def __neg__(self) -> Approx:
        return Approx(-self.value, self.error, self.on)

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
        return self._rounded(self.value * y.value, error)

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

    def __getitem__(self, index: Any) -> Approx:
        return Approx(self.value[index], self.error[index], self.on)

    @property
    def mT(self) -> Approx:
        """The matrices transposed."""
        return Approx(self.value.swapaxes(-1, -2), self.error.swapaxes(-1, -2), self.on)

    def reshape(self, *shape: int) -> Approx:
        """The same numbers in another shape."""
        return Approx(self.value.reshape(*shape), self.error.reshape(*shape), self.on)

    def sum(self, axis: int | tuple[int, ...] = -1, keepdims: bool = False) -> Approx:
        """Sum in any order: the errors add up, and n − 1 additions round (Higham 2002, (4.4))."""
        n = self.value.size // max(1, self.value.sum(axis=axis).size)
        value, error = (x.sum(axis=axis, keepdims=keepdims) for x in (self.value, self.error))
        reach = (np.abs(self.value) + self.error).sum(axis=axis, keepdims=keepdims)
        rounding = gamma(max(n - 1, 0), self.on.u) * reach + n * self.on.tiny
        return Approx(value, error + rounding, self.on)

    def mean(self, axis: int = -1, keepdims: bool = False) -> Approx:
        """The sum divided by the count."""
        return self.sum(axis, keepdims) / float(self.value.shape[axis])

    def max(self, axis: int = -1, keepdims: bool = False) -> Approx:
        """The largest is at most as wrong as the most wrong: a choice does not round."""
        value, error = (x.max(axis=axis, keepdims=keepdims) for x in (self.value, self.error))
        return Approx(value, error, self.on)

    def where(self, condition: Array, otherwise: float = 0.0) -> Approx:
        """Choose by a condition that the kernel knows exactly."""
        value = np.where(condition, self.value, otherwise)
        return Approx(value, np.where(condition, self.error, 0.0), self.on)

    def stored(self) -> Approx:
        """Cast to the storage dtype; a number that may pass its largest has no finite bound."""
        reach = np.abs(self.value) + self.error
        error = self.error + self.on.u_storage * reach + self.on.tiny_storage
        with np.errstate(invalid="ignore"):
            error = np.where(reach * (1 + self.on.u_storage) > self.on.huge, np.inf, error)
        return Approx(self.value, error, self.on)

    def function(
        self, f: Callable[[Array], Array], slope: Callable[[Array], Array], curvature: float
    ) -> Approx:
        """A smooth function: |f(x̂) − f(x)| ≤ |f′(x)|·e + ½ max|f″|·e², then its own rounding."""
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
    """a @ b on the matrix unit: each product and each of K sums rounds (Higham 2002, (3.12))."""
    on, k = a.on, a.value.shape[-1]
    reach_a, reach_b = np.abs(a.value) + a.error, np.abs(b.value) + b.error
    error = np.abs(a.value) @ b.error + a.error @ reach_b
    growth = (1 + on.u_product) * (1 + gamma(k, on.u_sum)) - 1
    return Approx(a.value @ b.value, error + growth * (reach_a @ reach_b) + k * on.tiny, on)


def exp(x: Approx) -> Approx:
    """e^x̂ = e^x·e^(x̂−x): the relative error is expm1 of the absolute one."""
    value = np.exp(x.value)
    # The kernel computes exp2(x·log₂e): the product rounds, an absolute error of 2u|x| in x.
    shift = x.error + 2 * x.on.u * np.where(np.isfinite(x.value), np.abs(x.value) + x.error, 0.0)
    return x._rounded(value, value * np.expm1(shift), x.on.u_function)


def log(x: Approx) -> Approx:
    """|log x̂ − log x| ≤ −log(1 − e/x); near 1 the result is small and its error is absolute."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(x.error == 0, 0.0, x.error / x.value)
        error = np.where(relative < 1, -np.log1p(-np.minimum(relative, 1 - 2.0**-50)), np.inf)
        value = np.log(x.value)
    return x._rounded(value, error + x.on.u_function, x.on.u_function)


def sqrt(x: Approx) -> Approx:
    """|√x̂ − √x| ≤ e/√x, and never more than √e."""
    value = np.sqrt(x.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(x.error == 0, 0.0, np.minimum(x.error / value, np.sqrt(x.error)))
    return x._rounded(value, error, x.on.u_function)


def maximum(x: Approx, y: Approx) -> Approx:
    """The larger of two is at most as wrong as the more wrong."""
    return Approx(np.maximum(x.value, y.value), np.maximum(x.error, y.error), x.on)
