"""The property that a NaN is seen: an output that depends on one is NaN, too.

A kernel may well lose one: a maximum passes it over, `where(x == x, …)` puts a number in its place,
and what was to end a run that diverged goes on with numbers that mean nothing. One number of each
input in turn is made NaN. Where the reference then has NaN, an implementation has to; and a kernel
of ours has it nowhere else.

Dropout is left out: what is dropped of a NaN is NaN in NumPy and torch, and 0 in a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core.ops import Side, load
from twofold.core.verify.contract import Inapplicable, Property, Subject, fitting
from twofold.core.verify.domains import Array


def seen(
    inputs: Callable[[Any], Any],
    run: Callable[[Side, Any, Any], Mapping[str, Any]],
    *,
    of: Callable[[Any], Any] = lambda case: case,
    but: Callable[[Any], Collection[str]] = lambda case: (),
    of_others: bool = True,
) -> Property:
    """Return the property for a contract of these inputs and this `run`.

    Args:
        of: makes another case of one, in which nothing is masked: what a mask hides is multiplied
            by 0 in NumPy, where NaN stays NaN, and is not read by a kernel.
        but: says of a case which inputs may be multiplied by 0, which an implementation need not
            do, or are known without being looked at.
        of_others: whether it is asked of implementations that are not ours.
    """

    def nan_is_seen(subject: Subject, case: Any) -> None:
        """What depends on a NaN is NaN."""
        if subject.name == "reference":
            raise Inapplicable("the reference says what depends on it")
        if not (of_others or subject.name == "triton"):
            raise Inapplicable("others may lose it")
        case = of(case)
        fields = {"magnitude": "unit", "dropout_p": 0.0}
        case = replace(case, **{name: x for name, x in fields.items() if hasattr(case, name)})
        ours, reference = subject.name == "triton", load("reference")
        for name, given in with_nan(inputs(case), case.seed):
            if name in but(case):
                continue
            truth = run(reference, fitting(reference, case), given)
            found = subject.compute(case, given)
            for output in truth.keys() & found.keys():
                wanted, made = (np.isnan(x[output]) for x in (truth, found))
                lost, more = int((wanted & ~made).sum()), int((made & ~wanted).sum())
                assert not lost, f"{output} has {lost} numbers that depend on a NaN in {name}"
                assert not (more and ours), f"a NaN in {name} disturbs {more} numbers of {output}"

    return nan_is_seen


def with_nan(given: Any, seed: int) -> Iterator[tuple[str, Any]]:
    """Yield each floating array's name, and the inputs with a NaN near its beginning or its end.

    Inputs may hold others: a dictionary of arrays, or a tuple with names.
    """
    fields = given if isinstance(given, dict) else given._asdict()
    for field, x in fields.items():
        holed: Iterator[tuple[str, Any]] = iter(())
        if isinstance(x, dict) or hasattr(x, "_asdict"):
            holed = with_nan(x, seed)
        elif isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.size:
            holed = ((field, one) for one in with_one_nan(x, seed))
        for name, one in holed:
            changed = {field: one}
            yield (
                name,
                {**given, **changed} if isinstance(given, dict) else given._replace(**changed),
            )


def with_one_nan(x: Array, seed: int) -> Iterator[Array]:
    """Yield copies of an array with a NaN near its beginning, and near its end."""
    for at in (seed % x.size, -1 - seed % x.size):
        holed = x.copy()
        holed.flat[at] = np.nan
        yield holed
