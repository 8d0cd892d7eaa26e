"""A model's output for a batch; on a GPU from a replayed CUDA graph (`core.captured`).

A graph has one shape, so on a GPU batches are padded to a few shapes: lengths to a multiple of 16,
and the number of examples, by adding empty ones, to one with four binary digits before its zeros.
No example sees another or the padding behind it; if results differ at all from those of the
unpadded batch, it is by how sums are split.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from twofold.core.model.classifier import Classifier
from twofold.core.training.batches import Array, Batch
from twofold.reference.checks import dtype_name

MULTIPLE, DIGITS = 16, 4
MOST = 64  # shapes captured for a model; batches of other shapes run as they are

# Held from writing a batch until the copy of its result is queued: a graph has one buffer for its
# input and one for its result, and threads share the graphs.
TURN = threading.Lock()

# What to compute from (model, inputs, lengths): logits (B, C), or mean states (B, d_model).
Function = Callable[[Classifier, Any, Any], Any]


def logits(model: Classifier, inputs: Any, lengths: Any) -> Any:
    """Return logits (B, C)."""
    return model.logits(inputs, lengths)


def means(model: Classifier, inputs: Any, lengths: Any) -> Any:
    """Return the mean of the last layer's vectors, (B, d_model)."""
    return model.mean_state(inputs, lengths)


def begun(model: Classifier, function: Function, batch: Batch) -> Callable[[], Array]:
    """Start applying a function of the model to a batch; calling what is returned waits for it."""
    ops, graphs = model.ops, model.graphs
    if ops.device == "cuda":
        wide = padded(batch, model.config.max_length)
        key = function, wide.inputs.shape
        if key in graphs or len(graphs) < MOST:
            if key not in graphs:
                graphs[key] = _Replayed(model, function, wide)
            wait = graphs[key](wide)
            return lambda: wait()[: len(batch.lengths)]
    return ops.read(function(model, ops.asarray(batch.inputs), ops.asarray(batch.lengths)))


def padded(batch: Batch, max_length: int) -> Batch:
    """Return a batch padded to a shape that many batches share."""
    B, L, *rest = batch.inputs.shape
    unit = 1 << max(B.bit_length() - DIGITS, 0)
    shape = (-(-B // unit) * unit, max(L, min(-(-L // MULTIPLE) * MULTIPLE, max_length)))
    inputs = np.zeros((*shape, *rest), batch.inputs.dtype)
    inputs[:B, :L] = batch.inputs
    lengths = np.zeros(shape[0], batch.lengths.dtype)
    lengths[:B] = batch.lengths
    return Batch(inputs, lengths)


class _Replayed:
    """A captured function of batches of one shape, which are written where it reads them."""

    def __init__(self, model: Classifier, function: Function, batch: Batch) -> None:
        self.ops, self.made = model.ops, None
        self.given = self.ops.buffers(batch)

        def run() -> None:
            made = function(model, *self.given.arrays)
            if self.made is None:
                self.made = self.ops.empty(tuple(made.shape), dtype_name(made))
            self.made[...] = made

        self.run = self.ops.captured(run)

    def __call__(self, batch: Batch) -> Callable[[], Array]:
        with TURN:
            self.given.write(batch)
            self.run()
            return self.ops.read(self.made)
