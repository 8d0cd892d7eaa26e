"""The property that a NaN is seen: an output that depends on one is NaN, too.

A kernel may well lose one: a maximum passes it over, `where(x == x, …)` puts a number in its place,
and what was to end a run that diverged goes on with numbers that mean nothing. Two numbers of each
input in turn are made NaN, one near its beginning and one near its end. Where the reference then
has NaN, and with other numbers another result, an implementation has to; and a kernel of ours has
NaN nowhere that the reference has none.

Where other numbers change no output, NaN may come of it or not: there it is multiplied by 0, as is
what may not be attended, and tiles in which all is masked are not visited.

Dropout is left out: what is dropped of a NaN is NaN in NumPy and torch, and 0 in a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from twofold.core.ops import Side, load
from twofold.core.verify.contract import Inapplicable, Property, Subject, fitting
from twofold.core.verify.domains import Array


def seen(
    inputs: Callable[[Any], Any],
    run: Callable[[Side, Any, Any], Mapping[str, Any]],
    *,
    but: Callable[[Any], Collection[str]] = lambda case: (),
    across: int = 0,
) -> Property:
    """Return the property for a contract of these inputs and this `run`.

    Args:
        but: says of a case which inputs need not be looked at, or count for nothing.
        across: axes of an output, from the last, along which 0·NaN may stand in one side and not in
            the other.
    """

    def nan_is_seen(subject: Subject, case: Any) -> None:
        """What depends on a NaN is NaN."""
        if subject.name == "reference":
            raise Inapplicable("the reference says what depends on it")
        fields = {"magnitude": "unit", "dropout_p": 0.0}
        case = replace(case, **{name: x for name, x in fields.items() if hasattr(case, name)})
        ours, reference = subject.name == "triton", load("reference")
        given = inputs(case)
        truth = partial(run, reference, fitting(reference, case))
        before = truth(given)
        for name, holed, other in with_nan(given, case.seed):
            if name in but(case):
                continue
            found = subject.compute(case, holed)
            true, moved = truth(holed), truth(other)
            for output in true.keys() & found.keys():
                wanted, made = (np.isnan(x[output]) for x in (true, found))
                lost = int((wanted & ~made & (before[output] != moved[output])).sum())
                assert not lost, f"{output} has {lost} numbers that depend on a NaN in {name}"
                may = wanted.any(axis=tuple(range(-min(across, wanted.ndim), 0)), keepdims=True)
                more = int((made & ~may).sum())
                assert not (more and ours), f"a NaN in {name} disturbs {more} numbers of {output}"

    return nan_is_seen


def with_nan(given: Any, seed: int) -> Iterator[tuple[str, Any, Any]]:
    """Yield each floating array's name, the inputs with NaN in it, and with other numbers there.

    Both are near the beginning and near the end of those that it has.
    """
    for name, x, put in arrays(given):
        numbers = np.flatnonzero(np.isfinite(x) if x.dtype.kind == "f" else [])
        if numbers.size:
            at = numbers[[seed % numbers.size, -1 - seed % numbers.size]]
            holed, other = x.copy(), x.copy()
            holed.flat[at] = np.nan
            # Every dtype has these.
            number = x.flat[at]
            factor = np.where(np.abs(number) < 1, 2.0, 0.5)
            other.flat[at] = np.where(number == 0, 1.0, factor * number)
            yield name, put(holed), put(other)


def arrays(given: Any) -> Iterator[tuple[str, Array, Callable[[Array], Any]]]:
    """Yield the arrays among inputs by name, and what puts another in the place of each."""
    for name, x in (given if isinstance(given, dict) else given._asdict()).items():

        def put(changed: Any, name: str = name) -> Any:
            if isinstance(given, dict):
                return {**given, name: changed}
            return given._replace(**{name: changed})

        if isinstance(x, np.ndarray):
            yield name, x, put
        elif isinstance(x, dict) or hasattr(x, "_asdict"):
            for inner, one, within in arrays(x):
                yield inner, one, partial(_nested, within, put)


def _nested(within: Callable[[Array], Any], put: Callable[[Any], Any], changed: Array) -> Any:
    return put(within(changed))
