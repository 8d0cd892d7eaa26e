"""The classifier: embeddings and positions, the encoder, pooling, a linear head.

BERT (Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding") is one of its configurations: learned positions and token types, the sum of the
embeddings normalised, post-norm layers, the first position pooled and passed through a linear layer
with tanh.

Forward and backward are written out with a side's operators alone, so the same lines run on NumPy
arrays and on torch tensors. Gradients go into a buffer with the parameters' layout.

`B` batch, `L` length, `C` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from twofold.core.model.config import ClassifierConfig
from twofold.core.model.encoder import Cache as EncoderCache
from twofold.core.model.encoder import Encoder
from twofold.core.model.layers import Pass, Views
from twofold.core.model.parameters import Layout
from twofold.core.model.seeds import drop
from twofold.core.ops import Side
from twofold.reference import checks

EMBEDDING_SITE, POOLED_SITE, FIRST_LAYER_SITE = 0, 1, 2


class EmbeddingCache(NamedTuple):
    """The caches of the steps of the embedding, None for a step that was not taken."""

    patches: Any
    sum: Any
    types: Any
    norm: Any
    dropout: Any


class HeadCache(NamedTuple):
    """The caches of the steps after the encoder, None for a step that was not taken."""

    pooling: Any
    pooler: Any
    dropout: Any
    head: Any


class Cache(NamedTuple):
    """The caches of the classifier's parts."""

    embedding: EmbeddingCache
    encoder: EncoderCache
    head: HeadCache


class Classifier:
    """A Transformer classifier on one side's operators.

    Args:
        config: sizes and choices.
        ops: the side, from `core.ops.load`.
        flat: the parameters, a buffer of `layout.numel` elements on that side, used without a copy
            (for example averaged parameters); by default they are drawn from `seed`.
        seed: of the initial parameters.
        dtype: of everything; float64 is for checking gradients. Rotary tables are at least float32.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        ops: Side,
        flat: Any = None,
        *,
        seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        self.config, self.ops = config, ops
        self.encoder = Encoder(config, ops, FIRST_LAYER_SITE)
        self.layout = Layout(self._shapes())
        self.flat = ops.asarray(self.layout.initial(seed), dtype) if flat is None else flat
        self.params = self.layout.views(self.flat)
        self.graphs: dict[Any, Any] = {}  # what `training.graphs` has captured of this model
        # Then the last layer need not compute any position but the first.
        self._first_only = (
            config.pooling == "first" and config.norm == "post" and config.positions != "rotary"
        )
        # Position tables are constants unless they are learned.
        self._sinusoids = self._rotary = None
        positions = ops.asarray(np.arange(config.max_length))
        if config.positions == "sinusoidal":
            self._sinusoids = ops.asarray(
                ops.positional_encoding.sinusoidal(positions, config.d_model), dtype
            )
        elif config.positions == "rotary":
            tables = ops.rotary.tables(positions, config.head_dim)
            exact = "float64" if dtype == "float64" else "float32"
            self._rotary = tuple(ops.asarray(t, exact) for t in tables)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        c = self.config
        shapes: dict[str, tuple[int, ...]] = {"head.weight": (c.num_classes, c.pooled_size)}
        if c.input == "tokens":
            shapes["embedding.table"] = (c.input_size, c.d_model)
        else:
            shapes |= {"patches.weight": (c.d_model, c.input_size), "patches.bias": (c.d_model,)}
        if c.positions == "learned":
            shapes["positions.table"] = (c.max_length, c.d_model)
        if c.token_types > 0:
            shapes["types.table"] = (c.token_types, c.d_model)
        if c.embedding_norm:
            shapes |= dict.fromkeys(("embedding.norm.weight", "embedding.norm.bias"), (c.d_model,))
        if c.pooler:
            size = c.pooled_size
            shapes |= {"pooler.weight": (size, size), "pooler.bias": (size,)}
        return shapes | self.encoder.shapes() | {"head.bias": (c.num_classes,)}

    def part(self, name: str) -> int:
        """Return which part of the model a parameter belongs to, counted from below.

        0 is the embeddings, 1 + n is layer n, and 1 + num_layers is everything after the layers.
        """
        first, second, *_ = name.split(".")
        if first == "layers":
            return 1 + int(second)
        below = ("embedding", "patches", "positions", "types")
        return 0 if first in below else 1 + self.config.num_layers

    def forward(
        self, inputs: Any, lengths: Any, seeds: Sequence[Any] | None = None
    ) -> tuple[Any, Cache]:
        """Return logits (B, C) and the cache.

        Args:
            inputs: token ids (B, L), ids with their types (B, L, 2), or patches (B, L, input_size).
            lengths: (B,), each at least 1 and at most L; positions at or after them are padding.
            seeds: of the dropout masks by site, from `dropout_seeds`, or 0-d arrays that
                hold them; None drops nothing.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
            IndexError: a token or a type has no row in its table. Values on a GPU are not checked:
                a sequence with an invalid one gives NaN.
        """
        self._check(inputs, lengths)
        x, embedding_cache = self._embed(inputs, seeds)
        x, encoder_cache = self._encode(x, lengths, seeds, first_only=self._first_only)
        logits, head_cache = self._head(x, lengths, inputs.shape[1], seeds)
        return logits, Cache(embedding_cache, encoder_cache, head_cache)

    def logits(self, inputs: Any, lengths: Any) -> Any:
        """Return logits (B, C) when there will be no backward: no cache is kept, nothing dropped.

        Arguments and errors are those of `forward`.
        """
        self._check(inputs, lengths)
        x = self._embed(inputs, None)[0]
        x = self._encode(x, lengths, None, first_only=self._first_only, keep=False)[0]
        return self._head(x, lengths, inputs.shape[1], None)[0]

    def hidden_states(self, inputs: Any, lengths: Any) -> list[Any]:
        """Return the embeddings and what each layer passes on, (B, L, d_model) each.

        Post-norm: each layer's output. Pre-norm: the output of the norm after each layer, not the
        residual stream, although that begins with the embeddings. Arguments and errors are those of
        `forward`; values at padding positions are meaningless.
        """
        self._check(inputs, lengths)
        x = self._embed(inputs, None)[0]
        states = [x]
        self._encode(x, lengths, None, states, keep=False)
        return states

    def mean_state(self, inputs: Any, lengths: Any) -> Any:
        """Return the mean over each sequence of the encoder's output, (B, d_model).

        Arguments and errors are those of `forward`.
        """
        self._check(inputs, lengths)
        x = self._embed(inputs, None)[0]
        x = self._encode(x, lengths, None, keep=False)[0]
        return self.ops.pooling.forward(x, lengths, "mean")[0]

    def backward(self, dlogits: Any, cache: Cache, grads: Views) -> None:
        """Write gradients into `grads`, views of a buffer.

        `grads` names every parameter, or those from some part of the model upwards: the parts below
        are frozen, and backward does not pass through them.
        """
        dx = self._head_backward(dlogits, cache.head, grads)
        of_embeddings = "embedding.table" in grads or "patches.weight" in grads
        dx = self.encoder.backward(dx, cache.encoder, grads, of_embeddings)
        if of_embeddings:
            self._embed_backward(dx, cache.embedding, grads)

    def _embed(self, inputs: Any, seeds: Sequence[Any] | None) -> tuple[Any, EmbeddingCache]:
        """Return the embeddings (B, L, d_model)."""
        ops, params, config = self.ops, self.params, self.config
        table, ids, types, patches_cache = self._table(inputs)
        dropped = drop(config.embedding_dropout, seeds, EMBEDDING_SITE)
        x, sum_cache = ops.positional_encoding.forward(
            ids,
            table,
            params.get("positions.table", self._sinusoids),
            learned=config.positions == "learned",
            scale=config.embedding_scale,
            **({} if config.embedding_norm else dropped),
        )
        types_cache = norm_cache = dropout_cache = None
        if config.embedding_norm:
            added = None
            if config.token_types > 0:
                added, types_cache = ops.embedding.forward(types, params["types.table"])
            weight, bias = params["embedding.norm.weight"], params["embedding.norm.bias"]
            x, norm_cache = ops.layer_norm.forward(x, weight, bias, residual=added, eps=config.eps)
            if dropped:
                x, dropout_cache = ops.dropout.forward(x, *dropped.values())
        return x, EmbeddingCache(patches_cache, sum_cache, types_cache, norm_cache, dropout_cache)

    def _embed_backward(self, dx: Any, cache: EmbeddingCache, grads: Views) -> None:
        ops = self.ops
        if cache.dropout is not None:
            dx = ops.dropout.backward(dx, cache.dropout).dx
        if cache.norm is not None:
            into = [grads[f"embedding.norm.{name}"] for name in ("weight", "bias")]
            g_norm = ops.layer_norm.backward(dx, cache.norm, into=into)
            dx = g_norm.dx
            if cache.types is not None:
                into = [grads["types.table"]]
                ops.embedding.backward(g_norm.dresidual, cache.types, into=into)
        into = [grads.get("embedding.table"), grads.get("positions.table")]
        g = ops.positional_encoding.backward(dx, cache.sum, into=into)
        if cache.patches is not None:  # the table that was read is the projected patches
            into = [grads[f"patches.{name}"] for name in ("weight", "bias")]
            ops.linear.backward(g.dtable, cache.patches, of_x=False, into=into)

    def _encode(
        self,
        x: Any,
        lengths: Any,
        seeds: Sequence[Any] | None,
        states: list[Any] | None = None,
        first_only: bool = False,
        keep: bool = True,
    ) -> tuple[Any, EncoderCache]:
        """Return the encoder's output, (B, L, d_model), or only its first position."""
        rotary = None
        if self._rotary is not None:
            cos, sin = (t[: x.shape[1]] for t in self._rotary)
            rotary = (cos, sin, False)
        return self.encoder.forward(
            x, self.params, Pass(lengths, rotary, seeds, states, first_only, keep)
        )

    def _head(
        self, x: Any, lengths: Any, L: int, seeds: Sequence[Any] | None
    ) -> tuple[Any, HeadCache]:
        """Return logits (B, C) for inputs of length L."""
        ops, params = self.ops, self.params
        if self._first_only:
            # Lengths from 1 to L become 1; others stay invalid, and pooling turns them into NaN.
            lengths = 1 + (lengths - 1) // L
        pooled, pooling_cache = ops.pooling.forward(x, lengths, self.config.pooling)
        pooler_cache = dropout_cache = None
        if self.config.pooler:
            pooled, pooler_cache = ops.linear.forward(
                pooled, params["pooler.weight"], params["pooler.bias"], "tanh"
            )
        if dropped := drop(self.config.dropout_of_pooled, seeds, POOLED_SITE):
            pooled, dropout_cache = ops.dropout.forward(pooled, *dropped.values())
        logits, head_cache = ops.linear.forward(pooled, params["head.weight"], params["head.bias"])
        return logits, HeadCache(pooling_cache, pooler_cache, dropout_cache, head_cache)

    def _head_backward(self, dlogits: Any, cache: HeadCache, grads: Views) -> Any:
        """Return the gradient of the encoder's output."""
        ops = self.ops
        into = [grads[f"head.{name}"] for name in ("weight", "bias")]
        dx = ops.linear.backward(dlogits, cache.head, into=into).dx
        if cache.dropout is not None:
            dx = ops.dropout.backward(dx, cache.dropout).dx
        if cache.pooler is not None:
            into = [grads[f"pooler.{name}"] for name in ("weight", "bias")]
            dx = ops.linear.backward(dx, cache.pooler, into=into).dx
        return ops.pooling.backward(dx, cache.pooling).dx

    def _table(self, inputs: Any) -> tuple[Any, Any, Any, Any]:
        """Return the embedding table, ids, token types, and the projection's cache, if any.

        Projected patches form a table in which every patch has a row of its own.
        """
        ops, params = self.ops, self.params
        if self.config.input == "tokens":
            if len(inputs.shape) == 3:
                return params["embedding.table"], inputs[..., 0], inputs[..., 1], None
            types = 0 * inputs if self.config.token_types > 0 else None
            return params["embedding.table"], inputs, types, None
        B, L, P = inputs.shape
        weight, bias = params["patches.weight"], params["patches.bias"]
        table, cache = ops.linear.forward(inputs.reshape(B * L, P), weight, bias)
        return table, ops.arange(B * L).reshape(B, L), None, cache

    def _check(self, inputs: Any, lengths: Any) -> None:
        checks.integer(lengths=lengths)
        if self.config.input == "tokens":
            checks.integer(inputs=inputs)
            pairs = self.config.token_types > 0 and len(inputs.shape) == 3
            checks.shape("inputs", inputs, ("B", "L", 2) if pairs else ("B", "L"))
        else:
            checks.floating(inputs=inputs, params=self.flat)
            checks.shape("inputs", inputs, ("B", "L", self.config.input_size))
        checks.require(
            inputs.shape[1] <= self.config.max_length,
            "inputs.shape[1]",
            int(inputs.shape[1]),
            f"at most max_length, {self.config.max_length}",
        )
        checks.shape("lengths", lengths, (int(inputs.shape[0]),))
        if checks.at_hand(lengths):
            checks.sequence_lengths(lengths, int(inputs.shape[1]), "inputs.shape[1]")
        if self.config.input == "tokens" and checks.at_hand(inputs):
            ids = np.asarray(inputs)
            if len(ids.shape) == 3:  # each product keeps one of the pair: types here, ids below
                checks.in_range("inputs", ids * (0, 1), self.config.token_types)
                ids = ids * (1, 0)
            checks.in_range("inputs", ids, self.config.input_size)
