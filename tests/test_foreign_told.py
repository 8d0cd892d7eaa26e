"""Functions that are told sizes, take q, k, v in one tensor, or follow transformers' interface."""

import pytest
import torch
from small_races import entered

from twofold.core.verify import foreign

pytestmark = pytest.mark.usefixtures("importable")


def judge(name, operator):
    return foreign.judge(f"foreign_told:{name}", operator, 9, ["float32"], claimed=3)


BOTH, FORWARD = {"forward", "backward"}, {"forward"}


@pytest.mark.parametrize(
    ("name", "operator", "passes", "taken"),
    [
        ("solve", "attention", FORWARD, "it is told M = queries, N = keys, d = features, and"),
        ("solve", "attention", FORWARD, "its tensors are taken to be (seqlen, head_dim)"),
        ("solve_square", "attention", FORWARD, "told N = keys, d = features"),
        ("of_four_sizes", "attention", BOTH, "B = batch, H = heads, T = length, D = features"),
        ("relu", "activation", FORWARD, "told N = elements, and given contiguous tensors"),
        ("relu_over", "activation", FORWARD, "told n_elements = elements"),
        ("softmax_of_one_row", "softmax", FORWARD, "taken to be (columns,)"),
        ("softmax_of_rows", "softmax", FORWARD, "told n_rows = rows, n_cols = columns"),
        ("softmax_of_torch", "softmax", BOTH, "told dim = the last axis"),
        ("softmax_of_an_axis", "softmax", BOTH, "told axis = the last axis"),
        (
            "cross_entropy",
            "softmax_cross_entropy",
            FORWARD,
            "it is told N = rows, C = columns, and",
        ),
        ("qkvpacked", "attention", BOTH, "qkv (…, 3, heads, head_dim)"),
        ("kvpacked", "attention", BOTH, "kv (…, 2, heads, head_dim)"),
        ("varlen_qkvpacked", "attention", BOTH, "head_dim) of (total, heads, head_dim)"),
        ("varlen_told_once", "attention", BOTH, "(total, heads, head_dim)"),
        ("interface", "attention", BOTH, "(module, q, k, v, attention_mask), the output"),
        ("interface_of_torch", "attention", BOTH, "causal is taken to be top-left"),
    ],
)
def test_a_sound_one_passes(name, operator, passes, taken):
    found = judge(name, operator)
    assert found.failures == [] and {row.pass_ for row in found.rows} == passes
    assert any(taken in words for words in found.taken)


@pytest.mark.parametrize(
    ("name", "operator", "words"),
    [
        ("solve_without_the_last_key", "attention", "forward float32 out: out["),
        ("relu_rounded_down", "activation", "forward float32 out: out["),
        ("softmax_of_too_few_rows", "softmax", "forward float32 out: out["),
        ("cross_entropy_of_all_but_one", "softmax_cross_entropy", "forward float32 loss: loss["),
        ("qvkpacked", "attention", "forward float32 out: out["),
        ("varlen_of_the_batch", "attention", "forward float32 out: out["),
        ("interface_without_mask", "attention", "forward float32 out: out["),
    ],
)
def test_a_fault_is_found(name, operator, words):
    found = judge(name, operator)
    assert any(failure.startswith(words) for failure in found.failures)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qkvpacked", {"softmax_scale", "causal"}),
        ("varlen_qkvpacked", {"softmax_scale", "causal", "packed_sequences"}),
        ("interface", {"softmax_scale", "causal", "bias"}),
    ],
)
def test_options_are_asked_in_these_forms(name, options):
    found = judge(name, "attention")
    assert not any("never" in note and "judged" in note for note in found.notes)
    (missing,) = (note for note in found.notes if "takes none of them" in note)
    assert not any(option in missing for option in options)


def test_one_small_letter_alone_is_no_size():
    with pytest.raises(TypeError, match=r"the function takes \(q, k, v, m\); it must take"):
        judge("with_a_mask", "attention")


def test_who_is_refused_reads_the_signature_that_was_written():
    own = r"the function takes \(q, k, v, o, b_start_loc, b_seq_len, max_input_len\)"
    with pytest.raises(TypeError, match=f"{own}, o taken for the output; it must take"):
        judge("told_where_sequences_start", "attention")


def test_heads_that_share_keys_are_asked_of_the_interface():
    assert any("grouped heads judged" in note for note in judge("interface", "attention").notes)


@pytest.mark.parametrize("name", ["qkvpacked", "interface", "varlen_told_once"])
def test_a_race_says_that_axes_are_others(name):
    rival, problem = entered(f"foreign_told:{name}", "attention")
    assert rival.fault(problem).startswith("it takes ")


def test_who_is_told_sizes_may_race():
    rival, problem = entered("foreign_told:softmax_of_rows", "softmax")
    tensors = problem.make(torch.Generator().manual_seed(0), "cpu")
    with foreign.strictly():
        assert not rival.fault(problem)
        assert "forward" in rival.passes(problem, tensors)
