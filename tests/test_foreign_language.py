"""Kernels that use Triton's language under any names are run, and so is libdevice."""

import pytest
import triton.language as tl
from triton.language.extra import libdevice

from twofold.core.verify import foreign
from twofold.core.verify.foreign import gradients
from twofold.core.verify.foreign.imports import load

pytestmark = pytest.mark.usefixtures("importable", "interpreted")


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("softmax", "softmax"),
        ("gelu", "activation"),
        ("gelu_of_cuda", "activation"),
        ("rms_norm", "rms_norm"),
    ],
)
def test_a_sound_one_passes(name, operator):
    found = foreign.judge(f"foreign_language:{name}", operator, 9, ["float32", "bfloat16"])
    assert found.failures == [] and {row.pass_ for row in found.rows} == {"forward"}


def test_what_libdevice_does_not_take_is_refused_as_it_is_compiled():
    found = foreign.judge("foreign_language:erf_of_half", "activation", 3, ["float16"], claimed=0)
    assert "libdevice's erf takes float32 or float64, not fp16" in found.failures[0]


def test_a_module_has_its_own_names_back():
    softmax = load("foreign_language:softmax")
    known = softmax.__globals__
    before = known["cast"], known["root"]
    foreign.judge("foreign_language:softmax", "softmax", 3, ["float32"], claimed=0)
    foreign.judge("foreign_language:rms_norm", "rms_norm", 3, ["float32"], claimed=0)
    assert (known["cast"], known["root"]) == before
    assert known["cast"] is tl.cast and known["root"] is not libdevice.rsqrt


def test_who_launches_where_autograd_does_not_see_it_is_told():
    found = foreign.judge("foreign_language:softmax_untold", "softmax", 3, ["float32"], claimed=0)
    assert {f.name for f in found.found} == {"dx"} and gradients.UNTOLD in found.notes
    found = foreign.judge(
        "foreign_kernels:causal_off_by_one", "attention", 3, ["float32"], claimed=0
    )
    assert gradients.UNTOLD not in found.notes
