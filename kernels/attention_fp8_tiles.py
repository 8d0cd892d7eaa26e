"""The tile table of attention in FP8, and how a tile is chosen; it needs no triton."""

from __future__ import annotations

from twofold.kernels import attention_tiles
from twofold.kernels.attention_tiles import Tile

Key = tuple[str, int]  # kind of call, padded head_dim

# As large as registers hold without spilling (`twofold verify compile attention_fp8`). Hopper's
# sums of few products take as many registers as the sums to which they are added; the addresses of
# a mask or bias take some too, those of a rotary position's angles and pairs more, and so do those
# of unaligned rows: with more than 128 features they would spill in any tile, so such rows are
# copied instead. 512 features fill the registers, whatever else there is.
TILES: dict[Key, Tile] = {
    ("plain", 32): Tile(128, 64, 8, 3),
    ("plain", 64): Tile(128, 64, 8, 3),
    ("plain", 128): Tile(64, 64, 8, 2),
    ("plain", 256): Tile(64, 32, 8, 2),
    ("masked", 32): Tile(64, 64, 8, 2),
    ("masked", 64): Tile(64, 32, 8, 2),
    ("masked", 128): Tile(64, 64, 8, 2),
    ("masked", 256): Tile(32, 32, 8, 2),
    ("rotary", 32): Tile(64, 64, 8, 2),
    ("rotary", 64): Tile(64, 32, 8, 2),
    ("rotary", 128): Tile(32, 32, 8, 2),
    ("rotary", 256): Tile(64, 32, 8, 1, 64),
    ("unaligned", 32): Tile(32, 32, 8, 1),
    ("unaligned", 64): Tile(32, 32, 8, 1),
    ("unaligned", 128): Tile(32, 32, 8, 1),
    ("unaligned rotary", 32): Tile(32, 32, 8, 1),
    ("unaligned rotary", 64): Tile(32, 32, 8, 1),
    ("unaligned rotary", 128): Tile(32, 32, 8, 1, 32),
    ("any", 512): Tile(32, 32, 8, 1, 64),
}
# On AMD a thread has 512 registers if its program has no more than four warps, else 256.
AMD: dict[Key, Tile] = {
    ("plain", 128): Tile(64, 64, 4, 1),
    ("plain", 256): Tile(64, 32, 4, 1),
    ("masked", 32): Tile(64, 64, 4, 1),
    ("masked", 64): Tile(64, 32, 4, 1),
    ("masked", 128): Tile(32, 32, 4, 1),
    ("masked", 256): Tile(32, 32, 4, 1),
    ("rotary", 32): Tile(64, 64, 4, 1),
    ("rotary", 128): Tile(64, 32, 4, 1),
}
# Every entry once, for the tests.
ENTRIES: tuple[tuple[Key, Tile], ...] = (*TILES.items(), *AMD.items())


def padded(head_dim: int) -> int:
    """Return the power of two that a head_dim takes; matrix units need at least 32 of 8 bits."""
    return max(32, attention_tiles.padded(head_dim))


def copied(head_dim: int) -> bool:
    """Return whether unaligned rows are copied to aligned ones."""
    return padded(head_dim) > 128


def choose_tile(
    head_dim: int,
    *,
    masked: bool = False,
    rotary: bool = False,
    aligned: bool = True,
    amd: bool = False,
) -> Tile:
    """Return the tables' tile for a head_dim.

    `masked` means a mask of pairs or of blocks, a bias or any other change of the scores, dropout,
    or packed sequences; `rotary`, that q and k are rotated; `aligned` is the result of
    `attention_tiles.aligned` for the strides, and always true where `copied` is.
    """
    what = "rotary" if rotary else "masked" if masked else "plain"
    if not aligned:
        what = "unaligned rotary" if rotary else "unaligned"
    key = (what if padded(head_dim) <= 256 else "any", padded(head_dim))
    return AMD[key] if amd and key in AMD else TILES[key]
