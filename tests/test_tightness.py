"""How much of each bound is used: the cases, the figures, and a kernel that leaves its bound."""

import dataclasses

import numpy as np
import pytest

from twofold.core import ops
from twofold.core.verify import domains, tightness
from twofold.core.verify.contracts.dropout import Case
from twofold.core.verify.rounding import Approx, machine


@pytest.mark.parametrize("operator", ops.OPERATORS)
def test_every_mode_meets_six_shapes_in_every_precision(operator):
    cases = list(tightness.cases(operator))
    precisions = {(c.dtype, getattr(c, "allow_tf32", False)) for c in cases}
    assert len(tightness.SHAPES[operator]) == 6 and len(domains.MAGNITUDES) >= 10
    assert len(cases) == len(set(cases)) == 6 * len(domains.MAGNITUDES) * len(precisions)
    assert {dtype for dtype, _ in precisions} == set(domains.DTYPES)


def test_large_scores_are_those_of_attention_whatever_its_inputs_size():
    found = {c.magnitude: c.logits for c in tightness.cases("attention")}
    assert found == dict.fromkeys(domains.MAGNITUDES, 1.0) | tightness.LOGITS


def test_a_right_kernel_is_measured_and_a_wrong_one_seen(triton, monkeypatch):
    monkeypatch.setitem(tightness.SHAPES, "dropout", ({"rows": 5, "columns": 13},))
    for row in tightness.measure("dropout", triton):
        assert row.elements == 65 * len(domains.MAGNITUDES) and row.exact > 0
        assert row.violations == row.likely_violations == 0 and row.vacuous == 0
        assert 0 < row.worst <= 1 and 0 <= row.median <= row.worst
    monkeypatch.setitem(tightness.SHAPES, "linear", ({"rows": 1, "features_in": 1},))
    rows = tightness.measure("linear", triton)
    assert {row.precision for row in rows} == {"float32", "tf32", "float16", "bfloat16"}
    nearly = dataclasses.replace(
        triton, to_numpy=lambda x, to_numpy=triton.to_numpy: to_numpy(x) * 1.01
    )
    for row in tightness.measure("dropout", nearly):
        assert row.violations > 0 and row.worst > 1


def test_shares_of_elements_are_told_apart():
    """Those a bound decides, those that must be exact and are, and those nothing is claimed of."""
    on, nothing = machine("float32"), np.zeros(6)
    value = np.array([0.0, 0.0, 0.0, 0.0, 0.0, np.inf])
    certain = Approx(value, np.array([1.0, 2.0, 2.0, np.inf, 0.0, 3.0]), on)
    likely = Approx(value, np.array([0.5, 1.0, 1.0, np.inf, 0.0, 3.0]), on)
    found = tightness._Collected("forward")
    for case, x in ((Case(rows=2), 1.0), (Case(rows=30), -4.0), (Case(rows=4), 4.0)):
        found.add(case, nothing + [x, x, x, x, 0, np.inf], certain, likely)
    row = found.summary("dropout", "out", "float32")
    assert (row.pass_, row.output, row.precision, row.case) == (
        "forward",
        "out",
        "float32",
        "rows=30",
    )
    assert (row.elements, row.exact, row.vacuous) == (18, 6, pytest.approx(3 / 18))
    # Of 1, ½, ½ and twice 4, 2, 2; by the other bound, twice as much.
    assert (row.violations, row.median, row.worst) == (6, 2.0, 4.0)
    assert (row.likely_violations, row.likely_median, row.likely_worst) == (7, 4.0, 8.0)
    found = tightness._Collected("forward")
    few = Approx(value[:3], np.array([0.0, np.inf, np.inf]), on)
    found.add(Case(), nothing[:3] + [0, 7, 7], few, few)
    row = found.summary("dropout", "out", "float32")
    assert (row.elements, row.exact, row.vacuous, row.worst, row.median) == (3, 1, 2 / 3, 0.0, 0.0)
    wrong = tightness._Collected("forward")
    wrong.add(Case(), nothing + [0, 0, 0, 0, 1, 0], certain, likely)
    assert wrong.summary("dropout", "out", "float32").violations == 2  # neither is exact
