"""Every property of attention catches a fault and accepts what is right, at any size."""

import dataclasses

import numpy as np
import pytest
from faulty import check_seen, faulty, kept, plus, scaled

from twofold.core.verify.contract import Bits, Inapplicable, subject
from twofold.core.verify.contracts import attention as contract

PROPERTIES = contract.CONTRACT.claims()
CASE = contract.Case(
    batch=2, seqlen_q=7, seqlen_k=9, head_dim=8, mask="BHMN", softmax_scale=0.5, logits=3.0, seed=3
)


def last_key_lost(found, case, given):
    """Return the output as if the last key were not there."""
    if case.seqlen_k > 1 and not case.causal:
        q, k, v = given.q, given.k[:, :, :-1], given.v[:, :, :-1]
        p = np.exp(contract.scale(case) * (q @ k.mT))
        p /= p.sum(-1, keepdims=True)
        found["out"] = (p @ v).astype(found["out"].dtype)


def sees_the_next_key(found, case, given):
    if case.causal:
        found["out"][:, :, :-1] += given.v[:, :, -1:].astype(np.float32)


def a_mean_for_a_masked_row(found, case, given):
    found["out"] += (found["lse"] == -np.inf)[..., None] * given.v.mean(-2, keepdims=True)


FAULTS = {
    "single key": scaled("lse", 1 / np.log(2)),
    "saturation": last_key_lost,
    "equal keys": last_key_lost,
    "hull": scaled("out", 3.0),
    "masked rows": a_mean_for_a_masked_row,
    "clipped lengths": plus("lse", lambda f, c, g: max(g.key_lengths[-1], c.seqlen_k)),
    "permuted heads": plus("out", lambda f, c, g: np.arange(2)[:, None, None, None]),
    "batch alone": plus("out", lambda f, c, g: c.batch),
    "causality": sees_the_next_key,
    "powers of two": plus("out", lambda f, c, g: 0.01 * (np.abs(g.v).max() > 3)),
    "other strides": plus("dk", lambda f, c, g: c.layout != "contiguous"),
    "reordered keys": plus("out", lambda f, c, g: g.k[:, :, -1:]),
    "reordered queries": plus("dq", lambda f, c, g: np.arange(c.seqlen_q)[:, None]),
    "repeated keys": plus("lse", lambda f, c, g: 0.01 * c.seqlen_k),
    "merged parts": plus("lse", lambda f, c, g: 0.01 * c.seqlen_k),
    "packed is padded": plus("dbias", lambda f, c, g: c.packed),
    "packed is alone": plus("dk", lambda f, c, g: 0.01 * c.packed),
    "gradient sums": scaled("dv", 1.001),
    "shifted values": plus("dq", lambda f, c, g: 0.01 * g.v.mean()),
    "slopes": scaled("dq", 1.01),
    "padding is not read": plus("dk", lambda f, c, g: 1e-3 * g.v.sum()),
    "minus infinity hides": plus("out", lambda f, c, g: np.isinf(g.bias).any(-1)[..., None]),
    "same bits again": plus("out", lambda f, c, g: np.random.default_rng().random()),
    "other calls between": kept("out"),
}


PACKED = dataclasses.replace(CASE, batch=3, packed=True, bias="BHMN", causal=True, dropout_p=0.3)


def case_of(name):
    """Return a case to which a property applies."""
    return PACKED if name.startswith("packed") else CASE


@pytest.mark.parametrize("name", FAULTS)
def test_a_property_sees_its_fault(reference, name):
    check_seen(PROPERTIES[name], contract.CONTRACT, reference, case_of(name), FAULTS[name])


def test_every_property_has_a_fault_here_but_those_of_kernels():
    assert PROPERTIES.keys() - FAULTS.keys() == {"other tiles", "NaN is seen"}  # test_not_numbers


def test_the_kernels_read_no_padding_and_a_bias_hides(triton):
    case = dataclasses.replace(PACKED, dlse=True, sinks=True, head_dim=16)
    for name in ("padding is not read", "minus infinity hides"):
        PROPERTIES[name](subject(contract.CONTRACT, triton), case)


def test_padding_is_nan_where_the_kernels_are_ours_alone(triton):
    """Foreign functions may multiply padding by weights of 0."""
    multiplied = plus("out", lambda f, c, g: 0.0 * g.v.sum())
    claim, others = PROPERTIES["padding is not read"], faulty(contract.CONTRACT, triton, multiplied)
    claim(others, CASE)
    with pytest.raises(Bits, match="something else in the padding"):
        claim(dataclasses.replace(others, name="triton"), CASE)


def test_another_tile_is_seen_where_there_are_tiles(reference, triton):
    claim = PROPERTIES["other tiles"]
    with pytest.raises(Inapplicable):
        claim(subject(contract.CONTRACT, reference), CASE)
    fault = plus("out", lambda f, c, g: c.tile is not None)
    check_seen(claim, contract.CONTRACT, triton, CASE, fault, "with Tile")


@pytest.mark.parametrize("name", ["packed is padded", "packed is alone"])
def test_packed_kernels_have_the_bits_of_batches(triton, name):
    case = dataclasses.replace(PACKED, dlse=True, sinks=True, score_mod=contract.SQUASHED)
    PROPERTIES[name](subject(contract.CONTRACT, triton), case)
    with pytest.raises(Inapplicable):
        PROPERTIES[name](subject(contract.CONTRACT, triton), CASE)


def test_bits_are_told_from_numbers(reference):
    def last_place(found, case, given):
        found["out"] = np.nextafter(found["out"], np.float32(9 * (case.batch - 1)))

    with pytest.raises(Bits, match="out differs alone in its batch"):
        PROPERTIES["batch alone"](faulty(contract.CONTRACT, reference, last_place), CASE)


@pytest.mark.parametrize("name", FAULTS)
def test_a_property_holds_of_a_long_call_on_a_sample_of_its_rows(reference, name):
    case = dataclasses.replace(case_of(name), seqlen_q=300, seqlen_k=200, mask=None)
    if not case.packed:
        case = dataclasses.replace(case, batch=1)
    PROPERTIES[name](subject(contract.CONTRACT, reference), case)
