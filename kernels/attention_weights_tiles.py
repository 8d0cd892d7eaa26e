"""The tile table of the kernels of attention's weights; it needs no triton."""

from __future__ import annotations

from twofold.kernels import attention_tiles
from twofold.kernels.attention_tiles import Tile, padded

Key = tuple[int, int]  # bytes of an element, padded head_dim

# For both kernels: neither spills on any GPU, whatever is done to the scores.
TILES: dict[Key, Tile] = {
    (2, 16): Tile(64, 64, 8, 2),
    (2, 32): Tile(64, 64, 8, 2),
    (2, 64): Tile(64, 64, 8, 2),
    (2, 128): Tile(64, 64, 8, 1),
    (2, 256): Tile(64, 32, 4, 2),
    (4, 16): Tile(32, 32, 4, 2),
    (4, 32): Tile(32, 32, 8, 2),
    (4, 64): Tile(32, 32, 8, 1),
    (4, 128): Tile(32, 32, 8, 1, 64),
    (4, 256): Tile(32, 32, 8, 1, 32),
}
# Unaligned rows and head_dim 512 take attention's tiles, except one that would spill with some
# changes of the scores.
UNALIGNED: dict[Key, Tile] = attention_tiles.UNALIGNED | {(4, 64): Tile(16, 16, 8, 1, 32)}
# Every entry once, for the tests.
ENTRIES: tuple[tuple[Key, Tile], ...] = (*TILES.items(), *UNALIGNED.items())


def choose_tile(head_dim: int, element_size: int, *, aligned: bool = True) -> Tile:
    """Return the tables' tile for a head_dim and bytes per element.

    `aligned` is what `attention_tiles.aligned` returns for the strides.
    """
    key = element_size, padded(head_dim)
    return TILES[key] if aligned and key in TILES else UNALIGNED[key]
