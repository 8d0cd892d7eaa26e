"""The contract of softmax with cross-entropy.

(1) Targets: t = (1 − ε)·y + ε/C, times class weights: rounded constants (computed), two roundings.
    mass = Σt, γ_{C−1}·Σ|t|.
(2) Softmax: x − max is one rounding of a number that is at most 0; the sum is explained below;
    P = e^(x − max)/Σ errs by u_function for either.
(3) Loss: Σ t·(log Σ − (x − max)), |log x̂ − log x| ≤ −log(1 − E/x); terms with t = 0 are left out
    by the kernel and here. A masked target has loss ∞, exactly.
(4) Gradient: P·mass − t, two roundings. The kernel multiplies e^(x − max) by mass/Σ, with as many
    roundings, but mass/Σ may underflow where P does not.
(5) Times 1/Σw, a sum over the rows and a division; cast.

Backward multiplies the gradient as stored by that of the loss: another rounding and another cast.

All of it is running error analysis, except for the sum of the softmax, which the kernel builds up
block by block against a maximum that still moves. There the errors are bounded as logarithms (see
`attention_bound`, (2)): a term's exponents telescope, x − m_b and the later m_{b−1} − m_b adding up
to x − m, and so do their errors, which are proportional to them. What does not telescope is one
rounding of exp and one of a product whenever the maximum moves. It moves at most as often as the
row, from left to right, sets a new record: that is counted, and holds for any blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Contract, Inapplicable, Subject
from twofold.core.verify.rounding import Approx, constant, exact, exp, gamma, grown, log, machine
from twofold.reference.softmax_cross_entropy import REDUCTIONS

Array = domains.Array

IMPOSSIBLE = 8192  # classes: those of a large tile
IGNORE_INDEX = -7
EACH_WAY: tuple[dict[str, Any], ...] = (
    {}, {"keep": False}, {"probabilities": True, "weight": True}
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Rows × classes, and everything that varies about them."""

    dtype: str = "float32"
    rows: int = 3
    classes: int = 8
    probabilities: bool = False
    index_dtype: str = "int64"
    ignored: float = 0.0  # share of the rows
    masked: bool = False  # some classes have logit −∞
    weight: bool = False
    label_smoothing: float = 0.0
    reduction: str = "mean"
    keep: bool = True  # whether to keep the gradient; without it there is no backward
    magnitude: str = "unit"
    layout: str = "contiguous"
    seed: int = 0
    tile: int | None = None  # entry of the kernel's tile table
    block: tuple[int, int] | None = None  # rows and classes of a tile that is not in the table


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtype holds exactly, or indices."""

    logits: Array
    targets: Array
    weight: Array | None
    dloss: Array


def inputs(case: Case) -> Inputs:
    """Make a case's arrays; class 0 is never masked, and some class weights are 0."""
    rng = np.random.default_rng(case.seed)
    R, C = case.rows, case.classes

    def held(x: Array) -> Array:
        return domains.representable(x, case.dtype)

    # The rows of "near-duplicate" are alike: here the classes must be.
    logits = domains.draw(rng, (C, R), case.magnitude, case.dtype).T.copy()
    if case.masked:
        logits[:, 1:][rng.random((R, C - 1)) < 0.2] = -np.inf
    targets: Array = rng.integers(0, C, R)
    targets[rng.random(R) < case.ignored] = IGNORE_INDEX
    if case.probabilities:
        targets = rng.random((R, C)) ** 4
        targets = held(targets / targets.sum(axis=1, keepdims=True))
    weight = held(rng.random(C) * (rng.random(C) < 0.8)) if case.weight else None
    shape = (R,) if case.reduction == "none" else ()
    return Inputs(logits, targets, weight, held(rng.standard_normal(shape)))


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    how = domains.tile(side.softmax_cross_entropy, case)
    if case.block is not None and side.name == "triton":
        rows, classes = case.block
        tile = side.softmax_cross_entropy.choose_tile(case.classes, case.probabilities)
        how["tile"] = tile._replace(block_r=rows, block_c=classes)
    targets = (
        domains.place(side, given.targets, case.dtype, case.layout)
        if case.probabilities
        else domains.beside(side, given.targets, case, case.index_dtype)
    )
    loss, cache = side.softmax_cross_entropy.forward(
        domains.place(side, given.logits, case.dtype, case.layout),
        targets,
        weight=domains.beside(side, given.weight, case, case.dtype),
        label_smoothing=case.label_smoothing,
        ignore_index=IGNORE_INDEX,
        reduction=case.reduction,
        **domains.kept(case),
        **how,
    )
    if not case.keep:
        return {"loss": loss}
    dloss = domains.beside(side, given.dloss, case, case.dtype)
    return {"loss": loss, **side.softmax_cross_entropy.backward(dloss, cache)._asdict()}


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds: the steps of the kernel, in running error analysis."""
    given, on = given or inputs(case), machine(case.dtype)
    seen = given.logits > -np.inf
    # (1) targets, times the class weights
    t, counted = _targets(case, given)  # (R, C), ()
    mass = t.sum(-1, keepdims=True)
    # (2) softmax
    top = given.logits.max(axis=1, keepdims=True)
    shifted = exact(np.where(seen, given.logits, top), on) - exact(top, on)
    total = running_sum(shifted, seen, given.logits)
    p = (exp(shifted) / total).where(seen)
    # (3) loss
    loss = (t * (log(total) - shifted)).where(seen & (t.value != 0)).sum(-1)  # (R,)
    # Masked targets make the loss ∞, with a negative class weight −∞, with both signs NaN.
    more, less = ((~seen & (sign * t.value > 0)).any(axis=1) for sign in (1, -1))
    masked = np.where(more & less, np.nan, np.where(more, np.inf, -np.inf))
    loss = Approx(np.where(more | less, masked, loss.value), loss.error, on)
    # (4) gradient
    d = p * mass - t
    d = replace(d, error=d.error + on.tiny)
    # (5) reduction
    if case.reduction != "none":
        scale = constant(1.0, on)
        if case.reduction == "mean":
            scale = 1.0 / counted if counted.value != 0 else constant(0.0, on)
        loss, d = loss.sum(0) * scale, d * scale
    if not case.keep:
        return {"loss": loss.returned()}
    dloss = exact(given.dloss if given.dloss.ndim == 0 else given.dloss[:, None], on)
    return {"loss": loss.returned(), "dlogits": (d.stored() * dloss).returned()}


def _targets(case: Case, given: Inputs) -> tuple[Approx, Approx]:
    """Return the targets times the class weights, and what the mean divides by."""
    on, C = machine(case.dtype), case.classes
    on_target, elsewhere = (
        constant(x, on) for x in (1 - case.label_smoothing, case.label_smoothing / C)
    )
    if case.probabilities:
        t = exact(given.targets, on) * on_target + elsewhere
        counted = constant(float(case.rows), on)
    else:
        live = given.targets != IGNORE_INDEX
        index = np.where(live, given.targets, 0)
        hit = np.arange(C) == index[:, None]
        t = (elsewhere + on_target * exact(hit, on)).where(live[:, None])
        w = np.ones(C) if given.weight is None else given.weight
        counted = exact(w[index] * live, on).sum(0)
    return t if given.weight is None else t * exact(given.weight, on), counted


def running_sum(shifted: Approx, seen: Array, logits: Array) -> Approx:
    """Return Σ exp(x − max), (R, 1), in blocks of any size against the running maximum."""
    on, C = shifted.on, logits.shape[1]
    before = np.maximum.accumulate(logits, axis=1)[:, :-1]
    moves = (logits[:, 1:] > before).sum(axis=1, keepdims=True)  # (R, 1)
    distance = np.abs(shifted.value) + shifted.error
    log_error = shifted.error + 2 * on.u * distance  # as `rounding.exp` has it
    log_error -= np.log1p(-on.u_function) + moves * (np.log1p(-on.u_function) + np.log1p(-on.u))
    w = np.where(seen, np.exp(shifted.value), 0.0)
    value = w.sum(axis=1, keepdims=True)
    error = np.where(seen, grown(w, shifted.value, log_error), 0.0).sum(axis=1, keepdims=True)
    error += gamma(C, on.u) * (value + error) + C * on.tiny
    return Approx(value, error, on)


def independence(subject: Subject, case: Case) -> None:
    """A row gives the same bits alone as among others."""
    base = replace(case, dtype="float32", reduction="none", layout="contiguous")
    given = inputs(base)
    rows = (given.logits, given.targets, given.dloss)
    logits, targets, dloss = (x[-1:] for x in rows)
    last = Inputs(logits, targets, given.weight, dloss)
    together = {name: x[-1:] for name, x in subject.compute(base, given).items()}
    claims.same_bits(together, subject.compute(replace(base, rows=1), last), "alone")


def gradient_sums(subject: Subject, case: Case) -> None:
    """Adding a number to all logits of a row changes no loss: its gradients sum to 0."""
    case = replace(case, masked=False)
    given = inputs(case)
    found, bound = subject.compute(case, given)["dlogits"], truth(case, given)["dlogits"]
    nothing = (np.zeros(1), np.zeros(1), 0.0)
    for d, value, error in zip(found, bound.value, bound.error, strict=True):
        # Rounded targets sum to 1 only nearly, and the true sum shows it.
        total = abs(float(value.sum()))
        claims.products("Σ dlogits is not 0", (d, np.ones_like(error), error), nothing, slack=total)


def shift_invariance(subject: Subject, case: Case) -> None:
    """Adding a number to a row changes nothing but the rounding."""
    base = replace(case, magnitude="unit")
    given = inputs(base)
    here, there = (
        given._replace(logits=np.round(8 * given.logits) / 8 + shift) for shift in (0.0, 8.0)
    )
    found = subject.compute(base, there)
    claims.unmoved(found, truth(base, here), truth(base, there), "of logits moved by 8")


def no_such_class(subject: Subject, case: Case) -> None:
    """A class index out of range makes its row NaN, and disturbs no other row."""
    if subject.name == "reference":
        raise Inapplicable("the reference refuses it")
    case = replace(case, probabilities=False, reduction="none", ignored=0.0)
    given = inputs(case)
    bad = np.arange(case.rows) % 3 == case.seed % 3
    outside = np.where(np.arange(case.rows) % 2 == 0, case.classes, -1)
    targets = np.where(bad, outside, given.targets)
    found = subject.compute(case, given._replace(targets=targets))
    expected = subject.compute(case, given)
    for name, x in found.items():
        assert np.isnan(x[bad]).all(), f"{name} of a class that does not exist has numbers"
        same = np.array_equal(x[~bad], expected[name][~bad], equal_nan=True)
        assert same, f"a class that does not exist disturbs {name} of other rows"
    if bad.any():
        mean = replace(case, reduction="mean")
        found = subject.compute(mean, inputs(mean)._replace(targets=targets))
        assert np.isnan(found["loss"]), "the mean with a class that does not exist is a number"
        numbers = int((~np.isnan(found["dlogits"])).sum())
        assert not numbers, (
            f"dlogits of the mean has {numbers} numbers though a class does not exist"
        )


def impossible_classes(subject: Subject, case: Case) -> None:
    """If logits of −∞ fill the first tiles of a row, the other classes are as without them."""
    case = replace(case, probabilities=False, label_smoothing=0.0, magnitude="unit")
    given, front = inputs(case), np.full((case.rows, IMPOSSIBLE), -np.inf)
    wide = given._replace(
        logits=np.concatenate((front, given.logits), axis=1),
        targets=np.where(given.targets < 0, given.targets, given.targets + IMPOSSIBLE),
        weight=None
        if given.weight is None
        else np.concatenate((np.ones(IMPOSSIBLE), given.weight)),
    )
    wider = replace(case, classes=case.classes + IMPOSSIBLE)
    found = subject.compute(wider, wide)
    for name, bound in truth(wider, wide).items():
        claims.within(name, found[name], bound, "behind impossible classes")


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        dtype=st.sampled_from(domains.DTYPES),
        rows=domains.lengths(70),
        classes=domains.lengths(300),
        probabilities=st.booleans(),
        index_dtype=st.sampled_from(("int32", "int64")),
        ignored=st.sampled_from((0.0, 0.3, 1.0)),
        masked=st.booleans(),
        weight=st.booleans(),
        label_smoothing=st.sampled_from((0.0, 0.1, 1.0)),
        reduction=st.sampled_from(REDUCTIONS),
        keep=st.sampled_from((True, True, True, False)),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(domains.LAYOUTS),
        seed=domains.seeds(),
        tile=st.none(),
    )


CONTRACT = Contract(
    operator="softmax_cross_entropy",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"loss": "forward", "dlogits": "backward"},
    pinned=(
        *(
            Case(dtype=dtype, rows=37, classes=classes, weight=True, label_smoothing=0.1, tile=tile)
            for tile, classes in ((0, 31), (0, 129), (1, 257), (1, 769), (2, 4099), (3, 8193))
            for dtype in domains.DTYPES
        ),
        *(Case(dtype=dtype, rows=2, classes=70_001) for dtype in domains.DTYPES),
        Case(rows=1025, classes=3, weight=True, ignored=0.3),  # more than a block of rows
        # shares of more than one such block, in few programs
        Case(rows=65537, classes=2, weight=True, block=(1024, 2)),
        # logits next to which the logarithm is small
        Case(rows=7, reduction="none", magnitude="offset"),
        Case(label_smoothing=0.1, magnitude="large"),  # whose softmax underflows
        Case(weight=True, layout="strided"),  # whose classes are read one at a time
        Case(classes=1, ignored=0.3),  # no other class to look at instead
        Case(ignored=1.0),  # the mean of nothing
        Case(rows=1),  # the mean of one
        Case(rows=1, weight=True, label_smoothing=0.1, seed=1),  # whose weight is 0
        # no backward: a class alone, and what needs all of them
        *(
            Case(dtype=dtype, rows=37, classes=4099, keep=False, **of)
            for dtype in domains.DTYPES
            for of in ({"weight": True}, {"label_smoothing": 0.1}, {"probabilities": True})
        ),
    ),
    usual=tuple(
        Case(dtype=dtype, rows=64, classes=classes, **how)
        for how in EACH_WAY
        for classes in (1024, 32768)
        for dtype in domains.DTYPES
    ),
    properties={
        "NaN is seen": not_numbers.seen(inputs, run),
        "independence": independence,
        "no such class": no_such_class,
        "impossible classes": impossible_classes,
        "gradient sums": gradient_sums,
        "shift invariance": shift_invariance,
    },
)
