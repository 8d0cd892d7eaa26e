"""The strict interpreter's numbers: products, casts, bfloat16, arguments.

The kernels are wrapped for the interpreter by hand, so that they run in it next to a GPU as well.
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from twofold.core.verify.strict import numerics as strict_numerics
from twofold.core.verify.strict import strict_interpreter


@InterpretedFunction
def first_or_zero(x_ptr, y_ptr):
    i = tl.program_id(0)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < 1, other=0))


@InterpretedFunction
def product(a_ptr, b_ptr, c_ptr, PRECISION: tl.constexpr, N: tl.constexpr = 16):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    a, b = tl.load(a_ptr + i * N + j), tl.load(b_ptr + i * N + j)
    tl.store(c_ptr + i * N + j, tl.dot(a, b, input_precision=PRECISION))


@InterpretedFunction
def cast(x_ptr, y_ptr, n, BLOCK: tl.constexpr, ROUNDING: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0)
    tl.store(y_ptr + i, x.to(y_ptr.dtype.element_ty, ROUNDING), mask=i < n)


@InterpretedFunction
def arithmetic(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(out_ptr + i, x + y)
    tl.store(out_ptr + n + i, x * y)
    tl.store(out_ptr + 2 * n + i, -x)
    tl.store(out_ptr + 3 * n + i, tl.where(x < y, x, y))
    tl.store(out_ptr + 4 * n + i, tl.maximum(x, y))


@InterpretedFunction
def plus(a, b):
    return a + b


@InterpretedFunction
def sum_up(x_ptr, y_ptr, BLOCK: tl.constexpr):
    tl.store(y_ptr, tl.reduce(tl.load(x_ptr + tl.arange(0, BLOCK)), 0, plus))


@InterpretedFunction
def three_times(y_ptr, scale):
    tl.store(y_ptr, scale * 3)


@pytest.fixture
def shuffled():
    """Run programs in a random order, on which no number may depend."""
    with strict_interpreter():
        yield


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_16_bits_are_exact(strict, dtype):
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randint(-8, 9, (2, 16, 16), generator=rng) / 8
    c = torch.zeros(16, 16)
    product[1,](a.to(dtype), b.to(dtype), c, PRECISION="tf32")
    assert c.equal(a @ b)


def test_8_bits_round_to_nearest_even_and_their_products_are_exact(strict):
    rng = torch.Generator().manual_seed(0)
    a, b = (x.to(torch.float8_e4m3fn) for x in torch.randn(2, 32, 32, generator=rng))
    c = torch.zeros(32, 32)
    product[1,](a, b, c, PRECISION="tf32", N=32)
    assert (c.double() - a.double() @ b.double()).abs().max() <= 32 * 2**-24 * 64
    bits = np.arange(0x7F, dtype=np.uint8)  # every nonnegative number, up to 448
    held = strict_numerics.from_e4m3(bits)
    middle = (held[1:].astype(np.float64) + held[:-1]) / 2
    even = np.where(bits[:-1] % 2 == 0, held[:-1], held[1:])
    assert np.array_equal(strict_numerics.from_e4m3(strict_numerics.to_e4m3(middle)), even)
    assert np.array_equal(strict_numerics.to_e4m3(held), bits)
    assert np.isnan(strict_numerics.from_e4m3(strict_numerics.to_e4m3(np.array([465.0])))).all()


def test_tf32_cuts_operands_off(strict):
    eye, c = torch.eye(16), torch.zeros(16, 16)
    x = torch.full((16, 16), 1 + 2**-10 + 2**-11 + 2**-23)
    product[1,](x, eye, c, PRECISION="tf32")
    assert c.eq(1 + 2**-10).all()
    product[1,](eye, -x, c, PRECISION="tf32")
    assert c.eq(-1 - 2**-10).all()
    product[1,](x, eye, c, PRECISION="ieee")
    assert c.equal(x)


def test_the_nearest_tf32_number_is_away_from_zero_at_a_tie():
    x = np.array([1 + 2**-11, 1 + 2**-11 - 2**-23, -1 - 2**-11, np.inf, -np.inf], np.float32)
    nearest = [1 + 2**-10, 1, -1 - 2**-10, np.inf, -np.inf]
    assert strict_numerics.nearest_tf32(x).tolist() == nearest
    nan = np.array([0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(strict_numerics.nearest_tf32(nan)).all()


def test_tf32x3_is_nearly_float32(strict):
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 16, 16, generator=rng)
    exact = a.double() @ b.double()
    scale = a.double().abs() @ b.double().abs()
    share = {}
    for precision in ("ieee", "tf32x3", "tf32"):
        c = torch.zeros(16, 16)
        product[1,](a, b, c, PRECISION=precision)
        share[precision] = ((c.double() - exact).abs() / scale).max().item()
    # 17 float32 additions; three more roundings for split operands; two truncated operands
    assert share["ieee"] <= 17 * 2**-24
    assert 2**-25 < share["tf32x3"] <= 17 * 2**-24 + 2**-20
    assert 2**-14 < share["tf32"] <= 2**-9


def test_tf32x3_splits_infinity_and_keeps_it(strict):
    a, c = torch.eye(16), torch.zeros(16, 16)
    a[3, 3] = torch.inf
    product[1,](a, torch.full((16, 16), 1 + 2**-15), c, PRECISION="tf32x3")
    assert c[3].eq(torch.inf).all()
    assert c[4].eq(1 + 2**-15).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_round_to_nearest_even(shuffled, dtype):
    """Every upper half of a float32, with lower halves below, at and above the tie."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0x1000, 0x3000], np.uint32)
    x = torch.from_numpy((upper[:, None] | lower).view(np.float32).ravel())
    y = torch.zeros(len(x), dtype=dtype)
    cast[len(x) // 8192,](x, y, len(x), BLOCK=8192, ROUNDING=None)
    truth = x.to(dtype)
    assert y.isnan().equal(truth.isnan())
    known = ~truth.isnan()
    assert y[known].view(torch.int16).equal(truth[known].view(torch.int16))
    back = torch.zeros(len(x))
    cast[len(x) // 8192,](y, back, len(x), BLOCK=8192, ROUNDING=None)
    assert back[known].equal(truth.float()[known])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_round_toward_zero_where_asked(strict, dtype):
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(1024, dtype=dtype)
    cast[1,](x, y, 1024, BLOCK=1024, ROUNDING="rtz")
    nearest = x.to(dtype)
    assert (y.float().abs() <= x.abs()).all()
    assert y[nearest.float().abs() <= x.abs()].equal(nearest[nearest.float().abs() <= x.abs()])
    assert (torch.nextafter(y, y * torch.inf).float().abs() > x.abs()).all()


def test_integers_and_bfloat16_convert_by_value(strict):
    x, y = torch.tensor([1, -3, 255, 257], dtype=torch.int32), torch.zeros(4, dtype=torch.bfloat16)
    cast[1,](x, y, 4, BLOCK=4, ROUNDING=None)
    assert y.tolist() == [1, -3, 255, 256]
    z = torch.zeros(4, dtype=torch.int32)
    cast[1,](y * 1.25, z, 4, BLOCK=4, ROUNDING=None)
    assert z.tolist() == (y * 1.25).int().tolist()


def test_bfloat16_arithmetic_is_bfloat16(strict):
    x, y = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = torch.zeros(5, 64, dtype=torch.bfloat16)
    arithmetic[1,](x, y, out, 64, BLOCK=64)
    low, high = torch.minimum(x, y), torch.maximum(x, y)
    assert out.equal(torch.stack([x + y, x * y, -x, low, high]))


def test_bfloat16_sums_add_numbers(strict):
    x = torch.tensor([0.5, 1, 1.5, 2, -8, 4, 0.25, 0.75]).bfloat16()
    y = torch.zeros(1, dtype=torch.bfloat16)
    sum_up[1,](x, y, BLOCK=8)
    assert y.item() == 2


def test_python_numbers_have_the_types_of_a_compiled_kernel(strict):
    y, x = torch.zeros(1), 0.3
    three_times[1,](y, x)
    assert y.item() == np.float32(x) * np.float32(3) != np.float32(x * 3)
    with strict_interpreter(numerics=False):
        three_times[1,](y, x)
    assert y.item() == np.float32(x * 3)


@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_overflow_is_exact(operation, dtype):
    values = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
    a, b = (x.astype(dtype) for x in np.meshgrid(values, values))
    wide = getattr(np, {"sub": "subtract", "mul": "multiply"}.get(operation, operation))(
        a.astype(int), b.astype(int)
    )
    fits = (wide >= values[0]) & (wide <= values[-1])
    assert not strict_numerics.overflows(operation, a[fits], b[fits])
    out = np.argwhere(~fits)[:: max(1, int((~fits).sum()) // 50)]
    for i, j in out:
        assert strict_numerics.overflows(operation, a[i, j : j + 1], b[i, j : j + 1])


def test_a_number_given_for_masked_lanes_counts_even_if_it_is_zero(shuffled):
    """Triton's interpreter drops it when loading one element, taking 0 for "not given"."""
    y = torch.ones(2)
    first_or_zero[2,](torch.ones(1), y)
    assert y.tolist() == [1, 0]
