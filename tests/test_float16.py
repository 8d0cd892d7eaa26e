"""16 bits on the NumPy side: sums that they cannot hold, and constants that they lack."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from twofold.core import ops
from twofold.core.verify.contract import judge
from twofold.core.verify.report import contract_module
from twofold.reference import (
    activation,
    attention,
    attention_fp8,
    attention_weights,
    dropout,
    embedding,
    layer_norm,
    linear,
    optimizers,
    pooling,
    positional_encoding,
    rms_norm,
    softmax,
    softmax_cross_entropy,
)

HALF = np.float16
N, MANY = 4096, 70_000  # more ones than float16 can count, and more than it can hold


def ones(*shape):
    return np.ones(shape, HALF)


def zeros(*shape):
    return np.zeros(shape, HALF)


def of_pooling():
    for length in (N, MANY):
        out, cache = pooling.forward(ones(1, length, 1), np.array([length]))
        yield out, 1
        yield pooling.backward(out, cache).dx, np.full((1, length, 1), 1 / length)


def of_norms():
    """x̂ is ±1, and so is dout."""
    x = np.tile(np.array([[1, -1]], HALF), (N, 1))
    _, cache = layer_norm.forward(x, ones(2), zeros(2))
    yield layer_norm.backward(x, cache).dweight, N
    yield layer_norm.backward(ones(N, 2), cache).dbias, N
    _, cache = rms_norm.forward(x, ones(2))
    yield rms_norm.backward(x, cache).dweight, N


def of_a_mean_between_two_numbers():
    """1000.25 is no float16 number."""
    x = np.array([[1000, 1000.5]], HALF)
    yield layer_norm.forward(x, ones(2), zeros(2), eps=1e-9)[0], [[-1, 1]]


def of_linear():
    _, cache = linear.forward(ones(N, 2), ones(2, 2), ones(2))
    grads = linear.backward(ones(N, 2), cache)
    yield grads.dweight, N
    yield grads.dbias, N
    yield linear.forward(ones(1, N), ones(1, N))[0], N


def of_activation():
    _, cache = activation.forward(ones(N, 2), "relu", ones(2))
    yield activation.backward(ones(N, 2), cache).dbias, N


def of_attention():
    v = np.array([1, -1], HALF).reshape(1, 1, 2, 1)
    q = zeros(1, 1, 2 * N, 1)
    _, cache = attention.forward(q, zeros(1, 1, 2, 1), v, bias=zeros(2))
    yield attention.backward(ones(*q.shape), cache).dbias, [N, -N]
    k = zeros(1, 1, MANY, 1)
    yield attention.forward(zeros(1, 1, 1, 1), k, ones(*k.shape))[0], 1


def of_attention_weights():
    yield attention_weights.received(zeros(1, 1, N, 1), zeros(1, 1, 2, 1), zeros(1, 1, N)), N


def of_softmax():
    y, cache = softmax.forward(zeros(1, MANY))
    yield y, 1 / MANY
    yield softmax.forward(zeros(1, N))[0], 1 / N
    yield softmax.backward(ones(1, N), softmax.forward(zeros(1, N))[1]).dx, 0


def of_softmax_cross_entropy():
    logits, targets = zeros(MANY, 2), np.zeros(MANY, int)
    loss, cache = softmax_cross_entropy.forward(logits, targets)
    yield loss, np.log(2)
    yield cache.dlogits[:, 1], 0.5 / MANY
    assert softmax_cross_entropy.backward(1.0, cache).dlogits.dtype == HALF


def of_embeddings():
    ids = np.zeros((1, N), int)
    yield embedding.backward(ones(1, N, 2), embedding.forward(ids, ones(1, 2))[1]).dtable, N
    ids = np.zeros((1, MANY), int)
    _, cache = positional_encoding.forward(ids, ones(1, 2), None, scale=0.5)
    yield positional_encoding.backward(ones(1, MANY, 2), cache).dtable, MANY / 2


SUMS = [of for name, of in list(globals().items()) if name.startswith("of_")]


@pytest.mark.parametrize("sums", SUMS, ids=lambda of: of.__name__)
def test_what_is_summed_is_rounded_once(sums):
    for found, expected in sums():
        assert found.dtype == HALF
        assert np.array_equal(found, np.broadcast_to(HALF(expected), found.shape))


def test_gradients_of_nothing_leave_parameters_as_they_are():
    """1e-8 and 1e-10 are 0 in float16, and 0/0 is NaN."""
    params, grads, m, v, s = ones(3), zeros(3), zeros(3), zeros(3), zeros(3)
    optimizers.adam(params, grads, m, v, step=1, lr=0.1)
    optimizers.adagrad(params, grads, s, lr=0.1)
    assert np.array_equal(params, ones(3))
    assert not m.any() and not v.any() and not s.any()


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adagrad"])
def test_a_step_is_that_of_float32_rounded_once(optimizer):
    """Also in blocks of a buffer after the first."""
    rng = np.random.default_rng(0)
    n = optimizers.BLOCK + 5
    halves = [np.abs(rng.standard_normal(n)).astype(HALF) for _ in range(4)]
    state = 4 if optimizer == "adam" else 3
    how = {"adam": {"step": 2}, "sgd": {"momentum": 0.9}, "adagrad": {}}[optimizer]
    singles = [x.astype(np.float32) for x in halves]
    for buffers in (halves, singles):
        step = getattr(optimizers, optimizer)
        step(*buffers[:state], lr=0.1, weight_decay=0.1, decay_numel=7, **how)
    for half, single in zip(halves, singles, strict=True):
        assert half.dtype == HALF and np.array_equal(half, single.astype(HALF))


def test_scales_of_8_bits_are_those_of_float32():
    for x, scale, x8 in (
        (0.0, 2.0**-126, 0),
        (1e-5, np.float32(HALF(1e-5)) / np.float32(448), 448),
    ):
        found, by = attention_fp8.quantize(np.full((1, 1, 2, 2), x, HALF))
        assert found.dtype == HALF and by.dtype == np.float32
        assert np.array_equal(by, [[np.float32(scale)]])
        assert (found == x8).all()


def test_what_is_hardly_ever_kept_is_scaled_by_65536():
    """float16 cannot hold 65,536, and 0 times ∞ would be NaN."""
    x = np.full(1 << 20, 2.0**-10, HALF)
    out, cache = dropout.forward(x, 0.99999, seed=0)
    for found in (out, dropout.backward(x, cache).dx):
        assert found.dtype == HALF
        assert np.array_equal(np.unique(found), [0, 64])


@pytest.mark.parametrize("operator", [name for name in ops.OPERATORS if name != "attention_fp8"])
def test_bfloat16_of_ml_dtypes_is_held_to_the_contract(reference, operator):
    """NumPy does not count it as a floating dtype, and sums and multiplies it badly."""
    assert np.dtype("bfloat16") == ml_dtypes.bfloat16
    module = contract_module(operator)
    plain = {"dtype": "bfloat16", "allow_tf32": False, "layout": "contiguous", "tile": None}
    plain |= {"into": "", "float32_parts": False}
    cases = dict.fromkeys(
        dataclasses.replace(case, **{n: x for n, x in plain.items() if hasattr(case, n)})
        for case in module.CONTRACT.pinned
        if getattr(case, "kept", "") != "float64"
    )
    for case in list(cases)[:9]:
        findings = [f for f in judge(module.CONTRACT, reference, case) if f.output != "inputs"]
        assert findings and not [f.fault for f in findings if f.fault], case


def test_a_norm_is_float32_so_that_a_large_one_clips(reference, triton):
    """10⁶ elements of 100 have the norm 10⁵, more than float16 holds: steps would be 0."""
    for side in (reference, triton):
        params, grads = (side.asarray(np.full(10**6, x), "float16") for x in (0, 100))
        norm = side.optimizers.global_norm(grads)
        assert side.to_numpy(norm).dtype == np.float32 and abs(float(norm) / 1e5 - 1) < 1e-6
        side.optimizers.sgd(params, grads, None, lr=1.0, grad_norm=norm, max_norm=1e4)
        assert np.array_equal(side.to_numpy(params), np.full(10**6, -10.0, HALF))
