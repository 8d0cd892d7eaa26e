"""The tile table of attention's double backward, and how one is chosen; it needs no triton."""

from __future__ import annotations

from twofold.kernels.attention_tiles import Tile, padded

# By bytes of an element and padded head_dim. A pair of a query and a key takes five products and
# enters four sums, hence small tiles and features in chunks, so that nothing spills (`twofold
# verify compile attention_double_backward`).
TILES: dict[tuple[int, int], Tile] = {
    (2, 16): Tile(16, 16, 4, 1),
    (2, 32): Tile(16, 16, 4, 1),
    (2, 64): Tile(16, 32, 4, 1),
    (2, 128): Tile(16, 16, 8, 1, 64),
    (2, 256): Tile(16, 16, 8, 1, 32),
    (4, 16): Tile(16, 16, 8, 1),
    (4, 32): Tile(16, 16, 8, 1, 16),
    (4, 64): Tile(16, 16, 8, 1, 32),
    (4, 128): Tile(16, 16, 8, 1, 16),
    (4, 256): Tile(16, 16, 8, 1, 16),
}
# Every tile once, for the tests, with the largest head_dim that it is chosen for.
ENTRIES: tuple[tuple[int, Tile], ...] = tuple(
    (head_dim, tile) for tile, head_dim in {tile: key[1] for key, tile in TILES.items()}.items()
)


def choose_tile(head_dim: int, element_size: int) -> Tile:
    """Return the table's tile for a head_dim and bytes per element.

    More than 256 features are summed in parts, with the tile for 256.
    """
    return TILES[min(element_size, 4), min(padded(head_dim), 256)]
