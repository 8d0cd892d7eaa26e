"""The arithmetic that kernels run in, as worst cases over the hardware Triton compiles for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

FLOAT32_MAX = (2 - 2.0**-23) * 2.0**127
CONFIDENCE = 9.0
E4M3 = 32  # 8-bit products that one instruction of Hopper's matrix unit sums

_confidence: ContextVar[float | None] = ContextVar("confidence", default=None)
_full: ContextVar[bool] = ContextVar("full", default=False)


@dataclass(frozen=True)
class Machine:
    """One arithmetic; `machine` says where its numbers come from.

    Attributes:
        storage: dtype of inputs and outputs.
        u: unit roundoff of elementwise arithmetic and of sums, which round to nearest.
        u_storage: unit roundoff of a cast to the storage dtype; 0 where there is nothing to cast.
        tiny: largest absolute error of an underflow in arithmetic (subnormals flushed to zero).
        tiny_storage: the same for a cast to the storage dtype.
        huge: largest finite number of the storage dtype.
        largest: largest finite number of the arithmetic.
        u_product: relative error of one product inside a matrix product.
        u_sum: roundoff of the matrix unit's accumulator, which may truncate.
        u_function: relative error of division, square roots, exponentials and logarithms.
        confidence: λ of the probabilistic bound, None for the deterministic one (see `rounding`).
        summed: how many products the matrix unit sums at a time with fewer bits, 0 if it does not.
        u_summed: roundoff of such a sum.
    """

    storage: str
    u: float
    u_storage: float
    tiny: float
    tiny_storage: float
    huge: float
    largest: float
    u_product: float
    u_sum: float
    u_function: float
    confidence: float | None = None
    summed: int = 0
    u_summed: float = 0.0


def machine(dtype: str, allow_tf32: bool = False, accumulator: int | None = None) -> Machine:
    """Return the arithmetic of kernels on `dtype`.

    Elementwise arithmetic and `tl.sum` are IEEE float32, rounded to nearest: u = 2⁻²⁴. Whether
    subnormals survive depends on flags and units, so an operation may lose 2⁻¹²⁶.

    Casts round to nearest, ties to even: u_storage = 2⁻¹¹ (float16) and 2⁻⁸ (bfloat16). float16 has
    subnormals, so what underflows errs by half of 2⁻²⁴; bfloat16's are taken to be flushed. float32
    is not cast at all.

    Functions. `div.full.f32` errs by 2 ulp over its whole range, unlike `div.approx`, which gives 0
    where the divisor exceeds 2¹²⁶. `ex2.approx.ftz.f32` and `lg2.approx.ftz.f32` err by 2⁻²² (the
    latter absolutely near 1; Triton may use a polynomial that errs by no more), and
    `sqrt.approx.ftz.f32` by less; their subnormal arguments are flushed, which matters only to a
    root (`rounding.sqrt`). 2 ulp are 2⁻²² too. (PTX ISA, "Floating Point Instructions"; AMD's
    v_exp_f32, v_log_f32, v_sqrt_f32 err by 1 ulp, CDNA 3 ISA.)

    Products on the matrix unit. Those of float16 and bfloat16 are exact in float32. tf32 truncates
    an operand to 11 bits, so it loses less than 2⁻¹⁰ of it: (1 + 2⁻¹⁰)² − 1 per product. tf32x3,
    as Triton compiles it, splits a = h + r, h the nearest tf32 number: |r| ≤ 2⁻¹¹|a| and a multiple
    of a's last place, so it has at most 12 bits, and the unit, which keeps 11, loses at most
    2⁻²³|a|. With r·r dropped a product errs by 2·2⁻²³ + 2⁻²² = 2⁻²¹; the small products are summed
    first, from zero, and add 2n roundings of 2⁻¹⁰ and one addition to the n of the large ones.
    2⁻²⁰ covers all of it up to n = 1024, and beyond that the quarter to spare in the next paragraph
    does. A true float32 product (AMD's matrix unit, NumPy) errs by 2⁻²⁴, within that too; the
    reference has no other (`full_products`). An operand that is subnormal, or so large that h is
    infinite, is left to `rounding.matmul`.

    Sums on the matrix unit are truncated, not rounded: a unit that adds k products to its
    accumulator aligns k + 1 numbers to the largest (Fasi, Higham, Mikaitis & Pranesh 2021,
    "Numerical behavior of NVIDIA tensor cores", PeerJ CS 7:e330) with at least one extra bit,
    k ≥ 4, since the A100 (Khattak & Mikaitis 2025, "Accurate models of NVIDIA tensor cores"). So it
    loses at most 2⁻²⁴ of the largest for each of the other k, and then truncates the sum, 2⁻²³:
    (k/2 + 1)·2⁻²³ for k products, within γ_k at u_sum = 2⁻²³ by a quarter.

    float8_e4m3fn has u_storage = 2⁻⁴, and what underflows errs by half of 2⁻⁹; its products are
    exact in float32. Hopper's matrix unit aligns E4M3 = 32 products to the largest and keeps about
    14 bits of each and of their sum (DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section
    3.3.2), which the kernels add to others in float32: `accumulator` is how many bits, None for all
    of float32. The last of b bits is 2^(1 − b) of the largest; n ≥ 2 products and their sum each
    lose at most that much: (n + 1)·2^(1 − b), within γ_n at u_summed = 2^(2 − b).
    """
    u, tiny = 2.0**-24, 2.0**-126
    confidence = _confidence.get()
    if dtype == "float64":
        u, tiny, most = 2.0**-53, 2.0**-1022, (2 - 2.0**-52) * 2.0**1023
        return Machine(dtype, u, u, tiny, tiny, most, most, u, u, 4 * u, confidence)
    product, u_sum, function, most = 0.0, 2.0**-23, 2.0**-22, FLOAT32_MAX
    if dtype == "float32":
        product = (1 + 2.0**-10) ** 2 - 1 if allow_tf32 else 2.0**-20
        if _full.get() and not allow_tf32:
            product = u_sum = u
        return Machine(dtype, u, 0.0, tiny, 0.0, most, most, product, u_sum, function, confidence)
    summed, u_summed = 0, 0.0
    if dtype == "float8_e4m3fn" and accumulator is not None:
        summed, u_summed = E4M3, 2.0 ** (2 - accumulator)
    u_storage, tiny_storage, huge = {
        "float8_e4m3fn": (2.0**-4, 2.0**-10, 448.0),
        "float16": (2.0**-11, 2.0**-25, 65504.0),
        "bfloat16": (2.0**-8, 2.0**-126, (2 - 2.0**-7) * 2.0**127),
    }[dtype]
    return Machine(
        dtype, u, u_storage, tiny, tiny_storage, huge, most, product, u_sum, function, confidence,
        summed, u_summed,
    )  # fmt: skip


def chance(on: Machine) -> float:
    """Return the probability that a probabilistic bound fails, for each sum it is made of."""
    return 0.0 if on.confidence is None else 2 * math.exp(-(on.confidence**2) / 2)


@contextmanager
def full_products(full: bool) -> Iterator[None]:
    """Let `machine` return arithmetics without a matrix unit (`full`, as in NumPy) or with one.

    Without one, float32 matrix products, and their sums, round to nearest like everything else.
    """
    token = _full.set(full)
    try:
        yield
    finally:
        _full.reset(token)


@contextmanager
def probabilistic() -> Iterator[None]:
    """Let `machine` return arithmetics in which independent roundings add up in quadrature.

    A bound then fails with probability 2·exp(−λ²/2) for each sum, λ the `CONFIDENCE`: at 9 that is
    5·10⁻¹⁸. A run of `twofold verify` takes fewer than 10⁸ sums (an element of an output has at
    most three and is counted three times), so it raises a false alarm with probability 5·10⁻¹⁰.
    """
    token = _confidence.set(CONFIDENCE)
    try:
        yield
    finally:
        _confidence.reset(token)
