"""Race ways to compute a matrix product on Hopper: tiles, ways to copy, a kernel of its own.

The products of a layer of BERT-base at 16,384 tokens, and of a wider one, each by itself: forward
(x·Wᵀ + b, with GELU after the first of the feed-forward), dx = dz·W and dW = dzᵀ·x. The contenders
are the plain kernel in its tiles, with features split or not; the same with tiles copied by
descriptors, in a persistent grid or not; Hopper's own (`linear_hopper_kernel.py`); and torch's,
which is cuBLAS. One that does not run, or whose rows do not agree with torch's to half their
digits, is left out and named; `tests/test_linear_variants.py` judges accuracy by the contract.

    python benchmarks/linear_variants.py --save
    python benchmarks/linear_variants.py --hopper --save      Hopper's own and torch's, beside these

Hopper's own is raced separately, as a kernel that waits in vain or writes out of bounds would take
its process down. The results of both are in one file.

Predictions of November 2026, before any of it ran, in TFLOP/s on an H200. There cuBLAS had reached
425 followed by GELU at 768 features and 613 at 2048, the plain kernel 277 and 381; both products of
backward, less the time for the bytes of the pass over dz, some 415 at 768 and 577 at 2048.

- GELU in parts, two programs on a multiprocessor: 277 → 390 at 768, 381 → 520 at 2048. What is
  not part of the product (bias, GELU, two stores) takes as many instructions as it has clocks.
- Features of dW split: 768×768 from 155 to 395, 3072×768 from 315 to 435, as in `linear_tiles`.
- 128×256 in one program: 600 at 2048, and no gain at 768, where nothing hides what follows the
  12 steps of the product.
- Descriptors: fewer instructions in the loop (134 → 70), 1.05; persistent 1.05 more at 768.
- Hopper's own, tiles in turn: 550 at 768, with GELU too, as its groups hide it; a tile shared: 640
  at 2048 and for dW. Its loop has 65 instructions in a step and waits for nothing but copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import harness
import numpy as np
import torch
import triton
import triton.language as tl

from twofold.core import ops
from twofold.core.bench import agreement, machine, problems, timing
from twofold.kernels import linear
from twofold.kernels.activation import activate
from twofold.kernels.device import multiprocessors
from twofold.kernels.linear import halves
from twofold.kernels.linear_tiles import Tile

TOKENS = 16384
SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768), (2048, 8192))  # features in, out
WITH_GELU = ((768, 3072), (2048, 8192))
TILES = (
    Tile(128, 128, 64, 8, 8, 3), Tile(128, 256, 64, 8, 8, 3), Tile(128, 256, 64, 8, 8, 4),
    Tile(64, 128, 64, 8, 4, 4), Tile(128, 128, 64, 8, 4, 3),
)  # fmt: skip
SPLITS = (1, 2, 3, 5, 7, 11)
TORCH, HOPPER = "torch", "hopper"
Call = Callable[[], object]


class Variant(NamedTuple):
    """How Hopper's kernel works.

    Attributes:
        block_n, stages: columns of a tile; slices of BLOCK_K features in shared memory.
        shared: whether both groups of warps multiply for one tile, 64 rows each, or have tiles of
            128 rows in turn.
        parts: in how many parts a tile is written, with GELU and without.
    """

    block_n: int
    stages: int
    shared: bool
    parts: tuple[int, int] = (4, 2)

    @property
    def rows(self) -> int:
        """Of a group of warps."""
        return 64 if self.shared else 128


VARIANTS = (
    Variant(128, 4, False), Variant(128, 5, False), Variant(256, 3, True, (8, 2)),
    Variant(256, 3, True, (8, 4)),
)  # fmt: skip
BLOCK_K, GROUP_M = 64, 8
WRITTEN_IN = 4  # parts by descriptors: whole tiles would take a second program's memory


class Product(NamedTuple):
    """c = f(a·b + bias); z, if there is one, is the argument of f."""

    a: torch.Tensor  # (M, K), rows or columns contiguous
    b: torch.Tensor  # (K, N), likewise
    c: torch.Tensor  # (M, N), contiguous
    bias: torch.Tensor | None = None  # (N,)
    z: torch.Tensor | None = None  # (M, N)


@triton.jit
def descriptor_kernel(
    a_ptr,  # (M, K), or (K, M) if A_TURNED
    b_ptr,  # (K, N), or (N, K) if B_TURNED
    bias_ptr,  # (N,) if HAS_BIAS
    c_ptr,  # (M, N)
    z_ptr,  # (M, N) if GELU
    M, N, K,
    A_TURNED: tl.constexpr,
    B_TURNED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """The product with tiles copied by descriptors: one tile of c after the other."""
    if A_TURNED:
        a_desc = tl.make_tensor_descriptor(a_ptr, [K, M], [M, 1], [BLOCK_K, BLOCK_M])
    else:
        a_desc = tl.make_tensor_descriptor(a_ptr, [M, K], [K, 1], [BLOCK_M, BLOCK_K])
    if B_TURNED:
        b_desc = tl.make_tensor_descriptor(b_ptr, [N, K], [K, 1], [BLOCK_N, BLOCK_K])
    else:
        b_desc = tl.make_tensor_descriptor(b_ptr, [K, N], [N, 1], [BLOCK_K, BLOCK_N])
    c_desc = tl.make_tensor_descriptor(c_ptr, [M, N], [N, 1], [BLOCK_M, BLOCK_N // PARTS])
    z_desc = tl.make_tensor_descriptor(z_ptr, [M, N], [N, 1], [BLOCK_M, BLOCK_N // PARTS])
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    for tile in range(tl.program_id(0), blocks_m * blocks_n, tl.num_programs(0)):
        i, j = tl.swizzle2d(tile // blocks_n, tile % blocks_n, blocks_m, blocks_n, GROUP_M)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        # (1) product
        for k in range(0, K, BLOCK_K):
            if A_TURNED:
                a = tl.trans(a_desc.load([k, i * BLOCK_M]))
            else:
                a = a_desc.load([i * BLOCK_M, k])
            if B_TURNED:
                b = tl.trans(b_desc.load([j * BLOCK_N, k]))
            else:
                b = b_desc.load([k, j * BLOCK_N])
            acc = tl.dot(a, b, acc)
        write(acc, bias_ptr, c_desc, z_desc, i * BLOCK_M, j * BLOCK_N, N, HAS_BIAS, GELU, PARTS)


@triton.jit
def write(
    acc, bias_ptr, c_desc, z_desc, m, n, N, HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Store f(acc + bias) in parts by columns."""
    if PARTS > 1:
        left, right = halves(acc)
        write(left, bias_ptr, c_desc, z_desc, m, n, N, HAS_BIAS, GELU, PARTS // 2)
        write(right, bias_ptr, c_desc, z_desc, m, n + left.shape[1], N, HAS_BIAS, GELU, PARTS // 2)
    else:
        # (1) bias
        if HAS_BIAS:
            columns = n + tl.arange(0, acc.shape[1])
            acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        # (2) activation
        if GELU:
            z_desc.store([m, n], acc.to(z_desc.dtype))
            acc = activate(acc, "gelu")
        c_desc.store([m, n], acc.to(c_desc.dtype))


def with_descriptors(x: Product, tile: Tile, persistent: bool) -> None:
    """Write c and z, with tiles copied by descriptors."""
    (M, K), N = x.a.shape, x.b.shape[1]
    tiles = triton.cdiv(M, tile.block_m) * triton.cdiv(N, tile.block_n)
    programs = min(tiles, 2 * multiprocessors(x.a.device.index)) if persistent else tiles
    triton.set_allocator(lambda size, *_: x.c.new_empty(size, dtype=torch.int8))
    descriptor_kernel[(programs,)](
        x.a, x.b, x.c if x.bias is None else x.bias, x.c, x.c if x.z is None else x.z, M, N, K,
        A_TURNED=x.a.stride(1) != 1, B_TURNED=x.b.stride(1) != 1, HAS_BIAS=x.bias is not None,
        GELU=x.z is not None, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        GROUP_M=tile.group_m, PARTS=WRITTEN_IN, num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip


def on_hopper(x: Product, how: Variant) -> None:
    """Write c and z by Hopper's own kernel."""
    from linear_hopper_kernel import product_kernel

    (M, K), N = x.a.shape, x.b.shape[1]
    parts = how.parts[x.z is None]
    tiles = triton.cdiv(M, how.rows * (1 + how.shared)) * triton.cdiv(N, how.block_n)
    a_turned, b_turned = x.a.stride(1) != 1, x.b.stride(1) != 1
    staged = [how.rows, how.block_n // parts]
    product_kernel[(min(tiles, multiprocessors(x.a.device.index)),)](
        _blocks(x.a.mT, [BLOCK_K, how.rows]) if a_turned else _blocks(x.a, [how.rows, BLOCK_K]),
        _blocks(x.b.mT, [how.block_n, BLOCK_K]) if b_turned
        else _blocks(x.b, [BLOCK_K, how.block_n]),
        x.c if x.bias is None else x.bias, _blocks(x.c, staged),
        _blocks(x.c if x.z is None else x.z, staged), M, N, K, tiles,
        BLOCK_N=how.block_n, BLOCK_K=BLOCK_K, STAGES=how.stages, SHARED=how.shared,
        A_TURNED=a_turned, B_TURNED=b_turned, ROWS=how.rows, GROUP_M=GROUP_M,
        HAS_BIAS=x.bias is not None, GELU=x.z is not None, PARTS=parts, num_warps=4,
    )  # fmt: skip


def _blocks(x: torch.Tensor, block: list[int]) -> Any:
    """Describe contiguous rows to the copy engine, which copies them in such blocks."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), [x.stride(0), 1], block, layout_of(block[1]))


def layout_of(columns: int) -> Any:
    """Return the shared-memory layout of blocks of rows of so many 16-bit numbers."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    width = min(128, 2 * columns)
    return NVMMASharedLayout(swizzle_byte_width=width, element_bitwidth=16, rank=2)


def plain(x: Product, tile: Tile | None, splits: int | None = None) -> None:
    """Write c and z by the plain kernel."""
    kind = None if x.z is None else "gelu"
    whole = x.bias is not None or x.a.stride(1) == 1
    linear.product(x.a, x.b, x.c, False, tile, x.bias, x.z, kind, whole=whole, splits=splits)


def of_torch(x: Product) -> None:
    """Write c by torch, with GELU in a pass of its own."""
    if x.bias is None:
        torch.mm(x.a, x.b, out=x.c)
    else:
        torch.addmm(x.bias, x.a, x.b, out=x.c if x.z is None else x.z)
    if x.z is not None:
        torch.ops.aten.gelu.out(x.z, approximate="none", out=x.c)


class Layer:
    """A linear layer whose three products are computed by one of the above."""

    def __init__(self, make: Callable[[Product], None]) -> None:
        self.make = make

    def forward(
        self, x: Any, weight: Any, bias: Any = None, activation: str | None = None
    ) -> tuple[Any, Any]:
        """Return y = f(x·Wᵀ + b), and what backward needs."""
        if activation not in (None, "gelu"):
            raise NotImplementedError("GELU or no activation")
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = rows.new_empty(len(rows), len(weight))
        z = torch.empty_like(y) if activation else None
        self.make(Product(rows, weight.contiguous().mT, y, bias, z))
        return y.view(*x.shape[:-1], len(weight)), (rows, weight.contiguous(), z, bias, x.shape)

    def backward(self, dout: Any, cache: Any) -> linear.Gradients:
        """Return dx = dz·W, dW = dzᵀ·x and db; the operator's own backward computes dz and db."""
        x, weight, z, bias, shape = cache
        own = linear.Cache(x, weight, z, "gelu" if z is not None else None, bias is not None, False)
        dbias = None if bias is None else torch.empty_like(bias)
        dz = linear._dz(dout.reshape(-1, len(weight)).contiguous(), own, dbias)
        dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        self.make(Product(dz, weight, dx))
        self.make(Product(dz.mT, x, dweight))
        return linear.Gradients(dx.view(shape), dweight, dbias)


def makers(whole: bool) -> dict[str, Callable[[Product], None]]:
    """Return all but torch and Hopper's own, by name; `whole`: no features may be split."""
    found: dict[str, Callable[[Product], None]] = {"plain, table": lambda x: plain(x, None)}
    for tile in TILES:
        size = f"{tile.block_m}×{tile.block_n}, {tile.num_warps} warps, {tile.num_stages} stages"
        for n in (1,) if whole else SPLITS:
            name = f"plain {size}{f', {n} splits' if n > 1 else ''}"
            found[name] = lambda x, tile=tile, n=n: plain(x, tile, n)
        for persistent in (False, True):
            grid = ", persistent" if persistent else ""
            found[f"descriptors{grid} {size}"] = lambda x, tile=tile, persistent=persistent: (
                with_descriptors(x, tile, persistent)
            )
    return found


def hoppers() -> dict[str, Callable[[Product], None]]:
    """Return Hopper's own kernel in its variants, by name."""
    found: dict[str, Callable[[Product], None]] = {}
    for how in VARIANTS:
        kind = "a tile shared" if how.shared else "tiles in turn"
        parts = f", {how.parts[0]} and {how.parts[1]} parts" if how.shared else ""
        name = f"Hopper 128×{how.block_n}, {how.stages} stages, {kind}{parts}"
        found[name] = lambda x, how=how: on_hopper(x, how)
    return found


def products(K: int, N: int, tokens: int = TOKENS) -> dict[str, Product]:
    """Return the products of a layer of K features in and N out, by name."""
    draw = torch.Generator("cuda").manual_seed(0)
    problem = problems.linear(tokens, K, N, "bfloat16")
    x, weight, bias = problem.make(draw, "cuda").values()
    y = x.new_empty(tokens, N)
    dz = torch.randn(tokens, N, generator=draw, dtype=x.dtype, device="cuda")
    z = torch.empty_like(y) if (K, N) in WITH_GELU else None
    return {
        f"forward{'' if z is None else ' gelu'}": Product(x, weight.mT, y, bias, z),
        "dx": Product(dz, weight, torch.empty_like(x)),
        "dweight": Product(dz.mT, x, torch.empty_like(weight)),
    }


def raced(
    x: Product, made: Mapping[str, Callable[[Product], None]], seconds: float
) -> dict[str, Any]:
    """Return TFLOP/s of all contenders, torch first, and why any were left out."""
    (M, K), N = x.a.shape, x.b.shape[1]
    problem = problems.linear(M, K, N, "bfloat16")
    of_torch(x)
    wanted = [x.c.clone(), *(() if x.z is None else (x.z.clone(),))]
    ready: dict[str, list[Call]] = {TORCH: [lambda: of_torch(x)]}
    left_out: dict[str, str] = {}
    for who, make in made.items():
        try:
            for kept in (x.c, *(() if x.z is None else (x.z,))):
                kept.fill_(torch.nan)
            make(x)
            torch.cuda.synchronize()
            fault = agreement.stray([x.c, *(() if x.z is None else (x.z,))], wanted, problem)
        except Exception as error:  # a fault of its own: the others go on
            fault = f"{type(error).__name__}: {error}"[:200]
        if fault:
            left_out[who] = fault
        else:
            ready[who] = [lambda make=make: make(x)]
    times = timing.race(ready, "cuda", seconds, left_out)
    rates = {who: 2e-12 * M * K * N / float(np.median(taken)) for who, taken in times.items()}
    return {"tera_operations_per_second": rates, "left_out": left_out}


def told(race: Mapping[str, Any]) -> str:
    """Return the quickest, and the contenders left out, in words."""
    rates = race["tera_operations_per_second"]
    names = "; ".join(f"{who}: {why}" for who, why in race["left_out"].items())
    said = f"{harness.leading(rates)}; torch {rates.get(TORCH, 0):.0f}"
    return said + (f"; left out {names}" if names else "")


def main() -> None:
    """Race every product, and write the result after each."""
    asked = harness.options(
        __doc__,
        hopper={"action": "store_true", "help": "Hopper's own kernel instead"},
        seconds={"type": float, "default": 1.0, "help": "for each product's race"},
    )
    if not ops.cuda_available():
        raise SystemExit("linear_variants.py needs a GPU")
    result = harness.begun(asked.threads, "cuda")
    result["ceilings"] = machine.ceilings("cuda", 1.0)._asdict()
    races = result[HOPPER if asked.hopper else "products"] = []
    for K, N in SHAPES:
        for name, product in products(K, N).items():
            made = hoppers() if asked.hopper else makers(product.bias is not None)
            found = {"features_in": K, "features_out": N, "product": name}
            found |= raced(product, made, asked.seconds)
            races.append(found)
            print(f"{K} → {N} {name}: {told(found)}", flush=True)
            harness.add("linear_variants", result, asked)


if __name__ == "__main__":
    main()
