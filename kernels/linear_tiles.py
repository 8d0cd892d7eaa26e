"""Tiles of matrix products, and among how many programs each tile's features are split.

`M` × `K` times `K` × `N`, as in `linear`. The tile of a product, and whether its K features are
split, are chosen by an estimate of its time: programs run in waves of as many as the machine holds,
and a wave takes as long as its multiprocessors multiply, or wait. Only the gradient of a weight may
be split. It has few tiles with many features, which are rows of the batch: 36 of 128 × 128 at width
768, on 132 multiprocessors. Split in three, 108 programs add up a third each; a second kernel adds
what they wrote, in the order of their numbers, so that the bits are the same in every run. Other
products are not split: a row has the same bits whatever the other rows hold.

The constants were measured on one H200 with tiles of 128 × 128 and no epilogue (577 TFLOP/s;
`benchmarks/results/gpu`) or are estimates; no choice has been timed yet.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple


class Tile(NamedTuple):
    """Rows, columns and depth of a program's tile; tile rows in a group; warps, stages."""

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int


# (bytes of an element, tile), the largest first: large tiles load less, small ones fill the GPU.
# None spills with GELU after it (`twofold verify compile linear`); all fit gfx942's 64 KiB.
TILES = (
    (2, Tile(128, 128, 64, 8, 8, 3)),
    (2, Tile(64, 64, 64, 8, 4, 4)),
    (2, Tile(32, 32, 64, 8, 4, 4)),
    (4, Tile(128, 64, 32, 8, 8, 2)),
    (4, Tile(64, 64, 32, 8, 8, 3)),
    (4, Tile(32, 32, 32, 8, 4, 2)),
)
# Rows of c whose stride is not a multiple of 16 are written an element at a time, and the addresses
# of larger tiles of two-byte elements would spill.
UNALIGNED = Tile(64, 64, 64, 8, 8, 4)
# It takes 144 KiB of shared memory, more than most GPUs have. Each byte read from there feeds more
# multiplications: by instruction counts its loop could reach 0.95 of the tensor cores' peak, that
# of 128×128 no more than 0.74 (it reached 0.58 on an H200, in backward). Not timed yet.
HOPPER = Tile(128, 256, 64, 8, 8, 3)
ENTRIES = (*TILES, (2, UNALIGNED), (2, HOPPER))  # all of them, for the tests
# Tiles of at least WIDE columns compute an activation in PARTS. On all of 128×128 at once it takes
# 175 registers per thread, and leaves no room on a multiprocessor for a second program to multiply
# meanwhile (0.28 to 0.39 of the peak, measured); in parts it takes 114 (not timed yet).
WIDE, PARTS = 128, 4

MULTIPROCESSORS, SHARED_BYTES = 132, 227 * 1024  # of a Hopper GPU; of each
MOST_SPLITS = 16
# OPERATIONS: multiplications and additions of one multiprocessor in a microsecond, at the
# arithmetic intensity of a tile of 128×128 (INTENSITY); MORE: the gain above that; FLOAT32_SHARE:
# the share that float32 reaches with three tf32 products, each at half the rate of 16 bits.
OPERATIONS, INTENSITY, MORE, FLOAT32_SHARE = 4.4e6, 64.0, 1.1, 1 / 6
# Microseconds: a step of a program that waits for its copies; a program's beginning and end, which
# others on its multiprocessor may hide; another launch.
STEP, ENDS, LAUNCH = 0.4, 3.0, 3.0
BYTES = 3e6  # of memory traffic in a microsecond


class Choice(NamedTuple):
    """A tile, and among how many programs the features of each are split."""

    tile: Tile
    splits: int


@lru_cache(maxsize=1024)
def choose(
    m: int,
    n: int,
    k: int,
    element_size: int,
    *,
    aligned: bool = True,
    whole: bool = True,
    activated: bool = False,
    architecture: str = "",
) -> Choice:
    """Return the choice with which an m × n product of k features should take the least time.

    `aligned` says whether the stride of its rows is a multiple of 16 elements; `whole`, that its
    features must not be split; `activated`, whether an activation follows. `architecture` is what
    `device.architecture` returns: "sm_90" has a tile of its own, which leaves no room for a second
    program that multiplies while the first activates.
    """
    fitting = [tile for size, tile in TILES if size == min(max(element_size, 2), 4)]
    if element_size <= 2 and not aligned:
        fitting = [UNALIGNED, fitting[-1]]
    elif element_size <= 2 and architecture == "sm_90" and not activated:
        fitting = [HOPPER, *fitting]
    # Of equally fast tiles, the smallest: programs that wait for copies should wait for few.
    choices = (choose_splits(m, n, k, t, element_size, whole=whole) for t in reversed(fitting))
    return min(choices, key=lambda choice: microseconds(m, n, k, choice, element_size))


@lru_cache(maxsize=1024)
def choose_splits(
    m: int, n: int, k: int, tile: Tile, element_size: int, *, whole: bool = True
) -> Choice:
    """Return a tile with the splits that should take the least time: one if `whole`."""
    choices = (Choice(tile, splits) for splits in range(1, 2 if whole else MOST_SPLITS + 1))
    return min(choices, key=lambda choice: microseconds(m, n, k, choice, element_size))


def microseconds(m: int, n: int, k: int, choice: Choice, element_size: int = 2) -> float:
    """Return how long a product should take."""
    tile, splits = choice
    tiles = math.ceil(m / tile.block_m) * math.ceil(n / tile.block_n)
    steps = math.ceil(math.ceil(k / tile.block_k) / splits)
    area, around = tile.block_m * tile.block_n, tile.block_m + tile.block_n
    shared = around * tile.block_k * tile.num_stages * element_size
    # Programs of a wave on one multiprocessor: no more than fit on it, or than there are.
    beside = min(max(SHARED_BYTES // shared, 1), math.ceil(tiles * splits / MULTIPROCESSORS))
    waves = math.ceil(tiles * splits / (beside * MULTIPROCESSORS))
    rate = OPERATIONS * min(MORE, area / around / INTENSITY)
    rate *= FLOAT32_SHARE if element_size == 4 else 1.0
    step = max(beside * 2 * area * tile.block_k / rate, STEP)
    time = waves * (steps * step + ENDS)
    return time if splits == 1 else time + LAUNCH + 8 * splits * m * n / BYTES
