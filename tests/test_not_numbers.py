"""The property that a NaN is seen: it sees one that is lost, and one that spreads."""

import dataclasses

import numpy as np
import pytest
from faulty import check_seen, faulty

from twofold.core.verify import report
from twofold.core.verify.contract import Inapplicable, subject
from twofold.core.verify.not_numbers import with_nan

CLAIM = "NaN is seen"
OUTPUTS = {
    "positional_encoding": "dtable",
    "rotary": "dk",
    "layer_norm": "dresidual",
    "rms_norm": "dweight",
    "linear": "dweight",
    "dropout": "dx",
    "embedding": "dtable",
    "softmax_cross_entropy": "loss",
    "optimizers": "norm",
}
OURS = {"attention": "dk", "attention_decode": "lse", "attention_weights": "received"}


def contract_and_case(operator):
    contract = report.contract(operator)
    case = contract.of_properties(contract.pinned[0])
    return contract, dataclasses.replace(case, tile=None) if hasattr(case, "tile") else case


def lost(name):
    def fault(found, case, given):
        found[name] = np.nan_to_num(found[name])

    return fault


def spread(name):
    def fault(found, case, given):
        if any(np.isnan(x).any() for x in found.values()):
            found[name] = np.full_like(found[name], np.nan)

    return fault


@pytest.mark.parametrize("operator", OUTPUTS)
def test_one_that_is_lost_is_seen(triton, operator):
    contract, case = contract_and_case(operator)
    check_seen(contract.claims()[CLAIM], contract, triton, case, lost(OUTPUTS[operator]), "that")


@pytest.mark.parametrize("operator", OURS)
def test_of_attention_it_is_asked_of_ours_alone(triton, operator):
    contract, case = contract_and_case(operator)
    claim, others = contract.claims()[CLAIM], faulty(contract, triton, lost(OURS[operator]))
    claim(subject(contract, triton), case)
    with pytest.raises(Inapplicable, match="others may lose it"):
        claim(others, case)
    with pytest.raises(AssertionError, match="that depend on a NaN"):
        claim(dataclasses.replace(others, name="triton"), case)


@pytest.mark.parametrize("operator", ["linear", "rms_norm", "rotary"])
def test_one_that_spreads_is_seen_in_ours_alone(triton, operator):
    contract, case = contract_and_case(operator)
    claim = contract.claims()[CLAIM]
    others = faulty(contract, triton, spread({"rotary": "q"}.get(operator, "out")))
    claim(others, case)
    with pytest.raises(AssertionError, match="disturbs"):
        claim(dataclasses.replace(others, name="triton"), case)


def test_the_reference_says_which_and_is_not_asked(reference):
    contract, case = contract_and_case("linear")
    with pytest.raises(Inapplicable, match="the reference says"):
        contract.claims()[CLAIM](subject(contract, reference), case)


def test_what_stands_in_inputs_within_inputs_has_one_in_turn():
    contract = report.contract("attention_decode")
    given = contract.inputs(dataclasses.replace(contract.pinned[0], rotary="half", sinks=True))
    found = dict(with_nan(given, 0))
    assert list(found) == ["q", "k", "v", "dout", "sinks", "cos", "sin"]
    assert np.isnan(found["cos"].call.rotary.cos).sum() == 1
    assert not np.isnan(found["cos"].call.sinks).any()


def test_every_floating_input_has_one_in_turn_and_is_else_as_it_was():
    contract = report.contract("optimizers")
    given = contract.inputs(contract.pinned[0])
    found = dict(with_nan(given, 5))
    assert list(found) == ["params", "grads", "m", "v"]
    for name, changed in found.items():
        arrays = {**changed._asdict(), **changed.state}
        bad = {other: int(np.isnan(arrays[other]).sum()) for other in found}
        assert bad == {other: int(other == name) for other in found}
    assert not np.isnan(given.params).any() and not np.isnan(given.state["m"]).any()
