"""The classifier's configuration: one dataclass, written as JSON beside the parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from twofold.core.fields import check_kinds
from twofold.reference import checks
from twofold.reference.activation import KINDS as ACTIVATIONS
from twofold.reference.pooling import KINDS as POOLINGS

INPUTS = ("tokens", "patches")
POSITIONS = ("sinusoidal", "learned", "rotary")
NORMS = ("pre", "post")
# A layer's dropout sites: attention weights, attention output, hidden features, feed-forward output
SITES_PER_LAYER = 4


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Sizes and choices of a Transformer classifier; an impossible one raises a named error.

    Attributes:
        input: "tokens" (ids, looked up in a table) or "patches" (vectors, projected).
        input_size: rows of the table, or values in a patch.
        num_classes: width of the output.
        max_length: length of the longest sequence.
        d_model, num_heads, num_layers, d_ff: sizes of the encoder.
        activation: of the feed-forward, one of `reference.activation.KINDS`.
        norm: "pre" (normalise what a sublayer reads, and once more at the end) or "post"
            (normalise the sum of the stream and what a sublayer adds, as in Vaswani et al. 2017).
        positions: "sinusoidal", "learned" (a table) or "rotary" (in attention).
        token_types: rows of the table for which part of a pair a token belongs to; 0 for none.
        scaled_embeddings: multiply embeddings by √d_model (Vaswani et al. 2017, 3.4).
        embedding_norm: normalise the sum of the embeddings, as BERT does.
        pooling: one of `reference.pooling.KINDS`.
        pooler: put a linear layer with tanh between the pooled vector and the head, as BERT does.
        dropout: of each sublayer's output.
        pooled_dropout: of the pooled vector; None means `dropout`.
        attention_dropout: of attention weights.
        hidden_dropout: between the two linear layers of the feed-forward.
        embedding_dropout: of embeddings plus positions, after their norm.
        eps: of the layer norms.
    """

    input: str = "tokens"
    input_size: int
    num_classes: int
    max_length: int
    d_model: int = 128
    num_heads: int = 4
    num_layers: int = 1
    d_ff: int = 512
    activation: str = "relu"
    norm: str = "pre"
    positions: str = "rotary"
    token_types: int = 0
    scaled_embeddings: bool = True
    embedding_norm: bool = False
    pooling: str = "mean_max"
    pooler: bool = False
    dropout: float = 0.2
    pooled_dropout: float | None = None
    attention_dropout: float = 0.2
    hidden_dropout: float = 0.0
    embedding_dropout: float = 0.5
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_kinds(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if str(field.type) == "int":
                least = 0 if field.name == "token_types" else 1
                checks.require(value >= least, field.name, value, f"at least {least}")
        checks.choice("input", self.input, INPUTS)
        checks.choice("activation", self.activation, ACTIVATIONS)
        checks.choice("norm", self.norm, NORMS)
        checks.choice("positions", self.positions, POSITIONS)
        checks.choice("pooling", self.pooling, POOLINGS)
        divides = self.d_model % self.num_heads == 0
        checks.require(
            divides, "num_heads", self.num_heads, f"a divisor of d_model, {self.d_model}"
        )
        typed = self.token_types == 0 or (self.input == "tokens" and self.embedding_norm)
        checks.require(
            typed,
            "token_types",
            self.token_types,
            "0 unless input is 'tokens' and embedding_norm is True",
        )
        pairs = self.positions != "rotary" or self.head_dim % 2 == 0
        checks.require(pairs, "d_model / num_heads", self.head_dim, "even for rotary positions")
        for name in ("dropout", "attention_dropout", "hidden_dropout", "embedding_dropout"):
            checks.probability(name, getattr(self, name))
        checks.probability("pooled_dropout", self.dropout_of_pooled)
        checks.require(self.eps > 0.0, "eps", self.eps, "positive")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.num_heads

    @property
    def embedding_scale(self) -> float:
        """Factor on embeddings before positions are added."""
        return math.sqrt(self.d_model) if self.scaled_embeddings else 1.0

    @property
    def dropout_of_pooled(self) -> float:
        """Dropout of the pooled vector."""
        return self.dropout if self.pooled_dropout is None else self.pooled_dropout

    @property
    def pooled_size(self) -> int:
        """Width of the pooled vector."""
        return self.d_model * (2 if self.pooling == "mean_max" else 1)

    @property
    def sites(self) -> int:
        """Number of dropout sites: embeddings, the pooled vector, and four in every layer."""
        return 2 + SITES_PER_LAYER * self.num_layers

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the config from its fields; a missing or unknown one raises `ValueError`."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        for name in fields:
            checks.choice("a field of the model's config", name, tuple(known))
        for name, field in known.items():
            if field.default is dataclasses.MISSING:
                checks.require(name in fields, name, "missing", "in the model's config")
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, ready for `json.dump`."""
        return dataclasses.asdict(self)
