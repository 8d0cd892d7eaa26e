"""What the strict interpreter caches gives the same results as Triton's own."""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

from twofold.core.verify.strict import speed, strict_interpreter

SCALARS = (tl.int1, tl.int64, tl.bfloat16, tl.float32)
TYPES = (*SCALARS, *map(tl.pointer_type, SCALARS), tl.pointer_type(tl.int64, const=True))


@InterpretedFunction
def draws(c_ptr, y_ptr, seed, ROUNDS: tl.constexpr):
    i = tl.arange(0, 16)
    c = tl.load(c_ptr + i)
    words = tl.philox(seed, c, c * 3, c ^ 7, c - 1, ROUNDS)
    for j in tl.static_range(4):
        tl.store(y_ptr + 16 * j + i, words[j])


@pytest.mark.parametrize("rounds", [1, 7, 10])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("seed", [0, 5, 2**40 + 3])
def test_philox_draws_what_tritons_own_does(interpreted, monkeypatch, rounds, dtype, seed):
    bits = torch.iinfo(dtype).bits
    c = torch.randint(-(2 ** (bits - 2)), 2 ** (bits - 2), (16,), dtype=dtype)
    ours, theirs = torch.empty(2, 64, dtype=dtype)
    with strict_interpreter(overflow=False):
        draws[(1,)](c, ours, seed, rounds)
        monkeypatch.setattr(speed, "philox", lambda *words: None)
        draws[(1,)](c, theirs, seed, rounds)
    assert torch.equal(ours, theirs)
    assert len(ours.unique()) == 64


@InterpretedFunction
def zeros(y_ptr):
    i = tl.arange(0, 2)
    zero = tl.zeros([2], tl.uint32)
    words = speed.PHILOX(zero, zero, zero, zero, zero, zero)
    for j in tl.static_range(4):
        tl.store(y_ptr + 2 * j + i, words[j].to(tl.int64))


def test_philox_draws_what_its_authors_do(interpreted):
    """The known answer of philox4x32-10 to zeros, from Random123's kat_vectors."""
    y = torch.empty(4, 2, dtype=torch.int64)
    with strict_interpreter():
        zeros[(1,)](y)
    assert y[:, 1].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def _said(type, shape):
    """Return what a type and a tensor of it report; twice, to include cached answers."""
    found = []
    for _ in range(2):
        whole = tl.block_type(type, [tl.constexpr(n) for n in shape]) if shape else type
        tensor = tl.tensor(object(), whole)
        found.append(
            (
                whole == tensor.type,
                [int(n) for n in getattr(whole, "shape", ())],
                str(whole),
                [n.value for n in tensor.shape],
                tensor.numel.value,
                tensor.dtype == type,
                tensor.dtype.is_ptr() and tensor.dtype.const,
                interpreter._get_np_dtype(whole),
            )
        )
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("shape", [(), (1,), (8,), (4, 1), (2, 2, 2, 4)])
@pytest.mark.parametrize("type", TYPES, ids=str)
def test_types_say_what_tritons_own_do(type, shape):
    plain = _said(type, shape)
    with strict_interpreter():
        assert _said(type, shape) == plain
    assert _said(type, shape) == plain
    assert isinstance(plain[-1], np.dtype)


def test_a_shape_that_is_no_power_of_two_is_refused_as_ever():
    with strict_interpreter():
        for _ in range(2):
            with pytest.raises(ValueError, match="power of 2"):
                tl.block_type(tl.float32, [3])
