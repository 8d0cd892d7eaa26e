"""The kernel of attention for Hopper: its protocol in any order, and which calls it takes."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hopper_machine import Descriptor, Machine, Pointer, Stuck
from outside import python

from twofold.core.verify.compiling.machine_code import LINE, disassembler, loops
from twofold.core.verify.contract import hold
from twofold.core.verify.contracts.attention import CONTRACT
from twofold.core.verify.contracts.attention_domain import Case
from twofold.kernels import attention_hopper
from twofold.kernels.attention_hopper import LEAST_ROWS, Variant, mapped, plain, takes
from twofold.kernels.attention_hopper import ROWS as GROUP_ROWS
from twofold.kernels.attention_hopper import VARIANTS as TABLE
from twofold.kernels.device import architecture
from twofold.reference import attention
from twofold.reference.attention_scores import Options

kernel = pytest.importorskip("twofold.kernels.attention_hopper_kernel")

SCRIPT = Path(__file__).parent / "hopper_code.py"
ROWS, D = 4, 2
SIZES = [  # M, N, how many programs share the tiles
    (8, 8, 1), (1, 1, 1), (8, 24, 2), (19, 13, 3), (13, 19, 1), (30, 3, 2), (3, 30, 1), (17, 16, 2),
]  # fmt: skip
VARIANTS = [
    Variant(4, 1), Variant(4, 2), Variant(8, 2, early=True), Variant(4, 3, turns=True),
    Variant(8, 1, turns=True), Variant(4, 2, 3), Variant(4, 3, 3, turns=True),
    Variant(4, 2, pairs=True), Variant(8, 2, 3, pairs=True),
]  # fmt: skip


def simulate(M, N, programs, variant, *, causal, seed, B=1, H=2, K=1, together=1):
    """Run the kernel on the machine; return its result and the reference's."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, h, n, D)) for h, n in ((H, M), (K, N), (K, N)))
    out, lse = np.full((B, H, M, D), np.nan), np.full(B * H * M, np.nan)
    tiles = -(-M // (variant.consumers * ROWS)) * B * H
    few, many = (1, 1, ROWS, D), (1, 1, variant.block_n, D)
    Machine(kernel, "forward_kernel", seed, ROWS=ROWS).run(
        min(programs, tiles),
        Descriptor(q, few), Descriptor(k, many), Descriptor(v, many), Descriptor(out, few),
        Pointer(lse), H, H // K, M, N, tiles, together,
        0.5 * math.log2(math.e),
        CAUSAL=causal, BLOCK_N=variant.block_n, STAGES=variant.stages,
        CONSUMERS=variant.consumers, PAIRS=variant.pairs, TURNS=variant.turns,
        EARLY=variant.early, REGISTERS=0,
    )  # fmt: skip
    want, cache = attention.forward(q, k, v, softmax_scale=0.5, causal=causal)
    return (out, lse.reshape(B, H, M)), (want, cache.lse)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_any_order_gives_the_reference(variant, causal):
    """Nothing deadlocks, and nothing is read or overwritten too early."""
    with np.errstate(invalid="ignore"):
        for seed, (M, N, programs) in enumerate(SIZES):
            found, want = simulate(M, N, programs, variant, causal=causal, seed=seed)
            for x, y in zip(found, want, strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


def test_heads_that_share_keys_and_begin_together():
    """Batches, KV heads and groups of heads find their places."""
    found, want = simulate(21, 26, 5, Variant(4, 2), causal=True, seed=0, B=2, H=4, K=2, together=4)
    for x, y in zip(found, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fault", ["empty", "full", "parity", "arrival"])
def test_machine_finds_faults(fault, monkeypatch):
    """A barrier that is not waited for, or never completes, does not go unnoticed."""
    original = Machine._barriers

    def faulty(machine):
        barriers, wait = original(machine), original(machine).wait
        calls = random.Random(0)

        def wrong(barrier, parity, pred=True):
            skipped = {"empty": barrier.count == 2, "full": barrier.count == 1}
            if skipped.get(fault, False):
                return None
            late = fault == "parity" and barrier.count == 2
            return wait(barrier, parity ^ 1 if late else parity, pred)

        barriers.wait = wrong
        if fault == "arrival":
            arrive = barriers.arrive
            barriers.arrive = lambda x: calls.random() < 0.9 and arrive(x)
        return barriers

    monkeypatch.setattr(Machine, "_barriers", faulty)
    with pytest.raises(AssertionError), np.errstate(invalid="ignore"):
        for seed in range(5):
            found, want = simulate(16, 40, 1, Variant(4, 2), causal=False, seed=seed)
            np.testing.assert_allclose(found[0], want[0], rtol=1e-9)
    assert issubclass(Stuck, AssertionError)


@pytest.mark.skipif(disassembler() is None, reason="this Triton has no nvdisasm")
@pytest.mark.parametrize(("head_dim", "causal"), sorted(TABLE))
def test_exponentials_are_taken_while_matrices_are_multiplied(head_dim, causal):
    """Loops over keys wait for the older product, take exponentials, wait for both; none spills."""
    variant = TABLE[head_dim, causal]
    done = python(SCRIPT, head_dim, *(["causal"] if causal else []))
    assert done.returncode == 0, done.stderr
    code = [line[1] for x in done.stdout.splitlines() if (line := LINE.match(x))]
    exponentials = GROUP_ROWS * variant.block_n // 128  # of each of 128 threads
    found = [x for x in loops(done.stdout) if x.exponentials >= exponentials]
    over_keys = [x for x in found if not x.instructions["EXIT"]]  # waits are placed after the end
    assert len(over_keys) == variant.consumers * (2 if causal else 1)  # one of edges, too
    assert not any(x.instructions["LDL"] + x.instructions["STL"] for x in over_keys)
    waits = [i for i, x in enumerate(code) if x.startswith("WARPGROUP.DEPBAR")]
    older = [i for i in waits if code[i].endswith("0x1")]
    assert len(older) == len(over_keys)
    for i in older:
        both = min(j for j in waits if j > i)
        assert code[both].endswith("0x0")
        taken = sum(x.startswith("MUFU.EX2") for x in code[i:both])
        assert taken >= exponentials


def test_registers_of_variants():
    """What the producer leaves, in multiples of eight."""
    assert Variant(128, 2).registers == 240 and Variant(64, 2, 3).registers == 160


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        (Options(), True),
        (Options(causal=True, seed=3, softmax_scale=0.3), True),
        (Options(causal="top-left"), False),
        (Options(softmax_scale=0.0), False),
        (Options(softmax_scale=-1.0), False),
        (Options(window_size=(3, None)), False),
        (Options(dropout_p=0.1), False),
        (Options(mask=torch.ones(1, 1, 1, 1, dtype=torch.bool)), False),
        (Options(sinks=torch.zeros(2)), False),
        (Options(softcap=3.0), False),
    ],
)
def test_plain_calls_are_taken(options, taken):
    """Causal masks and a positive scale, and no other options."""
    assert plain(options, 4096, 64) == plain(options, 4096, 128) == taken
    assert not plain(options, 4096, 80)


def test_the_kernel_is_chosen_from_where_it_is_quicker():
    """With 64 features the plain one is quicker up to more rows."""
    assert set(LEAST_ROWS) == set(TABLE)
    assert plain(Options(), 512, 128) and not plain(Options(), 512, 64)


def test_maps_describe_aligned_rows():
    """Strides in multiples of 16 bytes, adjacent features; an axis of length 1 may have any."""
    x = torch.empty(2, 8, 5, 64, dtype=torch.float16)
    assert mapped(x.shape, x.stride(), 2, 0)
    assert mapped(x.shape, x.transpose(1, 2).stride(), 2, 32)
    assert not mapped(x.shape, x.stride(), 2, 8)
    assert not mapped(x.shape, (*x.stride()[:3], 2), 2, 0)
    assert not mapped(x.shape, (0, *x.stride()[1:]), 2, 0)
    assert not mapped(x.shape, (2560, 512, 67, 1), 2, 0)
    assert mapped((1, 8, 1, 64), (3, 64, 1, 1), 2, 0)


def test_other_devices_keep_the_plain_kernel():
    """Tensors that are not on a GPU are not taken."""
    x = torch.empty(1, 1, 4096, 64, dtype=torch.float16)
    assert not takes(x, x, x, Options())


@pytest.mark.parametrize(
    "case",
    [
        Case(dtype=dtype, batch=2, heads=4, groups=groups, seqlen_q=M, seqlen_k=N, head_dim=D,
             causal=causal)
        for dtype in ("bfloat16", "float16")
        for D in (64, 128)
        for causal in (False, True)
        for M, N, groups in ((128, 128, 1), (300, 200, 2), (190, 333, 4))
    ],
    ids=str,
)  # fmt: skip
def test_it_keeps_the_contract_of_attention(triton, monkeypatch, case):
    """Forward, and backward from its cache, are within the derived bound and repeat their bits."""
    if triton.device != "cuda" or architecture() != "sm_90":
        pytest.skip("it runs on Hopper only")
    taken = []
    launch = attention_hopper.forward
    monkeypatch.setattr(attention_hopper, "LEAST_ROWS", dict.fromkeys(TABLE, 1))
    monkeypatch.setattr(
        attention_hopper, "forward", lambda *args: (taken.append(1), launch(*args))[1]
    )
    hold(CONTRACT, triton, case, ())
    assert taken
    rng = np.random.default_rng(0)
    q, k, v = (
        triton.asarray(rng.normal(size=(1, 4, n, case.head_dim)), case.dtype)
        for n in (300, 200, 200)
    )
    runs = [triton.attention.forward(q, k, v, causal=case.causal)[0] for _ in range(20)]
    assert all(torch.equal(x, runs[0]) for x in runs)
