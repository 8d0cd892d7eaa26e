"""The property that NaN propagates: an output that depends on a NaN is NaN, too.

A kernel can easily lose a NaN: a maximum ignores it, `where(x == x, …)` replaces it by a number,
and a run that diverged and should have ended goes on with meaningless numbers. In each input in
turn two numbers are made NaN, one as far from its beginning as the other is from its end. Where the
reference then has NaN, and other numbers there would change its result, an implementation must have
NaN too; and a kernel of ours has NaN nowhere that the reference has none.

Where other numbers change no output, the result may be NaN or not: there the NaN is multiplied by
0, as masked pairs are, and tiles that are masked entirely are not visited.

Dropout is left out: a NaN that is dropped is NaN in NumPy and torch, and 0 in a kernel.
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
        but: names, for a case, the inputs that need not be tried, or are ignored.
        across: axes of an output, from the last, along which one side may have 0·NaN and the other
            not.
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
    """Yield each floating array's name, the inputs with NaNs in it, and with other numbers there.

    Both stand at two places, one as far from the beginning as the other is from the end.
    """
    for name, x, put in arrays(given):
        numbers = np.flatnonzero(np.isfinite(x) if x.dtype.kind == "f" else [])
        if numbers.size:
            at = numbers[[seed % numbers.size, -1 - seed % numbers.size]]
            holed, other = x.copy(), x.copy()
            holed.flat[at] = np.nan
            # Every dtype holds these exactly.
            number = x.flat[at]
            factor = np.where(np.abs(number) < 1, 2.0, 0.5)
            other.flat[at] = np.where(number == 0, 1.0, factor * number)
            yield name, put(holed), put(other)


def arrays(given: Any) -> Iterator[tuple[str, Array, Callable[[Array], Any]]]:
    """Yield each array among inputs: its name, the array, and a function that replaces it."""
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
