"""Batches: their examples, how they are made ahead, and the learning rate of their steps."""

import contextlib
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.core.training.batches import (
    Examples,
    check_alike,
    collate,
    drop_words,
    epoch_batches,
    even_batches,
    steps_per_epoch,
)
from twofold.core.training.feed import Feed, ahead
from twofold.core.training.recipe import Recipe, learning_rate


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epoch_has_every_example_once(examples, batch_size, seed, epoch):
    lengths = np.random.default_rng(seed).integers(1, 30, examples)
    batches = epoch_batches(lengths, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(examples))
    assert len(batches) == steps_per_epoch(examples, batch_size)
    again = epoch_batches(lengths, batch_size, seed, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_batches_hold_similar_lengths():
    lengths = np.random.default_rng(0).integers(1, 60, 1000)
    batches = epoch_batches(lengths, 50, 0, 0)
    padded = sum(lengths[b].max() * len(b) for b in batches)
    unsorted = sum(lengths[i : i + 50].max() * 50 for i in range(0, 1000, 50))
    assert padded - lengths.sum() < 0.2 * (unsorted - lengths.sum())


@given(st.lists(st.integers(1, 60), max_size=300), st.integers(60, 600))
def test_even_batches_have_every_example_once_and_hold_no_more(lengths, positions):
    lengths = np.array(lengths, np.int64)
    batches = even_batches(lengths, positions, 64, 4)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    padded = [lengths[b].max() * len(b) for b in batches]
    assert all(n <= positions for n in padded)
    assert all(n - lengths[b].sum() <= 64 for n, b in zip(padded, batches, strict=True))


@given(st.integers(1, 500), st.integers(1, 60))
def test_even_batches_leave_nobody_with_less_to_do(examples, length):
    batches = even_batches(np.full(examples, length), 600, 64, 4)
    rounds = -(-examples // (4 * (600 // length)))  # that all four workers are busy in
    assert max(len(b) for b in batches) == -(-examples // (4 * rounds))


@given(st.floats(0.0, 0.9), st.sampled_from(["linear", "cosine", "constant"]), st.integers(1, 300))
def test_learning_rate_climbs_to_its_peak_and_decays(warmup, schedule, steps):
    recipe = Recipe(lr=0.5, warmup=warmup, schedule=schedule)
    rates = [learning_rate(recipe, step, steps) for step in range(1, steps + 1)]
    top = int(np.argmax(rates))
    assert all(0 < r <= 0.5 for r in rates)
    assert all(a <= b for a, b in zip(rates[:top], rates[1 : top + 1], strict=True))
    assert all(a >= b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert schedule == "constant" or rates[-1] == min(rates[top:])


@given(st.sampled_from([0.0, 0.1, 0.25, 0.5]), st.integers(4, 300))
def test_learning_rate_is_a_line_to_the_peak_and_one_or_half_a_wave_down(warmup, steps):
    """A falling rate reaches 0 one step after the last."""
    climbing = round(warmup * steps)
    falling = steps - climbing
    for schedule in ("linear", "cosine", "constant"):
        recipe = Recipe(lr=0.5, warmup=warmup, schedule=schedule)
        rates = [learning_rate(recipe, step, steps) for step in range(1, steps + 1)]
        gone = np.arange(falling) / falling
        down = {
            "linear": 1 - gone,
            "cosine": np.cos(np.pi * gone / 2) ** 2,
            "constant": 1 + 0 * gone,
        }
        line = np.arange(1, climbing + 1) / max(climbing, 1)
        assert np.abs(np.array(rates) - 0.5 * np.concatenate([line, down[schedule]])).max() < 1e-15


def test_words_are_dropped_as_often_as_asked_and_the_same_each_time():
    ids = np.arange(2, 10002)
    dropped = drop_words(ids, 0.2, 1, seed=3, step=4)
    assert np.array_equal(dropped, drop_words(ids, 0.2, 1, seed=3, step=4))
    assert not np.array_equal(dropped, drop_words(ids, 0.2, 1, seed=3, step=5))
    assert (dropped[dropped != 1] == ids[dropped != 1]).all()
    share, deviation = (dropped == 1).mean(), np.sqrt(0.2 * 0.8 / len(ids))
    assert abs(share - 0.2) < 6 * deviation


@pytest.mark.parametrize("word_dropout", [0.0, 0.3])
@pytest.mark.parametrize("graded", [False, True])
def test_a_batch_is_that_of_its_number_whenever_it_is_made(word_dropout, graded):
    rng = np.random.default_rng(0)
    inputs = [rng.integers(2, 99, rng.integers(1, 12)) for _ in range(23)]
    soft = rng.random((23, 2)).astype(np.float32)
    examples = Examples(inputs, rng.integers(0, 2, 23), soft)
    recipe = Recipe(seed=4, batch_size=5, word_dropout=word_dropout, soft_targets=graded)
    expected = []
    for epoch in range(3):
        for chosen in epoch_batches(examples.lengths, 5, 4, epoch):
            joined = np.concatenate([inputs[i] for i in chosen])
            if word_dropout > 0.0:
                joined = drop_words(joined, word_dropout, 1, 4, len(expected) + 1)
            expected.append((joined, (soft if graded else examples.labels)[chosen]))
    feed = Feed(examples, recipe, 1)
    for step in rng.permutation(15):
        found, targets = feed.batch(int(step) + 1)
        assert np.array_equal(np.concatenate(found), expected[step][0])
        assert np.array_equal(targets, expected[step][1]) and len(found) == len(targets)
    undropped = [Feed(examples, recipe, None).batch(s + 1)[0] for s in range(15)]  # are no words
    words = [[tuple(x) for batch in undropped[e : e + 5] for x in batch] for e in (0, 5, 10)]
    assert all(sorted(w) == sorted(tuple(x) for x in inputs) for w in words)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.sampled_from([(), (1,), (3,)]))
def test_a_batch_is_its_examples_and_zeros_behind_them(lengths, width):
    inputs = [np.full((n, *width), i + 1, np.float32) for i, n in enumerate(lengths)]
    padded, found = collate(inputs)
    assert found.tolist() == lengths and found.dtype == np.int64
    assert padded.shape == (len(lengths), max(lengths), *width) and padded.dtype == np.float32
    for row, x in zip(padded, inputs, strict=True):
        assert np.array_equal(row[: len(x)], x) and not row[len(x) :].any()


def test_examples_put_together_keep_their_labels():
    """The second fit learns from graded labels if all examples have them."""
    soft = np.random.default_rng(0).random((5, 2)).astype(np.float32)
    one, two, plain = (
        Examples([np.array([n]) for n in some], np.array(some), graded)
        for some, graded in (([0, 1, 2], soft[:3]), ([3, 4], soft[3:]), ([3, 4], None))
    )
    for other, expected in ((two, soft), (plain, None)):
        whole = one + other
        assert [int(x[0]) for x in whole.inputs] == whole.labels.tolist() == [0, 1, 2, 3, 4]
        assert (whole.soft is None) if expected is None else np.array_equal(whole.soft, expected)
    assert (plain + two).soft is None


def test_examples_that_cannot_share_a_batch_are_refused():
    ids = np.arange(3, dtype=np.int32)
    check_alike([ids, ids[:1]])
    far = np.array([2**32 + 3])
    with pytest.raises(TypeError, match=r"^inputs\[1\] has dtype int64; it must be that of inputs"):
        check_alike([ids, far])
    for wrong, error in (
        (ids.astype(np.float32), TypeError),
        (np.stack([ids, ids], 1), ValueError),
    ):
        with pytest.raises(error, match=r"^inputs\[2\](.shape is \(3, 2\)| has dtype float32); it"):
            check_alike([ids, ids, wrong])
    with pytest.raises(ValueError, match=r"^inputs\[1\].shape is \(3, 2\); it must be that of inp"):
        check_alike([np.zeros((1, 3)), np.zeros((3, 2))])
    check_alike([np.zeros((1, 3)), np.zeros((2, 3))])


def test_the_next_batch_is_made_while_the_last_is_in_use():
    made, second = [], threading.Event()

    def make(n):
        made.append(n)
        if n == 2:
            second.set()
        return -n

    with contextlib.closing(ahead(make, range(1, 9))) as batches:
        assert next(batches) == -1
        assert second.wait(60)  # though nobody has asked for it
        assert made == [1, 2]
        assert [next(batches) for _ in range(4)] == [-2, -3, -4, -5]
    assert made[-1] <= 6  # and not the rest
    assert list(ahead(make, range(3))) == [0, -1, -2] and list(ahead(make, [])) == []


def test_batches_are_made_one_after_the_other():
    """They share their epoch's order."""
    busy, most = [], []

    def make(n):
        busy.append(n)
        time.sleep(0.005)
        most.append(len(busy))
        busy.remove(n)

    assert len(list(ahead(make, range(9)))) == 9
    assert set(most) == {1}


def test_batches_that_nobody_wants_any_more_leave_no_thread():
    batches = ahead(lambda n: time.sleep(0.05), range(9))
    next(batches)
    batches.close()
    assert not any(thread.name.startswith("twofold-feed") for thread in threading.enumerate())


def test_what_making_a_batch_raises_is_raised_in_its_place():
    batches = ahead(lambda n: 1 // (3 - n), range(9))
    assert [next(batches) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(batches)
