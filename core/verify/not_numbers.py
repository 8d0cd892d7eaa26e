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


def seen(
    inputs: Callable[[Any], Any],
    run: Callable[[Side, Any, Any], Mapping[str, Any]],
    *,
    but: Callable[[Any], Collection[str]] = lambda case: (),
) -> Property:
    """Return the property for a contract of these inputs and this `run`.

    Args:
        but: says of a case which inputs may be multiplied by 0, which an implementation need not
            do, or are known without being looked at.
    """

    def nan_is_seen(subject: Subject, case: Any) -> None:
        """What depends on a NaN is NaN."""
        if subject.name == "reference":
            raise Inapplicable("the reference says what depends on it")
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
    """Yield each floating array's name, and the inputs with a NaN near its beginning or its end."""
    for field, x in given._asdict().items():
        for name, one in (x if isinstance(x, dict) else {field: x}).items():
            if not isinstance(one, np.ndarray) or one.dtype.kind != "f" or not one.size:
                continue
            for at in (seed % one.size, -1 - seed % one.size):
                holed = one.copy()
                holed.flat[at] = np.nan
                changed = {**x, name: holed} if isinstance(x, dict) else holed
                yield name, given._replace(**{field: changed})
