"""Failing cases: what they have in common, and smaller ones."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

TILES = (2, 16, 32, 64, 128)  # sizes that a kernel may take for granted to divide a length
# Sizes that are compared: the first may be more than so many times the second.
RELATED = (("head_dim", 2, "pairs"), ("seqlen_q", 1, "seqlen_k"), ("seqlen_k", 1, "seqlen_q"))
CHANCE = 0.1  # the fraction of reports that may say something meaningless
MOST = 0.5  # of the cases that hold: what more of them share does not set the failing ones apart
NEITHER = ("seed", "tile")  # say nothing about an input
NO_SIZES = (*NEITHER, "first", "first_step")  # numbers that are not sizes of tensors


def largest(cases: Collection[Any]) -> str:
    """Return, in words, the largest of each size in these cases; "" if there are none."""
    first = next(iter(cases), None)
    sizes = {
        name: max(getattr(case, name) for case in cases)
        for name, value in (vars(first) if first else {}).items()
        if type(value) is int and name not in NO_SIZES
        if all(type(getattr(case, name)) is int for case in cases)
    }
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def common(tried: Mapping[Any, Collection[str]], key: str, smallest: Any) -> str:
    """Say in how many cases this fails, and what they have in common and the others do not.

    `tried` has what fails in each case. Where the smallest case has a usual value, nothing is said.
    Nor is anything said that may be chance: where a share p of the holding cases has something, n
    others all have it with probability pⁿ, and over all candidates `CHANCE` such may be expected.
    """
    failing = [case for case, fails in tried.items() if key in fails]
    otherwise = [case for case, fails in tried.items() if fails and key not in fails]
    holding = [case for case, fails in tried.items() if not fails]
    count = f"{len(failing)} of {len(tried)} cases fail this way"
    count += f", {len(otherwise)} in another" if otherwise else ""
    if not failing or not (holding or otherwise):
        return f"all {len(tried)} cases fail this way" if failing else ""
    if not holding:
        return f"{count}, and none holds"
    said: list[str] = []
    left = list(range(len(holding)))  # holding cases that have all of it
    looked_for = dict(_shared(failing, holding, smallest))
    while left and looked_for:
        words, have = min(looked_for.items(), key=lambda one: sum(one[1][i] for i in left))
        having = [i for i in left if have[i]]
        chance = ((len(having) + 1) / (len(left) + 1)) ** len(failing)
        if len(having) == len(left) or chance * len(looked_for) > CHANCE:
            break
        said.append(words)
        left = having
    if not said or len(left) > MOST * len(holding):
        return count
    others = (
        f"so have {len(left)} of the {len(holding)} that hold" if left else "none that holds has"
    )
    return f"{count}, all with {' and '.join(said)}; {others}"


def _shared(
    failing: Sequence[Any], holding: Sequence[Any], smallest: Any
) -> Iterator[tuple[str, list[bool]]]:
    """Yield, in words, what all failing cases share, and which of the others share it, too."""
    for name, usual in vars(type(smallest)()).items():
        if name in NEITHER or getattr(smallest, name) == usual:
            continue
        here = [getattr(case, name) for case in (*failing, smallest)]
        there = [getattr(case, name) for case in holding]
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in here + there):
            low, high = min(here), max(here)
            yield f"{name} ≥ {low}", [x >= low for x in there]
            yield f"{name} ≤ {high}", [x <= high for x in there]
            for n in TILES if isinstance(usual, int) else ():
                if all(x % n for x in here):
                    words = "odd" if n == 2 else f"no multiple of {n}"
                    yield f"{name} {words}", [x % n > 0 for x in there]
            if isinstance(usual, int) and all(x & (x - 1) for x in here):
                yield f"{name} no power of two", [x & (x - 1) > 0 for x in there]
            continue
        if usual not in here and not isinstance(usual, bool):
            yield f"{name} given", [x != usual for x in there]
        values = list(dict.fromkeys(here))
        if len(values) < 3:
            yield f"{name}={' or '.join(map(str, values))}", [x in values for x in there]
    for one, times, other in RELATED:
        if hasattr(smallest, one) and hasattr(smallest, other):
            more = [
                [getattr(case, one) > times * getattr(case, other) for case in cases]
                for cases in ((*failing, smallest), holding)
            ]
            if all(more[0]):
                yield f"{one} > {'' if times == 1 else f'{times}·'}{other}", more[1]


def smaller(case: Any, fails: Callable[[Any], Any], seconds: float) -> Any:
    """Return a failing case that is as small and as ordinary as can be found in the time given.

    Args:
        case: one that fails.
        fails: returns the case as it was run if it fails, else None.
        seconds: after which no more cases are tried.
    """
    until = time.monotonic() + seconds
    usual = type(case)()

    def attempt(name: str, value: Any) -> bool:
        nonlocal case
        if time.monotonic() > until:
            return False
        found = fails(dataclasses.replace(case, **{name: value}))
        case = case if found is None else found
        return found is not None

    for name in vars(case):
        value = getattr(case, name)
        if name in ("dtype", "allow_tf32", *NEITHER):
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            least = 1
            while least < value:  # bisecting as if it failed from some number on
                middle = (least + value) // 2
                if attempt(name, middle):
                    value = middle
                else:
                    least = middle + 1
        elif value != getattr(usual, name):
            attempt(name, getattr(usual, name))
    return case
