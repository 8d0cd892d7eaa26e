"""Mutants that no contract kills, each with the reason.

Most of them cannot be seen at all. Some would show in cases that are too large to run, and their
reason says so (`is_beyond`).

An entry names its mutant by file, function, line of code (if the function has several such) and
change, so that it goes stale when the line changes and is then reported. `ANY` stands for every
value, a trailing `*` for every ending. The list is in the files beside this one; `twofold verify
mutants --listed` runs the mutants that it names, all of which must survive.
"""

from __future__ import annotations

from collections.abc import Iterable

from twofold.core.verify.equivalents import around_attention, attention, inputs, layers
from twofold.core.verify.equivalents.entry import ANY, Equivalent
from twofold.core.verify.mutation import Mutant

__all__ = ["ANY", "EQUIVALENT", "Equivalent", "is_beyond", "reason", "stale"]

THESE = "beyond these cases"
BEYOND = f"shows past 2³¹ elements, {THESE}"
EQUIVALENT: tuple[Equivalent, ...] = (
    Equivalent(ANY, ANY, ANY, "drop .to(tl.int64) of *", BEYOND),
    *attention.EQUIVALENT,
    *around_attention.EQUIVALENT,
    *inputs.EQUIVALENT,
    *layers.EQUIVALENT,
)


def reason(mutant: Mutant) -> str:
    """Return why a mutant is listed, "" if it is not."""
    return next((e.reason for e in EQUIVALENT if e.names(mutant)), "")


def is_beyond(reason: str) -> bool:
    """Return whether a reason is that no case goes so far."""
    return reason.endswith(THESE)


def stale(mutants: Iterable[Mutant]) -> list[Equivalent]:
    """Return the entries about the mutants' files that name none of them."""
    mutants = list(mutants)
    files = {m.file for m in mutants}
    return [e for e in EQUIVALENT if e.file in files and not any(e.names(m) for m in mutants)]
