"""Foreign RMSNorms are judged by the contract of ours."""

import pytest

from twofold.core.verify import foreign

pytestmark = pytest.mark.usefixtures("importable")


def judge(name, *dtypes, operator="rms_norm"):
    return foreign.judge(f"foreign_norms:{name}", operator, 9, list(dtypes), claimed=1)


@pytest.mark.parametrize(
    "name",
    [
        "rms_norm", "gemma", "module", "Function", "Operator", "OperatorOfTuples", "of_epsilon",
        "with_statistics", "behind_a_sum_always",
    ],
)  # fmt: skip
def test_a_sound_one_passes(name):
    found = judge(name, "float32")
    assert found.failures == [] and {row.pass_ for row in found.rows} == {"forward", "backward"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("eps_outside", "forward float32 out: out["),
        ("without_offset", "forward float32 out: out["),
        ("centred", "forward float32 out: out["),
        ("by_rsqrt", "backward float32 dx: dx["),
        ("ForgetsTheRoot", "backward float32 dx: dx["),
        ("in_one_block", "forward float32 out: out["),
        ("behind_a_sum_that_learns_half", "backward float32 dresidual: dresidual is None"),
        ("FrozenWeight", "backward float32 dweight: dweight is None: backward gives None"),
        ("FusedWithoutTheStream", "backward float32 dx: dx["),
    ],
)
def test_a_fault_is_found(name, words):
    found = judge(name, "float32")
    assert found.failures and found.failures[0].startswith(words), found.failures


UNROUNDED = "it normalises the sum with a residual before that is rounded"


@pytest.mark.parametrize(
    ("name", "operator", "holds"),
    [
        ("behind_a_sum_unrounded", "rms_norm", True),
        ("layer_norm_behind_a_sum_unrounded", "layer_norm", True),
        ("behind_a_sum_unrounded_without_half_of_it", "rms_norm", False),
    ],
)
def test_the_stream_may_be_normalised_before_it_is_rounded_and_it_is_said(name, operator, holds):
    found = foreign.judge(f"foreign_norms:{name}", operator, 60, ["float16", "bfloat16"])
    assert (found.failures == []) == holds
    assert any(words.startswith(UNROUNDED) for words in found.taken) == holds
    rounded = foreign.judge("foreign_norms:behind_a_sum_always", "rms_norm", 0, ["bfloat16"])
    assert not any(words.startswith(UNROUNDED) for words in rounded.taken)


ROUNDED = "it rounds what is normalised before the gain, as models of Llama do; ours round once"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_one_that_rounds_twice_is_told_from_one_that_rounds_once(dtype):
    once, twice = (judge(f"rounded_{when}_the_gain", dtype) for when in ("behind", "before"))
    assert once.failures == twice.failures == []
    assert ROUNDED not in once.taken and ROUNDED in twice.taken


@pytest.mark.parametrize("name", ["rounded_before_a_wrong_gain", "rounded_thrice"])
def test_who_rounds_twice_is_held_to_a_bound_as_well(name):
    found = judge(name, "bfloat16").failures
    assert any(words.startswith("forward bfloat16 out: out[") for words in found), found


def test_in_float32_there_is_one_rounding_either_way():
    assert judge("rounded_before_the_gain", "float32").failures == []


@pytest.mark.parametrize("name", ["of_a_fixed_eps", "of_a_fixed_eps_without_gradients"])
def test_an_eps_that_cannot_be_given_is_found_out(name):
    """From the output, even if a gradient is wrong for every eps."""
    found = judge(name, "float32")
    assert "without eps, its eps is taken to be 1e-08" in found.taken
    passes = {f.pass_ for f in found.found} - {"property"}
    assert passes == (set() if name == "of_a_fixed_eps" else {"backward"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_stream_is_judged_and_its_own_gradient_where_the_function_adds_it(dtype):
    for name in ("behind_a_sum", "Fused"):
        found = judge(name, dtype)
        assert found.failures == []
        assert not any("not computed: " in note for note in found.notes), found.notes
        added = "the stream's own gradient not judged: autograd adds it"
        assert (added in found.notes) == (name == "behind_a_sum")


def test_an_operator_that_returns_too_few_gradients_is_told_which():
    (failure, *_) = judge("OperatorOfTwo", "float32").found
    words = "backward returns a tuple of 2; it must return dx, dresidual, dweight, in this order"
    assert words in failure.fault


@pytest.mark.parametrize(
    "name",
    [
        "layer_norm_without_bias", "layer_norm_of_x_alone", "LayerNormOfNoBias",
        "LayerNormOfWeightAlone",
    ],
)  # fmt: skip
def test_a_norm_without_a_bias_is_judged_without_and_it_is_said(name):
    found = judge(name, "float32", operator="layer_norm")
    assert not [f for f in found.found if f.name == "out"], found.failures
    assert "it takes no bias, and is judged without" in found.notes
    assert ("it takes no weight, and is judged without" in found.notes) == ("alone" in name)
    assert not any("dbias" in note for note in found.notes)


def test_a_fault_of_a_norm_without_a_bias_is_found():
    found = judge("LayerNormDoubled", "float32", operator="layer_norm")
    assert found.failures[0].startswith("forward float32 out: out[")
