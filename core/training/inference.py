"""A model's predictions, embeddings and accuracy, batch by batch, on either side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from twofold.core.model.classifier import Classifier
from twofold.core.training import graphs
from twofold.core.training.batches import Array, check_alike, collate, even_batches
from twofold.core.training.processes import ALONE, Processes
from twofold.core.training.threads import parallel
from twofold.reference import softmax

# Elements of a layer's widest array for a batch to predict; on the NumPy side it should stay in
# cache (6 MB: quickest of 2 to 9 for MiniLM).
ELEMENTS = {"reference": 6 << 18, "triton": 1 << 26}
# Positions of padding that cost as much as one more batch.
PADDING = {"reference": 128, "triton": 1 << 16}
WORKERS = {"reference": 4, "triton": 1}  # that share the batches, however many threads there are


class NotFinite(ValueError):
    """A model's output for an input is not finite."""


def predict(
    model: Classifier, inputs: Sequence[Array], batches: Sequence[Array] | None = None
) -> Array:
    """Return probabilities (n, C) float32; examples of similar length share a batch.

    With `batches`, arrays of example indices, only the rows of those examples are filled.

    Raises:
        NotFinite: a logit is not finite.
    """

    def probabilities(logits: Array) -> Array:
        if not np.isfinite(logits).all():
            raise NotFinite("a logit is not finite; it must be a number")
        return softmax.forward(logits.astype(np.float64))[0]

    batches = similar(model, inputs) if batches is None else batches
    rows = np.zeros((len(inputs), model.config.num_classes), np.float32)
    return _by_batches(model, inputs, batches, graphs.logits, probabilities, rows)


def embed(model: Classifier, inputs: Sequence[Array]) -> Array:
    """Return embeddings (n, d_model) float32: the mean of the last layer's vectors, with norm 1.

    The dot product of two is the cosine of the angle between them (Reimers & Gurevych 2019,
    "Sentence-BERT", section 3).

    Raises:
        NotFinite: a value in an embedding is not finite.
    """

    def directions(means: Array) -> Array:
        if not np.isfinite(means).all():
            raise NotFinite("a vector is not finite; it must be of numbers")
        mean = means.astype(np.float64)  # a zero mean, with no direction, stays 0
        return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))

    rows = np.zeros((len(inputs), model.config.d_model), np.float32)
    batches = similar(model, inputs)
    return _by_batches(model, inputs, batches, graphs.means, directions, rows)


def similar(model: Classifier, inputs: Sequence[Array]) -> list[Array]:
    """Return the examples' indices batch by batch, those of similar length together."""
    lengths = np.array([len(x) for x in inputs], np.int64)
    side = model.ops.name
    most = ELEMENTS[side] // model.config.d_ff
    return even_batches(lengths, most, PADDING[side], WORKERS[side])[::-1]  # the longest first


def _by_batches(
    model: Classifier,
    inputs: Sequence[Array],
    batches: Sequence[Array],
    function: graphs.Function,
    finish: Callable[[Array], Array],
    rows: Array,
) -> Array:
    """Return `rows`, filled with `finish(function(batch))`, where `finish` runs on the host."""
    check_alike(inputs)

    def begin(chosen: Array) -> Callable[[], None]:
        wait = graphs.begun(model, function, collate([inputs[i] for i in chosen]))

        def end() -> None:
            rows[chosen] = finish(wait())

        return end

    if model.ops.name == "reference":
        parallel(lambda chosen: begin(chosen)(), batches)
    else:
        _overlapped(begin, batches)
    return rows


def _overlapped(begin: Callable[[Array], Callable[[], None]], items: Sequence[Array]) -> None:
    """Begin every item, and end each once the next has begun: a GPU need not wait for the host."""
    before = None
    for item in items:
        end = begin(item)
        if before is not None:
            before()
        before = end
    if before is not None:
        before()


def accuracy(
    model: Classifier, inputs: Sequence[Array], labels: Array, processes: Processes = ALONE
) -> float:
    """Return the share of examples whose most probable class is their label.

    Each process takes some of the batches, which are those that one process would make.

    Raises:
        NotFinite: in every process, if a logit is not finite in any.
    """
    batches, fault = similar(model, inputs)[processes.rank :: processes.size], None
    try:
        classes = predict(model, inputs, batches).argmax(axis=1)
    except NotFinite as found:
        fault = found
    if processes.count(fault is not None):
        raise fault or NotFinite("a logit is not finite in another process; it must be a number")
    right = sum(int((classes[chosen] == labels[chosen]).sum()) for chosen in batches)
    return processes.count(right) / len(inputs)
