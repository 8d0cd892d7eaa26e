"""The contract of the optimizers: parameters and state after one step or several, and the norm.

Scalars (lr, betas, eps, and what is computed from them in float64) reach the kernel rounded once to
float32; by how much is computed, not estimated (`rounding.constant`). One step is:

Norm: Σg², n products and n − 1 additions in any order, γ_{n−1}·Σg², a root, the cast.
(1) g·(max_norm / max(‖g‖, max_norm)), the norm as stored: a division and a product. The kernel
    compares first; written like this it is the same number, and a norm too close to call costs
    nothing. A norm that certainly overflows the dtype is ∞, and what it clips is 0.
(2) decay: a product, and a sum where it is coupled.
(3) m = β₁m + (1 − β₁)g and v = β₂v + (1 − β₂)g², two and three products and a sum each. m may as
    well be m + (1 − β₁)(g − m), as PyTorch has it, where the difference and its product round.
(4) θ − lr'·m/(√(v·unbias) + eps): |√v̂ − √v| ≤ min(E/√v, √E), two roundings of functions, a sum, a
    product, a difference. Where √v + eps may be 0 by its bound, θ is unknown: a v kept in float16
    underflows where (1 − β₂)g² does, below 3·10⁻⁸.

Between two steps every buffer is cast: half a unit in the last place, so the errors of one step are
the operands' errors of the next. In float16 a v or a sum of squares beyond 65519 is ∞, exactly, and
stays so; what is divided by its root is 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core.ops import Side
from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Contract, Inapplicable, Subject, same_bits
from twofold.core.verify.contracts.optimizers_domain import (
    BLOCK,
    SQUARES,
    STATE,
    Case,
    Inputs,
    cases,
    inputs,
    options,
    place,
)
from twofold.core.verify.rounding import Approx, Array, constant, exact, machine, maximum, sqrt


def in_memory(side: Side, case: Case, how: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a step with its numbers, from `how`, in memory.

    The step and rate given beside them are to be ignored.
    """
    numbers: tuple[float, ...] = (how["lr"],)
    changed: dict[str, Any] = {"lr": 0.5}
    if "step" in how:
        names = ("step", "lr", "beta1", "beta2", "weight_decay")
        numbers = side.optimizers.adam_numbers(**{name: how[name] for name in names})
        changed |= {"step": 12}
    there = {"numbers": side.asarray(np.array(numbers), "float32")}
    return {**changed, **there, "go": side.asarray(np.array(case.go))}


def function(side: Side, case: Case) -> Any:
    """Return the function that takes a step."""
    names = {"adamw": "adam", "momentum": "sgd", "nesterov": "sgd"}
    return getattr(side.optimizers, names.get(case.optimizer, case.optimizer))


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Take the steps of a case on a side, from `given` where the inputs are not the case's own."""
    given = given or inputs(case)
    params = place(side, given.params, case, "params")
    state = {name: place(side, x, case, name) for name, x in given.state.items()}
    buffers = list(state.values()) or ([] if STATE[case.optimizer] else [None])
    for i in range(case.steps):
        grads = place(side, given.grads[i], case, "grads")
        norm = side.optimizers.global_norm(grads)
        how = options(case, given, case.first_step + i)
        if case.captured and side.name == "triton":
            how |= in_memory(side, case, how)
        function(side, case)(params, grads, *buffers, grad_norm=norm, **how)
    return {"params": params, **state, "norm": norm, "grads": grads}


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the buffers with their bounds: the kernel's steps, in running error analysis."""
    given, on = given or inputs(case), machine(case.dtype)
    theta = exact(given.params, on)
    state = {name: exact(x, on) for name, x in given.state.items()}
    decays = (np.arange(case.numel) < case.decay_numel) & (case.weight_decay > 0.0)
    for i in range(case.steps):
        raw = exact(given.grads[i], on)
        norm = sqrt((raw * raw).sum(keepdims=True))
        # (1) clip
        g = raw
        if given.max_norm is not None:
            largest = constant(given.max_norm, on)
            stored = replace(returned(norm), on=on)  # beyond the largest it is ∞, and g then 0
            clips = stored.value + stored.error > largest.value - largest.error
            g = choose(clips, g * (largest / maximum(stored, largest)), g)
        # (2) decay
        if case.optimizer == "adamw":
            theta = choose(decays, theta * (1 - case.lr * case.weight_decay), theta)
        else:
            g = choose(decays, g + theta * case.weight_decay, g)
        # (3) moments and (4) the step
        step, after = formula(case, g, state, case.first_step + i)
        for name in state.keys() & {*SQUARES}:
            step, after[name] = past(state[name], after.get("m", g), step, after[name])
        theta = (theta - step).returned()
        state = {name: x.returned() for name, x in after.items()}
    return {"params": theta, **state, "norm": returned(norm)[0], "grads": raw}


def returned(norm: Approx) -> Approx:
    """Return the norm as it is handed on: in float32, or in float64 for float64."""
    return norm.returned("float64" if norm.on.storage == "float64" else "float32")


def past(before: Approx, moving: Approx, step: Approx, after: Approx) -> tuple[Approx, Approx]:
    """Return step and sum of squares: a sum certain to be ∞ stays so, and the step by it is 0."""
    sure = np.isinf(before.value) & (before.error == 0)
    still = sure & np.isfinite(moving.value) & np.isfinite(moving.error)
    return step.where(~still), after.where(~sure, np.inf)


def choose(condition: Array, x: Approx, otherwise: Approx) -> Approx:
    """Choose between two by a condition that the kernel knows or that errs on the safe side."""
    value, error = (
        np.where(condition, a, b)
        for a, b in ((x.value, otherwise.value), (x.error, otherwise.error))
    )
    return Approx(value, error, x.on)


def formula(
    case: Case, g: Approx, state: dict[str, Approx], step: int
) -> tuple[Approx, dict[str, Approx]]:
    """Return what is subtracted from the parameters, and the new state before it is stored."""
    if case.optimizer in ("adam", "adamw"):
        beta1, beta2 = case.momentum, case.beta2
        m = state["m"] * beta1 + g * (1 - beta1)
        apart = np.abs(g.value - state["m"].value) + g.error + state["m"].error
        m = replace(m, error=m.error + 2 * m.on.u * (1 - beta1) * apart)  # m + (1 − β₁)(g − m)
        v = state["v"] * beta2 + (g * g) * (1 - beta2)
        root = sqrt(v * (1 / (1 - beta2**step)))
        return (m / (root + case.eps)) * (case.lr / (1 - beta1**step)), {"m": m, "v": v}
    if case.optimizer == "adagrad":
        s = state["sum_of_squares"] + g * g
        return (g * case.lr) / (sqrt(s) + case.eps), {"sum_of_squares": s}
    if case.optimizer == "sgd":
        return g * case.lr, {}
    if case.momentum == 0.0:  # then the buffer is left alone
        return g * case.lr, state
    b = state["momentum_buffer"] * case.momentum + g
    ahead = g + b * case.momentum if case.optimizer == "nesterov" else b
    return ahead * case.lr, {"momentum_buffer": b}


def decay_ends(subject: Subject, case: Case) -> None:
    """Beyond `decay_numel` nothing decays: the bits are the same as without decay."""
    n = case.decay_numel
    first, second = (
        {name: found[name][n:] for name in ("params", *STATE[case.optimizer])}
        for found in (
            subject.compute(other, inputs(other))
            for other in (replace(case, weight_decay=decay) for decay in (0.1, 0.0))
        )
    )
    claims.same_bits(first, second, "behind decay_numel")


def sliced(subject: Subject, case: Case) -> None:
    """Elements are independent: two slices give the same bits as one buffer."""
    case = replace(case, clip=None)  # the norm is of the whole gradient
    given, cut = inputs(case), case.numel // 3
    whole = subject.compute(case, given)
    for part in (slice(0, cut), slice(cut, case.numel)):
        n = part.stop - part.start
        if n == 0:
            continue
        decays = min(max(case.decay_numel - part.start, 0), n)
        state = {name: x[part] for name, x in given.state.items()}
        slice_ = Inputs(given.params[part], given.grads[:, part], state, None)
        found = subject.compute(replace(case, numel=n, decaying=decays / n), slice_)
        names = ("params", *STATE[case.optimizer])
        claims.same_bits({name: whole[name][part] for name in names}, found, "in slices")


def unclipped(subject: Subject, case: Case) -> None:
    """A gradient within the largest norm is not clipped: the bits are those without a limit."""
    names = ("params", *STATE[case.optimizer])
    results = [
        subject.compute(other, inputs(other))
        for other in (replace(case, steps=1, clip=clip) for clip in (3.0, None))
    ]
    if not np.isfinite(results[0]["norm"]):
        raise Inapplicable("the norm is beyond the dtype, and so beyond any limit")
    first, second = (claims.numbers(result, *names) for result in results)
    claims.same_bits(first, second, "where nothing is to be clipped")


def homogeneity(subject: Subject, case: Case) -> None:
    """Four times the gradient has four times the norm, bit for bit."""
    case = replace(case, dtype="float32", magnitude="unit", steps=1)
    given = inputs(case)
    one, four = (
        subject.compute(case, given._replace(grads=c * given.grads))["norm"] for c in (1, 4)
    )
    assert four == 4 * one, "the norm of 4g is not 4 times that of g"


def scale_invariance(subject: Subject, case: Case) -> None:
    """Adam's step does not depend on the gradients' scale, where eps is negligible."""
    if case.optimizer not in ("adam", "adamw"):
        raise Inapplicable("only Adam divides by the size of the gradient")
    case = replace(
        case, dtype="float32", magnitude="unit", clip=None, eps=1e-30, weight_decay=0.0,
        first_step=1,
    )  # fmt: skip
    given = inputs(case)
    one, four = (
        subject.compute(case, given._replace(grads=c * given.grads))["params"] for c in (1.0, 4.0)
    )
    assert np.array_equal(one, four), "the parameters know the scale of the gradient"


def held(subject: Subject, case: Case) -> None:
    """If the flag in memory says not to go, nothing changes, whatever the gradient is."""
    if subject.name != "triton":
        raise Inapplicable("only kernels read whether to go")
    given = inputs(case)
    given = given._replace(grads=np.full_like(given.grads, np.inf))
    found = subject.compute(replace(case, captured=True, go=False), given)
    before = {"params": given.params} | given.state
    same_bits({name: found[name] for name in before}, before, "where no step is to be taken")


def begun(case: Case) -> tuple[str, ...]:
    """Name the state that a first step need not read, as it begins at 0."""
    return STATE[case.optimizer] if case.first_step == 1 else ()


CONTRACT = Contract(
    operator="optimizers",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes=dict.fromkeys(
        ("params", "norm", "grads", *(name for names in STATE.values() for name in names)),
        "forward",
    ),
    pinned=(
        *(
            Case(
                dtype=dtype,
                optimizer=optimizer,
                numel=2 * BLOCK + 1,
                steps=3,
                first_step=7,
                lr=0.1,
                eps=1e-3,
                weight_decay=0.1,
                decaying=0.5,
                clip=0.5,
                captured=captured,
            )
            for optimizer in STATE
            for dtype in domains.DTYPES
            for captured in (False, True)
        ),
        Case(optimizer="momentum", momentum=0.0, first_step=2),
        # Long after the first step, with much of the past remembered.
        *(Case(optimizer=o, momentum=0.99, first_step=10**5) for o in ("adam", "nesterov")),
        Case(numel=4, magnitude="tiny", clip=0.5),  # norms next to which 10⁻⁶ matters
        *(Case(optimizer=o, layout=domains.MIXED, first_step=2) for o in STATE if o != "adamw"),
        Case(dtype="float16", magnitude="offset"),  # squares beyond the dtype, the norm within
        # both beyond it, and what comes after
        *(
            Case("float16", optimizer, magnitude="huge", steps=2, clip=clip)
            for optimizer in ("adam", "adagrad")
            for clip in (None, 1.0)
        ),
        # More elements than the norm's programs, and the reference, take at a time.
        Case(optimizer="sgd", numel=(1 << 20) + 9, weight_decay=0.1, decaying=0.5),
    ),
    usual=tuple(
        Case(dtype=dtype, optimizer=optimizer, numel=2**16, clip=1.0, captured=captured)
        for optimizer in ("adamw", "sgd", "adagrad")
        for dtype in domains.DTYPES
        for captured in (False, True)
    ),
    properties={
        "NaN is seen": not_numbers.seen(inputs, run, but=begun),
        "decay ends": decay_ends,
        "slices": sliced,
        "unclipped": unclipped,
        "homogeneity": homogeneity,
        "scale invariance": scale_invariance,
        "held": held,
    },
    in_place=True,
)
