"""Attention in 8 bits: the reference against ml_dtypes and torch; the kernel by contract."""

import dataclasses
import itertools

import ml_dtypes
import numpy as np
import pytest
import torch
from allocated import Largest
from far import apart
from faulty import check_seen, plus, scaled
from hypothesis import given

from twofold.core.verify import machines
from twofold.core.verify.contract import Inapplicable, compare, hold, subject
from twofold.core.verify.contracts import attention_fp8 as contract
from twofold.core.verify.contracts import attention_fp8_domain as domain
from twofold.core.verify.contracts.attention_scoring import SQUASHED
from twofold.core.verify.rounding import exact, gamma, matmul
from twofold.kernels import attention_fp8_tiles as tiles
from twofold.reference import attention_fp8
from twofold.reference.dropout import attention_keep_mask
from twofold.reference.rotary import Rotary

E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
FINITE = np.unique(E4M3[np.isfinite(E4M3)])


def test_every_tile_is_pinned_and_chosen():
    pinned = {c.tile for c in contract.CONTRACT.pinned if c.tile is not None}
    assert pinned == set(range(len(tiles.ENTRIES)))
    chosen = {
        tiles.choose_tile(d, masked=masked, rotary=rotary, aligned=aligned, amd=amd)
        for d in range(1, 513)
        for masked in (True, False)
        for rotary in (True, False)
        for aligned in ((True,) if tiles.copied(d) else (True, False))
        for amd in (True, False)
    }
    assert chosen == {tile for _, tile in tiles.ENTRIES}
    assert {tiles.padded(d) for d in range(1, 513)} == {32, 64, 128, 256, 512}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_nearest_number_is_the_nearest_and_even_at_ties(dtype):
    """All numbers, the midpoints between neighbours, and what lies just beside either."""
    middle = (FINITE[1:] + FINITE[:-1]) / 2
    x = np.concatenate((FINITE, middle)).astype(dtype)
    x = np.concatenate((x, np.nextafter(x, dtype(np.inf)), np.nextafter(x, dtype(-np.inf))))
    distance = np.abs(x[:, None].astype(np.float64) - FINITE)
    odd = np.abs(np.arange(len(FINITE)) - len(FINITE) // 2) % 2  # counted from 0
    order = np.lexsort((np.broadcast_to(odd, distance.shape), distance))
    found = attention_fp8.nearest(x)
    assert found.dtype == dtype
    assert np.array_equal(found, FINITE[order[:, 0]].astype(dtype))
    assert attention_fp8.nearest(np.array([1e9, -np.inf])).tolist() == [448, -448]


@given(contract.CONTRACT.cases)
def test_quantising_is_within_half_a_unit_on_both_sides_of_ties(case):
    case = dataclasses.replace(case, dtype="float64")
    x = domain.inputs(case).x
    x8, scale = attention_fp8.quantize(x)
    by = scale[..., None, None]
    assert (np.abs(x8 * by - x) <= 2.0**-4 * np.abs(x) + 2.0**-10 * by).all()
    assert np.isin(x8, FINITE).all()


@pytest.mark.parametrize("causal", [False, True])
def test_reference_is_torchs_attention_of_what_the_numbers_stand_for(causal):
    case = contract.Case("float64", 2, 4, 9, 9, 12, groups=2, causal=causal, seed=3)
    x = contract.inputs(case)
    q, k, v = (
        torch.tensor(a * scale[..., None, None])
        for a, scale in ((x.call.q, x.q_scale), (x.call.k, x.k_scale), (x.call.v, x.v_scale))
    )
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=True
    )
    out, lse = attention_fp8.forward(
        x.call.q, x.call.k, x.call.v,
        q_scale=x.q_scale, k_scale=x.k_scale, v_scale=x.v_scale, causal=causal,
    )  # fmt: skip
    bound = contract.truth(case, x)["out"]  # of any order in float64
    for found in (out, theirs.numpy()):
        assert compare("out", found, bound)[2] == ""
    assert lse.shape == (2, 4, 9)


FEATURES = {
    "causal": {"causal": True},
    "top-left": {"causal": "top-left"},
    "window": {"window_size": (20, 3)},
    "grouped heads": {"groups": 2},
    "key lengths": {"key_lengths": True},
    "sinks": {"sinks": True},
    "softcap": {"softcap": 2.0},
    "ALiBi": {"alibi": "BH"},
    "bias": {"bias": "1HMN"},
    "mask": {"mask": "B1MN"},
    "mask of blocks": {"block_mask": "1HMN", "block_size": (5, 24)},
    "function of scores": {"score_mod": SQUASHED},
    "packed": {"packed": True},
    "dropout": {"dropout_p": 0.3},
    "rotary": {"rotary": "half"},
    "rotary of neighbours": {"rotary": "interleaved"},
    "scales of heads": {"scales": "1H"},
}
PAIRS = [
    (first, second)
    for first, second in itertools.combinations(FEATURES, 2)
    if not FEATURES[first].keys() & FEATURES[second].keys()
]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[" and ".join(pair) for pair in PAIRS])
def test_each_feature_goes_with_8_bits(triton, first, second):
    """Every pair of features works in 8 bits, over more than a tile of keys."""
    both = {**FEATURES[first], **FEATURES[second]}
    case = contract.Case("float32", 2, 2, 9, 70, 8, layout="heads inside", seed=5, **both)
    hold(contract.CONTRACT, triton, case, ())


@pytest.mark.parametrize("head_dim", [16, 33, 100, 256, 257, 512])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_any_head_dim_and_output(triton, head_dim, dtype):
    case = contract.Case(dtype, 1, 2, 5, 33, head_dim, groups=2, causal=True)
    hold(contract.CONTRACT, triton, case, ())
    x = contract.inputs(case)
    assert contract.run(triton, case, x)["out"].dtype == getattr(torch, dtype)


def test_the_output_has_the_dtype_that_was_asked_for(reference, triton):
    numbers = {
        name: triton.asarray(x, "float8_e4m3fn") for name, x in GOOD.items() if len(name) < 2
    }
    scales = {name: triton.asarray(x, "float32") for name, x in GOOD.items() if len(name) > 2}
    assert triton.attention_fp8.forward(**numbers, **scales)[0].dtype == torch.bfloat16
    assert reference.attention_fp8.forward(**GOOD)[0].dtype == np.float64
    assert reference.attention_fp8.forward(**GOOD, out_dtype="float16")[0].dtype == np.float16


def test_products_of_8_bits_are_summed_with_fewer_bits_on_hopper():
    """The bound allows for exactly as much; a long sum takes 32 at a time."""
    rng = np.random.default_rng(0)
    a, b = (rng.choice(FINITE[np.abs(FINITE) > 16], shape) for shape in ((40, 96), (96, 40)))
    on = [machines.machine("float8_e4m3fn", accumulator=bits) for bits in (None, 14)]
    whole, few = (matmul(exact(a, x), exact(b, x)) for x in on)
    assert [x.summed for x in on] == [0, machines.E4M3]
    products = a[:, :, None] * b  # (40, 96, 40)
    total = np.zeros((40, 40))
    for part in np.split(products, 3, axis=1):
        unit = np.ldexp(1.0, np.frexp(np.abs(part).max(1))[1] - 14)  # (40, 40)
        kept = np.trunc(part / unit[:, None]).sum(1) * unit
        last = np.ldexp(1.0, np.frexp(np.abs(kept))[1] - 14)
        total += np.trunc(kept / last) * last
    share = np.abs(total - few.value) / few.error
    assert 0.001 < share.max() <= 1
    assert (np.abs(total - whole.value) > whole.error).any()


@pytest.mark.parametrize("feature", [f for f in FEATURES if f not in ("bias", "mask")])
def test_nothing_of_queries_times_keys_is_allocated(triton, feature):
    rows, head_dim = 160, 16
    case = contract.Case("float32", 1, 2, rows, rows, head_dim, seed=5, **FEATURES[feature])
    x = contract.inputs(case)
    with Largest() as largest:
        contract.run(triton, case, x)
    assert 0 < largest.elements <= 4 * rows * head_dim < rows * rows


FAR = 2**30 + 16


@pytest.mark.parametrize(
    "strides", [(3 * FAR, FAR, 16, 1), (48, 16, 2**27, 1), (60, 20, 1, 2**31 // 15 + 1)]
)
def test_offsets_pass_two_to_the_31(triton, strides):
    """A third head, rows and features far apart in memory, little of which is touched."""
    x = triton.asarray(np.random.default_rng(0).standard_normal((1, 3, 19, 16)), "float16")
    x8, scale = triton.attention_fp8.quantize(x)
    wide8, same = triton.attention_fp8.quantize(apart(triton, x, strides))
    assert torch.equal(scale, same) and torch.equal(x8.float(), wide8.float())
    wide8 = apart(triton, x8, strides)
    scales = dict.fromkeys(("q_scale", "k_scale", "v_scale"), scale)
    out, _ = triton.attention_fp8.forward(wide8, wide8, wide8, **scales)
    case = contract.Case("bfloat16", heads=3, seqlen_q=19, seqlen_k=19, head_dim=16)
    given = contract.inputs(case)
    given = given._replace(
        call=given.call._replace(**dict.fromkeys("qkv", triton.to_numpy(x8).astype(np.float64))),
        **dict.fromkeys(scales, triton.to_numpy(scale).astype(np.float64)),
    )
    # Within the bound, but not with x8's bits: unaligned rows have another tile.
    assert compare("out", triton.to_numpy(out), contract.truth(case, given)["out"])[2] == ""


GOOD = {
    "q": np.zeros((1, 2, 3, 4)), "k": np.zeros((1, 1, 5, 4)), "v": np.zeros((1, 1, 5, 4)),
    "q_scale": np.ones((1, 2)), "k_scale": np.ones((1, 1)), "v_scale": np.ones((1, 1)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": np.zeros((1, 2, 3, 513))}, ValueError, "q.shape[-1] is 513; it must be at most 512"),
        ({"q": np.zeros((2, 3, 4))}, ValueError, "q.shape is (2, 3, 4); it must be of rank 4"),
        ({"k": np.zeros((1, 3, 5, 4))}, ValueError, "k.shape[1] is 3; it must be a divisor of"),
        ({"v": np.zeros((1, 1, 6, 4))}, ValueError, "v.shape is (1, 1, 6, 4); it must be"),
        ({"v": np.zeros((1, 1, 5, 4), np.float16)}, TypeError, "v has dtype float16; it must be"),
        ({"q_scale": np.ones((1, 3))}, ValueError, "q_scale.shape is (1, 3); it must be broadcas"),
        ({"k_scale": np.ones((1, 2))}, ValueError, "k_scale.shape is (1, 2); it must be broadcas"),
        ({"v_scale": np.ones((3, 1))}, ValueError, "v_scale.shape is (3, 1); it must be broadcas"),
        ({"v_scale": 1.0}, TypeError, "v_scale is a float; it must be an array"),
        ({"k_scale": np.ones(1, np.int32)}, TypeError, "k_scale has dtype int32"),
        ({"bias": np.ones(5, np.int32)}, TypeError, "bias has dtype int32; it must be one of"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0; it must be at least 0 and below 1"),
        ({"seed": -1, "dropout_p": 0.1}, ValueError, "seed is -1; it must be"),
        ({"causal": "middle"}, ValueError, "causal is 'middle'"),
        ({"window_size": (-1, 0)}, ValueError, "window_size is (-1, 0)"),
    ],
)
def test_both_sides_refuse_the_same_with_the_same_words(both_refuse, change, error, words):
    both_refuse("attention_fp8", GOOD | change, error, words)


@pytest.mark.parametrize(
    "x", [np.zeros((2, 3)), np.zeros((1, 1, 0, 4)), np.zeros((1, 1, 1, 1), int)]
)
def test_both_sides_refuse_to_quantise_the_same(both_refuse, x):
    error = TypeError if x.dtype == int else ValueError
    both_refuse("attention_fp8", {"x": x}, error, "x", function="quantize")


def test_each_side_refuses_numbers_that_are_none_of_e4m3(reference, triton):
    with pytest.raises(ValueError, match="k is of numbers that float8_e4m3fn lacks; it must be of"):
        reference.attention_fp8.forward(**GOOD | {"k": np.full((1, 1, 5, 4), 1.03)})
    with pytest.raises(ValueError, match="out_dtype is 'bfloat16'; it must be one of 'float16', "):
        reference.attention_fp8.forward(**GOOD, out_dtype="bfloat16")
    with pytest.raises(TypeError, match="bias is a list; it must be an array"):
        reference.attention_fp8.forward(**GOOD, bias=[1.0])
    floats = {name: triton.asarray(x, "float32") for name, x in GOOD.items()}
    with pytest.raises(TypeError, match="q has dtype float32; it must be float8_e4m3fn"):
        triton.attention_fp8.forward(**floats)
    for name in "qkv":
        floats[name] = triton.asarray(GOOD[name], "float8_e4m3fn")
    with pytest.raises(ValueError, match="out_dtype is 'float64'; it must be one of"):
        triton.attention_fp8.forward(**floats, out_dtype="float64")
    for name in ("q_scale", "k_scale", "v_scale"):
        floats[name] = triton.asarray(GOOD[name], "float16")
    with pytest.raises(TypeError, match="q_scale has dtype float16; it must be float32"):
        triton.attention_fp8.forward(**floats)


def test_values_whose_keys_lie_side_by_side_are_read_where_they_are(triton):
    x = triton.asarray(np.random.default_rng(0).standard_normal((1, 2, 5, 32)), "float32")
    x8, _ = triton.attention_fp8.quantize(x.mT)
    assert x8.dtype == torch.float8_e4m3fn and x8.mT.is_contiguous()
    again, _ = triton.attention_fp8.quantize(x)
    assert x8.mT.float().equal(again.float())


FAULTS = {
    "half a unit": scaled("x8", 1.03),
    "quantised again": lambda found, case, x: found["x8"].__imul__(
        1 + (np.abs(found["x8"]) < 40) * (np.arange(found["x8"].shape[-1]) == 0) * x.x[0, 0, 0, 0]
    ),
    "NaN is seen": lambda found, case, x: found["scale"].__setitem__(np.isnan(found["scale"]), 1.0),
    "padding is not read": plus("out", lambda found, case, x: 1e-3 * x.call.v.sum()),
    "scales are factors": plus("out", lambda found, case, x: 1e-3 * np.log(x.v_scale).sum()),
    "equal values": scaled("out", 1.3),
    "one key": scaled("out", 1.0001),
    "equal keys": plus("lse", lambda found, case, x: 1e-3 * case.seqlen_k),
    "unattended": plus("out", lambda found, case, x: 1e-3),
    "unseen": plus("out", lambda found, case, x: 1e-3 * x.call.v.sum()),
    "permuted heads": plus("out", lambda found, case, x: 1e-3 * x.q_scale.flat[0]),
    "grouped heads": plus("lse", lambda found, case, x: 0.1 * case.groups),
    "packed as padded": plus("lse", lambda found, case, x: 0.1 * case.packed),
    "quarter turns": plus("lse", lambda found, case, x: 0.1 * (x.call.rotary is not None)),
    "other strides": plus("lse", lambda found, case, x: 0.1 * (case.layout == "transposed")),
    "other tiles": plus("lse", lambda found, case, x: 0.1 * (case.tile is not None)),
}
SHOWN = {
    "unattended": {"key_lengths": True, "mask": "B1M1", "batch": 4, "heads": 2},
    "unseen": {"window_size": (1, 0), "seqlen_q": 3, "seqlen_k": 30},
    "grouped heads": {"groups": 2, "heads": 2},
    "packed as padded": {"packed": True, "batch": 3},
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_property_holds_and_sees_a_fault(triton, name):
    how = {"batch": 2, "heads": 2, "seqlen_q": 7, "seqlen_k": 19} | SHOWN.get(name, {})
    case = contract.Case("float32", **how)
    claim = contract.CONTRACT.properties[name]
    with np.errstate(invalid="ignore"):  # the inputs have NaN and ∞
        check_seen(claim, contract.CONTRACT, triton, case, FAULTS[name])


def test_every_property_has_its_fault(triton):
    assert contract.CONTRACT.properties.keys() - FAULTS.keys() == {"NaN of the call is seen"}
    plain = contract.Case("float32")
    for name in ("grouped heads", "packed as padded", "unseen"):
        with pytest.raises(Inapplicable):
            contract.CONTRACT.properties[name](subject(contract.CONTRACT, triton), plain)


def test_weights_are_cast_to_what_they_are_without_dropout(triton):
    """Values that tell keys apart show each kept key's weight, doubled, to the bit."""
    case = contract.Case("float32", 2, 2, 9, 70, 128, layout="heads inside", seed=7)
    x = contract.inputs(case)
    x = x._replace(call=x.call._replace(v=np.broadcast_to(np.eye(70, 128), (2, 2, 70, 128))))
    plain, half = (
        contract.run(triton, dataclasses.replace(case, dropout_p=p), x) for p in (0.0, 0.5)
    )
    kept = attention_keep_mask((2, 2, 9, 70), 0.5, case.seed)
    weights, others = (triton.to_numpy(found["out"])[..., :70] for found in (plain, half))
    assert np.array_equal(others, 2 * np.where(kept, weights, 0))
    assert half["lse"].equal(plain["lse"])


@pytest.mark.parametrize(("first", "second", "angle"), [(448, 448, -0.7854), (1, 0, 1.570793)])
def test_turned_numbers_are_rounded_to_float16_once(triton, first, second, angle):
    """With one feature the score is that number, to the bit: the largest, and a subnormal."""
    case = contract.Case("float32", seqlen_q=1, seqlen_k=1, head_dim=2, softmax_scale=1.0)
    x = contract.inputs(case)
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    q, k = np.array([[[[first, second]]]], np.float64), np.array([[[[1.0, 0.0]]]])
    cos, sin = (f([[angle]]).astype(np.float32).astype(np.float64) for f in (np.cos, np.sin))
    turns = Rotary(cos, sin, one, zero)
    given_ = contract.Inputs(x.call._replace(q=q, k=k, rotary=turns), one, one, one, x.x)
    lse = triton.to_numpy(contract.run(triton, case, given_)["lse"]).item()
    turned = (first * cos - second * sin).item()
    rounded = float(np.float16(turned))
    close = gamma(4, 2.0**-24) * abs(rounded)  # log₂e and ln 2, and a product with each
    assert abs(lse - rounded) <= close < abs(lse - turned)


def test_weights_that_underflow_are_lost_and_the_bound_knows(triton):
    """A key of weight 2⁻¹⁹ adds nothing, one of 2⁻¹⁷ or more what it should."""
    case = contract.Case("float32", seqlen_q=1, seqlen_k=2, head_dim=1, softmax_scale=1.0)
    x = contract.inputs(case)
    for power, kept in ((-19, False), (-16, True), (-3, True)):
        q, k = np.array([[[[1.0]]]]), np.array([[[[0.0], [-1.0]]]])
        v = np.array([[[[0.0], [1.0]]]])
        one = np.ones((1, 1))
        q_scale = np.array([[-power * np.log(2.0)]])
        given_ = contract.Inputs(x.call._replace(q=q, k=k, v=v), q_scale, one, one, x.x)
        found = triton.to_numpy(contract.run(triton, case, given_)["out"])
        assert (found.item() > 0.0) == kept
        assert compare("out", found, contract.truth(case, given_)["out"])[2] == ""
