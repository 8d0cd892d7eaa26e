"""Faults at sizes that tiles divide, or at others that only pinned cases have, are found."""

import pytest

from twofold.core.verify import foreign

pytestmark = pytest.mark.usefixtures("importable")

FAULTS = {
    "attention": ("attention", "out"),
    "attention_backward": ("attention", "dv"),
    "attention_of_many_queries": ("attention", "dv"),
    "attention_ahead": ("attention", "out"),
    "softmax": ("softmax", "out"),
    "rms_norm": ("rms_norm", "out"),
    "layer_norm": ("layer_norm", "dweight"),
    "cross_entropy": ("softmax_cross_entropy", "loss"),
    "linear": ("linear", "out"),
    "relu": ("activation", "out"),
    "swiglu": ("gated_activation", "out"),
    "embedding": ("embedding", "out"),
    "rotary": ("rotary", "q"),
    "adam": ("optimizers", "params"),
}


def test_sums_that_are_rounded_from_tile_to_tile_are_found():
    name = "foreign_whole:attention_of_rounded_sums"
    found = foreign.judge(name, "attention", 0, ["bfloat16"], claimed=0)
    assert "out" in {f.name for f in found.found}, found.failures


@pytest.mark.parametrize("name", FAULTS)
def test_pinned_cases_find_it(name):
    operator, output = FAULTS[name]
    found = foreign.judge(f"foreign_whole:{name}", operator, 0, ["float32"], claimed=0)
    assert output in {f.name for f in found.found}, found.failures
