"""The domain of attention in 8 bits, and its bound; `attention_fp8` makes the contract.

A case is one of attention (`attention_domain`) without gradients, quantised: the truth
is that of the 8-bit numbers and their scales, which are inputs here. `dtype` is that of the output,
of bias and sinks; lse is float32. `quantize` is given x in that dtype, too.

u = 2⁻²⁴ and the other constants are those of `machines.machine("float8_e4m3fn")`: u₈ = 2⁻⁴ for a
cast to e4m3, which has three fraction bits and rounds to nearest, and 2⁻¹⁰ for one that underflows,
half of the spacing 2⁻⁹ of numbers below 2⁻⁶. The bound follows the kernel's steps in running error
analysis (`rounding.Approx`):

(0) Where positions are rotary, a number of q8 or k8 is rotated in float32 and cast to float16
    (`rotary.turn`): that changes it by 2⁻¹¹ of itself, or, below float16's least normal number,
    2⁻¹⁴, by half of the spacing 2⁻²⁴ of its subnormals. Numbers of e4m3 are at least 2⁻⁹ apart, but
    rotated ones may cancel: that is an absolute term, 2⁻²⁵ in q8 or k8, hence 2⁻²⁵·scale in q or k,
    2⁻³³ of the head's largest. The largest, 448·√2, is far from 65504.
(1) Scores in base 2: t = (q8·k8)·f·c, f = q_scale·k_scale and c = scale·log₂e. The product is taken
    on the matrix unit (`rounding.matmul`): products of e4m3 have 8 bits and are exact, D of them
    are summed in float32 and err by γ_D at u_sum; Hopper sums 32 at a time with 14 bits and errs by
    another γ_32 at 2⁻¹² (`machine`'s `accumulator`), except for rotated numbers, which are float16,
    their products exact in float32 too. f rounds once, and so does the multiplication by it; the
    rest is attention's (`attention_problem.scores`), as is what else is done to scores.
(2) Weights ŵ = exp2(t − m) against a running maximum m, all between 0 and 1, rescaled as it grows,
    and (3) log-sum-exp, of the weights before their cast: those of `attention_bound`, unchanged.
(4) Output. A normalised weight is P·e^±(Φ + Θ) as there. It is multiplied by 256, exactly, before
    its cast: 256·ŵ ≤ 256(1 + u_function) < 448, so none is too large, and the cast changes it by
    u₈ of itself, or, where 256·ŵ is below 2⁻⁶, by 2⁻¹⁰. That is 2⁻¹⁸ in ŵ, twice that in a
    normalised weight, as l̂ ≥ ½. What exp2 or the rescaling flush to zero is counted as in
    attention. Then comes a product with v8 on the matrix unit, of N terms, tile by tile, each tile
    summed as in (1); a division of 1/(1 − p), rounded once, by 256·l̂; and multiplications by the
    quotient and by v_scale, a rounding each, before the cast to the output's dtype. Weights that
    dropout keeps are cast without the factor 1/(1 − p), which later scales the errors of the cast
    and of underflow as it scales the output.

In the probabilistic bound the casts of weights add up in quadrature; those that underflow do not.

`quantize`: the largest magnitude of a head is a choice and exact; the division by 448 rounds, and
so does x/scale, whose cast is off by half a unit of e4m3. A number near the midpoint of two numbers
of e4m3 may become either.

`B` batch, `H` heads, `K` heads of keys and values, `M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core import ops
from twofold.core.ops import Side
from twofold.core.verify import attention_bound, domains
from twofold.core.verify.contracts import attention_domain, attention_rotary
from twofold.core.verify.contracts.attention_domain import place, statistics
from twofold.core.verify.contracts.attention_packed import pack_approx, padded, repacked
from twofold.core.verify.rounding import Approx, Machine, constant, exact, machine, maximum
from twofold.kernels.attention_fp8_tiles import ENTRIES
from twofold.reference.attention_fp8 import LARGEST, LEAST_SCALE, nearest
from twofold.reference.attention_scores import pack, unpack

Array = domains.Array

WEIGHTS = 256.0  # what a weight is multiplied by before its cast
BITS = 14  # of a sum of 8-bit products on Hopper
SCALES = ("BH", "1H", "B1", "11", "H", "1", "")


@dataclass(frozen=True)
class Case(attention_domain.Case):
    """A case of attention, and the axes that its scales have, "1" for one that is broadcast."""

    dtype: str = "bfloat16"
    scales: str = "BH"


class Inputs(NamedTuple):
    """The inputs of the call, q, k and v in e4m3; their float32 scales; and x, to be quantised.

    The case's dtype holds `x` (B, H, L, D) exactly.
    """

    call: attention_domain.Inputs
    q_scale: Array  # (B, H), or what broadcasts to it
    k_scale: Array  # (B, K), or what broadcasts to it
    v_scale: Array
    x: Array


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    call = attention_domain.inputs(case)
    queries, keys = (
        (starts, longest if case.packed else None)
        for starts, longest in (
            (call.cu_seqlens_q, case.seqlen_q), (call.cu_seqlens_k, case.seqlen_k)
        )
    )  # fmt: skip
    q, q_scale = quantized(call.q, case.scales, *queries)
    k, k_scale = quantized(call.k, case.scales, *keys)
    v, v_scale = quantized(call.v, case.scales, *keys)
    return Inputs(call._replace(q=q, k=k, v=v), q_scale, k_scale, v_scale, call.v)


def quantized(
    x: Array, axes: str, starts: Array | None, longest: int | None
) -> tuple[Array, Array]:
    """Return numbers of e4m3, and the scales, one for each of `axes`, that bring them to 448."""
    batches = unpack(x, starts, longest)
    scale = np.abs(batches).max((2, 3)) / LARGEST  # (B, H)
    for axis in (0, 1):
        if len(axes) < 2 - axis or axes[axis - 2] == "1":
            scale = scale.max(axis, keepdims=True)
    scale = domains.representable(np.maximum(scale, LEAST_SCALE), "float32")
    values = pack(nearest(batches / scale[..., None, None]), starts)
    return values, scale.reshape(scale.shape[2 - len(axes) :])


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    how = attention_domain.placed(side, case, given.call)._asdict()
    held, how["out_dtype"] = case, case.dtype
    if side.name == "reference":  # which takes a bias of any dtype
        how["bias"] = attention_domain.place_mask(side, given.call.bias, case, "float64")
    else:
        held = replace(case, dtype="float8_e4m3fn")
    how |= domains.entry(side, case, ENTRIES)
    q, k, v = (place(side, x, held) for x in (given.call.q, given.call.k, given.call.v))
    q_scale, k_scale, v_scale = (
        domains.beside(side, x, case, statistics(case))
        for x in (given.q_scale, given.k_scale, given.v_scale)
    )
    out, lse = side.attention_fp8.forward(
        q, k, v, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale, **how
    )
    x8, scale = side.attention_fp8.quantize(place(side, given.x, case))
    return {"out": out, "lse": lse, "x8": x8, "scale": scale}


def accumulator() -> int | None:
    """Return with how many bits 8-bit products are summed where kernels run; None for all."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" or not ops.cuda_available()
    return None if interpreted else BITS


def arithmetic(case: Case) -> Machine:
    """Return the arithmetic of a call; the reference in float64 casts no weights."""
    if case.dtype == "float64":
        return machine(case.dtype)
    on = machine("float8_e4m3fn", accumulator=accumulator())
    return replace(on, tiny_storage=on.tiny_storage / WEIGHTS)


def problem(case: Case, given: Inputs) -> tuple[attention_bound.Problem, Approx]:
    """Return the case as the bound takes it, and the scales of v (B, H, 1, 1)."""
    on, call = arithmetic(case), padded(case, given.call)
    heads = (case.batch, case.heads)
    q_scale = np.broadcast_to(given.q_scale, heads)
    k_scale, v_scale = (
        np.broadcast_to(x, (case.batch, case.heads // case.groups)).repeat(case.groups, 1)
        for x in (given.k_scale, given.v_scale)
    )
    q_scale, k_scale, v_scale = (x[..., None, None] for x in (q_scale, k_scale, v_scale))
    options = attention_domain.options(case, given.call)
    dropped = attention_domain.dropped(case)
    made = attention_bound.problem(call.q, call.k, call.v, on, options, dropped)
    half = machine("float64" if case.dtype == "float64" else "float16")
    made = attention_rotary.turning(made, given.call, half)
    factor = exact(q_scale, on) * exact(k_scale, on)
    return made._replace(factor=factor), exact(v_scale, on)


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds."""
    given = given or inputs(case)
    x, v_scale = problem(case, given)
    # (1) scores, (2) weights and their cast, (3) log-sum-exp
    made = attention_bound.forward(x)
    # (4) output
    out = attention_bound.output(x, made.weights, made.t) * v_scale
    out = out.returned(case.dtype).where(attention_bound.partnered(x.kept))
    found = {"out": out, "lse": made.lse[..., 0].returned(statistics(case))}
    found = repacked(found, given.call, pack_approx)
    return {**found, **truth_of_quantize(case, given.x)}


def truth_of_quantize(case: Case, x: Array) -> dict[str, Approx]:
    """Return what `quantize` makes of x, with its bounds."""
    on = machine("float64" if case.dtype == "float64" else "float32")
    largest = exact(np.abs(x).max((2, 3)), on)
    scale = maximum(largest / LARGEST, constant(LEAST_SCALE, on))
    quotient = exact(x, on) / scale[..., None, None]
    low, x8, high = (nearest(quotient.value + sign * quotient.error) for sign in (-1, 0, 1))
    return {
        "x8": Approx(x8, np.maximum(high - x8, x8 - low), on),
        "scale": scale.returned(statistics(case)),
    }


def small(case: Case) -> Case:
    """Return the case cut down to a size at which properties cost little."""
    cut = attention_domain.small(case)
    assert isinstance(cut, Case)
    return cut


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain: that of attention, with any scales."""

    def build(case: attention_domain.Case, scales: str) -> Case:
        without = {"dlse": False, "allow_tf32": False}
        return Case(**{**vars(case), **without, "scales": scales})

    return st.builds(build, case=attention_domain.cases(), scales=st.sampled_from(SCALES))
