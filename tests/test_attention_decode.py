"""Decoding with a cache: the reference against torch and attention; the kernel by contract."""

import dataclasses

import numpy as np
import pytest
import torch
from far import apart
from hypothesis import given
from torch.utils._python_dispatch import TorchDispatchMode

from twofold.core.verify import claims
from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import attention as whole
from twofold.core.verify.contracts import attention_decode as contract
from twofold.reference import attention_decode, dropout
from twofold.reference.rotary import Rotary


def test_every_tile_is_pinned_and_chosen(triton):
    from twofold.kernels.attention_decode_tiles import ENTRIES, MASKED, TILES, choose_tile

    pinned = {c.tile for c in contract.CONTRACT.pinned} - {None}
    assert pinned == set(range(len(ENTRIES)))
    chosen = {
        choose_tile(rows, d, size, masked=masked)
        for rows in (1, 16, 17)
        for d in range(1, 513)
        for size in (2, 4)
        for masked in (False, True)
    }
    assert chosen == {tile for _, tile in ENTRIES}
    for (rows, size, d), tile in TILES.items():
        assert choose_tile(rows, d, size) == tile
        masked = choose_tile(rows, d, size, masked=True)
        assert masked == MASKED.get((rows, size, d), tile)
    assert choose_tile(17, 64, 2) != choose_tile(16, 64, 2)


@pytest.mark.parametrize("feature", ["bias", "mask", "block_mask", "rotary", "dropout_p"])
def test_what_takes_registers_has_a_tile_of_its_own(triton, monkeypatch, feature):
    """Each of these features alone requires it."""
    chosen = []

    def choosing(*how, masked):
        chosen.append(masked)
        return choose_tile(*how, masked=masked)

    from twofold.kernels import attention_decode as kernel
    from twofold.kernels.attention_decode_tiles import choose_tile

    monkeypatch.setattr(kernel, "choose_tile", choosing)
    own = {"rotary": "half"} if feature == "rotary" else {feature: "MN", "block_size": 2}
    if feature == "dropout_p":
        own = {feature: 0.3}
    if feature in ("bias", "mask"):
        del own["block_size"]
    for how in ({}, own):
        contract.run(triton, contract.Case(**how))
    assert chosen == [False, True]


def turned_by_complex_numbers(q, rotary, b, position):
    """Return a sequence's queries (H, M, D) rotated, except those before its first key."""
    cos, sin = (torch.tensor(a if a.ndim == 2 else a[b]) for a in (rotary.cos, rotary.sin))
    turn = torch.complex(cos, sin)[position[:, 0].clamp_min(0)]  # (M, F)
    turn = torch.where(position < 0, torch.ones_like(turn), turn)
    F = turn.shape[-1]
    pairs = q[..., : 2 * F].unflatten(-1, (F, 2) if rotary.interleaved else (2, F))
    axis = -1 if rotary.interleaved else -2
    y = torch.view_as_real(torch.complex(*pairs.unbind(axis)) * turn)  # (H, M, F, 2)
    y = y if rotary.interleaved else y.mT
    return torch.cat((y.flatten(-2), q[..., 2 * F :]), -1)


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Torch's softmax on the scores of each sequence, in float64, by float64's own bound."""
    case = dataclasses.replace(case, dtype="float64", allow_tf32=False, split=None)
    x = contract.inputs(case)
    found = {}
    for b, length in enumerate(x.lengths):
        M = x.queries(b)
        q = torch.tensor(x.of(x.call.q, b)[0])
        pairs = (case.batch, case.heads, case.queries, case.capacity)

        def own(a, pairs=pairs, b=b, M=M, length=length):
            """Return one sequence's part of a bias or mask."""
            return torch.tensor(np.broadcast_to(a, pairs)[b, :, :M, :length].copy())

        k, v = (
            torch.tensor(a[b, :, :length]).repeat_interleave(case.groups, 0)
            for a in (x.call.k, x.call.v)
        )
        position = torch.arange(M)[:, None] + length - M
        if x.call.rotary is not None:
            q = turned_by_complex_numbers(q, x.call.rotary, b, position)
        j = torch.arange(length)
        s = q @ k.mT * whole.scale(contract.whole(case))
        if case.softcap is not None:
            s = case.softcap * torch.tanh(s / case.softcap)
        if case.score_mod is not None:
            limit, slope = contract.SQUASHED.reference().args
            h = torch.arange(case.heads)[:, None, None]
            s = limit * s / (1 + s.abs()) - slope * (h + 1) * (position - j).abs() + b
        if x.call.alibi_slopes is not None:
            slopes = np.broadcast_to(x.call.alibi_slopes, (case.batch, case.heads))[b]
            s = s - torch.tensor(slopes.copy())[:, None, None] * (position - j).abs()
        if x.call.bias is not None:
            s = s + own(x.call.bias)
        left, right = case.window_size or (None, None)
        right = 0 if case.causal else right
        live = torch.ones(s.shape, dtype=torch.bool)
        if x.call.mask is not None:
            live &= own(x.call.mask)
        if x.call.block_mask is not None:
            size = case.block_size
            rows, columns = (size, size) if isinstance(size, int) else size
            i, j_ = np.ogrid[: case.queries, : case.capacity]
            blocks = np.broadcast_to(
                x.call.block_mask,
                (*pairs[:2], -(-case.queries // rows), -(-case.capacity // columns)),
            )
            live &= own(blocks[:, :, i // rows, j_ // columns])
        if left is not None:
            live &= j >= position - left
        if right is not None:
            live &= j <= position + right
        s = torch.where(live, s, -torch.inf)
        if case.sinks:
            sinks = torch.tensor(x.call.sinks)[:, None, None].expand(-1, M, 1)
            s = torch.cat((s, sinks), -1)
        lse = torch.logsumexp(s, -1)
        weights = torch.exp(s - torch.where(lse == -torch.inf, 0.0, lse)[..., None])
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)
        if case.dropout_p > 0.0:
            keep = dropout.attention_keep_mask(pairs, case.dropout_p, case.seed)
            sink = np.zeros((*pairs[:3], int(case.sinks)))
            keep = np.concatenate((keep[..., : int(length)], sink), -1)[b, :, :M]
            weights = weights * torch.tensor(keep) * dropout.scale(case.dropout_p)
        found.setdefault("out", []).append((weights[..., : int(length)] @ v).numpy())
        found.setdefault("lse", []).append(lse.numpy())
    for name, bound in contract.truth(case, x).items():
        whole_batch = np.concatenate(found[name], 1)[None] if case.packed else np.stack(found[name])
        assert compare(name, whole_batch, bound)[2] == ""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("page_size", [0, 5])
def test_the_kernel_is_that_of_attention_on_each_sequence(triton, dtype, page_size):
    """Several parts against one pass, within the sum of both bounds."""
    case = contract.Case(
        dtype, 3, 4, 2, 3, 50, page_size, split=16, head_dim=16, causal=True, softcap=5.0,
        alibi="H", sinks=True, seed=1,
    )  # fmt: skip
    x = contract.inputs(case)
    found, bounds = contract.run(triton, case, x), contract.truth(case, x)
    for b, length in enumerate(x.lengths):
        assert length >= case.queries
        one = dataclasses.replace(
            contract.whole(case), batch=1, seqlen_k=int(length), key_lengths=False
        )
        call = x.call._replace(
            q=x.call.q[b : b + 1], dout=x.call.dout[b : b + 1], key_lengths=None,
            **{n: getattr(x.call, n)[b : b + 1, :, :length] for n in "kv"},
        )  # fmt: skip
        theirs, theirs_bounds = whole.run(triton, one, call), whole.truth(one, call)
        for name in ("out", "lse"):
            mine = bounds[name][b : b + 1]
            error = mine.error + theirs_bounds[name].error
            value = triton.to_numpy(theirs[name]).astype(np.float64)
            bound = dataclasses.replace(mine, value=value, error=error)
            claims.within(name, triton.to_numpy(found[name])[b : b + 1], bound)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_lengths_and_table_may_have_32_bits_or_64(triton, dtype):
    case = contract.Case(capacity=12, page_size=4, causal=True)
    x, bounds = contract.inputs(case), contract.truth(case)
    q, k, v = (
        triton.asarray(contract.paged(a, case, x) if i else a, "float32")
        for i, a in enumerate(x.call[:3])
    )
    found = triton.attention_decode.forward(
        q, k, v, causal=True, block_table=triton.asarray(x.table, dtype),
        key_lengths=triton.asarray(x.lengths, dtype),
    )  # fmt: skip
    for name, y in zip(("out", "lse"), found, strict=True):
        claims.within(name, triton.to_numpy(y), bounds[name])


def test_offsets_pass_two_to_the_31(triton):
    """Pages further apart than 2³¹ elements, in memory of which little is touched."""
    far, shape = 2**31 + 16, (2, 1, 4, 16)
    x = triton.asarray(np.random.default_rng(0).standard_normal(shape), "float16")
    wide = apart(triton, x, (far, 64, 16, 1))
    table, lengths = (triton.asarray(np.array(a)) for a in ([[1, 0]], [7]))
    how = {"key_lengths": lengths, "block_table": table}
    q = x[:1, :, :1]
    near = triton.attention_decode.forward(q, x, x, **how)
    for a, b in zip(near, triton.attention_decode.forward(q, wide, wide, **how), strict=True):
        assert torch.equal(a, b)


class Reading(TorchDispatchMode):
    """Refuses to bring a number to the host, which on a GPU waits for everything running there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a number is read"
        return function(*args, **(kwargs or {}))


def test_no_length_is_read_on_the_host(triton):
    for packed in (False, True):
        case = contract.Case(capacity=12, page_size=4, split=5, packed=packed)
        x = contract.inputs(case)
        with Reading(), pytest.MonkeyPatch.context() as patch:
            # On a GPU the values of offsets are not checked.
            patch.setattr(attention_decode.checks, "offsets", lambda *_: None)
            contract.run(triton, case, x)
    with Reading(), pytest.raises(AssertionError, match="a number is read"):
        int(torch.ones(1))


Q, CACHE = np.ones((2, 4, 3, 5), "float32"), np.ones((2, 2, 7, 5), "float32")
PAGES, TABLE = np.ones((6, 2, 4, 5), "float32"), np.zeros((2, 3), "int32")
LENGTHS = np.array([3, 7])
ANGLES = np.ones((7, 2), "float32")
STARTS = np.array([0, 1, 3], "int32")
PACKED = {"q": Q[:1], "cu_seqlens_q": STARTS, "max_seqlen_q": 2}
PAGED = {"k_cache": PAGES, "v_cache": PAGES, "block_table": TABLE}


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"q": Q.astype(int)}, TypeError, "q has dtype int64; it must be one of float16"),
        ({"q": Q[0]}, ValueError, "q.shape is (4, 3, 5); it must be of rank 4, (B, H, M, D)"),
        ({"q": Q[:, :3]}, ValueError, "k_cache.shape[1] is 2; it must be a divisor of q.shape[1]"),
        ({"k_cache": CACHE.astype("float16")}, TypeError, "k_cache has dtype float16; it must"),
        ({"k_cache": CACHE[:1]}, ValueError, "k_cache.shape is (1, 2, 7, 5); it must be (2, K, N,"),
        ({"v_cache": CACHE[:, :, :6]}, ValueError, "v_cache.shape is (2, 2, 6, 5); it must be (2,"),
        ({"key_lengths": LENGTHS[:1]}, ValueError, "key_lengths.shape is (1,); it must be (2,)"),
        ({"key_lengths": LENGTHS * 1.0}, TypeError, "key_lengths has dtype float64; it must be"),
        ({"key_lengths": None}, TypeError, "key_lengths is a NoneType; it must be an array"),
        ({"causal": "top-left"}, ValueError, "causal is 'top-left'; it must be one of 'bottom-r"),
        ({"window_size": (-1, 0)}, ValueError, "window_size is (-1, 0); it must be of ints"),
        ({"sinks": np.ones(3, "float32")}, ValueError, "sinks.shape is (3,); it must be (4,)"),
        ({"mask": np.ones((3, 6), bool)}, ValueError, "mask.shape is (3, 6); it must be broadcast"),
        ({"bias": CACHE[0, 0, :3, :3]}, ValueError, "bias.shape is (3, 3); it must be broadcastab"),
        ({"bias": np.ones((3, 7))}, TypeError, "bias has dtype float64; it must have the dtype of"),
        ({"block_mask": TABLE > 0}, ValueError, "block_size is None; it must be an int ≥ 1"),
        ({"rotary": (ANGLES, ANGLES)}, TypeError, "rotary is a tuple; it must be a Rotary"),
        (
            {"rotary": Rotary(ANGLES, ANGLES, ANGLES)},
            ValueError,
            "rotary.k_cos is given; it must b",
        ),
        (
            {"rotary": Rotary(ANGLES, ANGLES, None, ANGLES)},
            ValueError,
            "rotary.k_sin is given; it must be None",
        ),
        ({"rotary": Rotary(ANGLES, ANGLES[:3])}, ValueError, "rotary.sin.shape is (3, 2); it must"),
        (
            {"rotary": Rotary(ANGLES[:6], ANGLES[:6])},
            ValueError,
            "rotary.cos.shape[-2] is 6; it mu",
        ),
        (
            {"rotary": Rotary(CACHE[0, 0], CACHE[0, 0])},
            ValueError,
            "rotary.cos.shape[-1] is 5; it must be at most half of head_dim 5",
        ),
        (
            {"rotary": Rotary(CACHE[:1, 0], CACHE[:1, 0])},
            ValueError,
            "rotary.cos.shape is (1, 7, 5); it must be (2, L, F)",
        ),
        (
            {"cu_seqlens_q": STARTS, "max_seqlen_q": 3},
            ValueError,
            "q.shape[0] is 2; it must be 1 with cu_seqlens_q",
        ),
        ({"max_seqlen_q": 3}, ValueError, "max_seqlen_q is 3; it must be None without cu_seqlens"),
        (PACKED | {"max_seqlen_q": None}, ValueError, "max_seqlen_q is None; it must be an int ≥"),
        (PACKED | {"cu_seqlens_q": LENGTHS}, TypeError, "cu_seqlens_q has dtype int64; it must be"),
        (PACKED | {"key_lengths": LENGTHS[:1]}, ValueError, "key_lengths.shape is (1,); it must"),
        (PACKED | {"k_cache": CACHE[:1]}, ValueError, "k_cache.shape is (1, 2, 7, 5); it must be"),
        (
            PACKED | {"mask": np.ones((3, 7), bool)},
            ValueError,
            "mask.shape is (3, 7); it must be broadcastable to (2, 4, 2, 7)",
        ),
        (
            PACKED | {"rotary": Rotary(CACHE[:1, 0, :, :2], CACHE[:1, 0, :, :2])},
            ValueError,
            "rotary.cos.shape is (1, 7, 2); it must be (2, L, F)",
        ),
        (PAGED | {"k_cache": PAGES[..., :4]}, ValueError, "k_cache.shape is (6, 2, 4, 4); it must"),
        (PAGED | {"block_table": TABLE[0]}, ValueError, "block_table.shape is (3,); it must be of"),
        (PAGED | {"block_table": TABLE[:1]}, ValueError, "block_table.shape is (1, 3); it must be"),
        (PAGED | {"block_table": TABLE * 1.0}, TypeError, "block_table has dtype float64; it must"),
        (PAGED | {"v_cache": PAGES[:5]}, ValueError, "v_cache.shape is (5, 2, 4, 5); it must be"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    arguments = {"q": Q, "k_cache": CACHE, "v_cache": CACHE, "key_lengths": LENGTHS} | changed
    both_refuse("attention_decode", arguments, error, words)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"max_seqlen_q": 1}, "max_seqlen_q is 1; it must be at least 2"),
        (
            {"cu_seqlens_q": STARTS + 1},
            "cu_seqlens_q is [1, 2, 4]; it must be non-decreasing from 0 to 3",
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_sequences_that_lie_elsewhere_are_refused(both_refuse, triton, changed, words):
    if triton.device == "cuda":
        pytest.skip("no check waits for a GPU's values")
    arguments = {"k_cache": CACHE, "v_cache": CACHE, "key_lengths": LENGTHS} | PACKED | changed
    both_refuse("attention_decode", arguments, ValueError, words)


def test_head_dim_above_512_is_refused(both_refuse):
    wide = dict.fromkeys(("q", "k_cache", "v_cache"), np.ones((1, 1, 1, 513), "float32"))
    wide["key_lengths"] = np.ones(1, int)
    both_refuse("attention_decode", wide, ValueError, "q.shape[-1] is 513; it must be at most 512")


def test_the_kernel_refuses_what_it_cannot_keep(triton):
    q, cache, lengths = (triton.asarray(x) for x in (Q, CACHE, LENGTHS))
    with pytest.raises(ValueError, match="split is 0; it must be at least 1"):
        triton.attention_decode.forward(q, cache, cache, key_lengths=lengths, split=0)
    long = cache[:, :, :1].expand(2, 2, 2**30 + 1, 5)
    with pytest.raises(ValueError, match=r"^k_cache.shape\[2\] is 1073741825; it must be"):
        triton.attention_decode.forward(q, long, long, key_lengths=lengths)
    pages, table = cache[:, :, :1].expand(2, 2, 2**20, 5), lengths[:, None].expand(2, 2**10 + 1)
    with pytest.raises(
        ValueError, match=r"^block_table.shape\[1\] · k_cache.shape\[2\] is 1074790400"
    ):
        triton.attention_decode.forward(
            q, pages, pages, key_lengths=lengths, block_table=table.contiguous()
        )


def test_bad_pages_are_never_followed(reference):
    """Entries after a sequence's last page name no page; NumPy would read −1 as the last one."""
    case = contract.Case(
        batch=2, heads=4, groups=2, queries=3, capacity=19, page_size=4, head_dim=7, seed=3
    )
    given_ = contract.inputs(case)
    assert (given_.table == -1).any() and np.isnan(given_.call.k).any()
    far = given_._replace(table=np.where(given_.table < 0, 2**31 - 1, given_.table))
    pool = contract.paged(given_.call.k, case, given_)
    out, _ = attention_decode.forward(
        given_.call.q, pool, pool, key_lengths=given_.lengths, block_table=far.table
    )
    assert np.isfinite(out).all()
