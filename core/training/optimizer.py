"""The optimizer a recipe names, over the flat buffer, with its state in buffers beside it.

Frozen parameters have no state and no gradient: state and gradients lie in buffers with a layout of
the learning parameters alone. Adjacent parameters with the same learning rate share a launch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from twofold.core.model.parameters import Layout
from twofold.core.ops import Side
from twofold.core.training.recipe import Recipe

STATE = {"adamw": ("m", "v"), "adam": ("m", "v"), "sgd": ("momentum",), "adagrad": ("squares",)}


class Stretch(NamedTuple):
    """Adjacent parameters with the same learning rate.

    Attributes:
        params: where they lie in the buffer of all parameters.
        learned: where they lie in buffers of the learning parameters alone.
        decay_numel: how many leading elements decay.
        factor: their learning rate divided by the step's.
    """

    params: slice
    learned: slice
    decay_numel: int
    factor: float


def stretches(layout: Layout, learned: Layout, factors: Mapping[str, float]) -> list[Stretch]:
    """Return the parameters of `learned`, some of `layout`'s, in as few stretches as possible."""
    found: list[Stretch] = []
    for name in learned.shapes:
        (start, stop), (first, last) = layout.extent(name), learned.extent(name)
        if found:
            before = found[-1]
            follows = before.params.stop == start and before.learned.stop == first
            if follows and before.factor == factors[name]:
                found.pop()
                start, first = before.params.start, before.learned.start
        decaying = min(max(layout.decay_numel - start, 0), stop - start)
        found.append(Stretch(slice(start, stop), slice(first, last), decaying, factors[name]))
    return found


class Optimizer:
    """Updates parameters in place; the buffers in `state` are all it remembers."""

    def __init__(
        self, recipe: Recipe, ops: Side, numel: int, over: list[Stretch], dtype: str
    ) -> None:
        self.recipe, self.ops, self.over = recipe, ops, over
        self.state = {name: ops.zeros((numel,), dtype) for name in STATE[recipe.optimizer]}

    def numbers(self, step: int, lr: float) -> list[tuple[float, ...]]:
        """Return, for each stretch, the `count` numbers that its kernel takes for a step."""
        rates = [lr * at.factor for at in self.over]
        if self.count == 1:
            return [(rate,) for rate in rates]
        decay = self.recipe.weight_decay
        return [self.ops.optimizers.adam_numbers(step, rate, weight_decay=decay) for rate in rates]

    @property
    def count(self) -> int:
        """How many numbers of a stretch change from step to step."""
        return 3 if self.recipe.optimizer in ("adam", "adamw") else 1

    def step(
        self,
        params: Any,
        grads: Any,
        *,
        step: int,
        lr: float,
        grad_norm: Any,
        numbers: Sequence[Any] | None = None,
        go: Any = None,
    ) -> None:
        """Take one step; `step` counts from 1.

        On the Triton side, `numbers` in memory, one row for each stretch, may take the place of
        `step` and `lr`, and `go`, in memory too, says whether the step may change anything.
        """
        recipe, optimizers = self.recipe, self.ops.optimizers
        how: dict[str, Any] = {"weight_decay": recipe.weight_decay}
        if recipe.max_norm > 0.0:
            how |= {"grad_norm": grad_norm, "max_norm": recipe.max_norm}
        for i, at in enumerate(self.over):
            buffers = [params[at.params], *(x[at.learned] for x in (grads, *self.state.values()))]
            how |= {"lr": lr * at.factor, "decay_numel": at.decay_numel}
            if numbers is not None:
                how |= {"numbers": numbers[i], "go": go}
            if recipe.optimizer in ("adam", "adamw"):
                optimizers.adam(*buffers, step=step, decoupled=recipe.optimizer == "adamw", **how)
            elif recipe.optimizer == "sgd":
                optimizers.sgd(*buffers, momentum=recipe.momentum, **how)
            else:
                optimizers.adagrad(*buffers, **how)
