"""The classifier: embeddings and positions, the encoder, pooling, a linear head.

Forward and backward are written out, wired from a side's operators alone, so the same lines run on
NumPy arrays and on torch tensors. Gradients go into a buffer of the parameters' layout.

`B` batch, `L` length, `C` classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.core.model.config import ClassifierConfig
from twofold.core.model.encoder import Cache as EncoderCache
from twofold.core.model.encoder import Encoder
from twofold.core.model.layers import Pass, Views, store
from twofold.core.model.parameters import Layout
from twofold.core.model.seeds import drop
from twofold.core.ops import Side
from twofold.reference import checks

EMBEDDING_SITE, POOLED_SITE, FIRST_LAYER_SITE = 0, 1, 2


class Cache(NamedTuple):
    """The caches of the parts; `patches` and `dropout` are None where there was none."""

    patches: Any
    embedding: Any
    encoder: EncoderCache
    pooling: Any
    dropout: Any
    head: Any


class Classifier:
    """A Transformer classifier on one side's operators.

    Args:
        config: sizes and choices.
        ops: the side, from `core.ops.load`.
        flat: the parameters, a buffer of `layout.numel` elements on that side, used as it is (a
            model of averaged parameters shares everything else); drawn from `seed` by default.
        seed: of the first parameters.
        dtype: of everything; float64 is for checking gradients.
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
        # What positions are made of is a constant unless it is learned.
        self._sinusoids = self._rotary = None
        positions = ops.asarray(np.arange(config.max_length))
        if config.positions == "sinusoidal":
            self._sinusoids = ops.asarray(
                ops.positional_encoding.sinusoidal(positions, config.d_model), dtype
            )
        elif config.positions == "rotary":
            self._rotary = tuple(
                ops.asarray(t, dtype) for t in ops.rotary.tables(positions, config.head_dim)
            )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        c = self.config
        shapes: dict[str, tuple[int, ...]] = {"head.weight": (c.num_classes, c.pooled_size)}
        if c.input == "tokens":
            shapes["embedding.table"] = (c.input_size, c.d_model)
        else:
            shapes |= {"patches.weight": (c.d_model, c.input_size), "patches.bias": (c.d_model,)}
        if c.positions == "learned":
            shapes["positions.table"] = (c.max_length, c.d_model)
        return shapes | self.encoder.shapes() | {"head.bias": (c.num_classes,)}

    def forward(
        self, inputs: Any, lengths: Any, seeds: tuple[int, ...] | None = None
    ) -> tuple[Any, Cache]:
        """Return logits (B, C) and the cache.

        Args:
            inputs: token ids (B, L), or patches (B, L, input_size).
            lengths: (B,), each at least 1; positions at or after them are padding.
            seeds: of the dropout masks by site, from `dropout_seeds`; None drops nothing.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        self._check(inputs)
        ops, params = self.ops, self.params
        table, ids, patches_cache = self._table(inputs)
        x, embedding_cache = ops.positional_encoding.forward(
            ids,
            table,
            self.params.get("positions.table", self._sinusoids),
            learned=self.config.positions == "learned",
            scale=self.config.embedding_scale,
            **drop(self.config.embedding_dropout, seeds, EMBEDDING_SITE),
        )
        rotary = None
        if self._rotary is not None:
            cos, sin = (t[: x.shape[1]] for t in self._rotary)
            rotary = (cos, sin, False)
        x, encoder_cache = self.encoder.forward(x, params, Pass(lengths, rotary, seeds))
        pooled, pooling_cache = ops.pooling.forward(x, lengths, self.config.pooling)
        dropout_cache = None
        if dropped := drop(self.config.dropout, seeds, POOLED_SITE):
            pooled, dropout_cache = ops.dropout.forward(pooled, *dropped.values())
        logits, head_cache = ops.linear.forward(pooled, params["head.weight"], params["head.bias"])
        return logits, Cache(
            patches_cache, embedding_cache, encoder_cache, pooling_cache, dropout_cache, head_cache
        )

    def backward(self, dlogits: Any, cache: Cache, grads: Views) -> None:
        """Write the gradient of every parameter into `grads`, views of a buffer of the layout."""
        ops = self.ops
        g_head = ops.linear.backward(dlogits, cache.head)
        store(grads, "head", weight=g_head.dweight, bias=g_head.dbias)
        dx = g_head.dx
        if cache.dropout is not None:
            dx = ops.dropout.backward(dx, cache.dropout).dx
        dx = ops.pooling.backward(dx, cache.pooling).dx
        dx = self.encoder.backward(dx, cache.encoder, grads)
        g = ops.positional_encoding.backward(dx, cache.embedding)
        if g.dposition_table is not None:
            store(grads, "positions", table=g.dposition_table)
        if cache.patches is None:
            store(grads, "embedding", table=g.dtable)
        else:
            g_patches = ops.linear.backward(g.dtable, cache.patches)
            store(grads, "patches", weight=g_patches.dweight, bias=g_patches.dbias)

    def _table(self, inputs: Any) -> tuple[Any, Any, Any]:
        """Return the table to look up in, the ids, and the cache of the projection, if any.

        Projected patches are a table in which every patch has a row of its own.
        """
        if self.config.input == "tokens":
            return self.params["embedding.table"], inputs, None
        B, L, P = inputs.shape
        weight, bias = self.params["patches.weight"], self.params["patches.bias"]
        table, cache = self.ops.linear.forward(inputs.reshape(B * L, P), weight, bias)
        return table, self.ops.asarray(np.arange(B * L).reshape(B, L)), cache

    def _check(self, inputs: Any) -> None:
        if self.config.input == "tokens":
            checks.integer(inputs=inputs)
            checks.shape("inputs", inputs, ("B", "L"))
        else:
            checks.floating(inputs=inputs, params=self.flat)
            checks.shape("inputs", inputs, ("B", "L", self.config.input_size))
        checks.require(
            inputs.shape[1] <= self.config.max_length,
            "inputs.shape[1]",
            int(inputs.shape[1]),
            f"at most max_length, {self.config.max_length}",
        )
