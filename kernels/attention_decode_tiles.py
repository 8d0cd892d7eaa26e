"""The tile table of the decoding kernel, and how a tile is chosen; it needs no triton."""

from __future__ import annotations

from typing import NamedTuple

SPLIT = 512  # keys in a part, see `attention_decode`
MOST_SPLIT = 64  # rows; more fill a GPU without parts, whose memory grows with capacity × queries


class Tile(NamedTuple):
    """Rows (queries of heads that share keys) and keys a program works on at a time; its warps.

    `chunk_d` is how many features the products of queries and keys take at a time; 0 means all.
    """

    block_r: int
    block_n: int
    num_warps: int
    num_stages: int
    chunk_d: int = 0


Key = tuple[int, int, int]  # most rows, bytes of an element, largest head_dim

ANY_ROWS = 2**31
FEW_ROWS = 16  # the fewest that a matrix unit takes

# In order: the first that fits is taken. Few rows are bound by memory, so as many keys are in
# flight as registers and shared memory hold; none spills on any GPU, whatever the options
# (`twofold verify compile attention_decode`).
TILES: dict[Key, Tile] = {
    (FEW_ROWS, 2, 64): Tile(16, 64, 4, 3),
    (FEW_ROWS, 2, 128): Tile(16, 64, 4, 3),
    (FEW_ROWS, 2, 256): Tile(16, 32, 4, 3),
    (FEW_ROWS, 4, 64): Tile(16, 32, 8, 2),
    (FEW_ROWS, 4, 128): Tile(16, 32, 8, 2),
    (FEW_ROWS, 2, 512): Tile(16, 32, 8, 1, 64),
    (FEW_ROWS, 4, 256): Tile(16, 32, 8, 1, 32),
    (FEW_ROWS, 4, 512): Tile(16, 16, 8, 1, 32),
    (ANY_ROWS, 2, 64): Tile(64, 64, 4, 3),
    (ANY_ROWS, 2, 128): Tile(64, 32, 8, 3),
    (ANY_ROWS, 2, 256): Tile(32, 32, 8, 2),
    (ANY_ROWS, 4, 64): Tile(32, 32, 8, 2),
    (ANY_ROWS, 4, 128): Tile(16, 32, 8, 2),
    (ANY_ROWS, 2, 512): Tile(16, 32, 8, 1, 64),
    (ANY_ROWS, 4, 256): Tile(16, 32, 8, 1, 32),
    (ANY_ROWS, 4, 512): Tile(16, 16, 8, 1, 32),
}
# The addresses of a bias, of masks and of angles take registers too: these replace the entries that
# would then spill.
MASKED: dict[Key, Tile] = {
    (FEW_ROWS, 2, 256): Tile(16, 32, 8, 2),
    (FEW_ROWS, 4, 128): Tile(16, 32, 8, 1, 32),
    (ANY_ROWS, 2, 64): Tile(64, 32, 4, 3),
    (ANY_ROWS, 2, 256): Tile(16, 16, 8, 1, 64),
    (ANY_ROWS, 4, 64): Tile(16, 32, 8, 2),
    (ANY_ROWS, 4, 128): Tile(16, 32, 8, 1, 32),
}
ENTRIES: tuple[tuple[Key, Tile], ...] = (*TILES.items(), *MASKED.items())


def choose_tile(rows: int, head_dim: int, element_size: int, *, masked: bool = False) -> Tile:
    """Return the tables' tile for this many rows per head of keys, a head_dim and a dtype's size.

    `masked` says that there is a bias, a mask of any kind, dropout, or rotary positions.
    """
    size = min(element_size, 4)
    key = next(
        (most_rows, bytes_, largest)
        for most_rows, bytes_, largest in TILES
        if rows <= most_rows and bytes_ == size and head_dim <= largest
    )
    return MASKED[key] if masked and key in MASKED else TILES[key]


def choose_split(rows: int, capacity: int) -> int:
    """Return how many keys make a part, given the rows of a head of keys and the capacity."""
    return SPLIT if rows <= MOST_SPLIT else capacity
