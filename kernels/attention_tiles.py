"""The tile tables of the attention kernels, and how a tile is chosen; they need no triton."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Queries and keys a program works on at a time; its warps and pipeline stages.

    `chunk_d` is how many features the products of queries and keys take at a time; 0 means all. In
    chunks, q, k and v are loaded again for every tile instead of being kept in registers. `tail_d`
    is how many features a second tile has, as 96 = 64 + 32; 0 means that one tile is padded.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    chunk_d: int = 0
    tail_d: int = 0


Key = tuple[str, int, int]  # kernel, bytes of an element, padded head_dim

# As large as registers hold without spilling (`twofold verify compile attention`). float32 products
# are three tf32 products with both halves of an operand in registers, hence small tiles, and at 256
# chunks.
TILES: dict[Key, Tile] = {
    ("forward", 2, 16): Tile(128, 64, 8, 3),
    ("forward", 2, 32): Tile(128, 64, 8, 3),
    ("forward", 2, 64): Tile(128, 64, 8, 3),
    ("forward", 2, 128): Tile(128, 32, 8, 3),
    ("forward", 2, 256): Tile(64, 32, 8, 2),
    ("forward", 4, 16): Tile(64, 32, 4, 2),
    ("forward", 4, 32): Tile(64, 32, 4, 2),
    ("forward", 4, 64): Tile(32, 32, 8, 2),
    ("forward", 4, 128): Tile(32, 16, 8, 1),
    ("forward", 4, 256): Tile(32, 16, 8, 1, 32),
    ("dk_dv", 2, 16): Tile(64, 64, 4, 2),
    ("dk_dv", 2, 32): Tile(64, 64, 4, 2),
    ("dk_dv", 2, 64): Tile(64, 32, 4, 2),
    ("dk_dv", 2, 128): Tile(32, 64, 8, 2),
    ("dk_dv", 2, 256): Tile(32, 32, 8, 1),
    ("dk_dv", 4, 16): Tile(32, 16, 8, 1),
    ("dk_dv", 4, 32): Tile(32, 16, 4, 1),
    ("dk_dv", 4, 64): Tile(32, 16, 4, 1),
    ("dk_dv", 4, 128): Tile(32, 16, 8, 1),
    ("dk_dv", 4, 256): Tile(16, 16, 8, 1, 32),
    ("dq", 2, 16): Tile(64, 64, 4, 2),
    ("dq", 2, 32): Tile(64, 32, 4, 2),
    ("dq", 2, 64): Tile(64, 64, 8, 2),
    ("dq", 2, 128): Tile(64, 32, 8, 2),
    ("dq", 2, 256): Tile(32, 16, 8, 1),
    ("dq", 4, 16): Tile(32, 16, 4, 1),
    ("dq", 4, 32): Tile(32, 16, 4, 1),
    ("dq", 4, 64): Tile(32, 16, 8, 1),
    ("dq", 4, 128): Tile(16, 16, 8, 1),
    ("dq", 4, 256): Tile(16, 16, 8, 1, 32),
}
# The draws of dropout take registers too: these replace the entries that would spill.
DROPOUT: dict[Key, Tile] = {
    ("forward", 2, 16): Tile(128, 64, 8, 2),
    ("forward", 4, 128): Tile(16, 32, 4, 1),
    ("dk_dv", 2, 128): Tile(64, 32, 8, 2),
    ("dk_dv", 4, 32): Tile(16, 16, 4, 1),
    ("dk_dv", 4, 64): Tile(32, 16, 8, 1),
    ("dq", 2, 128): Tile(64, 32, 8, 2),
}
# Summing over the heads that share keys takes registers, with dropout or without.
GROUPED: dict[Key, Tile] = {
    ("dk_dv", 2, 16): Tile(32, 64, 4, 2),
    ("dk_dv", 2, 32): Tile(32, 64, 4, 2),
    ("dk_dv", 2, 128): Tile(64, 32, 8, 2),
}
# So do the addresses of a mask or bias, with dropout or without and whatever else is done to the
# scores, and the starts of packed sequences: these replace the entries that would spill.
MASKED: dict[Key, Tile] = {
    ("forward", 2, 256): Tile(64, 16, 8, 2),
    ("dk_dv", 2, 16): Tile(32, 64, 8, 2),
    ("dk_dv", 2, 32): Tile(32, 32, 8, 1),
    ("dk_dv", 2, 64): Tile(64, 32, 8, 2),
    ("dk_dv", 2, 128): Tile(32, 32, 8, 2),
    ("dk_dv", 2, 256): Tile(32, 32, 8, 1, 128),
    ("dk_dv", 4, 256): Tile(16, 16, 8, 1, 16),
    ("dq", 2, 16): Tile(64, 64, 8, 2),
    ("dq", 2, 64): Tile(64, 32, 8, 2),
    ("dq", 2, 128): Tile(64, 32, 8, 2),
    ("dq", 4, 32): Tile(32, 16, 8, 1),
    ("dq", 4, 64): Tile(16, 16, 8, 1),
    ("dq", 4, 128): Tile(16, 16, 8, 1, 32),
}
# With both dropout and a mask: these replace the entries that would spill.
MASKED_DROPOUT: dict[Key, Tile] = {
    ("forward", 4, 128): Tile(32, 16, 8, 1, 32),
    ("dq", 4, 16): Tile(16, 16, 8, 1),
}
# As MASKED, with the addresses of a block mask and of the lists of its live tiles too.
BLOCKED: dict[Key, Tile] = {
    **MASKED,
    ("forward", 2, 128): Tile(64, 32, 8, 3),
    ("dk_dv", 4, 128): Tile(16, 16, 8, 1, 32),
}
# On AMD a thread has 512 registers if its program has no more than four warps, else 256.
AMD: dict[Key, Tile] = {
    ("forward", 2, 256): Tile(32, 32, 4, 1),
    ("dk_dv", 2, 32): Tile(32, 64, 4, 2),
    ("dk_dv", 2, 64): Tile(32, 32, 4, 1),
    ("dk_dv", 2, 128): Tile(32, 32, 4, 1, 64),
    ("dk_dv", 2, 256): Tile(16, 32, 4, 1),
    ("dk_dv", 4, 128): Tile(32, 16, 4, 1),
    ("dq", 2, 64): Tile(64, 64, 4, 1),
    ("dq", 2, 128): Tile(64, 64, 4, 1),
    ("dq", 2, 256): Tile(32, 32, 4, 1, 64),
}
# With two stages, heads that share keys, and dropout, AMD's compiler fails on this tile.
AMD_GROUPED: dict[Key, Tile] = {**AMD, ("dk_dv", 2, 32): Tile(32, 64, 4, 1)}
# Rows that do not begin at multiples of 16 elements need an address for each element, and 512
# features fill the registers: tiles that none of the kernels spills on any GPU, by bytes of an
# element and padded head_dim.
UNALIGNED: dict[tuple[int, int], Tile] = {
    (2, 16): Tile(32, 16, 8, 1),
    (2, 32): Tile(32, 16, 8, 1),
    (2, 64): Tile(32, 16, 8, 1, 32),
    (2, 128): Tile(16, 16, 8, 1, 32),
    (2, 256): Tile(16, 16, 8, 1, 32),
    (4, 16): Tile(32, 16, 8, 1),
    (4, 32): Tile(32, 16, 8, 1),
    (4, 64): Tile(32, 16, 8, 1, 32),
    (4, 128): Tile(16, 16, 8, 1, 32),
    (4, 256): Tile(16, 16, 8, 1, 16),
    (2, 512): Tile(16, 16, 8, 1, 32),
    (4, 512): Tile(16, 16, 8, 1, 16),
}
# These replace the tile of UNALIGNED for a single kernel that would spill.
UNALIGNED_OWN: dict[Key, Tile] = {
    ("dk_dv", 2, 128): Tile(16, 16, 8, 1, 16),
    ("dq", 2, 128): Tile(16, 16, 8, 1, 16),
    ("dk_dv", 4, 128): Tile(16, 16, 8, 1, 16),
    ("dk_dv", 2, 512): Tile(16, 32, 8, 1, 16),
}
# On Hopper each warpgroup multiplies 64 rows (wgmma). With fewer rows mma.sync is used, and eight
# warps on 64 rows compute everything twice. These are the fastest on an H200 of all that
# `benchmarks/attention_tuning.py` tries, at length 4096, full and causal. None spills in its loop,
# whatever the lengths, windows and sinks, except dk_dv: at 256, where it takes half the time of any
# tile that does not spill, and, compiled by Triton 3.6, causal at 128, where it takes 4 % less.
# Instruction counts (benchmarks/ATTENTION.md) had chosen others: they ignore copies in flight, of
# which three stages have more than two.
HOPPER: dict[Key, Tile] = {
    ("forward", 2, 16): Tile(128, 64, 8, 3),
    ("forward", 2, 32): Tile(128, 64, 8, 3),
    ("forward", 2, 64): Tile(128, 64, 8, 3),
    ("forward", 2, 128): Tile(64, 64, 4, 3),
    ("forward", 2, 256): Tile(128, 32, 8, 3),
    ("dk_dv", 2, 64): Tile(64, 64, 4, 3),
    ("dk_dv", 2, 128): Tile(32, 64, 4, 3),
    ("dk_dv", 2, 256): Tile(32, 64, 8, 3),
    ("dq", 2, 16): Tile(64, 64, 4, 3),
    ("dq", 2, 32): Tile(64, 64, 4, 3),
    ("dq", 2, 64): Tile(64, 64, 4, 3),
    ("dq", 2, 128): Tile(128, 64, 8, 4),
    ("dq", 2, 256): Tile(128, 32, 8, 3),
}
# Where no sequence has more than MIDDLE rows (queries, or keys of dk_dv), many programs with narrow
# tiles hide each other's beginnings and ends.
HOPPER_MIDDLE: dict[Key, Tile] = {
    **HOPPER,
    ("forward", 2, 64): Tile(64, 32, 4, 3),
    ("forward", 2, 128): Tile(64, 32, 4, 3),
    ("dk_dv", 2, 64): Tile(32, 64, 4, 3),
    ("dq", 2, 64): Tile(64, 32, 4, 3),
    ("dq", 2, 128): Tile(64, 32, 4, 3),
}
# Where none has more than SHORT rows, most of a tile of 128 would be padding, and on the other axis
# more than 16 might be too.
HOPPER_SHORT: dict[Key, Tile] = {
    **HOPPER_MIDDLE,
    ("forward", 2, 16): Tile(64, 16, 4, 4),
    ("forward", 2, 32): Tile(64, 16, 4, 4),
    ("forward", 2, 64): Tile(64, 16, 4, 4),
    ("forward", 2, 128): Tile(64, 16, 4, 4),
    ("forward", 2, 256): Tile(64, 16, 4, 2),
    ("dk_dv", 2, 64): Tile(16, 64, 4, 4),
    ("dk_dv", 2, 128): Tile(16, 64, 4, 4),
    ("dq", 2, 16): Tile(64, 16, 4, 4),
    ("dq", 2, 32): Tile(64, 16, 4, 4),
    ("dq", 2, 64): Tile(64, 16, 4, 4),
    ("dq", 2, 128): Tile(64, 16, 4, 3),
}
# The starts of packed sequences take a few registers.
HOPPER_PACKED: dict[Key, Tile] = {**HOPPER, ("dk_dv", 2, 128): Tile(16, 128, 8, 2)}
# So does summing over heads that share keys.
HOPPER_GROUPED: dict[Key, Tile] = {
    ("dk_dv", 2, 64): Tile(32, 128, 8, 3),
    ("dk_dv", 2, 128): Tile(16, 128, 8, 3),
}
# With anything that takes registers beside the scores, such as masks and changes of the scores.
HOPPER_MASKED: dict[Key, Tile] = {
    ("forward", 2, 256): Tile(128, 16, 8, 2),
    ("dk_dv", 2, 64): Tile(32, 128, 8, 2),
    ("dk_dv", 2, 128): Tile(16, 128, 8, 2),
    ("dq", 2, 64): Tile(128, 32, 8, 2),
    ("dq", 2, 128): Tile(128, 32, 8, 2),
    ("dq", 2, 256): Tile(128, 16, 8, 2),
}
HOPPER_DROPOUT: dict[Key, Tile] = {
    **HOPPER_MASKED,
    ("forward", 2, 128): Tile(128, 64, 8, 2),
}
SHORT, MIDDLE = 64, 128
TABLES = (
    TILES, DROPOUT, MASKED, MASKED_DROPOUT, BLOCKED, AMD, UNALIGNED_OWN,
    HOPPER, HOPPER_MIDDLE, HOPPER_SHORT, HOPPER_PACKED, HOPPER_GROUPED, HOPPER_MASKED,
    HOPPER_DROPOUT, GROUPED, AMD_GROUPED,
)  # fmt: skip
# Every entry once, for the tests: (kernel, bytes of an element, padded head_dim) and the tile.
ENTRIES: tuple[tuple[Key, Tile], ...] = tuple(
    dict.fromkeys(
        (
            *(entry for table in TABLES for entry in table.items()),
            *(
                ((kernel, *key), tile)
                for kernel in ("forward", "dk_dv", "dq")
                for key, tile in UNALIGNED.items()
                if (kernel, *key) not in UNALIGNED_OWN
            ),
        )
    )
)


def padded(head_dim: int) -> int:
    """Return the power of two that a head_dim takes in registers; matrix units need at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


def aligned(*strides: int) -> bool:
    """Return whether all strides, in elements, are 0, 1 or multiples of 16."""
    return all(n in (0, 1) or n % 16 == 0 for n in strides)


def choose_tile(
    kernel: str,
    head_dim: int,
    element_size: int,
    *,
    architecture: str = "",
    rows: int = MIDDLE + 1,
    masked: bool = False,
    blocked: bool = False,
    packed: bool = False,
    grouped: bool = False,
    dropout: bool = False,
    aligned: bool = True,
) -> Tile:
    """Return the tables' tile of a kernel for a head_dim and bytes per element.

    dbias takes dq's tile, except Hopper's, which spills. `architecture` is what
    `device.architecture` returns; `rows`, the queries of the longest sequence, or for dk_dv its
    keys. What takes registers beside the scores has tables of its own: `masked`, a mask of pairs or
    changed scores; `blocked`, a block mask; `packed` sequences; `dropout`; `grouped`, heads that
    share keys, which with dropout leaves no room for Hopper's tiles. `aligned` is what the function
    of that name returns for the strides.

    65 to 96 features take two tiles, less than one of 128, where that does not spill: not in
    float32, nor where anything else takes registers.
    """
    features = padded(head_dim)
    hopper = architecture == "sm_90" and kernel != "dbias" and not (grouped and dropout)
    key = ("dq" if kernel == "dbias" else kernel, min(element_size, 4), features)
    if not aligned or features > 256:
        return UNALIGNED_OWN.get(key) or UNALIGNED[key[1:]]
    if architecture.startswith("gfx"):
        return (AMD_GROUPED if grouped else AMD).get(key) or TILES[key]
    if blocked:
        own = BLOCKED
    elif hopper and packed and not masked and not dropout:
        own = MASKED | HOPPER_PACKED | (HOPPER_GROUPED if grouped else {})
    elif masked or packed:
        own = MASKED | HOPPER_MASKED if hopper else MASKED
    elif dropout:
        own = DROPOUT | (HOPPER_DROPOUT if hopper else GROUPED if grouped else {})
    elif hopper and rows <= SHORT:
        own = HOPPER_SHORT
    elif hopper and rows <= MIDDLE:
        own = HOPPER_MIDDLE | (HOPPER_GROUPED if grouped else {})
    elif hopper:
        own = HOPPER | (HOPPER_GROUPED if grouped else {})
    else:
        own = GROUPED if grouped else TILES
    if dropout and (masked or packed or blocked) and kernel != "dbias":
        own = MASKED_DROPOUT | own
    tile = own.get(key) or TILES[key]
    crowded = masked or blocked or packed or dropout or (grouped and not hopper)
    if 64 < head_dim <= 96 and element_size == 2 and kernel != "dbias" and not crowded:
        return tile._replace(tail_d=padded(head_dim - 64))
    return tile
