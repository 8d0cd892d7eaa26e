"""Whether two contenders compute the same from the tensors that are raced.

The contract's bound is for small cases: at the sizes of a race its truth in float64 would take
longer than the race. The contract judges accuracy; what remains to check at a race's size is that
the same thing is computed, and all of it. That needs no truth, only a second opinion: every row of
the outputs (along the last axis) must agree with twofold's to half the digits of its dtype,
‖a − b‖ ≤ √ε·‖b‖. Kernels that round well differ by about ε; a row that was not computed, or lacks a
tile, by about 1.

Random numbers, what a step writes in place, and gradients are not compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from twofold.core.bench.problems import Problem


def comparable(problem: Problem) -> bool:
    """Whether twofold and others should compute the same: not if dropout draws random masks."""
    return problem.operator != "dropout" and not problem.options.get("dropout_p")


def stray(
    outputs: Sequence[torch.Tensor], twofolds: Sequence[torch.Tensor], problem: Problem
) -> str:
    """Say how outputs differ from twofold's, "" if they do not; extra outputs are ignored."""
    allowed = torch.finfo(getattr(torch, problem.dtype)).eps ** 0.5
    for theirs, ours in zip(outputs, twofolds, strict=False):
        if theirs.shape != ours.shape:
            return f"its shape at this size is {tuple(theirs.shape)}, twofold's {tuple(ours.shape)}"
        a, b = (
            x.detach().reshape(-1, x.shape[-1] if x.dim() else 1).float() for x in (theirs, ours)
        )
        apart, length = (a - b).norm(dim=-1), b.norm(dim=-1)  # (rows,)
        out = ~(apart <= allowed * length)  # NaN is out too
        if count := int(out.sum()):
            return (
                f"at this size {count} of {len(out)} rows are not twofold's: one is off by "
                f"{float((apart / length)[out][0]):.2g} of its norm, {allowed:.2g} is half of "
                f"{problem.dtype}'s digits"
            )
    return ""
