"""Errors are unbiased: mean signed errors of right kernels, and of kernels that truncate."""

import numpy as np
import pytest

from twofold.core.verify import bias
from twofold.core.verify.contracts import (
    attention,
    layer_norm,
    linear,
    rms_norm,
    softmax_cross_entropy,
)
from twofold.core.verify.strict import numerics

CASES = {
    "attention": (
        attention,
        attention.Case(heads=2, seqlen_q=70, seqlen_k=90, head_dim=24, logits=4.0, seed=1),
    ),
    "layer_norm": (layer_norm, layer_norm.Case(rows=150, columns=70, seed=1)),
    "rms_norm": (rms_norm, rms_norm.Case(rows=150, columns=70, seed=1)),
    "linear": (
        linear,
        linear.Case(rows=130, features_in=65, features_out=70, activation="gelu", seed=1),
    ),
    "softmax_cross_entropy": (
        softmax_cross_entropy,
        softmax_cross_entropy.Case(rows=200, classes=67, reduction="none", seed=1),
    ),
}
HALVES = ("float16", "bfloat16")


def measured(operator, dtype, side):
    module, case = CASES[operator]
    case = type(case)(**{**vars(case), "dtype": dtype})
    given = module.CONTRACT.inputs(case)
    if operator == "attention":  # a mean of values of one sign: errors of weights do not cancel
        given = given._replace(v=np.abs(given.v))
    return {b.output: b for b in bias.measure(module.CONTRACT, side, case, given)}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("operator", CASES)
def test_a_right_kernel_leans_to_no_side(triton, operator, dtype):
    found = measured(operator, dtype, triton)
    assert found
    for b in found.values():
        assert abs(b.deviations) <= bias.MOST, b


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("operator", CASES)
def test_a_kernel_that_truncates_leans_to_zero(triton, monkeypatch, operator, dtype):
    from triton.language import bfloat16, float16, float32

    from twofold.core.verify.strict.builder import StrictBuilder

    if triton.device != "cpu":
        pytest.skip("the fault is planted in the interpreter")
    nearest = StrictBuilder.cast_impl

    def toward_zero(self, src, dst_type):
        result = nearest(self, src, dst_type)
        if src.dtype.scalar == float32 and dst_type.scalar in (float16, bfloat16):
            result.data = numerics.toward_zero(result.data, src.data)
        return result

    monkeypatch.setattr(StrictBuilder, "cast_impl", toward_zero)
    found = measured(operator, dtype, triton)
    for name, b in found.items():
        if name in ("out", "loss", "dx", "dlogits", "dv"):
            assert b.mean < -0.3 and b.deviations < -bias.MOST, b


def test_the_signed_error_of_a_cast(reference):
    """To nearest it is at most half a unit either way, toward zero up to a whole one below."""
    from twofold.core.verify.rounding import exact, machine

    value = np.random.default_rng(0).standard_normal(10_000) * 100
    truth = exact(value, machine("float16"))
    r = bias.signed_errors(value.astype(np.float16), truth)
    assert np.abs(r).max() <= 0.5 and abs(r.mean()) <= bias.MOST * r.std() / 100
    cut = numerics.toward_zero(value.astype(np.float16), value)
    r = bias.signed_errors(cut, truth)
    assert -1 < r.min() and r.max() <= 0 and r.mean() < -0.4


def test_float32_is_refused(reference):
    case = layer_norm.Case()
    with pytest.raises(ValueError, match="case.dtype is 'float32'; it must be 'float16' or"):
        bias.measure(layer_norm.CONTRACT, reference, case, layer_norm.inputs(case))
