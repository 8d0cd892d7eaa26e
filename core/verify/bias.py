"""Whether a kernel's errors lean to one side, which no bound on their size can see.

A cast that truncates stays within any bound that allows twice the error of a cast to nearest, but
its errors all have one sign, add up over layers and steps, and have broken training (Qiu & Yao
2025, arXiv 2510.04212). So the *signed* error of each element is measured:

    r = sign(truth)·(computed − truth) / unit in the last place of the storage dtype at truth,

which for a cast to nearest is uniform over ±½ whatever the truth, hence of mean 0, and for one
toward zero uniform over (−1, 0], of mean −½. Elements of one row share roundings (of the row's
weights, mean or maximum); rows do not. So the mean of each row is one observation, and the overall
mean is given in standard errors, estimated from how the rows differ: no variance is assumed. For a
correct kernel it follows Student's t, near normal for many rows; |r̄| beyond 4 standard errors has
probability 6·10⁻⁵.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.core.ops import Side
from twofold.core.verify.contract import Array, Contract, computed, truths
from twofold.core.verify.domains import representable
from twofold.core.verify.rounding import Approx
from twofold.core.verify.units import half_unit

MOST = 4.0  # standard errors


class Bias(NamedTuple):
    """The mean signed error of one output, in units in the last place, and in standard errors."""

    output: str
    rows: int
    mean: float
    deviations: float


def signed_errors(output: Array, truth: Approx) -> Array:
    """Return r of every element, NaN where the truth is 0, subnormal or not finite."""
    on, size = truth.on, np.abs(truth.value)
    normal = np.isfinite(size) & (size > on.tiny_storage / on.u_storage)
    unit = 2 * half_unit(np.where(normal, size, 1.0), on.u_storage)
    distance = output.astype(np.float64) - truth.value
    return np.where(normal, np.sign(truth.value) * distance / unit, np.nan)


def measure(contract: Contract, side: Side, case: Any, given: Any) -> list[Bias]:
    """Run a case in float16 or bfloat16; return the bias of every output cast to that dtype.

    Outputs that are exact, or have a single row, are left out.

    Raises:
        ValueError: the case is in float32, whose results are not cast.
    """
    if case.dtype not in ("float16", "bfloat16"):
        raise ValueError(f"case.dtype is {case.dtype!r}; it must be 'float16' or 'bfloat16'")
    outputs, _ = computed(contract, side, case, given)
    found = []
    for name, truth in truths(contract, case, given).items():
        cast = np.array_equal(outputs[name], representable(outputs[name], case.dtype), True)
        if not cast or truth.value.ndim == 0 or not (truth.error > 0).any():
            continue
        r = signed_errors(outputs[name], truth)
        rows = r.reshape(-1, r.shape[-1]) if r.ndim > 1 else r[:, None]
        rows = rows[np.isfinite(rows).any(axis=1)]
        if len(rows) < 2:
            continue
        means = np.nanmean(rows, axis=1)
        error = float(means.std(ddof=1)) / np.sqrt(len(means))
        mean = float(means.mean())
        found.append(Bias(name, len(means), mean, float(mean / error) if error > 0 else 0.0))
    return found
