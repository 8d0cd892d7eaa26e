"""Tensors recognised by name, missing tensors, and how failures are reported."""

import pytest

from twofold.core.verify import foreign
from twofold.core.verify.foreign import verdict

pytestmark = pytest.mark.usefixtures("importable")


def judge(name, operator, precision="float32"):
    return foreign.judge(f"foreign_named:{name}", operator, 9, [precision], claimed=3)


BOTH = {"forward", "backward"}


@pytest.mark.parametrize(
    ("name", "operator", "passes"),
    [
        ("bias_first", "linear", BOTH),
        ("bias_must_be_given", "linear", BOTH),
        ("without_bias", "linear", BOTH),
        ("matmul", "linear", BOTH),
        ("table_first", "embedding", BOTH),
        ("softmax", "softmax", BOTH),
        ("norm", "layer_norm", BOTH),
        ("mean_of_those_that_count", "softmax_cross_entropy", BOTH),
        ("mean_that_refuses", "softmax_cross_entropy", BOTH),
        ("paged", "attention_decode", {"forward"}),
    ],
)
def test_a_sound_one_passes(name, operator, passes):
    found = judge(name, operator)
    assert found.failures == [] and {row.pass_ for row in found.rows} == passes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mean_of_those_that_count", "targets of −100 judged, though it takes no ignore_index"),
        ("mean_of_those_not_minus_100", "targets of −100 judged, though it takes no ignore_index"),
        ("mean_that_refuses", "targets of −100 not judged: add ignore_index=…"),
        ("mean_of_all", "targets of −100 are not ignored, unlike torch's: add ignore_index=… to "),
    ],
)
def test_it_is_said_whether_targets_that_do_not_count_were_asked(name, said):
    found = judge(name, "softmax_cross_entropy")
    assert found.failures == [] and any(note.startswith(said) for note in found.notes)


@pytest.mark.parametrize(
    ("name", "operator", "words"),
    [
        ("bias_doubled", "linear", "forward float32 out: out["),
        ("matmul_of_the_transposed", "linear", "forward float32 out: out["),
    ],
)
def test_a_fault_is_found(name, operator, words):
    assert any(failure.startswith(words) for failure in judge(name, operator).failures)


def test_logits_that_are_all_far_below_0_are_asked_for():
    name = "foreign_named:loss_of_a_maximum_from_zero"
    found = foreign.judge(name, "softmax_cross_entropy", 0, ["float32"], claimed=0)
    assert found.failures and found.failures[0].startswith("forward float32 loss: loss[] is -inf")


def test_what_is_written_over_is_said_without_a_measure():
    said = verdict.digest(judge("written_over", "softmax_cross_entropy"))
    assert said[0].startswith("it writes to its inputs without telling autograd (")
    assert not any("times its bound" in line for line in said)


def test_strides_that_are_not_looked_at_have_a_remedy():
    said = verdict.digest(judge("reads_dense", "softmax"))
    assert any("layout" in line for line in said)
    assert f"  {verdict.DENSE}" in said


def test_causal_with_fewer_keys_than_queries_is_said_to_be_left_out():
    found = foreign.judge("foreign_masks:always_causal_at_the_bottom", "attention", 3, ["float32"])
    (outside,) = (note for note in found.notes if note.startswith("not in the domain: "))
    assert "causal with fewer keys than queries" in outside
