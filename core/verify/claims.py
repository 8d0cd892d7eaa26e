"""What properties are made of: equal bits, distances within a bound, products that agree, slopes.

A property compares what an implementation computed for one case with what it computed for another.
If both must add the same numbers in the same order, it demands the same bits; if the order may
differ, for a distance of at most the sum of both bounds. A failure of the first kind is a `Bits`,
which is not held against a foreign function: that may order its sums as it likes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core.verify.contract import Bits, Outputs, Property, Subject, compare, same_bits
from twofold.core.verify.rounding import Approx, Array

__all__ = [
    "SPREAD",
    "Bits",
    "adjoint",
    "agree",
    "held",
    "leading_axes",
    "numbers",
    "one_truth",
    "other_strides",
    "other_tiles",
    "products",
    "same_bits",
    "slopes",
    "unmoved",
    "within",
]

SPREAD = "with other leading axes"  # how failures of `leading_axes` are named


def within(name: str, computed: Array, bound: Approx, what: str = "") -> None:
    """Raise unless an output is within its bound."""
    if fault := compare(name, computed, bound)[2]:
        raise AssertionError(f"{what} {fault}".strip())


def held(found: Mapping[str, Any], bounds: Mapping[str, Approx], what: str) -> None:
    """Raise unless all outputs are within their bounds, whatever their shape."""
    for name, bound in bounds.items():
        if name in found:
            within(name, found[name].reshape(bound.value.shape), bound, what)


def agree(name: str, first: Array, second: Array, bound: Approx, what: str) -> None:
    """Raise unless two results with the same truth differ by at most twice its bound."""
    value = np.where(np.isfinite(first), first, bound.value).astype(np.float64)
    within(name, second, replace(bound, value=value, error=2 * bound.error), what)


def unmoved(
    found: Outputs, bounds: Mapping[str, Approx], others: Mapping[str, Approx], what: str
) -> None:
    """Raise unless other inputs give the same outputs, within the sum of both bounds.

    Args:
        found: what was computed from the other inputs.
        bounds: of the outputs in question, for the original inputs.
        others: of the outputs for the other inputs.
        what: the other inputs, in words.
    """
    for name, bound in bounds.items():
        within(name, found[name], replace(bound, error=bound.error + others[name].error), what)


def one_truth(
    subject: Subject, case: Any, other: Any, given: Any, bounds: Mapping[str, Approx], what: str
) -> None:
    """Raise unless the results of two cases with one truth agree within its bounds.

    Outputs that are not computed are not compared.
    """
    first, second = subject.compute(case, given), subject.compute(other, given)
    for name, bound in bounds.items():
        if name in first:
            agree(name, first[name], second[name], bound, what)


def leading_axes(
    subject: Subject,
    case: Any,
    spread: Callable[[tuple[int, ...]], Any],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    bounds: Mapping[str, Approx],
) -> None:
    """Raise unless rows have the same bits however many axes they are spread over.

    Args:
        subject, case: what is checked, and in which case.
        spread: the inputs with the rows in a shape.
        shapes: of the rows along one axis, and over several.
        bounds: of the outputs; those that are as large as the rows must have their shape.
    """

    def results(shape: tuple[int, ...]) -> dict[str, Array]:
        found = subject.compute(case, spread(shape))
        for name in found.keys() & bounds.keys():
            if bounds[name].value.size == math.prod(shape):
                assert found[name].shape == shape, f"{name} of {shape} has another shape"
        return {name: a.reshape(-1) for name, a in found.items()}

    one, several = shapes
    found = results(several)
    held(found, bounds, SPREAD)
    same_bits(results(one), found, SPREAD)


def other_strides(
    inputs: Callable[[Any], Any],
    truth: Callable[[Any, Any], Mapping[str, Approx]],
    layout: str,
) -> Property:
    """Return the property that the result does not depend on how the inputs lie in memory."""

    def other_strides(subject: Subject, case: Any) -> None:
        """However the inputs lie in memory, the results agree within their bounds."""
        other = "contiguous" if case.layout != "contiguous" else layout
        given = inputs(case)
        moved, bounds = replace(case, layout=other), truth(case, given)
        one_truth(subject, case, moved, given, bounds, f"laid out {other}")

    return other_strides


def other_tiles(
    inputs: Callable[[Any], Any],
    truth: Callable[[Any, Any], Mapping[str, Approx]],
    entries: Sequence[tuple[Any, Any]],
    fits: Callable[[Any, Any], bool] = lambda key, case: True,
) -> Property:
    """Return the property that the result does not depend on the tile.

    Args:
        entries: the tile table's, a key and a tile each.
        fits: whether a case may use the tile of a key.
    """

    def other_tiles(subject: Subject, case: Any) -> None:
        """Another tile of the table does as well: the results agree within their bounds."""
        fitting = [i for i, (key, _) in enumerate(entries) if fits(key, case)]
        number = fitting[case.seed % len(fitting)]
        given = inputs(case)
        other, bounds = replace(case, tile=number), truth(case, given)
        one_truth(subject, case, other, given, bounds, f"with {entries[number][1]}")

    return other_tiles


def products(
    what: str, *pairs: tuple[Array, Array, Array | float], slack: Array | float = 0.0
) -> None:
    """Raise unless Σ x·y is the same for all triples (x, y, what x may be off by), y being exact.

    Float64 sums of n products, taken here, are off by at most 2(n + 1)·2⁻⁵³ of Σ|x·y|.
    """
    sums, allowed = [], float(np.sum(slack))
    for x, y, error in pairs:
        x = x.astype(np.float64)
        sums.append(float((x * y).sum()))
        allowed += float((error * np.abs(y)).sum())
        allowed += 2 * (x.size + 1) * 2.0**-53 * float(np.abs(x * y).sum())
    with np.errstate(invalid="ignore"):  # a NaN is reported, not warned about
        distance = max(sums) - min(sums)
    if not distance <= allowed and np.isfinite(allowed):
        raise AssertionError(f"{what}: {sums[0]:.9g} and {sums[1]:.9g} ± {allowed:.3g}")


def adjoint(
    found: Outputs,
    bounds: Mapping[str, Approx],
    dout: Array,
    **gradients: tuple[str, Array],
) -> None:
    """Raise unless out, linear in an argument x, has ⟨out, dout⟩ = ⟨x, dx⟩.

    Args:
        found, bounds: what was computed, and its bounds.
        dout: the output's gradient.
        gradients: by each argument's name, the name of its gradient and the argument itself.
    """
    out = (found["out"], dout, bounds["out"].error)
    for argument, (name, x) in gradients.items():
        what = f"⟨out, dout⟩ is not ⟨{argument}, {name}⟩"
        products(what, out, (found[name], x, bounds[name].error))


def slopes(
    value: Callable[[Array], tuple[float, float]],
    x: Array,
    direction: Array,
    held: Callable[[Array], Array],
    gradient: Array,
    error: Array,
    what: str,
) -> None:
    """Raise unless a gradient gives the slope of a value that is known up to some noise.

    Central differences at steps h and h/2, whose difference tells how far off they are: an error
    of order h² shrinks to a quarter, so the finer is off by a third of it, and by the whole of it
    where the next order still counts (Richardson 1911).

    Args:
        value: the value at a point, and how far it may be off.
        x: where the gradient is.
        direction: the step.
        held: rounds a point to values that the implementation can be given.
        gradient, error: what is claimed, and how far it may be off.
        what: what the gradient is of.
    """
    claimed, found, noise = [], [], []
    for h in (1.0, 0.5):
        above, below = held(x + h * direction), held(x - h * direction)
        (f_above, e_above), (f_below, e_below) = value(above), value(below)
        step = (above - below) / h
        claimed.append(float((gradient * step).sum()))
        found.append((f_above - f_below) / h)
        noise.append((e_above + e_below) / h + float((error * np.abs(step)).sum()))
    off = [f - c for f, c in zip(found, claimed, strict=True)]
    allowed = abs(found[1] - found[0]) + noise[0] + 2 * noise[1]
    if not abs(off[1]) <= allowed and np.isfinite(allowed):
        raise AssertionError(
            f"the gradient of {what} has slope {claimed[1]:.6g}; differences give {found[1]:.6g} "
            f"± {allowed:.2g}"
        )


def numbers(found: Outputs, *names: str) -> dict[str, Array]:
    """Return the outputs of these names; raise `Inapplicable` where one is not computed."""
    return {name: found[name] for name in names}
