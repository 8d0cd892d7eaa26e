"""Baselines: the accuracy of simple models, which a Transformer has to beat.

"majority" answers with the most frequent class of the training part. "bag_of_words" is multinomial
logistic regression with an L2 penalty on which words occur (for images, on the pixels). It is
fitted by Newton's method, with steps found by conjugate gradients (Nocedal & Wright, Numerical
Optimization, algorithm 7.1), which is deterministic and has no learning rate to choose.

Legend: n examples, F features, C classes. Scores and weights are class-major, so that each class is
one contiguous row: z = w @ X.T  # (C, n).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from twofold.core.data.datasets import Dataset
from twofold.core.data.splits import stratified_split
from twofold.core.data.tokenizers import words

Array = np.ndarray[Any, np.dtype[Any]]

# Penalties times the number of examples, strongest first: each fit starts where the last ended.
PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3)
USUAL_PENALTY = 1.0
VALIDATION_SHARE = 0.1
NEWTON_STEPS, CONJUGATE_STEPS = 30, 50
TOLERANCE = 1e-3  # of the gradient's norm, against that at zero weights
SUFFICIENT, SHORTEST = 1e-4, 1e-6  # sufficient decrease (Armijo), and shortest step tried


class Features(Protocol):
    """A matrix X of examples by features, (n, F); column 0 is all ones."""

    shape: tuple[int, int]

    def scores(self, w: Array) -> Array:
        """Return w @ X.T, (rows of w, n)."""

    def sums(self, r: Array) -> Array:
        """Return r @ X, (rows of r, F)."""


class Dense:
    """A dense matrix, with a column of ones before it."""

    def __init__(self, x: Array) -> None:
        self.x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
        self.shape = (self.x.shape[0], self.x.shape[1])

    def scores(self, w: Array) -> Array:
        """Return w @ X.T, (rows of w, n)."""
        return np.asarray(w @ self.x.T)

    def sums(self, r: Array) -> Array:
        """Return r @ X, (rows of r, F)."""
        return np.asarray(r @ self.x)


class Bags:
    """A matrix of zeros and ones, stored as the positions of the ones, by row and by column.

    Thanks to the column of ones no row is empty; `np.add.reduceat` could not sum an empty one.
    """

    def __init__(self, bags: Sequence[Array], features: int) -> None:
        sizes = np.array([len(bag) for bag in bags])
        self.shape = (len(bags), features)
        self.columns = np.concatenate(bags)
        self.row_starts = np.cumsum(sizes) - sizes
        order = np.argsort(self.columns, kind="stable")
        self.rows = np.repeat(np.arange(len(bags)), sizes)[order]
        self.present, self.column_starts = np.unique(self.columns[order], return_index=True)

    def scores(self, w: Array) -> Array:
        """Return w @ X.T, (rows of w, n)."""
        return np.stack([np.add.reduceat(row.take(self.columns), self.row_starts) for row in w])

    def sums(self, r: Array) -> Array:
        """Return r @ X, (rows of r, F)."""
        totals = np.zeros((len(r), self.shape[1]))
        for total, row in zip(totals, r, strict=True):
            total[self.present] = np.add.reduceat(row.take(self.rows), self.column_starts)
        return totals


def features(fit: Any, other: Any) -> tuple[Features, Features]:
    """Return the features of two sets of texts or images; the first determines the vocabulary."""
    if not isinstance(fit[0], str):
        images = [np.asarray(x, np.float64) for x in (fit, other)]
        first, second = (Dense(x.reshape(len(x), -1)) for x in images)
        return first, second
    bags = [[set(words(text)) for text in texts] for texts in (fit, other)]
    known = sorted(set().union(*bags[0]))
    ids = {word: i for i, word in enumerate(known, start=1)}
    places = [
        [np.array(sorted([0, *(ids[word] for word in bag if word in ids)])) for bag in part]
        for part in bags
    ]
    return Bags(places[0], len(ids) + 1), Bags(places[1], len(ids) + 1)


def fit_logistic(
    x: Features, y: Array, classes: int, penalty: float, start: Array | None = None
) -> Array:
    """Return the weights, (C, F), that minimise mean cross-entropy + penalty / 2 · |w|².

    Feature 0, the bias, is not penalised.

    Args:
        x: (n, F).
        y: (n,) classes.
        classes: number of classes, C.
        penalty: above 0.
        start: initial weights; zeros if not given.
    """
    n = len(y)
    target = np.eye(classes)[:, y]
    decay = np.full(x.shape[1], penalty)
    decay[0] = 0.0

    # Over the classes, the weights sum to zero at the minimum, and all the way there because the
    # gradient's rows do too: one class's scores follow from the others'.
    def scores(w: Array) -> Array:
        return _with_last(x.scores(w[:-1]))

    def sums(r: Array) -> Array:
        return _with_last(x.sums(r[:-1]))

    def evaluate(w: Array) -> tuple[float, Array]:
        """Return the objective and the probabilities (C, n)."""
        z = scores(w)
        z -= z.max(axis=0)
        e = np.exp(z)
        total = e.sum(axis=0)
        losses = np.log(total) - z[y, np.arange(n)]
        return float(losses.mean() + 0.5 * np.sum(decay * w * w)), e / total

    def gradient(w: Array, p: Array) -> Array:
        return np.asarray(sums((p - target) / n) + decay * w)

    def curvature(v: Array, p: Array) -> Array:
        """Return the Hessian at probabilities p, times v."""
        dp = p * scores(v)
        dp -= p * dp.sum(axis=0)
        return np.asarray(sums(dp / n) + decay * v)

    zero = np.zeros((classes, x.shape[1]))
    small = TOLERANCE * float(np.linalg.norm(gradient(zero, np.full((classes, n), 1.0 / classes))))
    w = zero if start is None else start
    loss, p = evaluate(w)
    for _ in range(NEWTON_STEPS):
        g = gradient(w, p)
        size = float(np.linalg.norm(g))
        if size <= small:
            break
        forcing = min(0.5, size**0.5) * size
        step = _conjugate_gradients(lambda v, p=p: curvature(v, p), -g, forcing)  # type: ignore[misc]
        slope, length = float(np.sum(g * step)), 1.0
        trial, trial_p = evaluate(w + step)
        while trial > loss + SUFFICIENT * length * slope and length > SHORTEST:
            length *= 0.5
            trial, trial_p = evaluate(w + length * step)
        w, loss, p = w + length * step, trial, trial_p
    return w


def _with_last(rows: Array) -> Array:
    """Append the row that makes the columns sum to zero."""
    return np.concatenate([rows, -rows.sum(axis=0, keepdims=True)])


def _conjugate_gradients(times: Callable[[Array], Array], b: Array, tolerance: float) -> Array:
    """Return x with |A x − b| below the tolerance, or as near as it gets; `times(v)` is A v.

    A is symmetric and has no negative eigenvalue.
    """
    x, r = np.zeros_like(b), b
    d, rr = r, float(np.sum(r * r))
    for _ in range(CONJUGATE_STEPS):
        ad = times(d)
        bend = float(np.sum(d * ad))
        if bend <= 0.0 or rr <= tolerance * tolerance:
            break
        x = x + (rr / bend) * d
        r = r - (rr / bend) * ad
        before, rr = rr, float(np.sum(r * r))
        d = r + (rr / before) * d
    return x


def accuracy(x: Features, y: Array, w: Array) -> float:
    """Return the share of examples whose true class has the highest score."""
    return float(np.mean(x.scores(w).argmax(axis=0) == y))


def baselines(dataset: Dataset, seed: int = 0) -> dict[str, float]:
    """Return the test accuracy of "majority" and of "bag_of_words".

    The penalty is chosen on a tenth of the training part, drawn from the seed; the model is then
    fitted to the whole part.
    """
    classes, y, test_y = len(dataset.labels), dataset.train_y, dataset.test_y
    majority = np.bincount(y, minlength=classes).argmax()
    train, test = features(dataset.train_x, dataset.test_x)
    w = fit_logistic(train, y, classes, choose_penalty(dataset, seed) / len(y))
    return {
        "majority": float(np.mean(test_y == majority)),
        "bag_of_words": accuracy(test, test_y, w),
    }


def choose_penalty(dataset: Dataset, seed: int) -> float:
    """Return the penalty, times the number of examples, that does best on the held-out tenth."""
    x, y = dataset.train_x, dataset.train_y
    kept, held = stratified_split(y, VALIDATION_SHARE, seed)
    if len(held) == 0:  # no class has two examples
        return USUAL_PENALTY
    fit, validation = features([x[i] for i in kept], [x[i] for i in held])
    best, chosen, w = -1.0, USUAL_PENALTY, None
    for penalty in PENALTIES:
        w = fit_logistic(fit, y[kept], len(dataset.labels), penalty / len(kept), w)
        reached = accuracy(validation, y[held], w)
        if reached > best:
            best, chosen = reached, penalty
    return chosen
