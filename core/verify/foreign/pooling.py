"""Pooling as a plain call: f(x, lengths), or f(x, mask), -> out.

What stands in the padding is finite. Functions differ in whether a maximum's gradient goes to the
first position that attains it or is shared by all; cases have only one such position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from twofold.core import ops
from twofold.core.verify import domains
from twofold.core.verify.contracts import pooling
from twofold.core.verify.foreign.calls import Call, with_stale
from twofold.core.verify.foreign.kinds import showing
from twofold.core.verify.foreign.plain import Plain
from twofold.reference.pooling import KINDS


def inputs(case: pooling.Case) -> pooling.Inputs:
    """Return the contract's inputs, changed so that only the first maximum of a feature remains."""
    made = pooling.inputs(case)
    counting = np.where(live(case, made), made.x, -np.inf)
    top = counting.argmax(axis=1)[:, None]  # (B, 1, D)
    tied = counting == np.take_along_axis(counting, top, axis=1)
    np.put_along_axis(tied, top, False, axis=1)
    less = np.where(made.x > 0, -made.x, 1.5 * made.x - 1.0)
    x = np.where(tied, domains.representable(less, case.dtype), made.x)
    return made._replace(x=x)


def live(case: pooling.Case, given: pooling.Inputs) -> domains.Array:
    """Return where a position counts, (B, L, 1)."""
    return np.asarray(np.arange(case.length) < given.lengths[:, None])[..., None]


def call(side: ops.Side, case: pooling.Case, given: pooling.Inputs) -> Call:
    """Return pooling as a plain call."""
    x, dout = (
        domains.place(side, a, case.dtype, case.layout)
        for a in (with_stale(given.x, live(case, given)), given.dout)
    )
    lengths = domains.beside(side, given.lengths, case, case.lengths_dtype)
    return Call({"x": x, "lengths": lengths}, {"kind": case.kind}, {"out": dout})


def of_mask(function: Callable[..., Any], says: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Return a function of x and a mask (batch, length) as one of x and lengths.

    `says` makes the mask from one that is True where a position counts, and from x.
    """
    import torch

    def masked(x: Any, *lengths: Any, **options: Any) -> Any:
        places = torch.arange(x.shape[1], device=x.device)
        masks = (says(places < n[:, None], x) for n in lengths)
        return function(x, *masks, **options)

    return showing(masked, function)


def small(case: pooling.Case) -> pooling.Case:
    """Return a case for properties, in which maxima are hardly ever attained twice."""
    return replace(case, magnitude="unit") if case.magnitude in ALIKE else case


ALIKE = ("constant", "zeros", "near-duplicate")
WHAT_COUNTS = "mask (batch, length), "
SMALL = {"batch": 3, "length": 5, "features": 7}
EVERY_KIND = tuple({**SMALL, "kind": kind} for kind in KINDS)
PLAIN = Plain(
    call=call,
    shapes="x (batch, length, features), lengths (batch,)",
    outputs=("out",),
    options={"kind": {"kind": "mean"}},
    optional={"lengths": ({"full": True}, {})},
    always={"tile": None},
    pinned=(
        {"length": 37, "features": 65, "kind": "mean"},
        {"batch": 5, "length": 131, "features": 17, "kind": "mean"},
        {"batch": 3, "length": 5, "features": 515, "kind": "mean"},
        {"batch": 1, "length": 1029, "features": 3, "kind": "mean", "full": True},
        {"length": 128, "features": 128, "kind": "mean", "full": True},
    ),
    exercised={"kind": EVERY_KIND},
    either={"kind": EVERY_KIND},
    arranged={
        f"{WHAT_COUNTS}{words}": partial(of_mask, says=says)
        for words, says in {
            "1 where a position counts": lambda counts, x: counts.long(),
            "True where a position counts": lambda counts, x: counts,
            "1.0 where a position counts": lambda counts, x: counts.to(x.dtype),
            "True where a position does not count": lambda counts, x: ~counts,
        }.items()
    },
    arranged_case={**SMALL, "kind": "mean"},
    outside={
        "out": "padding that is not finite; lengths below 1 or above that of x; a maximum that is "
        "attained twice"
    },
    inputs=inputs,
    small=small,
    any_dtype=("out",),
    conventions=("length out of range", "first takes the gradient"),
)
