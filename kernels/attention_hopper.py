"""Hopper's own kernel for attention forward: which calls take it, and how it is launched.

The kernel is `attention_hopper_kernel`. It needs Gluon, which some versions of Triton lack and
which changes between versions, so that module is imported only by the first call that takes it.

`B` batch, `H` heads, `K` KV heads, `M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton

from twofold.kernels.attention_order import heads_together
from twofold.kernels.device import architecture, cache_bytes, multiprocessors, within_reach
from twofold.reference.attention_scores import Options

ROWS = 64  # queries of a consumer: the rows of one product of its four warps
PRODUCER_REGISTERS = 24
ITS_OPTIONS = ("softmax_scale", "causal", "dropout_p", "seed")  # all others must be None
BYTES_ALIGNED = 16  # alignment that a tensor map needs of rows, heads, batches, the first element
MOST_BYTES = 2**40  # strides of a tensor map are below this


class Variant(NamedTuple):
    """How the kernel works.

    Attributes:
        block_n: keys at a time.
        stages: blocks of keys, and of values, in shared memory.
        consumers: groups of four warps that multiply.
        turns: whether consumers take turns to issue products, so that one multiplies while the
            other computes its softmax: FlashAttention-3's ping-pong. On an H200 it gained little or
            nothing (benchmarks/ATTENTION.md): consumers drift apart by themselves.
        early: whether weights are rounded before waiting for the product of the previous weights:
            this leaves less to do in between, but takes registers.
        persistent: whether as many programs as there are multiprocessors share the tiles, or each
            tile has a program.
        pairs: whether persistent programs, if causal and the number of heads is even, take tiles in
            pairs of equal work, instead of the longest of a few heads first.
    """

    block_n: int
    stages: int
    consumers: int = 2
    turns: bool = False
    early: bool = False
    persistent: bool = True
    pairs: bool = False

    @property
    def registers(self) -> int:
        """Registers of a consumer's thread: a share of what the producer leaves of 64 Ki."""
        warps = 4 * (self.consumers + 1)
        share = 2**16 // (32 * warps) // 8 * 8
        left = share * (self.consumers + 1) - PRODUCER_REGISTERS
        return left // self.consumers // 8 * 8


# By head_dim and whether causal: the fastest measured on an H200 at lengths from 512 to 16384, and
# below, the number of queries from which it beats the plain kernel (benchmarks/ATTENTION.md). At
# head_dim 64, causal, the race was run without `pairs`, which made 128 faster by a quarter; with
# them 64 has not been raced.
VARIANTS: dict[tuple[int, bool], Variant] = {
    (64, False): Variant(128, 3, early=True),
    (64, True): Variant(128, 3, early=True, pairs=True),
    (128, False): Variant(128, 2, early=True),
    (128, True): Variant(128, 2, early=True, pairs=True),
}
LEAST_ROWS = {(64, False): 1024, (64, True): 1024, (128, False): 512, (128, True): 512}


def takes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options) -> bool:
    """Return whether this kernel takes a call of attention, on the current device."""
    return (
        architecture() == "sm_90"
        and within_reach(q)
        and plain(options, *q.shape[2:])
        and q.dtype in (torch.float16, torch.bfloat16)
        and all(
            x.numel() > 0 and mapped(x.shape, x.stride(), x.element_size(), x.data_ptr())
            for x in (q, k, v)
        )
        and available()
    )


def plain(options: Options, rows: int, head_dim: int) -> bool:
    """Return whether a call has enough rows and no options but a positive scale and `causal`."""
    others = (x for name, x in options._asdict().items() if name not in ITS_OPTIONS)
    return (
        rows >= LEAST_ROWS.get((head_dim, bool(options.causal)), math.inf)
        and all(x is None for x in others)
        and options.dropout_p == 0.0
        and options.causal != "top-left"
        and 0.0 < options.scale(head_dim) < math.inf
    )


def mapped(shape: Sequence[int], strides: Sequence[int], size: int, first: int) -> bool:
    """Return whether a tensor map can describe elements of `size` bytes, the first at `first`."""
    *outer, last = zip(shape, strides, strict=True)
    apart = [stride * size for length, stride in outer if length > 1]
    return (
        (last[1] == 1 or last[0] == 1)
        and first % BYTES_ALIGNED == 0
        and all(n % BYTES_ALIGNED == 0 and 0 < n < MOST_BYTES for n in apart)
        and all(length < 2**31 for length in shape)
    )


@lru_cache(maxsize=1)
def available() -> bool:
    """Return whether this Triton has Gluon for Hopper, in which the kernel is written."""
    try:
        return importlib.util.find_spec("triton.experimental.gluon.nvidia.hopper") is not None
    except ImportError:
        return False


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    softmax_scale: float,
    causal: bool,
    variant: Variant | None = None,
) -> None:
    """Write the output of attention into `out` and the log-sum-exp into `lse`.

    Args:
        q, out: (B, H, M, D) float16 or bfloat16.
        k, v: (B, K, N, D), of the same type; K divides H. All of these are as `mapped` says.
        lse: (B, H, M) float32, contiguous: −∞, and zeros in `out`, where a query sees no key.
        softmax_scale: positive.
        causal: whether query i sees keys 0 … i + N − M only.
        variant: overrides the table's choice.
    """
    from twofold.kernels.attention_hopper_kernel import forward_kernel

    (B, H, M, D), (K, N) = q.shape, k.shape[1:3]
    how = variant or VARIANTS[D, causal]
    blocks = triton.cdiv(M, ROWS * how.consumers)
    tiles = blocks * B * H
    together = 1
    if causal:
        read = 2 * N * D * k.element_size()
        together = H // K * heads_together(B * K, read, cache_bytes())
    programs = min(tiles, multiprocessors(q.device.index)) if how.persistent else tiles
    forward_kernel[(programs,)](
        _tiles(q, ROWS), _tiles(k, how.block_n), _tiles(v, how.block_n), _tiles(out, ROWS),
        lse, H, H // K, M, N, tiles, together,
        softmax_scale * math.log2(math.e),
        CAUSAL=causal, BLOCK_N=how.block_n, STAGES=how.stages, CONSUMERS=how.consumers,
        PAIRS=how.pairs and how.persistent and causal and B * H % 2 == 0,
        TURNS=how.turns, EARLY=how.early, REGISTERS=how.registers,
        num_warps=4,
    )  # fmt: skip


def _tiles(x: torch.Tensor, rows: int) -> Any:
    """Describe x (B, H, L, D) to the TMA, which copies `rows` rows of a head at a time."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    D = x.shape[-1]
    # An axis of length 1 may have any stride; the map needs one that it can describe.
    strides = [s if n > 1 else D for n, s in zip(x.shape[:-1], x.stride(), strict=False)]
    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, rows, D], layout)
