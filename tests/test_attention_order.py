"""The order in which attention's programs begin."""

import itertools

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs

from twofold.kernels import device
from twofold.kernels.attention_order import (
    SHARE,
    by_keys,
    by_queries,
    heads_together,
    place_in_groups,
)
from twofold.kernels.attention_parts import call
from twofold.reference.attention_scores import Options


@triton.jit
def places_kernel(block_ptr, b_ptr, h_ptr, blocks, H, together):
    block, b, h = place_in_groups(tl.program_id(0), blocks, H, together)
    tl.store(block_ptr + tl.program_id(0), block)
    tl.store(b_ptr + tl.program_id(0), b)
    tl.store(h_ptr + tl.program_id(0), h)


@pytest.mark.parametrize("together", [1, 2, 3, 6])
def test_long_rows_of_a_group_of_heads_come_first(request, together):
    """Every block of every head comes once, group after group."""
    blocks, B, H = 4, 2, 3
    device = request.getfixturevalue("triton").device
    found = torch.full((3, blocks * B * H), -1, dtype=torch.int32, device=device)
    places_kernel[(blocks * B * H,)](*found, blocks, H, together)
    want = [
        (block, *divmod(bh, H))
        for first in range(0, B * H, together)
        for block in reversed(range(blocks))
        for bh in range(first, first + together)
    ]
    assert list(map(tuple, found.T.tolist())) == want


def test_as_many_heads_begin_together_as_the_cache_holds():
    assert heads_together(64, 2**21, 50 * 2**20) == 8, "twelve fit, groups are all as large"
    assert heads_together(64, 2**30, 50 * 2**20) == 1, "not one fits"
    assert heads_together(5, 1, 50 * 2**20) == 5, "all fit"
    for heads, most in itertools.product(range(1, 40), range(1, 20)):
        together = heads_together(heads, 100, int(most * 100 / SHARE))
        fitting = [n for n in range(1, most + 1) if heads % n == 0]
        assert together == max(fitting), "no group is smaller, none could be larger"


@pytest.mark.parametrize("packed", [False, True])
def test_groups_are_of_what_is_read_and_only_where_rows_differ(monkeypatch, packed):
    """Programs of queries read keys and values, those of keys read queries and dout."""
    monkeypatch.setattr(knobs.runtime, "interpret", True)  # the cache is small, on a GPU too
    M, N, D = (20, 30, 16) if packed else (12, 48, 16)
    q, k = torch.ones(5, 4, M, D), torch.ones(5, 2, N, D)
    how = {}
    if packed:
        q, k = (x.transpose(0, 1).flatten(1, 2)[None] for x in (q, k))
        starts = [torch.arange(6, dtype=torch.int32) * n for n in (M, N)]
        how = dict(zip(("cu_seqlens_q", "cu_seqlens_k"), starts, strict=True))
        how |= {"max_seqlen_q": M, "max_seqlen_k": N}
    row = D * 4
    for causal, window, differ in (
        (True, None, True),
        (False, None, False),
        (False, (None, 3), True),
        (True, (9, None), False),
    ):
        x = call(q, k, k, 1.0, Options(causal=causal, window_size=window, **how))
        of_queries = 2 * heads_together(10, 2 * N * row, device.cache_bytes())
        of_keys = heads_together(10, 2 * 2 * M * row, device.cache_bytes())
        assert by_queries(x).together == (of_queries if differ else 1)
        assert by_keys(x).together == (of_keys if differ else 1)
    assert of_queries not in (2, 20) and of_keys not in (1, 10), "groups of some"


def test_the_cache_is_the_devices(monkeypatch):
    monkeypatch.setattr(knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.cache_bytes() == 50 * 2**20
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    properties = type("Properties", (), {"L2_cache_size": 123})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties if i else None)
    device._cache_bytes.cache_clear()
    assert device.cache_bytes() == 123
    device._cache_bytes.cache_clear()
