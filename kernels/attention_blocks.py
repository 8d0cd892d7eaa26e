"""Which tiles of attention a block mask leaves to visit.

Blocks need not be multiples of tiles, nor tiles of blocks. A tile is live if any block that it
touches is. For each row of tiles (those that one program goes through) a kernel gets two lists:

    live    where its live tiles start, the first of them first
    before  how many of its live tiles start before each tile

Without a block mask the kernels know the range of keys to visit (`seen`). `before` turns this range
into places in the list of live tiles, and `live` turns a place back into a key. So the loops stay
the same, and their length is known. One kernel makes the lists on the device, 8 bytes a tile:
nothing of size M×N, and the host waits for nothing.

`B` batch, `H` heads, `M` queries, `N` keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from twofold.kernels.attention_parts import Call, at
from twofold.kernels.attention_tiles import Tile

BLOCK = 128  # tiles of a row that are examined at a time


def over_keys(x: Call, tile: Tile, rows: range | None = None) -> Call:
    """Return the call with the live key tiles of each query tile, only of `rows` if given."""
    if x.block_mask is None:
        return x
    rows = rows or range(x.longest_q)
    of_queries, of_keys = (tile.block_m, x.block_m), (tile.block_n, x.block_n)
    return _listed(x, rows, *of_queries, x.longest_k, *of_keys, x.block_strides)


def over_queries(x: Call, tile: Tile) -> Call:
    """Return the call with the live query tiles of each key tile."""
    if x.block_mask is None:
        return x
    of_queries, of_keys = (tile.block_m, x.block_m), (tile.block_n, x.block_n)
    b, h, m, n = x.block_strides
    return _listed(x, range(x.longest_k), *of_keys, x.longest_q, *of_queries, (b, h, n, m))


def _listed(
    x: Call, rows: range, row_tile: int, row_block: int, end: int, tile: int, block: int,
    strides: tuple[int, ...],
) -> Call:  # fmt: skip
    """Return the call with a list for each row, made once for batches and heads that share a mask.

    Args:
        x: the call.
        rows: the queries (or keys); each tile of them is a row, and has a list.
        row_tile, row_block: how many of them there are in a tile, and in a block.
        end: how many keys (or queries) there are on the other axis, whose tiles are listed.
        tile, block: how many of these there are in a tile, and in a block.
        strides: of the block mask, the axis of `rows` before the axis that is listed.
    """
    B, H = (1 if s == 0 else n for n, s in zip(x.block_mask.shape, strides[:2], strict=False))
    number, tiles = triton.cdiv(len(rows), row_tile), triton.cdiv(end, tile)
    live, before = x.block_mask.new_empty((2, B, H, number, tiles + 1), dtype=torch.int32)
    lists_kernel[(B * H * number,)](
        x.block_mask, live, before, strides,
        H, number, tiles, rows.start, rows.stop, end, row_tile, row_block, tile, block,
        BLOCK=BLOCK, num_warps=1,
    )  # fmt: skip
    live, before = (a.expand(*x.block_mask.shape[:2], -1, -1) for a in (live, before))
    return x._replace(live=live, before=before, live_strides=live.stride())


@triton.jit
def places(x, b, h, row, begin, full, stop, end, BLOCK: tl.constexpr):
    """Turn what `seen` returns into places among a row's live tiles; all are live by default.

    The i-th place is i·BLOCK, like the start of the i-th tile: the same loops run over either.
    """
    if x.live is not None:
        begin = place_of(x, b, h, row, tl.minimum(begin, end), BLOCK)
        full = place_of(x, b, h, row, full, BLOCK)
        stop = place_of(x, b, h, row, stop, BLOCK)
        end = place_of(x, b, h, row, end, BLOCK)
    return begin, full, stop, end


@triton.jit
def place_of(x, b, h, row, start, BLOCK: tl.constexpr):
    """Return the place of the first live tile at or after `start`."""
    return tl.load(at(x.before, x.live_strides, b, h, row, 0, tl.cdiv(start, BLOCK)))


@triton.jit
def tile_at(x, b, h, row, place, BLOCK: tl.constexpr):
    """Return the start of the tile at a place."""
    if x.live is not None:
        return tl.load(at(x.live, x.live_strides, b, h, row, 0, place // BLOCK))
    else:
        return place


@triton.jit
def lists_kernel(
    mask_ptr,  # (B, H, blocks on the rows' axis, blocks on the listed axis) bool
    live_ptr, before_ptr,  # (B, H, rows, tiles + 1) int32
    mask_strides,
    H, rows, tiles,
    first, row_end, end,  # queries or keys: start of the first row, and the ends of both axes
    row_tile, row_block, tile, block,  # queries or keys in a tile and in a block, on both axes
    BLOCK: tl.constexpr,
):  # fmt: skip
    """List the live tiles of one row."""
    row = tl.program_id(0).to(tl.int64)
    batch_head, start_of_row = row // rows, first + row % rows * row_tile
    mask_ptr += batch_head // H * mask_strides[0] + batch_head % H * mask_strides[1]
    top = start_of_row // row_block
    bottom = (tl.minimum(start_of_row + row_tile, row_end) - 1) // row_block
    live_ptr += row * (tiles + 1)
    before_ptr += row * (tiles + 1)
    count = 0
    for start in range(0, tiles + 1, BLOCK):  # one more: all live tiles are before the end
        number = start + tl.arange(0, BLOCK)
        left = number * tile // block
        right = (tl.minimum((number + 1) * tile, end) - 1) // block
        live = tl.zeros([BLOCK], tl.int32)
        for i in range(top, bottom + 1):
            for j in range(tl.cdiv(tile - 1, block) + 1):  # a tile touches at most this many
                touched = (number < tiles) & (left + j <= right)
                at_block = i * mask_strides[2] + (left + j).to(tl.int64) * mask_strides[3]
                live |= tl.load(mask_ptr + at_block, mask=touched, other=0).to(tl.int32)
        place = count + tl.cumsum(live, axis=0) - live
        tl.store(before_ptr + number, place * tile, mask=number <= tiles)
        tl.store(live_ptr + place, number * tile, mask=live != 0)
        count += tl.sum(live, axis=0)
