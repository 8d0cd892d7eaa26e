"""The classifier in PyTorch's own modules, for the benchmarks to race.

It uses nn.TransformerEncoderLayer with the padding mask, and sinusoidal positions in place of our
rotary ones, which torch does not have.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from twofold.core import ops
from twofold.core.model.config import ClassifierConfig
from twofold.core.training.batches import Array, Batch

VOCABULARY = 7000
# Sizes by name: the command line's default, and MiniLM's layers (Wang et al. 2020, "MiniLM").
SIZES = {
    "default": {},
    "MiniLM": {"d_model": 384, "num_heads": 12, "num_layers": 6, "d_ff": 1536},
}


def config_of(size: str, **changed: Any) -> ClassifierConfig:
    """Return the config of a size by name, with other fields changed."""
    fields = {"input_size": VOCABULARY, "num_classes": 2, "max_length": 64, **SIZES[size]}
    return ClassifierConfig(**(fields | changed))


def examples(
    rng: np.random.Generator, number: int, shortest: int, longest: int, ids: int = VOCABULARY
) -> list[Array]:
    """Draw token ids of these lengths."""
    return [rng.integers(2, ids, n) for n in rng.integers(shortest, longest + 1, number)]


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

    def forward(
        self, ids: torch.Tensor, padding: torch.Tensor, whole: bool = False
    ) -> torch.Tensor:
        """Return logits; `padding` is True where a token is padding, and nowhere if `whole`."""
        c = self.config
        x = self.embedding(ids) * math.sqrt(c.d_model) + self.positions[: ids.shape[1]]
        x = F.dropout(x, c.embedding_dropout, self.training)
        x = self.encoder(x, src_key_padding_mask=None if whole else padding)
        live = (~padding)[..., None]
        mean = (x * live).sum(1) / live.sum(1)
        top = x.masked_fill(~live, -math.inf).amax(1)
        pooled = F.dropout(torch.cat([mean, top], 1), c.dropout, self.training)
        return self.head(pooled)


def tensors(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch as the arguments of `Peer.forward`."""
    padding = torch.arange(batch.inputs.shape[1]) >= torch.tensor(batch.lengths)[:, None]
    return torch.tensor(batch.inputs), padding
