"""Which tiles of attention a block mask leaves: the others are not visited.

Blocks need not be multiples of tiles, nor tiles of blocks. A tile is live if any block that it
touches is. For each row of tiles, those that a program goes through, a kernel is handed two lists:

    live    where its live tiles start, the first of them first
    before  how many of its live tiles start before each tile

What the kernels know without a block mask, between which keys tiles are to be visited (`seen`),
becomes places in the list of live tiles by the second, and a place becomes a key again by the
first. The loops are the same, and know how often they run. Made on the device, of 8 bytes a tile:
nothing of size M×N, and nothing is waited for.

`B` batch, `H` heads, `M` queries, `N` keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from twofold.kernels.attention_parts import Call, at
from twofold.kernels.attention_tiles import Tile


def over_keys(x: Call, tile: Tile, rows: range | None = None) -> Call:
    """Return the call with the live tiles of keys of each tile of queries, of some if of `rows`."""
    if x.block_mask is None:
        return x
    rows = rows or range(x.longest_q)
    live = _touched(_own(x), 2, rows, tile.block_m, x.block_m)
    live = _touched(live, 3, range(x.longest_k), tile.block_n, x.block_n)
    return _listed(x, live, tile.block_n)


def over_queries(x: Call, tile: Tile) -> Call:
    """Return the call with the live tiles of queries of each tile of keys."""
    if x.block_mask is None:
        return x
    live = _touched(_own(x), 2, range(x.longest_q), tile.block_m, x.block_m)
    live = _touched(live, 3, range(x.longest_k), tile.block_n, x.block_n)
    return _listed(x, live.mT, tile.block_m)


def _own(x: Call) -> torch.Tensor:
    """Return the block mask once, not for each of the batches and heads that share it."""
    b, h = (slice(1 if stride == 0 else None) for stride in x.block_strides[:2])
    own: torch.Tensor = x.block_mask[b, h]
    return own


def _touched(
    blocks: torch.Tensor, axis: int, numbers: range, tile: int, block: int
) -> torch.Tensor:
    """Say of each tile of these queries or keys whether any block that it touches is True."""
    first = torch.arange(numbers.start, numbers.stop, tile, device=blocks.device)
    last = (first + tile).clamp(max=numbers.stop) - 1
    up_to = blocks.cumsum(axis, dtype=torch.int32)
    before, through = (up_to.index_select(axis, i // block) for i in (first, last))
    return (through > before) | blocks.index_select(axis, first // block)


def _listed(x: Call, live: torch.Tensor, size: int) -> Call:
    """Return the call with the lists of live tiles (B or 1, H or 1, rows, tiles), of that size."""
    B, H = x.block_mask.shape[:2]
    live = torch.nn.functional.pad(live, (0, 1)).to(torch.int32)  # all are before one behind all
    order = live.argsort(stable=True, dim=-1, descending=True).to(torch.int32)
    before = live.cumsum(-1, dtype=torch.int32) - live
    order, before = ((size * a).contiguous().expand(B, H, -1, -1) for a in (order, before))
    return x._replace(live=order, before=before, live_strides=order.stride())


@triton.jit
def places(x, b, h, row, begin, full, stop, end, BLOCK: tl.constexpr):
    """Turn what `seen` returns into places among the live tiles of a row; all are live by default.

    The i-th place is i·BLOCK, as the start of the i-th tile is: loops run over either alike.
    """
    if x.live is not None:
        begin = place_of(x, b, h, row, tl.minimum(begin, end), BLOCK)
        full = place_of(x, b, h, row, full, BLOCK)
        stop = place_of(x, b, h, row, stop, BLOCK)
        end = place_of(x, b, h, row, end, BLOCK)
    return begin, full, stop, end


@triton.jit
def place_of(x, b, h, row, start, BLOCK: tl.constexpr):
    """Return the place of the first live tile that does not start before."""
    return tl.load(at(x.before, x.live_strides, b, h, row, 0, tl.cdiv(start, BLOCK)))


@triton.jit
def tile_at(x, b, h, row, place, BLOCK: tl.constexpr):
    """Return where the tile at a place starts."""
    if x.live is not None:
        return tl.load(at(x.live, x.live_strides, b, h, row, 0, place // BLOCK))
    else:
        return place
