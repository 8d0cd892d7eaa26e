"""Functions with other axes than the plain call, packed sequences, or outputs to fill."""

import pytest
import torch
from small_races import entered

from twofold.core.verify import foreign
from twofold.core.verify.contract import Inapplicable

pytestmark = pytest.mark.usefixtures("importable")


def judge(name, operator):
    return foreign.judge(f"foreign_orders:{name}", operator, 9, ["float32"], claimed=3)


BOTH = {"forward", "backward"}
FORWARD = {"forward"}
PACKED = "its tensors are taken to be (total, heads, head_dim)"


@pytest.mark.parametrize(
    ("name", "operator", "passes", "taken"),
    [
        ("varlen", "attention", BOTH, PACKED),
        ("varlen_of_torch", "attention", BOTH, PACKED),
        ("varlen_with_empty_ones", "attention", BOTH, PACKED),
        ("heads_as_batch", "attention", BOTH, "(batch · heads, seqlen, head_dim)"),
        ("one_head", "attention", BOTH, "(seqlen, head_dim)"),
        ("attention_into", "attention", BOTH, ""),
        ("rotate", "rotary", BOTH, "(batch, length, heads, head_dim)"),
        ("rotate_neighbours", "rotary", BOTH, "its interleaved is taken to be True"),
        ("rotate_as_gptj", "rotary", BOTH, "head_dim), those of a pair beside each other"),
        ("rotate_as_llama", "rotary", BOTH, "cos, sin (batch, length, head_dim)"),
        ("rotate_whole_heads", "rotary", BOTH, "it turns whole heads alone, and is judged where"),
        ("rotate_tokens", "rotary", BOTH, "taken to be q, k (length, heads, head_dim)"),
        ("rotate_looking_up", "rotary", BOTH, "in one cache that positions point into"),
        ("rotary_embedding", "rotary", FORWARD, "in one cache that positions point into"),
        ("rotary_embedding_of_neighbours", "rotary", FORWARD, "interleaved is taken to be True"),
        ("rotate_by_view", "rotary", BOTH, "it refuses their strides in this order"),
        ("attention_by_view", "attention", BOTH, "it refuses their strides in this order"),
        ("fused_add_rms_norm", "rms_norm", FORWARD, "its offset is taken to be 0.0"),
        ("rms_norm_into", "rms_norm", BOTH, "its offset is taken to be 0.0"),
        ("silu_and_mul", "gated_activation", BOTH, "its kind is taken to be silu"),
        ("gated_rows", "gated_activation", BOTH, "to be gate, up (rows, columns)"),
        ("relu_", "activation", FORWARD, ""),
    ],
)
def test_a_sound_one_passes(name, operator, passes, taken):
    found = judge(name, operator)
    assert found.failures == [] and {row.pass_ for row in found.rows} == passes
    assert any(taken in words for words in found.taken) if taken else not found.taken


@pytest.mark.parametrize(
    ("name", "operator", "words"),
    [
        ("varlen_seeing_the_last", "attention", "forward float32 out: out["),
        ("varlen_of_shared_lengths", "attention", "forward float32 out: out["),
        ("one_head_without_scale", "attention", "backward float32 dq: dq[0, 0"),
        ("four_axes_with_heads_mixed", "attention", "backward float32 dq: dq[0, 1"),
        ("rotate_the_wrong_way", "rotary", "forward float32 q: q["),
        ("rotate_by_view_the_wrong_way", "rotary", "forward float32 q: q["),
        ("rotary_embedding_the_wrong_way", "rotary", "forward float32 q: q["),
        ("rotary_embedding_in_order", "rotary", "forward float32 q: q["),
        ("rotary_embedding_of_queries", "rotary", "forward float32 k: k["),
        ("rotate_whole_heads_back", "rotary", "forward float32 q: q["),
        ("rotate_but_the_rest", "rotary", "forward float32 q: q["),
        ("rotate_tokens_but_the_last", "rotary", "forward float32 q: q["),
        ("fused_add_rms_norm_without_stream", "rms_norm", "forward float32 h: h["),
        ("silu_and_mul_in_part", "gated_activation", "forward float32 out: out["),
        ("gated_rows_doubled", "gated_activation", "forward float32 out: "),
        ("forgotten", "softmax", "every case was refused"),
    ],
)
def test_a_fault_is_found(name, operator, words):
    found = judge(name, operator)
    assert found.failures and found.failures[0].startswith(words)


def test_what_would_be_right_with_fewer_axes_is_said_and_fails():
    would = "with (seqlen, head_dim) it agrees in a case; to be judged so it must refuse more axes"
    name = "one_head_that_refuses_no_more"
    for of, said in ((name, True), (f"{name}_and_forgets_dv", False)):
        found = judge(of, "attention")
        assert found.failures
        assert any(words.startswith(would) for words in found.taken) == said


def test_what_fails_where_features_are_not_turned_is_said():
    found = foreign.judge(
        "foreign_orders:rotate_but_the_rest", "rotary", 60, ["float32"], claimed=0
    )
    assert "all with head_dim > 2·pairs; " in "\n".join(foreign.digest(found))
    assert not any("whole heads" in words for words in found.taken)


def test_rows_and_columns_alone_are_told_that_more_axes_must_be_refused():
    found = judge("gated_rows_that_refuse_no_more", "gated_activation")
    assert found.failures and any("(rows, columns) it agrees" in words for words in found.taken)
    found = judge("softmax_that_refuses_no_more", "softmax")
    said = "\n".join(foreign.digest(found))
    assert "property 'leading axes'" in said and "must refuse more axes, as `R, C" in said


def test_whose_output_has_the_dtype_of_tables_is_given_those_of_q():
    name, said = "foreign_orders:rotate_as_tables_are", "its cos and sin have the dtype of q"
    found = foreign.judge(name, "rotary", 9, ["float16"], claimed=1)
    assert not [f for f in found.found if f.name in "qk"] and said in found.taken
    assert said not in judge("rotate_whole_heads", "rotary").taken


def test_packed_sequences_are_asked_for_what_attention_is():
    found = judge("varlen", "attention")
    held = {claim.name for claim in found.claims if claim.outcome == foreign.HOLDS}
    assert {"causality", "packed is alone", "reordered keys", "gradient sums"} <= held


def test_what_a_sequence_without_keys_has_is_not_asked():
    of = {"dtype": "float32", "batch": 2, "seqlen_q": 5, "seqlen_k": 5, "packed": True}
    name, claim = "foreign_orders:varlen_with_empty_ones", "packed is alone"
    with pytest.raises(Inapplicable, match="a query without keys"):
        foreign.again(name, "attention", **of, seed=1, claim=claim)
    assert foreign.again(name, "attention", **of, seed=0, claim=claim) == []


def test_nothing_is_asked_of_what_the_plain_call_does_not_return():
    assert not any("not computed" in note for note in judge("rotate", "rotary").notes)


def test_a_race_says_that_axes_are_others():
    rival, problem = entered("foreign_orders:varlen", "attention")
    assert rival.fault(problem).startswith("it takes (total, heads, head_dim); races give q, k, v")


@pytest.mark.parametrize(
    ("name", "operator", "where"),
    [("silu_and_mul", "gated_activation", "out"), ("fused_add_rms_norm", "rms_norm", "input")],
)
def test_what_writes_over_its_input_does_not_race(name, operator, where):
    rival, problem = entered(f"foreign_orders:{name}", operator)
    with foreign.strictly():
        assert not rival.fault(problem)
    tensors = problem.make(torch.Generator().manual_seed(0), "cpu")
    with pytest.raises(NotImplementedError, match=f"it writes to {where}"):
        rival.passes(problem, tensors)
