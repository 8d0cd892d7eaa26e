"""The optimizers' domain: buffers and steps, and everything that varies about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import domains

Array = domains.Array

STATE = {  # what each optimizer remembers, by its arguments' names
    "adam": ("m", "v"),
    "adamw": ("m", "v"),
    "sgd": (),
    "momentum": ("momentum_buffer",),
    "nesterov": ("momentum_buffer",),
    "adagrad": ("sum_of_squares",),
}
# How many other elements lie between those of a buffer where each has its own layout.
STRIDES = {"params": 1, "grads": 0, "m": 2, "v": 3, "momentum_buffer": 2, "sum_of_squares": 3}
SQUARES = ("v", "sum_of_squares")  # buffers that hold no negative number
BLOCK = 1024  # elements of one program


@dataclass(frozen=True)
class Case:
    """An optimizer, a number of elements and of steps, and everything that varies about them.

    `first_step` is 1 where the state begins at zero; `decaying` is the share of elements that
    decay; `clip` is the largest norm allowed, as a multiple of the first gradient's. If `captured`,
    the kernels read from memory what changes from step to step, and whether to `go`.
    """

    dtype: str = "float32"
    optimizer: str = "adamw"
    numel: int = 8
    steps: int = 1
    first_step: int = 1
    magnitude: str = "unit"
    layout: str = "contiguous"
    lr: float = 1e-3
    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decaying: float = 1.0
    clip: float | None = None
    captured: bool = False
    go: bool = True
    seed: int = 0

    @property
    def decay_numel(self) -> int:
        """How many leading elements decay."""
        return round(self.decaying * self.numel)


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtype holds exactly."""

    params: Array  # (n,)
    grads: Array  # (steps, n)
    state: dict[str, Array]  # (n,) each
    max_norm: float | None


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    rng = np.random.default_rng(case.seed)

    def draw(*shape: int) -> Array:
        return domains.draw(rng, shape, case.magnitude, case.dtype)

    params, grads = draw(case.numel), draw(case.steps, case.numel)
    state = {}
    for name in STATE[case.optimizer]:
        x = draw(case.numel) if case.first_step > 1 else np.zeros(case.numel)
        state[name] = domains.representable(np.minimum(x * x, 6e4), case.dtype)
        if name not in SQUARES:
            state[name] = x
    norm = float(np.sqrt((grads[0] ** 2).sum()))
    return Inputs(params, grads, state, None if case.clip is None else case.clip * norm or 1.0)


def place(side: Side, x: Array, case: Case, name: str) -> Any:
    """Return a buffer on a side: every second element of a longer one, or as its name says."""
    stride = {"contiguous": 1, "strided": 2, domains.MIXED: 1 + STRIDES[name]}[case.layout]
    if stride == 1:
        return side.asarray(x, case.dtype)
    memory = np.full((x.size, stride), np.nan)
    memory[:, 0] = x
    return side.asarray(memory.ravel(), case.dtype)[::stride]


def options(case: Case, given: Inputs, step: int) -> dict[str, Any]:
    """Return the keyword arguments of a step without the norm, which is on a side."""
    how: dict[str, Any] = {
        "lr": case.lr,
        "weight_decay": case.weight_decay,
        "decay_numel": case.decay_numel,
        "max_norm": given.max_norm,
    }
    if case.optimizer in ("adam", "adamw"):
        how |= {"step": step, "beta1": case.momentum, "beta2": case.beta2, "eps": case.eps}
        how |= {"decoupled": case.optimizer == "adamw"}
    elif case.optimizer == "adagrad":
        how |= {"eps": case.eps}
    elif case.optimizer != "sgd":
        how |= {"momentum": case.momentum, "nesterov": case.optimizer == "nesterov"}
    return how


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        dtype=st.sampled_from(domains.DTYPES),
        optimizer=st.sampled_from(tuple(STATE)),
        numel=st.one_of(domains.lengths(40), domains.lengths(2 * BLOCK + 1)),
        steps=st.integers(1, 4),
        first_step=st.sampled_from([1, 2, 1000]),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(["contiguous", "strided", domains.MIXED]),
        lr=st.sampled_from([0.0, 1e-3, 0.1]),
        momentum=st.sampled_from([0.9, 0.5]),
        beta2=st.sampled_from([0.999, 0.95]),
        eps=st.sampled_from([1e-8, 1e-3]),
        weight_decay=st.sampled_from([0.0, 0.01]),
        decaying=st.sampled_from([0.0, 0.4, 1.0]),
        clip=st.sampled_from([None, 0.1, 1.0, 3.0]),
        captured=st.booleans(),
        seed=domains.seeds(),
    )
