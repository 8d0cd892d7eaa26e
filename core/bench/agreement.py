"""Whether two contenders compute the same of the tensors that are raced.

The contract's bound is for small cases: at the sizes of a race its truth in float64 would take
longer than the race. Accuracy is what the contract judges; what is left to see at a race's size is
whether the same thing is computed there, all of it. So no truth is needed, only a second opinion:
every row of the outputs (the last axis) is to agree with twofold's to half of the digits of its
dtype, ‖a − b‖ ≤ √ε·‖b‖. Kernels that round well differ by some ε, a row that was not computed, or
of which a tile is missing, by some 1.

Random numbers and what a step writes in place are not compared, and neither are gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from twofold.core.bench.problems import Problem


def comparable(problem: Problem) -> bool:
    """Whether twofold and others compute the same: they do not drop the same elements."""
    return problem.operator != "dropout" and not problem.options.get("dropout_p")


def stray(
    outputs: Sequence[torch.Tensor], twofolds: Sequence[torch.Tensor], problem: Problem
) -> str:
    """Say how outputs differ from twofold's, "" if they do not; more outputs than those may be."""
    allowed = torch.finfo(getattr(torch, problem.dtype)).eps ** 0.5
    for theirs, ours in zip(outputs, twofolds, strict=False):
        if theirs.shape != ours.shape:
            return f"its shape at this size is {tuple(theirs.shape)}, twofold's {tuple(ours.shape)}"
        a, b = (
            x.detach().reshape(-1, x.shape[-1] if x.dim() else 1).float() for x in (theirs, ours)
        )
        apart, length = (a - b).norm(dim=-1), b.norm(dim=-1)  # (rows,)
        out = ~(apart <= allowed * length)  # NaN is out, too
        if count := int(out.sum()):
            return (
                f"at this size {count} of {len(out)} rows are not twofold's: one is off by "
                f"{float((apart / length)[out][0]):.2g} of its norm, {allowed:.2g} is half of "
                f"{problem.dtype}'s digits"
            )
    return ""
