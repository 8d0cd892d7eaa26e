"""Offsets past 2³¹: kernels that count them in 32 bits are found, with hardly any memory."""

import resource

import pytest
import torch

from twofold.core import ops
from twofold.core.verify import domains, foreign
from twofold.core.verify.foreign.table import PLAIN
from twofold.core.verify.report import contract_module

pytestmark = [
    pytest.mark.usefixtures("importable"),
    pytest.mark.skipif(
        ops.triton_device() != "cpu" or not domains.far_is_there(),
        reason="it would take much memory",
    ),
]
MEGABYTES = 256  # more than tables and tracebacks take; an input would be 8,192


def judge(name, operator, dtypes=("float32", "bfloat16")):
    return foreign.judge(f"foreign_given:{name}", operator, 0, dtypes, claimed=0)


def most_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_narrow_offsets_are_found_and_wide_ones_pass():
    judge("autotuned_softmax", "softmax")  # imports what is needed
    before = most_memory()
    assert judge("softmax_of_wide_offsets", "softmax").failures == []
    failures = judge("softmax_of_narrow_offsets", "softmax").failures
    assert len(failures) == 2
    for failure in failures:
        assert "int32 overflow in mul" in failure and "layout='far rows'" in failure
    assert most_memory() - before < MEGABYTES


@pytest.mark.parametrize("operator", [o for o in PLAIN if PLAIN[o].far])
def test_every_operator_has_such_inputs(operator):
    plain, module = PLAIN[operator], contract_module(operator)
    side, before = ops.load("triton"), most_memory()
    for fields in plain.far:
        case = module.Case(**fields)
        call = plain.call(side, case, (plain.inputs or module.inputs)(case))
        (axis,) = {domains.FAR[case.layout]}
        wide = [x for x in call.tensors.values() if x is not None and x.dim() > 1]
        wide = [x for x in wide if x.stride(axis) == domains.STRIDE and x.shape[axis] == 3]
        assert wide, case
        for x in wide:
            assert (x.shape[axis] - 1) * x.stride(axis) > torch.iinfo(torch.int32).max
    assert most_memory() - before < MEGABYTES


def test_what_is_no_kernel_is_not_tried():
    found = judge("plain", "attention", ["float32"])
    assert found.failures == [] and any("2³¹ not judged" in note for note in found.notes)
    assert not any("2³¹" in note for note in judge("softmax_of_wide_offsets", "softmax").notes)


def test_where_there_is_no_memory_it_is_said(monkeypatch):
    monkeypatch.setattr(domains, "far_is_there", lambda: False)
    found = judge("softmax_of_narrow_offsets", "softmax")
    assert found.failures == []
    assert any("offsets past 2³¹ not judged" in note for note in found.notes)


def test_they_come_before_what_costs_and_strides_are_not_blamed():
    found = foreign.judge("foreign_given:softmax_of_narrow_offsets", "softmax", 0, ["float32"])
    assert len(found.found) == 1 and "strides" not in "".join(foreign.digest(found))
    judged = foreign.subject(foreign.load("foreign_given:softmax_of_narrow_offsets"), "softmax")
    layouts = [case.layout for case in judged.contract.pinned]
    assert layouts.index("far rows") == 1
