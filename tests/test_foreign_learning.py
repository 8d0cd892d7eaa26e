"""Results must not depend on what else learns, or in which tensors: faults that hide there."""

import pytest

from twofold.core.verify import foreign
from twofold.core.verify.contract import Violation

pytestmark = pytest.mark.usefixtures("importable")

LEARNING = {"nobody learns", "one learns", "back again"}
GROUPS = {"parameters apart", "no gradient beside", "groups apart", "scheduled"}


def judge(name, operator, seconds=60.0):
    return foreign.judge(f"foreign_learning:{name}", operator, 9, ["float32"], seconds=seconds)


def outcomes(verdict, names):
    return {claim.name: claim.outcome for claim in verdict.claims if claim.name in names}


@pytest.mark.parametrize(
    ("name", "operator", "names"),
    [("norm", "rms_norm", LEARNING), ("Adam", "optimizers", GROUPS)],
)
def test_who_is_sound_keeps_them(name, operator, names):
    found = judge(name, operator)
    assert found.failures == []
    assert outcomes(found, names) == dict.fromkeys(names, foreign.HOLDS)


@pytest.mark.parametrize(
    ("name", "operator", "claim", "words"),
    [
        ("norm_of_predictions", "rms_norm", "nobody learns", "in torch.no_grad out["),
        ("norm_of_frozen_weight", "rms_norm", "one learns", "where x alone requires a gradient dx"),
        ("norm_as_first_layer", "rms_norm", "one learns", "where weight alone requires a gradient"),
        ("norm_spent", "rms_norm", "back again", "of a second backward through one graph dx["),
        ("OfOneCount", "optimizers", "parameters apart", "in three tensors params["),
        ("Stopping", "optimizers", "no gradient beside", "behind one whose gradient is None"),
        ("OfFirstGroup", "optimizers", "groups apart", "in a second group params["),
        ("OfFirstRate", "optimizers", "scheduled", "with lr and weight_decay set in param_groups"),
    ],
)
def test_a_fault_beside_plain_training_is_named_and_comes_again(name, operator, claim, words):
    found = judge(name, operator)
    failed = {f.name: f for f in found.found}
    assert claim in failed and all(f.pass_ == "property" for f in found.found), found.failures
    assert failed[claim].fault.startswith(words)
    with pytest.raises(Violation):
        eval(failed[claim].again, {"foreign": foreign})


def test_what_is_wrong_whoever_learns_is_no_fault_of_who_learns():
    found = foreign.judge("foreign_norms:eps_outside", "rms_norm", 9, ["float32"])
    assert found.failures and not LEARNING & {f.name for f in found.found}


def test_who_says_that_a_graph_is_gone_through_once_is_not_held_to_more():
    found = judge("relu_once", "activation")
    assert found.failures == []
    assert outcomes(found, {"back again"}) == {"back again": foreign.UNSAID}


def test_who_has_saved_nothing_does_not_refuse():
    found = judge("relu_of_contiguous", "activation")
    assert any("not enough values to unpack" in words for words in found.failures)


def test_who_has_no_groups_is_not_asked_for_them():
    found = foreign.judge("foreign_forms:AdamOfNoBase", "optimizers", 9, ["float32"])
    said = outcomes(found, GROUPS)
    assert found.failures == []
    assert said == dict.fromkeys(GROUPS, foreign.UNSAID) | {"parameters apart": foreign.HOLDS}
