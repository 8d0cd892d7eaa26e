"""Foreign decoding functions are judged by the contract of ours."""

import pytest
import torch

from twofold.core.bench import contenders, problems
from twofold.core.verify import foreign
from twofold.core.verify.foreign import decoding

pytestmark = pytest.mark.usefixtures("importable")


def judge(name):
    name = f"foreign_decoding:{name}"
    return foreign.judge(name, "attention_decode", 9, ["float32"], claimed=3)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        (
            "with_cache",
            "q (batch, queries, heads, head_dim), packed (total, heads, head_dim), caches (batch, ",
        ),
        ("packed", "q (batch, queries, heads, head_dim), packed (total, heads, head_dim), caches"),
        ("paged_attention", "q (batch, heads, head_dim), caches (batch, seqlen, heads, head_dim)"),
        ("written_out", "q (batch, heads, head_dim), caches (batch, seqlen, heads, head_dim)"),
        ("of_one_sequence", "q (heads, head_dim), caches (seqlen, heads, head_dim)"),
        ("of_listed_pages", "q (batch, heads, head_dim), caches (batch, seqlen, heads, head_dim)"),
        ("of_one_cache", "q (batch, queries, heads, head_dim), packed (total, heads, head_dim), c"),
        ("of_slots", "q (batch, heads, head_dim), caches (slots, heads, head_dim)"),
    ],
)
def test_a_sound_one_passes(name, order):
    found = judge(name)
    assert found.failures == [] and {row.pass_ for row in found.rows} == {"forward"}
    assert any(words.startswith(f"its tensors are taken to be {order}") for words in found.taken)
    held = {claim.name for claim in found.claims if claim.outcome == foreign.HOLDS}
    assert "NaN is seen" in held
    assert {"saturation", "equal keys"} <= held or name == "packed"
    assert {"permuted pages", "alone", "unread"} <= held or name == "of_one_sequence"
    assert not any("forward only" in note for note in found.notes)
    assert any("grouped heads judged" in note for note in found.notes)


@pytest.mark.parametrize(("name", "axis"), [("of_listed_pages", "(pages, 2, …)"),
                                            ("of_one_cache", "(2, pages, …)")])  # fmt: skip
def test_where_k_and_v_are_in_one_cache_is_found_out(name, axis):
    assert any(words.endswith(f", k and v in one tensor {axis}") for words in judge(name).taken)


def test_what_one_sequence_does_not_have_stays_none():
    of_batches = decoding.one_sequence(lambda q, k_cache, v_cache: (q, None))
    q, cache = torch.ones(2, 3, 1, 4), torch.ones(2, 3, 5, 4)
    out, lse = of_batches(q, cache, cache)
    assert torch.equal(out, q) and lse is None


def test_it_races():
    names = ["foreign_decoding:with_cache_of_heads", "foreign_decoding:with_cache"]
    sound, inside = (c for c in contenders.of("attention_decode", "cpu", names) if c.foreign)
    problem = next(p for p in problems.on_cpu() if p.operator == "attention_decode")
    assert not sound.fault(problem)
    tensors = problem.make(torch.Generator().manual_seed(0), "cpu")
    assert sound.outputs(problem, sound.passes(problem, tensors))
    assert inside.fault(problem).startswith("it takes q (batch, queries, heads, head_dim)")


@pytest.mark.parametrize(
    "name",
    [
        "a_page_too_few",
        "paged_attention_a_key_too_many",
        "written_out_of_the_longest",
        "of_one_sequence_but_its_last_key",
        "packed_from_the_first",
        "of_listed_pages_but_the_last_key",
        "of_slots_from_the_second",
    ],
)
def test_a_fault_is_found(name):
    found = judge(name)
    assert found.failures and found.failures[0].startswith("forward float32 out: out[")
