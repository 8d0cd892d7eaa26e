"""Foreign pooling functions are judged by the contract of ours."""

import re

import pytest

from twofold.core.verify import foreign

pytestmark = pytest.mark.usefixtures("importable")


def judge(name):
    return foreign.judge(f"foreign_pooling:{name}", "pooling", 9, ["float32"], claimed=3)


MASK = "its tensors are taken to be mask (batch, length), "


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("pool", []),
        ("pool_masked", [f"{MASK}True where a position counts"]),
        ("mean_pooling", [f"{MASK}1 where a position counts", "its kind is taken to be mean"]),
        ("max_pooling", [f"{MASK}1 where a position counts", "its kind is taken to be max"]),
        ("average_pool", [f"{MASK}True where a position counts", "its kind is taken to be mean"]),
        ("mean_but_padding", [f"{MASK}True where a position does not count"]),
        ("weighted", [f"{MASK}1.0 where a position counts"]),
        ("first", ["its kind is taken to be first"]),
        ("mean_of_all", ["its kind is taken to be mean"]),
    ],
)
def test_a_sound_one_passes(name, taken):
    found = judge(name)
    assert found.failures == [] and {row.pass_ for row in found.rows} == {"forward", "backward"}
    for wanted in taken:
        assert any(wanted in words for words in found.taken), found.taken
    held = {claim.name for claim in found.claims if claim.outcome == foreign.HOLDS}
    assert {"padding does not count", "NaN is seen", "adjoint"} <= held
    said = "it takes no lengths, and is judged without"
    assert (said in found.notes) == (name == "mean_of_all")


@pytest.mark.parametrize(
    "name",
    ["mean_over_padding", "mean_that_forgets_the_mask", "max_of_zeros", "mean_one_too_many"],
)
def test_a_fault_is_found(name):
    found = judge(name)
    assert any(failure.startswith("forward float32 out: out[") for failure in found.failures)
    assert any(re.search(r"\blength=\d, features=\d\b", said) for said in found.failures)
