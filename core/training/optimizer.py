"""The optimizer a recipe names, over the flat buffer, and its state in buffers beside it."""

from __future__ import annotations

from typing import Any

from twofold.core.ops import Side
from twofold.core.training.recipe import Recipe

STATE = {"adamw": ("m", "v"), "adam": ("m", "v"), "sgd": ("momentum",), "adagrad": ("squares",)}


class Optimizer:
    """Updates parameters in place; the buffers in `state` are all it remembers."""

    def __init__(self, recipe: Recipe, ops: Side, numel: int, decay_numel: int, dtype: str) -> None:
        self.recipe, self.ops, self.decay_numel = recipe, ops, decay_numel
        self.state = {name: ops.zeros((numel,), dtype) for name in STATE[recipe.optimizer]}

    def step(self, params: Any, grads: Any, *, step: int, lr: float, grad_norm: Any) -> None:
        """Take one step; `step` counts from 1."""
        recipe, optimizers = self.recipe, self.ops.optimizers
        buffers = [params, grads, *self.state.values()]
        how = {"lr": lr, "weight_decay": recipe.weight_decay, "decay_numel": self.decay_numel}
        if recipe.max_norm > 0.0:
            how |= {"grad_norm": grad_norm, "max_norm": recipe.max_norm}
        if recipe.optimizer in ("adam", "adamw"):
            optimizers.adam(*buffers, step=step, decoupled=recipe.optimizer == "adamw", **how)
        elif recipe.optimizer == "sgd":
            optimizers.sgd(*buffers, momentum=recipe.momentum, **how)
        else:
            optimizers.adagrad(*buffers, **how)
