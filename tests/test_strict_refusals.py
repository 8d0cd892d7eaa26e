"""What the compiler refuses, the strict interpreter refuses; it says what Triton's cannot do."""

import pytest
import torch
import triton
import triton.language as tl
from planted import found, ints, where
from triton.language.extra.libdevice import j0
from triton.runtime.interpreter import InterpretedFunction

from twofold.core.verify.strict import (
    Fault,
    StaticAssertion,
    Unsupported,
    strict_interpreter,
)


@pytest.fixture(autouse=True)
def strict():
    with strict_interpreter():
        yield


@InterpretedFunction
def refused(x_ptr, y_ptr, HOW: tl.constexpr):
    i = tl.arange(0, 16)
    square = i[:, None] * 16 + i[None, :]
    if HOW == "arange":
        tl.store(y_ptr + tl.arange(0, 6), 0.0)
    elif HOW == "exp":
        tl.store(y_ptr + i, tl.exp(tl.load(x_ptr + i)))
    elif HOW == "mixed":
        tl.dot(tl.load(x_ptr + square), tl.load(y_ptr + square))
    elif HOW == "small":
        few = i[:, None] * 16 + tl.arange(0, 4)[None, :]
        tl.dot(tl.load(x_ptr + few), tl.trans(tl.load(x_ptr + few)))
    elif HOW == "condition":
        if tl.load(x_ptr + i) > 0:
            tl.store(y_ptr + i, 1.0)
    elif HOW == "float index":
        tl.store(y_ptr + i * 0.5, 1.0)
    elif HOW == "shapes":
        tl.store(y_ptr + i, tl.arange(0, 8))
    elif HOW == "float loop":
        for j in range(tl.load(y_ptr)):
            tl.store(y_ptr + j, 1.0)
    elif HOW == "slice":
        tl.store(y_ptr + tl.arange(0, 8), tl.load(y_ptr + i)[0:8])
    elif HOW == "assumption":
        tl.assume(tl.load(y_ptr) > 1)


NUMBER = 3.0
CONSTANT = tl.constexpr(3.0)


@InterpretedFunction
def of_python(y_ptr, n, HOW: tl.constexpr, WIDTH: tl.constexpr = NUMBER):
    if HOW == "global":
        tl.store(y_ptr, NUMBER)
    for i in range(n):
        tl.store(y_ptr + i, CONSTANT)
        if HOW == "break":
            break
        if HOW == "continue":
            continue
        if HOW == "return":
            return
    while HOW == "while":
        break
    for j in tl.static_range(2):
        if j == 1:
            return
        tl.store(y_ptr + j, WIDTH)


@InterpretedFunction
def asserts(x_ptr, N: tl.constexpr):
    tl.static_assert(N == 8, "N is 8")
    tl.store(x_ptr, 1.0)


@InterpretedFunction
def assembly(x_ptr):
    x = tl.load(x_ptr)
    tl.store(x_ptr, tl.inline_asm_elementwise("mov $0, $1;", "=r,r", [x], tl.float32, True, 1))


@InterpretedFunction
def from_libdevice(x_ptr):
    tl.store(x_ptr, j0(tl.load(x_ptr)))


@InterpretedFunction
def add_to(x_ptr):
    tl.atomic_add(x_ptr + tl.arange(0, 4), tl.full((4,), 1.0, tl.bfloat16))


@InterpretedFunction
def add_through_a_descriptor(x_ptr):
    x = tl.make_tensor_descriptor(x_ptr, [8, 8], [8, 1], [8, 8])
    x.atomic_add([0, 0], tl.full((8, 8), 1.0, tl.float32))


@InterpretedFunction
def through_a_descriptor(x_ptr, y_ptr, rows, first):
    x = tl.make_tensor_descriptor(x_ptr, [rows, 8], [8, 1], [4, 8])
    i, j = tl.arange(0, 4)[:, None], tl.arange(0, 8)[None, :]
    tl.store(y_ptr + i * 8 + j, x.load([first, 0]))


WORDS = {
    "arange": "arange's range must be a power of 2",
    "exp": "Expected dtype ['fp32', 'fp64'] but got fp16",
    "mixed": "Both operands must be same dtype. Got fp16 and fp32",
    "small": "K >= 16",
    "condition": "ValueError: a block of shape (16,) is no condition of if or while",
    "float index": "invalid operands of type pointer<fp32>",
    "shapes": "incompatible dimensions at index 0: 16 and 8",
    "float loop": "TypeError: a loop's bounds and step are scalar integers",
    "slice": "unsupported tensor index",
    "assumption": "Assume failed",
}
AT = {
    "arange": "tl.arange(0, 6)",
    "exp": "tl.exp",
    "mixed": "tl.dot(tl.load(x_ptr + square)",
    "small": "tl.trans",
    "condition": "if tl.load",
    "float index": "0.5",
    "shapes": "y_ptr + i, tl.arange(0, 8)",
    "float loop": "for j",
    "slice": "[0:8]",
    "assumption": "tl.assume",
}


@pytest.mark.parametrize("how", WORDS)
def test_what_the_compiler_refuses_is_a_fault(how):
    x, y = torch.ones(256, dtype=torch.float16), torch.ones(256)
    words = found(refused, (1,), x, y, HOW=how)
    assert words.startswith(f"refused, {where(refused, AT[how])}, program (0, 0, 0): ")
    assert WORDS[how] in words


@pytest.mark.parametrize(
    "how, words",
    [
        ("global", "NameError: a kernel may read the global variable NUMBER only as"),
        ("break", "SyntaxError: the compiler has no break"),
        ("continue", "SyntaxError: the compiler has no continue"),
        ("return", "SyntaxError: the compiler has no return inside a loop"),
        ("while", "SyntaxError: the compiler has no break"),
    ],
)
def test_what_is_pythons_alone_is_a_fault_where_it_is_reached(how, words):
    said = found(of_python, (1,), torch.zeros(4), 4, HOW=how)
    file, line = where(of_python, f'HOW == "{how}"').split(":")
    assert said.startswith(f"of_python, {file}:{int(line) + 1}, program (0, 0, 0): {words}")
    y = torch.zeros(4)
    of_python[1,](y, 4, HOW="none")
    assert y.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize(
    "grid, words",
    [
        ((1, 65536), "has 65536 programs on axis 1; a GPU takes 65535 there"),
        ((1, 1, 70000), "has 70000 programs on axis 2; a GPU takes 65535 there"),
        ((2**31,), "has 2147483648 programs on axis 0; a GPU takes 2147483647 there"),
        ((1, 1, 1, 1), "a grid has at most 3 axes"),
    ],
)
def test_a_grid_that_no_gpu_takes_is_a_fault(grid, words):
    said = found(asserts, grid, torch.zeros(1), N=8)
    assert said.startswith("asserts: ") and words in said


@pytest.mark.parametrize("warps", [0, 3, 64])
def test_a_number_of_warps_that_no_gpu_takes_is_a_fault(warps):
    said = found(asserts, (1,), torch.zeros(1), N=8, num_warps=warps)
    assert said == f"asserts: num_warps is {warps}; it must be a power of 2 and at most 32"
    asserts[1,](torch.zeros(1), N=8, num_warps=32)


def test_a_static_assertion_is_the_kernels_own_refusal():
    words = found(asserts, (1,), torch.zeros(1), N=7, error=StaticAssertion)
    at = where(asserts, "static_assert")
    assert words == f"asserts, {at}, program (0, 0, 0): static_assert: N is 8"
    assert not issubclass(StaticAssertion, Fault)
    asserts[1,](torch.zeros(1), N=8)


@pytest.mark.parametrize(
    "kernel, statement, dtype, words",
    [
        (assembly, "inline_asm", torch.float32, "inline_asm not supported in interpreter mode"),
        (from_libdevice, "j0", torch.float32, "Triton's interpreter has nothing of libdevice"),
        (add_to, "atomic_add", torch.bfloat16, "Triton's interpreter has no atomics on bfloat16"),
        (
            add_through_a_descriptor,
            "atomic_add",
            torch.float32,
            f"Triton {triton.__version__}'s interpreter has no create_descriptor_reduce",
        ),
    ],
)
def test_what_the_interpreter_cannot_do_is_said(kernel, statement, dtype, words):
    said = found(kernel, (1,), torch.ones(8, 8, dtype=dtype), error=Unsupported)
    at = where(kernel, statement)
    assert said == f"{kernel.__name__}, {at}, program (0, 0, 0): {words}"


def test_a_descriptor_keeps_to_its_shape_and_its_tensor():
    x, y = torch.arange(64.0).view(8, 8), torch.ones(4, 8)
    through_a_descriptor[1,](x, y, 8, 6)
    assert y[:2].equal(x[6:]) and not y[2:].any()
    words = found(through_a_descriptor, (1,), x, y, 9, 6)
    at = where(through_a_descriptor, "x.load")
    assert words.startswith(f"through_a_descriptor, {at}, program (0, 0, 0): load from x_ptr of sh")
    assert "8 of 24 unmasked lanes, the first at element 64" in words


@pytest.mark.skipif(
    not hasattr(tl, "atomic_poll"), reason="this Triton has no atomic loads and stores"
)
def test_atomic_loads_and_stores_are_atomics():
    @InterpretedFunction
    def ticket(counter_ptr, out_ptr):
        i = tl.program_id(0)
        tl.atomic_add(counter_ptr, 1)
        tl.store(out_ptr + i, tl.atomic_load(counter_ptr))

    @InterpretedFunction
    def wait(flag_ptr):
        tl.atomic_poll(flag_ptr, 1)

    @InterpretedFunction
    def wait_a_little(flag_ptr, out_ptr):
        met = tl.atomic_poll(flag_ptr, 1, timeout_ns=10)
        tl.store(out_ptr, met.to(tl.int32))

    out = ints(0, 0, 0)
    ticket[3,](ints(0), out)
    assert sorted(out.tolist()) == [1, 2, 3]
    wait[1,](ints(1))
    wait_a_little[1,](ints(0), out)
    assert out[0] == 0
    assert "waits for another program" in found(wait, (1,), ints(0), error=Unsupported)
