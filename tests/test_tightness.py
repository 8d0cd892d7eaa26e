"""How much of each bound is used: the cases, the figures, and a kernel that leaves its bound."""

import dataclasses

import pytest

from twofold.core import ops
from twofold.core.verify import domains, tightness


@pytest.mark.parametrize("operator", ops.OPERATORS)
def test_every_mode_meets_six_shapes_in_every_precision(operator):
    cases = list(tightness.cases(operator))
    precisions = {(c.dtype, getattr(c, "allow_tf32", False)) for c in cases}
    assert len(tightness.SHAPES[operator]) == 6 and len(domains.MAGNITUDES) >= 10
    assert len(cases) == len(set(cases)) == 6 * len(domains.MAGNITUDES) * len(precisions)
    assert {dtype for dtype, _ in precisions} == set(domains.DTYPES)


def test_a_right_kernel_is_measured_and_a_wrong_one_seen(triton, monkeypatch):
    monkeypatch.setitem(tightness.SHAPES, "dropout", ({"rows": 5, "columns": 13},))
    for row in tightness.measure("dropout", triton):
        assert row.elements == 65 * len(domains.MAGNITUDES) and row.exact > 0
        assert row.violations == row.likely_violations == 0 and row.vacuous == 0
        assert 0 < row.worst <= 1 and 0 <= row.median <= row.worst
    nearly = dataclasses.replace(
        triton, to_numpy=lambda x, to_numpy=triton.to_numpy: to_numpy(x) * 1.01
    )
    for row in tightness.measure("dropout", nearly):
        assert row.violations > 0 and row.worst > 1
