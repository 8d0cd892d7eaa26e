"""Sizes of real models, beyond what small kernels support, are tried once."""

import pytest

from twofold.core.verify import foreign

pytestmark = pytest.mark.usefixtures("importable")


def judge(name, operator, *dtypes):
    return foreign.judge(f"foreign_wide:{name}", operator, 0, dtypes, claimed=0)


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("softmax", "softmax"),
        ("cross_entropy", "softmax_cross_entropy"),
        ("rms_norm", "rms_norm"),
        ("layer_norm", "layer_norm"),
        ("linear", "linear"),
        ("embedding", "embedding"),
        ("attention", "attention"),
        ("rotary", "rotary"),
    ],
)
def test_what_is_wrong_at_large_sizes_alone_is_found_in_one_precision(name, operator):
    found = judge(name, operator, "float32", "bfloat16")
    assert found.found and {f.precision for f in found.found} == {"float32"}
    assert all("1 of " in words for words in found.common.values())


def test_who_says_that_a_size_is_too_large_is_not_wrong():
    found = judge("softmax_that_says_so", "softmax", "float32")
    assert found.failures == [] and any("exceeds the largest block" in x for x in found.notes)
