"""Races of operators in committed results: which times count, and what their ratios are to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from committed import Race, Raced, raced
from harness import RESULTS

from twofold.core.bench.contenders import BOTH, TORCH, TWOFOLD

SAME = ("operator", "problem", "dtype", "pass")  # fields that identify a race
PASSES = "Cross-entropy: both passes together; optimizers: one step."
FIRST, BACKWARD = ("forward", BOTH, "step"), ("backward",)  # passes, as tables name them


def operators(folder: Path = RESULTS) -> list[Raced]:
    """Return the races of operators, machine by machine."""
    return raced("bench", folder, lambda found: found["bench"]["races"], SAME)


def ways(race: Race) -> list[str]:
    """Return torch's own uncompiled contenders that ran: the right ones, if any are right.

    An optimizer has two, one of them fused. Where torch is not within the contract's bound, others
    are still compared with it: `notes` says so.
    """
    ran = [who for who in race["contenders"] if who == TORCH or who.startswith(f"{TORCH}, ")]
    return right(race, ran) or ran


def right(race: Race, who: Iterable[str]) -> list[str]:
    """Return the contenders that were not found wrong."""
    return [name for name in who if name not in race.get("wrong", ())]


def ratio(race: Race, against: Iterable[str]) -> float | None:
    """Return our time as a multiple of the quickest other's.

    None if no other ran, or twofold did not, or is wrong.
    """
    times = {who: figures["median_ms"] for who, figures in race["contenders"].items()}
    if not counts(race):
        return None
    others = [times[who] for who in against if who in times]
    return float(times[TWOFOLD] / min(others)) if others else None


def ratios(races: Iterable[Race]) -> Iterator[float]:
    """Yield our time as a multiple of that of torch's quickest own contender, where possible."""
    return (r for r in (ratio(race, ways(race)) for race in races) if r is not None)


def counts(race: Race) -> bool:
    """Return whether twofold ran and was not found wrong."""
    return TWOFOLD in right(race, race["contenders"])


def of(races: Iterable[Race], operator: str, *passes: str) -> list[Race]:
    """Return the races of some passes of an operator."""
    return [r for r in races if r["operator"] == operator and r["pass"] in passes]


def notes(races: Iterable[Race], of_torch: bool = True) -> list[str]:
    """Say which races are left out and why, and where torch is not within the contract's bound."""
    races = list(races)
    said = []
    wrong = [race for race in races if TWOFOLD in race.get("wrong", ())]
    failed = [race for race in races if TWOFOLD not in race["contenders"] and race not in wrong]
    alone = [race for race in races if counts(race) and not ways(race)]
    for which, why in (
        (wrong, "Left out, as twofold was not within its contract's bound"),
        (failed, "Left out, as twofold did not run"),
        (alone, "Without torch, which did not run"),
    ):
        if which:
            named = (" ".join(race[field] for field in SAME) for race in which)
            said.append(f"{why}: {'; '.join(named)}.")
    off = dict.fromkeys(r["operator"] for r in races if set(ways(r)) & set(r.get("wrong", ())))
    if off and of_torch:
        said.append(
            "In this run torch is compared with although it is not within the contract's bound, in "
            f"{', '.join(off)}."
        )
    return said
