"""Every property of decoding catches a fault of its own."""

import numpy as np
import pytest
from faulty import check_seen, faulty, kept, plus, scaled

from twofold.core.verify.contract import Inapplicable, subject
from twofold.core.verify.contracts import attention_decode as contract

PROPERTIES = contract.CONTRACT.claims()
CASE = contract.Case(
    batch=2, heads=4, groups=2, queries=3, capacity=19, page_size=4, head_dim=7, logits=3.0,
    softcap=5.0, alibi="BH", sinks=True, seed=3,
)  # fmt: skip


def sees_the_next_key(found, case, given):
    if case.causal:
        found["out"][:, :, 0] += np.nan_to_num(given.call.v).sum((1, 2))[:, None]


def first_key_lost(found, case, given):
    """Return the output as if no sequence had its first key."""
    v = np.nan_to_num(given.call.v[:, :, :1]).repeat(case.groups, 1)
    found["out"] -= np.float32(v / np.maximum(given.lengths, 1)[:, None, None, None])


def mean_where_nothing_is_attended(found, case, given):
    found["lse"][found["lse"] == -np.inf] = 0.0


def without_nan(found, case, given):
    found["lse"][...] = np.nan_to_num(found["lse"])


FAULTS = {
    "pages or none": plus("out", lambda f, c, g: c.page_size > 0),
    "permuted pages": plus("out", lambda f, c, g: g.table.max()),
    "alone": plus("out", lambda f, c, g: c.batch),
    "packed or not": plus("out", lambda f, c, g: c.packed),
    "unread": plus("lse", lambda f, c, g: np.isnan(g.call.k).any()),
    "causality": sees_the_next_key,
    "step by step": plus("lse", lambda f, c, g: 0.01 * c.queries),
    "saturation": first_key_lost,
    "equal keys": scaled("lse", 1 / np.log(2)),
    "nothing attended": mean_where_nothing_is_attended,
    "clipped lengths": plus("out", lambda f, c, g: g.lengths.max()),
    "heads apart": plus("out", lambda f, c, g: np.arange(c.heads)[:, None, None]),
    "other strides": plus("out", lambda f, c, g: c.layout != "contiguous"),
    "same bits again": plus("out", lambda f, c, g: np.random.default_rng().random()),
    "other calls between": kept("out"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_property_sees_its_fault(reference, name):
    check_seen(PROPERTIES[name], contract.CONTRACT, reference, CASE, FAULTS[name])


def test_every_property_has_a_fault_here_but_those_of_kernels():
    assert PROPERTIES.keys() - FAULTS.keys() == {"other parts", "pages outside", "NaN is seen"}


def test_a_number_for_a_page_that_is_not_there_is_seen(reference, triton):
    claim = PROPERTIES["pages outside"]
    with pytest.raises(Inapplicable):
        claim(subject(contract.CONTRACT, reference), CASE)
    claim(subject(contract.CONTRACT, triton), CASE)
    with pytest.raises(AssertionError, match="of others"):
        claim(faulty(contract.CONTRACT, triton, plus("out", lambda f, c, g: g.table.sum())), CASE)
    with pytest.raises(AssertionError, match="is a number"):
        claim(faulty(contract.CONTRACT, triton, without_nan), CASE)


def test_other_parts_are_seen_where_there_are_parts(reference, triton):
    claim = PROPERTIES["other parts"]
    with pytest.raises(Inapplicable):
        claim(subject(contract.CONTRACT, reference), CASE)
    fault = plus("lse", lambda f, c, g: 0.001 * (c.split is not None))
    check_seen(claim, contract.CONTRACT, triton, CASE, fault, "in parts of")
