"""Foreign merging of partial attention is judged by the contract of ours."""

import pytest

from twofold.core.verify import foreign

pytestmark = pytest.mark.usefixtures("importable")


def judge(name):
    return foreign.judge(f"foreign_merging:{name}", "merge_attention", 9, ["float32"], claimed=3)


BOTH = {"forward", "backward"}
TWO = "it merges two parts, and is judged where there are two"
BASE_2 = "its lses are to base 2, ours natural: judged so, and asked for no property"
TOKENS = (
    "its tensors are taken to be contiguous outs (parts, tokens, heads, head_dim), lses (parts, "
)


@pytest.mark.parametrize(
    ("name", "passes", "taken"),
    [
        ("merged", BOTH, set()),
        ("merged_alone", BOTH, set()),
        ("merge_states", BOTH, {BASE_2, "(tokens, parts, heads, head_dim)"}),
        ("merge_in_base_2", BOTH, {BASE_2}),
        ("merge_state", BOTH, {BASE_2, TWO, f"{TOKENS}tokens, heads)"}),
        (
            "merge_by_name",
            BOTH,
            {TWO, "two parts, out_a with lse_a and out_b with lse_b"},
        ),
        (
            "merge_attn_states_of_any_shape",
            {"forward"},
            {TWO, f"{TOKENS}heads, tokens)"},
        ),
        ("merge_attn_states", BOTH, {TWO, f"{TOKENS}heads, tokens)"}),
        (
            "with_heads_inside",
            BOTH,
            {TWO, "(parts, batch, queries, heads, head_dim), lses (parts, batch, heads, queries)"},
        ),
    ],
)
def test_a_sound_one_passes(name, passes, taken):
    found = judge(name)
    assert found.failures == [] and {row.pass_ for row in found.rows} == passes
    assert ("not judged, for it is not computed: lse" in found.notes) == (name == "merged_alone")
    for wanted in taken:
        assert any(wanted in words for words in found.taken), found.taken
    held = {claim.name for claim in found.claims if claim.outcome == foreign.HOLDS}
    if BASE_2 not in found.taken and name != "merged_alone":
        assert {"order of parts", "shifted", "NaN is seen"} <= held


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("merged_without_maximum", "forward float32 out: out["),
        ("merge_state_of_one_base_each", "forward float32 "),
        ("merge_attn_states_the_other_way", "forward float32 out: out["),
        ("merge_attn_states_of_a_larger_sum", "forward float32 lse: lse["),
    ],
)
def test_a_fault_is_found(name, words):
    found = judge(name)
    assert any(failure.startswith(words) for failure in found.failures), found.failures
    assert "heads=1, seqlen_q=1, head_dim=1" in found.failures[-1]
