"""What an operator must not keep from one call to the next."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from twofold.core.ops import Side
from twofold.core.verify import foreign
from twofold.core.verify.contract import Inapplicable, subject
from twofold.core.verify.contracts import rms_norm as contract
from twofold.core.verify.disturbing import other_numbers
from twofold.reference import rms_norm
from twofold.reference.rotary import Rotary

CASE = contract.Case(rows=3, columns=5)

CLAIM = contract.CONTRACT.claims()["other calls between"]


def kept(side, forward=rms_norm.forward, backward=rms_norm.backward):
    """Return the side with these functions for a norm."""

    class Kept(Side):
        def __getattr__(self, operator):
            return SimpleNamespace(forward=forward, backward=backward)

    return Kept(**{f.name: getattr(side, f.name) for f in dataclasses.fields(side)})


def a_cache_that_backward_uses_up():
    def backward(dout, cache, dh=None, **options):
        found = rms_norm.backward(dout, cache, dh, **options)
        cache.rstd[...] = 0
        return found

    return {"backward": backward}


def one_scratch_for_all_statistics():
    scratch = {}

    def forward(x, weight, **options):
        out, cache = rms_norm.forward(x, weight, **options)
        rstd = scratch.setdefault(cache.rstd.shape, np.empty_like(cache.rstd))
        rstd[...] = cache.rstd
        return out, cache._replace(rstd=rstd)

    return {"forward": forward}


def one_memory_for_all_gradients():
    scratch = {}

    def backward(dout, cache, dh=None, **options):
        found = rms_norm.backward(dout, cache, dh, **options)
        dx = scratch.setdefault(found.dx.shape, np.empty_like(found.dx))
        dx[...] = found.dx
        return found._replace(dx=dx)

    return {"backward": backward}


def a_copy_of_weights_that_were_seen():
    copies = {}

    def forward(x, weight, **options):
        _, weight = copies.setdefault(id(weight), (weight, weight.copy()))
        return rms_norm.forward(x, weight, **options)

    return {"forward": forward}


FAULTS = (
    a_cache_that_backward_uses_up,
    one_scratch_for_all_statistics,
    one_memory_for_all_gradients,
    a_copy_of_weights_that_were_seen,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_what_is_kept_between_calls_is_seen(reference, fault):
    with pytest.raises(AssertionError, match="differs where other calls are made in between"):
        CLAIM(subject(contract.CONTRACT, kept(reference, **fault())), CASE)


def test_an_operator_that_keeps_nothing_passes(reference):
    CLAIM(subject(contract.CONTRACT, kept(reference)), CASE)


def test_what_refuses_other_numbers_is_asked_without_them(reference):
    seen, usual = [], float(np.float32(contract.CONTRACT.inputs(CASE).x[0, 0]))

    def forward(x, weight, **options):
        seen.append(float(x[0, 0]))
        if seen[-1] != usual:
            raise ValueError("these are other numbers")
        return rms_norm.forward(x, weight, **options)

    CLAIM(subject(contract.CONTRACT, kept(reference, forward)), CASE)
    assert {usual, -0.5 * usual} <= set(seen)


def test_what_has_other_bits_every_time_is_not_asked(reference):
    draws = np.random.default_rng(0)

    def forward(x, weight, **options):
        out, cache = rms_norm.forward(x, weight, **options)
        return out + 1e-6 * draws.random(out.shape, np.float32), cache

    with pytest.raises(Inapplicable, match="other bits every time"):
        CLAIM(subject(contract.CONTRACT, kept(reference, forward)), CASE)


def test_numbers_are_changed_and_changed_back(reference, triton):
    x, ids, read_only = np.arange(3.0), np.arange(3), np.ones(3)
    read_only.flags.writeable = False
    tensor = triton.asarray(x, "float32")
    wide = triton.asarray(np.ones(1), "float32").expand(3)
    y, twice = np.arange(3.0), np.arange(3.0)
    given = ((x, Rotary(tensor, wide)), {"ids": ids, "other": read_only, "none": None, "y": y})
    with other_numbers((given, twice, twice)):
        assert [*x] == [*y] == [*triton.to_numpy(tensor)] == [0, -0.5, -1]
        assert [*twice] == [0, 0.25, 0.5]
        assert [*ids] == [0, 1, 2] and [*read_only] == [*triton.to_numpy(wide)] == [1, 1, 1]
    assert [*x] == [*y] == [*twice] == [*triton.to_numpy(tensor)] == [0, 1, 2]


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(
    ("name", "operator"),
    [("on_the_class", "softmax"), ("into_one_buffer", "softmax"), ("copied_weight", "rms_norm")],
)
def test_what_functions_of_others_keep_between_calls_is_seen(name, operator):
    found = foreign.judge(f"foreign_kept:{name}", operator, 5, ["float32"], claimed=2)
    said = [words for words in found.failures if "other calls between" in words]
    assert len(said) == 1 and "differs where other calls are made in between" in said[0]


@pytest.mark.usefixtures("importable", "interpreted")
def test_sums_by_atomics_keep_nothing():
    """Their bits depend on the programs' order, which changes every other time."""
    case = {"dtype": "float32", "batch": 1, "rows": 1, "columns": 103}
    name, claim = "foreign_kept:embedding_by_atomics", "other calls between"
    with pytest.raises(Inapplicable):
        foreign.again(name, "embedding", **case, claim=claim)
