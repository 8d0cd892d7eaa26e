"""One training step on the CPU: the NumPy side against the same model in PyTorch eager.

Both do the same work with the default sizes: embedding, positions, one pre-norm layer, mean and max
pooled, all dropouts, cross-entropy on graded targets, clipping, AdamW, averaged weights. PyTorch
uses nn.TransformerEncoderLayer with the padding mask, sinusoidal positions where ours are rotary
(it has none), and torch.optim.AdamW, in its default and in its fused form. Both sides have the same
number of threads.

    python benchmarks/bench_train_step.py [--save]
"""

from __future__ import annotations

import math

import harness
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional as F

from twofold.core import ops
from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.training import trainer as trainers
from twofold.core.training.batches import collate
from twofold.core.training.recipe import Recipe

VOCABULARY, BATCH = 7000, 64
LENGTHS = (24, 48)  # of the longest example in a batch; the mean is a little less


class Peer(nn.Module):
    """The classifier in PyTorch's own modules."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.input_size, c.d_model)
        positions = np.arange(c.max_length)
        table = ops.load("reference").positional_encoding.sinusoidal(positions, c.d_model)
        self.register_buffer("positions", torch.tensor(table, dtype=torch.float32))
        layer = nn.TransformerEncoderLayer(
            c.d_model, c.num_heads, c.d_ff, c.dropout, c.activation, c.eps, batch_first=True,
            norm_first=True,
        )  # fmt: skip
        norm = nn.LayerNorm(c.d_model, c.eps)
        self.encoder = nn.TransformerEncoder(layer, c.num_layers, norm, enable_nested_tensor=False)
        self.head = nn.Linear(c.pooled_size, c.num_classes)

    def forward(self, ids: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """Return logits; `padding` is True where a token is padding."""
        c = self.config
        x = self.embedding(ids) * math.sqrt(c.d_model) + self.positions[: ids.shape[1]]
        x = F.dropout(x, c.embedding_dropout, self.training)
        x = self.encoder(x, src_key_padding_mask=padding)
        live = (~padding)[..., None]
        mean = (x * live).sum(1) / live.sum(1)
        top = x.masked_fill(~live, -math.inf).amax(1)
        pooled = F.dropout(torch.cat([mean, top], 1), c.dropout, self.training)
        return self.head(pooled)


def torch_step(config: ClassifierConfig, recipe: Recipe, inputs, targets, fused: bool):
    torch.manual_seed(0)
    model = Peer(config).train()
    parameters = list(model.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=fused or None
    )
    targets = torch.tensor(targets)

    def step() -> None:
        batch = collate(inputs)
        padding = torch.arange(batch.inputs.shape[1]) >= torch.tensor(batch.lengths)[:, None]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.tensor(batch.inputs), padding), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.max_norm)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - recipe.average)
        loss.item()

    return step


def numpy_step(config: ClassifierConfig, recipe: Recipe, inputs, targets):
    trainer = trainers.Trainer(Classifier(config, ops.load("reference")), recipe)
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        with threadpool_limits(1, "blas"):  # as the loop does: a thread for each part of the batch
            trainer.step(inputs, targets, number, recipe.lr)

    return step


def main() -> None:
    asked = harness.options(__doc__)
    trainers.use_threads(asked.threads)
    torch.set_num_threads(asked.threads)
    recipe = Recipe()
    races = {}
    for length in LENGTHS:
        config = ClassifierConfig(input_size=VOCABULARY, num_classes=2, max_length=64)
        rng = np.random.default_rng(0)
        inputs = [
            rng.integers(2, VOCABULARY, n) for n in rng.integers(length - 3, length + 1, BATCH)
        ]
        right = rng.random(BATCH)
        targets = np.stack([1 - right, right], 1).astype(np.float32)
        times = harness.race(
            {
                "twofold, NumPy": numpy_step(config, recipe, inputs, targets),
                "PyTorch eager": torch_step(config, recipe, inputs, targets, fused=False),
                "PyTorch eager, fused AdamW": torch_step(config, recipe, inputs, targets, True),
            },
            seconds=2.0 if asked.quick else 20.0,
        )
        races[f"batch {BATCH} × length {length}"] = harness.summary(times, "PyTorch eager")
    harness.report("train_step", {"ran_on": harness.ran_on(asked.threads), "races": races}, asked)


if __name__ == "__main__":
    main()
