"""The tiles of attention's kernels: which are chosen for what; pinned cases test their results."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from triton import knobs

from twofold.core.verify.compiling import table as compiled_table
from twofold.core.verify.compiling.chips import CHIPS
from twofold.core.verify.compiling.compiles import compiling
from twofold.core.verify.contracts.attention import CONTRACT
from twofold.kernels import attention_tiles as tiles
from twofold.kernels.device import architecture

TABLE = Path(__file__).parent.parent / "benchmarks" / "results" / "compiled.txt"
ARCHITECTURES = {"sm_80": "sm_80", "sm_90a": "sm_90", "sm_100a": "sm_100", "gfx942": "gfx942"}
FEATURES = ("masked", "blocked", "packed", "grouped", "dropout")
ASKED = [
    dict(zip(FEATURES, asked, strict=True)) for asked in itertools.product((False, True), repeat=5)
]


def test_every_tile_is_pinned_and_chosen():
    pinned = {c.tile for c in CONTRACT.pinned if c.tile is not None}
    assert pinned == set(range(len(tiles.ENTRIES)))
    chosen = {
        ((kernel, size, tiles.padded(d)), tile)
        for kernel in ("forward", "dk_dv", "dq")
        for size in (2, 4)
        for d in (16, 32, 64, 128, 256, 512)
        for aligned in (True, False)
        for architecture_ in ("", *ARCHITECTURES.values())
        for rows in (64, 128, 129)
        for asked in ASKED
        for tile in [
            tiles.choose_tile(
                kernel, d, size, architecture=architecture_, rows=rows, aligned=aligned, **asked
            )
        ]
    }
    assert chosen == set(tiles.ENTRIES)


BY_ROWS = {64: tiles.HOPPER_SHORT, 128: tiles.HOPPER_MIDDLE, 129: tiles.HOPPER}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("kernel", ["forward", "dk_dv", "dq"])
def test_only_hopper_has_hoppers_tiles(kernel, asked):
    """float32, and all dtypes on GPUs without a table, get tiles that fit everywhere."""
    for d, size, rows in itertools.product((16, 32, 64, 128, 256), (2, 4), BY_ROWS):

        def chosen(of, kernel=kernel, d=d, size=size, rows=rows):
            return tiles.choose_tile(kernel, d, size, architecture=of, rows=rows, **asked)

        assert chosen("sm_80") == chosen("sm_100") == chosen("")
        key = (kernel, size, d)
        masked, packed, grouped = (asked[x] for x in ("masked", "packed", "grouped"))
        own = BY_ROWS[rows]
        if size == 4 or asked["blocked"] or (grouped and asked["dropout"]):
            own = {}
        elif masked or (packed and asked["dropout"]):
            own = tiles.HOPPER_MASKED
        elif packed:
            own = tiles.HOPPER_PACKED
        elif asked["dropout"]:
            own = tiles.HOPPER_DROPOUT
        if grouped and own in (tiles.HOPPER, tiles.HOPPER_MIDDLE, tiles.HOPPER_PACKED):
            own = own | tiles.HOPPER_GROUPED
        # Only the tiles for heads that share keys are not for Hopper.
        bare = not any(asked[x] for x in FEATURES if x != "grouped")
        rest = tiles.TILES[key] if own and bare else chosen("")
        assert chosen("sm_90") == own.get(key, rest)
        amd = tiles.AMD_GROUPED if grouped else tiles.AMD
        assert chosen("gfx942") == amd.get(key, tiles.TILES[key])


def test_every_tile_that_a_gpu_is_given_has_been_compiled_for_it():
    """The committed table has its kernels, in some dtype of the same size and for some head_dim."""
    compiled = set()
    for line in compiled_table.read(TABLE)[1]:
        operator, name, target, dtype, *_ = line.split()
        has = dict(re.findall(r"(\w+)=(\d+)", line))
        if operator == "attention" and "CHUNK_D" in has:
            D, M, N, warps, stages, chunk = (
                int(has[x])
                for x in ("D", "BLOCK_M", "BLOCK_N", "num_warps", "num_stages", "CHUNK_D")
            )
            key = (name.removesuffix("_kernel"), 4 if dtype == "float32" else 2, tiles.padded(D))
            compiled.add((target, key, tiles.Tile(M, N, warps, stages, chunk)))
    for target, of in ARCHITECTURES.items():
        for kernel, size, d, rows, asked in itertools.product(
            ("forward", "dk_dv", "dq"), (2, 4), (16, 32, 64, 128, 256), BY_ROWS, ASKED
        ):
            tile = tiles.choose_tile(kernel, d, size, architecture=of, rows=rows, **asked)
            tile = tile._replace(chunk_d=tile.chunk_d or d)
            assert (target, (kernel, size, d), tile) in compiled, asked


def test_the_gradient_of_a_bias_has_no_tile_of_hoppers():
    for of, d, size in itertools.product(("", *ARCHITECTURES.values()), (16, 64, 128, 256), (2, 4)):
        general = of if of == "gfx942" else ""
        want = tiles.choose_tile("dq", d, size, architecture=general, masked=True)
        assert tiles.choose_tile("dbias", d, size, architecture=of, masked=True) == want


@pytest.mark.parametrize(
    "table",
    [tiles.HOPPER, tiles.HOPPER_MIDDLE, tiles.HOPPER_SHORT, tiles.HOPPER_PACKED,
     tiles.HOPPER_GROUPED, tiles.HOPPER_MASKED, tiles.HOPPER_DROPOUT],
)  # fmt: skip
def test_hoppers_tiles_fill_its_matrix_unit(table):
    """Each four warps have 64 rows of scores, never fewer."""
    for (kernel, size, d), tile in table.items():
        rows = tile.block_n if kernel == "dk_dv" else tile.block_m
        # The accumulators of 64 keys at 256 take the registers of eight warps.
        groups = 1 if (kernel, d) == ("dk_dv", 256) else tile.num_warps // 4
        assert size == 2 and rows in (64, 128) and rows % (64 * groups) == 0
        assert rows == 64 or d == 256 or table is not tiles.HOPPER_SHORT


def test_the_architecture_is_asked_of_the_compiler(monkeypatch):
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    assert architecture() == "", "in the interpreter there is none"
    monkeypatch.setattr(knobs.runtime, "interpret", False)
    for target, name in ARCHITECTURES.items():
        with compiling(CHIPS[target], None):
            assert architecture() == name


@pytest.mark.parametrize("kind", ["plain", "packed", "bias", "grouped"])
def test_tiles_are_chosen_for_the_device_and_the_longest_sequence(triton, monkeypatch, kind):
    """In a packed call that is its longest sequence, not the rows of its only batch."""
    asked = []

    def choose(kernel, head_dim, element_size, **how):
        asked.append((kernel, head_dim, element_size, how))
        return tiles.choose_tile(kernel, head_dim, element_size, **how)

    monkeypatch.setattr(triton.attention, "choose_tile", choose)
    monkeypatch.setattr(triton.attention, "architecture", lambda: "sm_90")

    def ones(*shape):
        return triton.asarray(np.ones(shape), "float32")

    q, k = ones(1, 2 if kind == "grouped" else 1, 9, 16), ones(1, 1, 7, 16)
    how = {"bias": ones(9, 7)} if kind == "bias" else {}
    if kind == "packed":
        how["cu_seqlens_q"] = triton.asarray(np.array([0, 4, 9]), "int32")
        how["cu_seqlens_k"] = triton.asarray(np.array([0, 6, 7]), "int32")
        how["max_seqlen_q"], how["max_seqlen_k"] = 5, 6
    out, cache = triton.attention.forward(q, k, k, dropout_p=0.5, **how)
    triton.attention.backward(out, cache)
    queries, keys = (5, 6) if kind == "packed" else (9, 7)
    rows = {"forward": queries, "dk_dv": keys, "dq": queries}
    rows |= {"dbias": queries} if kind == "bias" else {}
    assert {kernel: how["rows"] for kernel, _, _, how in asked} == rows
    for _, head_dim, size, how in asked:
        assert (head_dim, size, how["architecture"], how["aligned"]) == (16, 4, "sm_90", True)
        assert how["masked"] == (kind == "bias") and how["dropout"]
        assert how["packed"] == (kind == "packed") and how["grouped"] == (kind == "grouped")
