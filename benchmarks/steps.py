"""Training steps for the benchmarks to race: ours on either side, and PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from peer import Peer, tensors
from torch import nn
from torch.nn import functional as F

from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.ops import Side
from twofold.core.training import trainer as trainers
from twofold.core.training.batches import Array, collate
from twofold.core.training.recipe import Recipe


def uncaptured(side: Side) -> Side:
    """Return a side that launches every kernel each time and replays no CUDA graph."""
    return replace(side, captured=lambda function: function)


def torch_step(
    config: ClassifierConfig,
    recipe: Recipe,
    inputs: Sequence[Array],
    targets: Array,
    *,
    fused: bool = True,
    device: str = "cpu",
    compiled: str = "",
) -> Callable[[], None]:
    """Return a call that takes torch's step, in the recipe's precision.

    bfloat16 is torch's autocast: parameters and the optimizer's state stay float32.

    Args:
        config, recipe: the model, and how it is trained.
        inputs, targets: the batch; where all examples are of one length, attention has no mask.
        fused: AdamW in its fused form.
        device: of the model.
        compiled: the mode of torch.compile, or "" for eager.
    """
    torch.manual_seed(0)
    model = Peer(config).to(device).train()
    parameters = list(model.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=fused or None
    )
    right = torch.tensor(targets, device=device)
    whole = len({len(x) for x in inputs}) == 1

    def loss_of(ids: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        half = recipe.precision == "bfloat16"
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            logits = model(ids, padding, whole)
        return F.cross_entropy(logits.float(), right)

    if compiled:
        loss_of = torch.compile(loss_of, mode=compiled, dynamic=False)

    def step() -> None:
        ids, padding = (x.to(device) for x in tensors(collate(inputs)))
        optimizer.zero_grad()
        loss = loss_of(ids, padding)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.max_norm)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - recipe.average)
        loss.item()

    return step


def our_step(
    config: ClassifierConfig,
    recipe: Recipe,
    inputs: Sequence[Array],
    targets: Array,
    side: Side,
) -> Callable[[], None]:
    """Return a call that takes our step."""
    trainer = trainers.Trainer(Classifier(config, side), recipe)
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        trainer.step(inputs, targets, number, recipe.lr)

    return step
