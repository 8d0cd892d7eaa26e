"""What a mask means, and whether a function is always causal, is found by trial."""

import pytest

from twofold.core.verify import foreign

pytestmark = pytest.mark.usefixtures("importable")


def judge(name):
    return foreign.judge(f"foreign_masks:{name}", "attention", 9, ["float32"], claimed=3)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("hidden_where_true", "mask is taken to be True where a key is not attended"),
        ("shown_where_one", ""),
        ("added", "mask is taken to be added, −∞ where a key is not attended"),
        ("padding_as_torch", "(batch, keys), True where a key is not attended"),
        ("padding_as_flash", "(batch, keys), True where a key is attended"),
        ("padding_of_numbers", "(batch, keys), 1 where a key is attended"),
        ("always_causal", "without causal, its causal is taken to be top-left"),
        ("always_causal_and_grouped", "without causal, its causal is taken to be top-left"),
        ("always_causal_at_the_bottom", "without causal, its causal is taken to be bottom-right"),
        ("always_causal_with_heads_inside", "taken to be (batch, seqlen, heads, head_dim)"),
        ("always_causal_of_one_head", "taken to be (seqlen, head_dim)"),
        ("always_causal_and_square", "without causal, its causal is taken to be True"),
    ],
)
def test_a_sound_one_passes(name, taken):
    found = judge(name)
    assert found.failures == [] and {row.pass_ for row in found.rows} == {"forward", "backward"}
    assert any(taken in words for words in found.taken) if taken else found.taken == []
    assert not any("never" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("padding_of_values_alone", "forward float32 out: out["),
        ("padding_of_the_first_batch", "forward float32 out: out["),
        ("hidden_but_the_last", "forward float32 out: out["),
        ("always_causal_but_itself", "forward float32 out: out["),
    ],
)
def test_a_fault_is_found(name, words):
    found = judge(name)
    assert any(failure.startswith(words) for failure in found.failures)


def test_a_wrong_function_that_is_always_causal_is_wrong_as_such():
    found = judge("always_causal_without_scale")
    assert "it is causal without being asked: later keys change nothing" in found.taken
    assert not any("reordered keys" in failure for failure in found.failures)
    assert any(failure.startswith("forward float32 out: out[") for failure in found.failures)


def test_what_it_may_do_without_being_told_is_asked_as_it_was_found_out():
    grouped = "grouped heads judged, though it takes no enable_gqa"
    assert grouped in judge("always_causal_and_grouped").notes
