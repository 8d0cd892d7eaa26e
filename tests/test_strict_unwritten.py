"""Uninitialised memory: reading it is a fault, and what was never written can be listed."""

import pytest
import torch
import triton.language as tl
from planted import found, ints, where
from triton.runtime.interpreter import InterpretedFunction

from twofold.core import ops
from twofold.core.verify.contract import Violation, hold
from twofold.core.verify.contracts import dropout
from twofold.core.verify.strict import Fault, check_written, strict_interpreter, unwritten


@InterpretedFunction
def accumulate(x_ptr, total_ptr, ATOMIC: tl.constexpr):
    i = tl.program_id(0) * 4 + tl.arange(0, 4)
    x = tl.load(x_ptr + i)
    if ATOMIC:
        tl.atomic_add(total_ptr + i, x)
    else:
        tl.store(total_ptr + i, tl.load(total_ptr + i) + x)


@InterpretedFunction
def copy_rows(x_ptr, y_ptr, stride, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(y_ptr + row * stride + i, tl.load(x_ptr + row * stride + i))


ALLOCATORS = {
    "empty": lambda: torch.empty(8),
    "empty_like": lambda: torch.empty_like(torch.zeros(8)),
    "empty_strided": lambda: torch.empty_strided((8,), (1,)),
    "empty_permuted": lambda: torch.empty_permuted((2, 4), (0, 1)),
    "new_empty": lambda: torch.zeros(1).new_empty(8),
    "new_empty_strided": lambda: torch.zeros(1).new_empty_strided((8,), (1,)),
    "Tensor": lambda: torch.Tensor(8),
    "Tensor of a size": lambda: torch.Tensor(torch.Size((8,))),
    "new": lambda: torch.zeros(1).new(2, 4),
}


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("atomic", [False, True])
def test_an_accumulator_from_empty_is_named(strict, allocator, atomic):
    total = ALLOCATORS[allocator]()
    words = found(accumulate, (2,), torch.ones(8), total, ATOMIC=atomic)
    at = where(accumulate, "tl.atomic_add" if atomic else "tl.store(total_ptr")
    shape, strides = tuple(total.shape), tuple(total.stride())
    assert words == (
        f"accumulate, {at}, program (0, 0, 0): {'atomic on' if atomic else 'load from'} total_ptr "
        f"of shape {shape} and strides {strides} of 4 elements that no one has written, the first "
        "is 0; the memory came uninitialised"
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bfloat16, torch.float64])
def test_it_is_known_in_every_dtype(strict, dtype):
    x = torch.ones(8, dtype=dtype)
    words = found(accumulate, (2,), x, torch.empty(8, dtype=dtype), ATOMIC=False)
    assert "no one has written" in words
    accumulate[2,](x, torch.zeros(8, dtype=dtype), ATOMIC=False)


def test_what_a_kernel_wrote_may_be_read_and_the_rest_may_not(strict):
    memory = torch.empty(4, 8)
    copy_rows[3,](torch.ones(4, 8), memory, 8, BLOCK=8)
    copy_rows[3,](memory, torch.zeros(4, 8), 8, BLOCK=8)
    words = found(copy_rows, (4,), memory, torch.zeros(4, 8), 8, BLOCK=8)
    assert f"copy_rows, {where(copy_rows, 'tl.store')}, program (3, 0, 0): load from x_ptr" in words
    assert "of 8 elements that no one has written, the first is 24" in words


def test_views_and_other_dtypes_are_the_same_memory(strict):
    memory = torch.empty(8, dtype=torch.int32)
    ones = torch.ones(8, dtype=torch.int32)
    copy_rows[1,](ones, memory[4:], 0, BLOCK=4)
    narrow = torch.zeros(16, dtype=torch.int16)
    copy_rows[1,](memory[4:].view(torch.int16), narrow, 0, BLOCK=8)
    assert narrow[:8].tolist() == [1, 0] * 4
    words = found(copy_rows, (1,), memory[2:].view(torch.int16), narrow, 0, BLOCK=8)
    assert "of 4 elements that no one has written, the first is 0" in words
    words = found(copy_rows, (1,), memory.view(torch.int64), narrow.view(torch.int64), 0, BLOCK=4)
    assert "of 2 elements that no one has written, the first is 0" in words


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.zero_(),
        lambda x: x[:4].fill_(3),
        lambda x: torch.add(torch.ones(8), 1, out=x),
        lambda x: x.numpy().fill(3),
        lambda x: x.detach().copy_(torch.ones(8)),
    ],
    ids=["in place", "in part", "out", "numpy", "detached"],
)
def test_what_others_wrote_is_no_fault(strict, write):
    memory = torch.empty(8)
    write(memory)
    copy_rows[1,](memory, torch.zeros(8), 0, BLOCK=8)


@pytest.mark.parametrize("make", [torch.Tensor, torch.zeros(1).new])
@pytest.mark.parametrize("of", [[1.0, 2.0], (1.0, 2.0), torch.tensor([1.0, 2.0])])
def test_what_is_made_of_numbers_is_written(strict, make, of):
    x, y = make(of), torch.zeros(2)
    copy_rows[1,](x, y, 0, BLOCK=2)
    assert y.tolist() == [1, 2]
    assert torch.nn.Parameter(make(of)).tolist() == [1, 2]


def test_memory_used_again_is_not_taken_for_what_it_was(strict):
    for _ in range(100):
        torch.empty(1000, dtype=torch.uint8)
        full = torch.full((1000,), 255, dtype=torch.uint8)
        copy_rows[1,](full, torch.zeros(8, dtype=torch.uint8), 0, BLOCK=8)


def test_uninitialised_memory_is_poison(strict):
    assert torch.empty(3, requires_grad=True).isnan().all()
    assert torch.empty(3, dtype=torch.complex64).isnan().all()
    assert torch.empty(3, dtype=torch.bool).all()
    assert torch.empty(3, dtype=torch.int16).eq(torch.iinfo(torch.int16).max).all()
    assert torch.empty(0).shape == (0,) and torch.empty(3, device="meta").is_meta
    with torch.inference_mode():
        assert torch.empty(3).isnan().all()
        copy_rows[1,](torch.empty(8), torch.zeros(8), 0, BLOCK=8)


def test_rows_that_no_program_wrote_are_named(strict):
    out = torch.empty(4, 8)
    with pytest.raises(Fault) as fault:
        check_written(out)
    assert str(fault.value) == (
        "a tensor of shape (4, 8): 32 of 32 elements were written by no program, first [0, 0]; "
        "no kernel stored to it"
    )
    copy_rows[3,](torch.ones(4, 8), out, 8, BLOCK=8)
    with pytest.raises(Fault) as fault:
        check_written(out)
    assert str(fault.value) == (
        f"copy_rows, {where(copy_rows, 'tl.store')}, program (2, 0, 0) was the last to store to "
        "y_ptr, a tensor of shape (4, 8), and 8 of 32 elements were written by no program, first "
        "[3, 0]"
    )
    check_written(out[:3])
    copy_rows[1,](torch.ones(8), out[3:], 0, BLOCK=8)
    check_written(out)
    check_written(torch.zeros(4))


def test_padding_need_not_be_written(strict):
    out = torch.empty_strided((3, 4), (8, 1))
    copy_rows[3,](torch.ones(3, 8), out, 8, BLOCK=4)
    check_written(out)


def test_the_check_can_be_left_out_and_the_innermost_context_says():
    with strict_interpreter(uninitialised=False):
        total = torch.empty(8)
        accumulate[2,](torch.ones(8), total, ATOMIC=False)
        assert total.isnan().all()
        plain = torch.empty
        with strict_interpreter(poison=False):
            assert torch.empty is plain
            accumulate[2,](torch.ones(8), torch.empty(8), ATOMIC=False)
        with strict_interpreter():
            words = found(accumulate, (2,), torch.ones(8), torch.empty(8), ATOMIC=False)
            assert "no one has written" in words


def test_torch_is_as_it_was_afterwards(monkeypatch):
    monkeypatch.setattr(unwritten, "_poisons", [])  # as if no session had entered the context
    before = (torch.empty, torch.empty_like, torch.Tensor.new_empty)
    with strict_interpreter():
        assert torch.empty is not before[0]
        memory = torch.empty(8)
    assert (torch.empty, torch.empty_like, torch.Tensor.new_empty) == before
    with strict_interpreter(shuffle=False):
        copy_rows[1,](memory, torch.zeros(8), 0, BLOCK=8)  # of another context: unknown
        copy_rows[1,](ints(1), ints(0), 0, BLOCK=1)


@pytest.mark.skipif(ops.triton_device() != "cpu", reason="kernels are compiled here")
def test_a_contract_names_who_left_an_output_unwritten(triton, monkeypatch):
    class OneTooFew:
        def __getitem__(self, grid):
            return lambda x, y, seed, n, *how, **options: kernel[grid](
                x, y, seed, n - 1, *how, **options
            )

    kernel = triton.dropout.dropout_kernel
    monkeypatch.setattr(triton.dropout, "dropout_kernel", OneTooFew())
    with pytest.raises(Violation, match="last to store to y_ptr.*1 of 24 .* by no program"):
        hold(dropout.CONTRACT, triton, dropout.Case())
