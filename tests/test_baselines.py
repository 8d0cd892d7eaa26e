"""What simple models reach: features, their fit, and how its penalty is chosen."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.core.data import baselines as module
from twofold.core.data.baselines import Bags, Dense, baselines, features, fit_logistic
from twofold.core.data.datasets import Dataset
from twofold.core.data.splits import stratified_split


def synthetic(kind: str) -> Dataset:
    """Three unequal classes that a linear model can tell apart mostly."""
    rng = np.random.default_rng(3)
    y = rng.choice(3, 300, p=[0.5, 0.3, 0.2])
    means = np.zeros((3, 4, 4))
    means[0, 0, 0], means[1, 1, 2], means[2, 3, 3] = 0.5, 0.5, 0.5
    x: object = np.clip(means[y] + rng.normal(0.2, 0.2, (300, 4, 4)), 0, 1).astype(np.float32)
    if kind == "text":
        said = rng.choice(["one", "two", "of", "the"], (300, 6))
        said[:, 0] = np.array(["red", "green", "blue"])[np.where(rng.random(300) < 0.9, y, 0)]
        x = [" ".join(row) for row in said]
    train, test = (x[:200], y[:200]), (x[200:], y[200:])  # type: ignore[index]
    return Dataset("synthetic", kind, ("r", "g", "b"), *train, *test, None, "made here")


@pytest.mark.parametrize("kind", ["text", "images"])
def test_bag_of_words_beats_majority(kind: str) -> None:
    data = synthetic(kind)
    found = baselines(data)
    assert found["majority"] == (data.test_y == 0).mean()
    assert found["bag_of_words"] >= 0.85 > found["majority"]
    assert baselines(data) == found


def test_bags_are_a_matrix_of_zeros_and_ones() -> None:
    rng = np.random.default_rng(0)
    ones = rng.random((7, 11)) < 0.3
    ones[:, 0], ones[:, 5], ones[3, 1:] = True, False, False
    bags = Bags([np.flatnonzero(row) for row in ones], 11)
    w, r = rng.integers(-9, 9, (2, 11)).astype(float), rng.integers(-9, 9, (2, 7)).astype(float)
    np.testing.assert_array_equal(bags.scores(w), w @ ones.T)
    np.testing.assert_array_equal(bags.sums(r), r @ ones)


@given(st.integers(2, 4), st.sampled_from([1e-3, 1e-1, 1.0]), st.integers(0, 99))
def test_fitted_weights_are_at_the_minimum(classes: int, penalty: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = Dense(rng.normal(size=(60, 5))), rng.integers(0, classes, 60)
    w = fit_logistic(x, y, classes, penalty)

    def gradient(w: np.ndarray) -> np.ndarray:
        e = np.exp(x.x @ w.T)
        p = e / e.sum(axis=1, keepdims=True)
        g = (p - np.eye(classes)[y]).T @ x.x / 60
        g[:, 1:] += penalty * w[:, 1:]
        return g

    zero = np.zeros((classes, 6))
    assert np.linalg.norm(gradient(w)) <= 1.01e-3 * np.linalg.norm(gradient(zero))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NEWTON_STEPS", 0)  # where it begins is where it ends
        warm = fit_logistic(x, y, classes, penalty, w)
    np.testing.assert_array_equal(warm, w)


def test_words_are_columns_in_order_and_those_of_the_first_lot_alone() -> None:
    first, second = features(["delta", "alpha", "charlie bravo"], ["bravo zulu", "zulu"])
    assert (first.shape, second.shape) == ((3, 5), (2, 5))
    w = np.array([[10.0, 1.0, 2.0, 3.0, 4.0]])
    assert [x.scores(w).tolist() for x in (first, second)] == [[[14, 11, 15]], [[12, 10]]]


def test_the_strongest_of_the_best_penalties_on_held_out_examples_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each fit begins where the one before it ended."""
    data, fits, judged = synthetic("images"), [], []
    reached = iter([0.5, 0.7, 0.7, 0.6, 0.1, 0.25])

    def fit(x: Dense, y: np.ndarray, classes: int, penalty: float, start: int | None = None) -> int:
        fits.append((x.shape[0], round(penalty * len(y), 9), start))
        return len(fits)

    def accuracy(x: Dense, y: np.ndarray, w: int) -> float:
        judged.append((x.shape[0], len(y), w))
        return next(reached)

    monkeypatch.setattr(module, "fit_logistic", fit)
    monkeypatch.setattr(module, "accuracy", accuracy)
    kept, held = (len(part) for part in stratified_split(data.train_y, 0.1, 3))
    assert module.choose_penalty(data, 3) == 10.0
    starts = zip((30.0, 10.0, 3.0, 1.0, 0.3), (None, 1, 2, 3, 4), strict=True)
    assert fits == [(kept, penalty, start) for penalty, start in starts]
    assert judged == [(held, held, w) for w in range(1, 6)]
    one_each = [int((data.train_y == c).argmax()) for c in range(3)]
    alone = replace(data, train_x=data.train_x[one_each], train_y=data.train_y[one_each])
    assert module.choose_penalty(alone, 0) == 1.0
    monkeypatch.setattr(module, "choose_penalty", lambda dataset, seed: float(seed))
    most = int(np.bincount(data.train_y).argmax())
    others = replace(data, test_y=(data.train_y[:100] * 0 + most + 1) % 3)
    assert baselines(others, seed=7) == {"majority": 0.0, "bag_of_words": 0.25}
    assert fits[-1] == (200, 7.0, None) and judged[-1][:2] == (100, 100)


def test_conjugate_gradients_end_after_as_many_steps_as_there_are_unknowns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    root, b = rng.standard_normal((5, 5)), rng.standard_normal((1, 5))
    a = root @ root.T + np.eye(5)
    monkeypatch.setattr(module, "CONJUGATE_STEPS", 5)
    found = module._conjugate_gradients(lambda v: v @ a, b, 0.0)
    np.testing.assert_allclose(found @ a, b, atol=1e-9)
    assert not module._conjugate_gradients(lambda v: v @ a, 0 * b, 0.0).any()
