"""Whether two contenders compute the same from the tensors that are raced.

The contract's bound is for small cases: at the sizes of a race its truth in float64 would take
longer than the race. The contract judges accuracy; what remains to check at a race's size is that
the same thing is computed, and all of it. That needs no truth, only a second opinion: every row of
the outputs (along the last axis) must agree with twofold's to half the digits of its dtype,
‖a − b‖ ≤ √ε·‖b‖. Kernels that round well differ by about ε; a row that was not computed, or lacks a
tile, by about 1.

Random numbers and what a step writes in place are not compared, and neither are gradients.

Where ways to compute one thing race, such as tiles of a kernel, gradients are compared, too
(`unlike`). They have rows that are nothing but rounding errors, as those of the first query under a
causal mask: so a row counts as no shorter than rows are on average.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from twofold.core.bench.problems import Problem


def comparable(problem: Problem) -> bool:
    """Whether twofold and others should compute the same: not if dropout draws random masks."""
    return problem.operator != "dropout" and not problem.options.get("dropout_p")


def stray(
    outputs: Sequence[torch.Tensor],
    twofolds: Sequence[torch.Tensor],
    problem: Problem,
    on_average: bool = False,
) -> str:
    """Say how outputs differ from twofold's, "" if they do not; more outputs than those may be.

    `on_average`: a row counts as no shorter than rows are on average.
    """
    allowed = torch.finfo(getattr(torch, problem.dtype)).eps ** 0.5
    for theirs, ours in zip(outputs, twofolds, strict=False):
        if theirs.shape != ours.shape:
            return f"its shape at this size is {tuple(theirs.shape)}, twofold's {tuple(ours.shape)}"
        a, b = (
            x.detach().reshape(-1, x.shape[-1] if x.dim() else 1).float() for x in (theirs, ours)
        )
        apart, length = (a - b).norm(dim=-1), b.norm(dim=-1)  # (rows,)
        if on_average:
            length = length.clamp(min=float(length.mean()))
        out = ~(apart <= allowed * length)  # NaN is out, too
        if count := int(out.sum()):
            return (
                f"at this size {count} of {len(out)} rows are not twofold's: one is off by "
                f"{float((apart / length)[out][0]):.2g} of its norm, {allowed:.2g} is half of "
                f"{problem.dtype}'s digits"
            )
    return ""


def unlike(calls: Mapping[str, Callable[[], Any]], problem: Problem) -> dict[str, str]:
    """Make every call once; return why not to time those that fail, or differ from the first.

    A call returns a tensor, gradients, or an output with what is kept for them.
    """
    reasons: dict[str, str] = {}
    wanted: list[torch.Tensor] | None = None
    for who, call in calls.items():
        try:
            found = _compared(call())
            wanted = found if wanted is None else wanted
            reason = stray(found, wanted, problem, on_average=True)
        except Exception as error:  # its own: the others go on
            reason = f"{type(error).__name__}: {error}"
        if reason:
            reasons[who] = reason[:200]
    return reasons


def _compared(found: Any) -> list[torch.Tensor]:
    """Return the tensors of what a call returns, heads and batches as rows."""
    if isinstance(found, tuple):
        several = found if hasattr(found, "_fields") else found[:1]
    else:
        several = (found,)
    return [x.reshape(-1, x.shape[-1] if x.dim() else 1) for x in several if x is not None]
