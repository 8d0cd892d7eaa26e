"""The property that NaN propagates: it catches a NaN that is lost, and one that spreads."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
from faulty import check_seen, faulty

from twofold.core.verify import not_numbers, report
from twofold.core.verify.contract import Inapplicable, Outputs, Subject, subject
from twofold.core.verify.not_numbers import with_nan

CLAIM = "NaN is seen"
OUTPUTS = {
    "gated_activation": "dup",
    "attention": "dk",
    "attention_double_backward": "ddout",
    "attention_weights": "received",
    "attention_decode": "lse",
    "multi_head_attention": "dx",
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
    found = {name: holed for name, holed, _ in with_nan(given, 0)}
    assert list(found) == ["q", "k", "v", "dout", "sinks", "cos", "sin"]
    assert np.isnan(found["cos"].call.rotary.cos).sum() == 2
    assert not np.isnan(found["cos"].call.sinks).any()


def test_every_floating_input_has_one_in_turn_and_is_else_as_it_was():
    contract = report.contract("optimizers")
    given = contract.inputs(contract.pinned[0])
    found = {name: (holed, other) for name, holed, other in with_nan(given, 5)}
    assert list(found) == ["params", "grads", "m", "v"]
    for name, changed in found.items():
        for inputs, differs in zip(changed, (np.isnan, np.isfinite), strict=True):
            before, after = ({**x._asdict(), **x.state} for x in (given, inputs))
            moved = {n: before[n] != after[n] for n in found}
            assert {n: int(x.sum()) for n, x in moved.items()} == {
                n: 2 * (n == name) for n in found
            }
            assert differs(after[name][moved[name]]).all()
    assert not np.isnan(given.params).any() and not np.isnan(given.state["m"]).any()


@dataclasses.dataclass(frozen=True)
class Tiny:
    dtype: str = "float32"
    seed: int = 1


class Factors(NamedTuple):
    x: np.ndarray
    y: np.ndarray


def test_what_is_multiplied_by_nothing_may_be_nan_or_not():
    def run(side, case, given):
        return {"out": given.x * given.y, "sum": (given.x * given.y).sum(-1)}

    def asked(y, across, name="faulty"):
        def compute(case, given):
            out = np.where(given.y == 0, filled, given.x * given.y)
            return Outputs(out=out, sum=out.sum(-1))

        given = Factors(np.ones((2, 3)), np.array(y, float))
        claim = not_numbers.seen(lambda case: given, run, across=across)
        claim(Subject(name, compute), Tiny())

    zeros = [[1, 0, 0], [1, 1, 1]]  # x[0, 1] and x[1, 1] are made NaN
    filled = 0.0
    asked(zeros, 0)
    filled = np.where([[0, 1, 1], [0, 0, 0]], np.nan, 0.0)
    asked(zeros, 1, "triton")
    with pytest.raises(AssertionError, match="a NaN in x disturbs 1 numbers of out"):
        asked(zeros, 0, "triton")
