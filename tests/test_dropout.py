"""Dropout: the generator against its known answers, masks bit for bit, the kernel by contract."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.core import ops
from twofold.core.verify import domains
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import dropout

ops.triton_device()  # Triton reads whether to interpret when it is imported
import triton.language as tl  # noqa: E402
from triton import jit, next_power_of_2  # noqa: E402

from twofold.kernels import dropout as kernels  # noqa: E402

HIGH_KEY = 0x123456789ABCDEF0  # a seed whose high key word is in use
# Random123, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, answer.
ONES = 0xFFFFFFFF
KNOWN_ANSWERS = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_philox_gives_its_known_answers(name):
    counter, key, answer = KNOWN_ANSWERS[name]
    words = dropout.philox(*(np.array([c], np.uint32) for c in counter), key[0] | key[1] << 32)
    assert tuple(int(w[0]) for w in words) == answer


@jit
def philox_kernel(out_ptr, seed: tl.int64, c0: tl.int64, c1: tl.int64, c2: tl.int64, c3: tl.int64):
    counter = (c0.to(tl.uint32), c1.to(tl.uint32), c2.to(tl.uint32), c3.to(tl.uint32))
    words = tl.philox(seed, counter[0], counter[1], counter[2], counter[3])
    for i in tl.static_range(4):
        tl.store(out_ptr + i, words[i].to(tl.int64))


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_the_kernels_generator_gives_the_known_answers(triton, name):
    counter, key, answer = KNOWN_ANSWERS[name]
    seed = key[0] | key[1] << 32
    seed -= (seed >> 63) << 64  # as a signed 64-bit number
    words = triton.zeros((4,), "int64")
    philox_kernel[(1,)](words, seed, *counter)
    assert tuple(triton.to_numpy(words)) == answer


@jit
def keep_kernel(out_ptr, seed_ptr, start: tl.int64, n, threshold, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    index = start.to(tl.int64) + i
    tl.store(out_ptr + i, kernels.keep(tl.load(seed_ptr), index, threshold).to(tl.int8), mask=i < n)


@pytest.mark.parametrize("start", [0, 2**31 - 50, 2**35 - 50, 2**35, 2**40 + 3, 2**60])
def test_masks_agree_where_the_counter_passes_32_bits(triton, start):
    n, threshold = 101, dropout.threshold(0.5)
    index = start + np.arange(n)
    counter = (index // dropout.DRAWS).astype(np.uint64)
    low, high = counter.astype(np.uint32), (counter >> dropout.HALF).astype(np.uint32)
    draws = dropout.philox_draws(low, high, 0 * low, 0 * low, HIGH_KEY)
    draws = draws.reshape(-1, dropout.DRAWS)[np.arange(n), index % dropout.DRAWS]
    kept = triton.zeros((n,), "int8")
    seed = triton.asarray(np.array(HIGH_KEY))
    keep_kernel[(1,)](kept, seed, start, n, threshold, BLOCK=next_power_of_2(n))
    assert np.array_equal(triton.to_numpy(kept) != 0, draws >= threshold)


@given(st.tuples(*map(st.integers, (1, 1, 1, 1), (3, 3, 70, 70))), domains.seeds())
def test_attention_masks_agree(triton, shape, seed):
    """With equal scores and the identity as values, the output shows the mask: keep_ij·scale/N."""
    B, H, M, N = shape
    q, k = np.zeros((B, H, M, N)), np.zeros((B, H, N, N))
    v = np.broadcast_to(np.eye(N), k.shape)
    placed = (triton.asarray(x, "float32") for x in (q, k, v))
    out, _ = triton.attention.forward(*placed, dropout_p=0.5, seed=seed)
    expected = dropout.attention_keep_mask(shape, 0.5, seed)
    assert np.array_equal(triton.to_numpy(out) != 0, expected)


@pytest.mark.parametrize("seed", [0, 1, HIGH_KEY])
def test_an_element_is_kept_until_p_passes_its_draw(triton, seed):
    """For both kinds of mask, with the threshold at the first element's draw and one above."""
    zero = np.zeros(1, np.uint32)
    draw = int(dropout.philox_draws(zero, zero, zero, zero, seed)[0])
    one = triton.asarray(np.ones((1, 1, 1, 1)), "float32")
    for threshold, kept in ((draw, True), (draw + 1, False)):
        p = threshold / 65536
        assert dropout.keep_mask((1,), p, seed)[0] == kept
        assert (triton.to_numpy(triton.dropout.forward(one, p, seed)[0]).item() != 0) == kept
        out, _ = triton.attention.forward(one, one, one, dropout_p=p, seed=seed)
        assert (triton.to_numpy(out).item() != 0) == kept


def test_masks_are_cut_from_one_sequence():
    """A longer mask begins with the shorter one; an attention mask depends on no length."""
    long = dropout.keep_mask((dropout.BLOCK * dropout.DRAWS + 77,), 0.3, HIGH_KEY)
    assert np.array_equal(long[:1003], dropout.keep_mask((17, 59), 0.3, HIGH_KEY).ravel())
    tail = dropout.BLOCK * dropout.DRAWS + np.arange(77)
    counter = (tail // 8).astype(np.uint32)
    draws = dropout.philox_draws(counter, *(0 * counter,) * 3, HIGH_KEY)
    draws = draws.reshape(-1, dropout.DRAWS)[np.arange(77), tail % 8]
    assert np.array_equal(long[-77:], draws >= dropout.threshold(0.3))
    large = dropout.attention_keep_mask((3, 2, 40, 50), 0.3, HIGH_KEY)
    small = dropout.attention_keep_mask((2, 1, 7, 11), 0.3, HIGH_KEY)
    assert np.array_equal(large[:2, :1, :7, :11], small)


def assert_share(hits, probability, what):
    """Allow six standard deviations of a binomial count: one in 500 million exceeds them."""
    expected, deviation = hits.size * probability, (hits.size * probability * (1 - probability))
    assert abs(int(hits.sum()) - expected) <= 6 * deviation**0.5, what


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, HIGH_KEY])
def test_masks_look_independent(p, seed):
    n = 1 << 18
    mask = dropout.keep_mask((n,), p, seed)
    q = 1 - dropout.threshold(p) / 65536
    agree = q * q + (1 - q) * (1 - q)
    assert_share(mask, q, "share kept")
    for lag in (1, 4, 8, 64):  # neighbouring draws, words, counters, rows; pairs are disjoint
        pairs = mask.reshape(-1, 2, lag)
        assert_share(pairs[:, 0] == pairs[:, 1], agree, f"elements {lag} apart")
    for other in (seed + 1, seed ^ 1 << 32, seed ^ 1 << 62):
        assert_share(mask == dropout.keep_mask((n,), p, other), agree, f"seeds {seed}, {other}")


def test_the_expectation_is_the_input(triton):
    """Of the 65536 draws exactly 65536 − threshold keep; times the scale, that is 65536."""
    for t in range(65536):
        p = t / 65536
        scale = dropout.scale(p)
        assert dropout.threshold(p) == triton.dropout.threshold(p) == t
        assert scale == triton.dropout.scale(p)
        # The scale is one float64 division, hence right to half a unit in the last place.
        assert abs(Fraction(scale) * (65536 - t) / 65536 - 1) <= Fraction(1, 2**53)


def test_a_probability_is_rounded_to_the_nearest_step():
    assert dropout.threshold(0.1) == 6554
    assert dropout.threshold(2.0**-18) == 0
    assert dropout.threshold(1 - 2.0**-18) == 65535  # never everything


def test_gradients_are_slopes():
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, 5, 11))

    def value(x):
        return float((dropout.forward(x, 0.3, 5)[0] * dout).sum())

    dx = dropout.backward(dout, dropout.forward(x, 0.3, 5)[1]).dx
    check_gradients(value, {"x": x}, {"x": dx}, rng)


def test_without_dropout_the_input_comes_back(reference, triton):
    x = np.random.default_rng(0).standard_normal((7, 13)).astype(np.float32)
    for side in (reference, triton):
        out, _ = side.dropout.forward(side.asarray(x), 0.0, 3)
        assert np.array_equal(side.to_numpy(out), x)


@pytest.mark.parametrize("shape", [(0,), (3, 0, 5), (), (2, 3, 5, 7)])
def test_any_shape_will_do(triton, shape):
    out, _ = triton.dropout.forward(triton.asarray(np.ones(shape), "float32"), 0.5, HIGH_KEY)
    expected = dropout.scaled_mask(shape, 0.5, HIGH_KEY, "float32")
    assert np.array_equal(triton.to_numpy(out), expected)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(x=np.ones(3, int)), TypeError, "x has dtype int64; it must be one of float16"),
        (dict(x=3.0), TypeError, "x is a float; it must be an array"),
        (dict(p=1.0), ValueError, "p is 1.0; it must be at least 0 and below 1"),
        (dict(p=-0.5), ValueError, "p is -0.5; it must be at least 0 and below 1"),
        (dict(p=float("nan")), ValueError, "p is nan; it must be at least 0 and below 1"),
        (dict(seed=2**63), ValueError, "seed is 9223372036854775808; it must be at least 0 and"),
        (dict(seed=True), TypeError, "seed is a bool; it must be an int"),
    ],
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("dropout", {"x": np.ones(3), "p": 0.5, "seed": 0} | changed, error, words)


def test_the_mask_is_that_of_the_seed_that_was_there():
    """Even if the array that held it has changed since."""
    seed = np.array(0)
    out, cache = dropout.forward(np.ones(64), 0.5, seed)
    seed += 1
    assert np.array_equal(dropout.backward(np.ones(64), cache).dx, out)
