"""The tile table of attention in 8 bits, and what chooses from it; it needs no triton."""

from __future__ import annotations

from twofold.kernels import attention_tiles
from twofold.kernels.attention_tiles import Tile

Key = tuple[str, int]  # for what, padded head_dim

# As large as registers hold without spilling (`twofold verify compile attention_fp8`). Hopper's
# sums of few products take as many as the sums to which they are added; the addresses of a mask or
# bias take some too, and so do those of rows that are not aligned.
TILES: dict[Key, Tile] = {
    ("plain", 32): Tile(128, 64, 8, 3),
    ("plain", 64): Tile(128, 64, 8, 3),
    ("plain", 128): Tile(64, 64, 8, 2),
    ("plain", 256): Tile(64, 32, 8, 2),
    ("masked", 32): Tile(64, 64, 8, 2),
    ("masked", 64): Tile(64, 64, 8, 2),
    ("masked", 128): Tile(64, 64, 8, 2),
    ("masked", 256): Tile(32, 32, 8, 2),
    ("unaligned", 32): Tile(32, 32, 8, 1),
    ("unaligned", 64): Tile(32, 32, 8, 1),
    ("unaligned", 128): Tile(32, 32, 8, 1),
    ("unaligned", 256): Tile(16, 32, 16, 1),
}
# Every entry once, for the tests.
ENTRIES: tuple[tuple[Key, Tile], ...] = tuple(TILES.items())


def padded(head_dim: int) -> int:
    """Return the power of two that a head_dim takes; matrix units want 32 at least of 8 bits."""
    return max(32, attention_tiles.padded(head_dim))


def choose_tile(head_dim: int, *, masked: bool = False, aligned: bool = True) -> Tile:
    """Return the table's tile for a head_dim.

    `masked` says that there is a mask or bias, that scores are changed otherwise, or that sequences
    are packed; `aligned` is what `attention_tiles.aligned` says of the strides.
    """
    what = "unaligned" if not aligned else "masked" if masked else "plain"
    return TILES[what, padded(head_dim)]
