"""Merging partial attention: the reference against torch and attention; the kernel by contract."""

import dataclasses
import sys

import mpmath
import numpy as np
import pytest
import torch
from faulty import check_seen, faulty, kept, plus, scaled
from hypothesis import given

from twofold.core.verify import claims
from twofold.core.verify.contract import compare, subject
from twofold.core.verify.contracts import attention as whole
from twofold.core.verify.contracts import merge_attention as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import attention, merge_attention


def test_every_tile_is_pinned_and_chosen(triton):
    tiles = triton.merge_attention.TILES
    assert {c.tile for c in contract.CONTRACT.pinned} == set(range(len(tiles)))
    chosen = [triton.merge_attention.choose_tile(d) for d in range(1, 513)]
    assert dict.fromkeys(chosen) == dict.fromkeys(tile for _, tile in tiles)


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Both in float64: each may be as far from the mathematics as float64's own bound.

    The weights are torch's softmax: exp(lse_s − lse) would contain the rounding of lse. Torch
    has NaN where nothing is attended; those queries are given parts and left out again.
    """
    case = dataclasses.replace(case, dtype="float64")
    x = contract.inputs(case)
    outs, lses = torch.tensor(x.cleaned, requires_grad=True), torch.tensor(x.lses)
    attends = torch.tensor(x.attends)
    lses = torch.where(attends, lses, 0.0).requires_grad_()
    lse = torch.logsumexp(lses, 0)
    out = (torch.softmax(lses, 0)[..., None] * outs).sum(0)
    loss = (torch.where(attends[..., None], out, 0.0) * torch.tensor(x.dout)).sum()
    if x.dlse is not None:
        loss = loss + (torch.where(attends, lse, 0.0) * torch.tensor(x.dlse)).sum()
    loss.backward()
    theirs = {
        "out": torch.where(attends[..., None], out, 0.0),
        "lse": torch.where(attends, lse, -torch.inf),
        "douts": outs.grad,
        "dlses": lses.grad,
    }
    for name, bound in contract.truth(case).items():
        assert compare(name, theirs[name].detach().numpy(), bound)[2] == ""


def test_gradients_are_slopes():
    rng = np.random.default_rng(0)
    outs, lses = rng.standard_normal((4, 2, 3, 2, 5)), rng.standard_normal((4, 2, 3, 2))
    dout, dlse = rng.standard_normal((2, 3, 2, 5)), rng.standard_normal((2, 3, 2))
    arguments = {"outs": outs, "lses": lses}
    dead = rng.random(lses.shape) < 0.3

    def value(outs, lses):
        out, cache = merge_attention.forward(outs, np.where(dead, -np.inf, lses))
        return float(
            (out * dout).sum() + (np.where(cache.lse > -np.inf, cache.lse, 0) * dlse).sum()
        )

    cache = merge_attention.forward(outs, np.where(dead, -np.inf, lses))[1]
    gradients = merge_attention.backward(dout, cache, dlse)
    check_gradients(value, arguments, {n: getattr(gradients, f"d{n}") for n in arguments}, rng)


def test_forward_is_the_formula_at_high_precision():
    """Log-sum-exps of 700 and −700, where exp by itself over- and underflows."""
    lses, outs = [700.5, -700.0, 700.0], [[1.0, 2], [-3, 5], [7, 1]]
    with mpmath.workdps(60):
        w = [mpmath.exp(x) for x in lses]
        lse = np.full((1, 1, 1), float(mpmath.log(mpmath.fsum(w))))
        out = [float(mpmath.fdot(w, c) / mpmath.fsum(w)) for c in zip(*outs, strict=True)]
    given = contract.Inputs(
        np.array(outs)[:, None, None, None], np.array(lses)[:, None, None, None], np.ones(()), None
    )
    found, cache = merge_attention.forward(given.outs, given.lses)
    bounds = contract.truth(contract.Case("float64"), given)
    for name, x, value in (("out", found, np.array([[[out]]])), ("lse", cache.lse, lse)):
        assert compare(name, x, dataclasses.replace(bounds[name], value=value))[2] == ""


def test_attention_over_halves_of_the_keys_merged_is_attention_over_all():
    """Both passes, in float64; some queries attend to one half only, some to none."""
    case = whole.Case("float64", 2, 3, 5, 9, 4, mask="BHMN", dlse=True, seed=1)
    x = whole.inputs(case)
    cut = 4
    x.mask[0, :, 0, :cut] = x.mask[1, :, 1, cut:] = x.mask[:, 1, 2] = False
    halves = [
        attention.forward(x.q, x.k[:, :, part], x.v[:, :, part], mask=x.mask[..., part])
        for part in (slice(0, cut), slice(cut, None))
    ]
    outs, caches = zip(*halves, strict=True)
    out, cache = merge_attention.forward(np.stack(outs), np.stack([c.lse for c in caches]))
    douts, dlses = merge_attention.backward(x.dout, cache, x.dlse)
    dq, dk, dv, *_ = zip(*map(attention.backward, douts, caches, dlses), strict=True)
    found = {"out": out, "lse": cache.lse, "dq": sum(dq)}
    found |= {"dk": np.concatenate(dk, 2), "dv": np.concatenate(dv, 2)}
    out, cache = attention.forward(x.q, x.k, x.v, mask=x.mask)
    gradients = attention.backward(x.dout, cache, x.dlse)._asdict()
    for name in ("out", "lse", "dq", "dk", "dv"):
        value = {"out": out, "lse": cache.lse, **gradients}[name]
        claims.agree(name, value, found[name], whole.truth(case, x)[name], "of the merged halves")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_output_has_the_dtype_that_is_asked_for(triton, dtype):
    """Parts of two bytes merged into float32 give the bits of the same numbers in float32."""
    given = contract.inputs(contract.Case(dtype, dead=0.3))
    lses, merge = triton.asarray(given.lses, "float32"), triton.merge_attention
    outs = triton.asarray(given.outs, dtype)
    assert merge.forward(outs, lses)[0].dtype == outs.dtype
    half, single = (merge.forward(x, lses, out_dtype="float32")[0] for x in (outs, outs.float()))
    assert half.dtype == torch.float32 and torch.equal(half, single)
    out, cache = merge.forward(outs.float(), lses, out_dtype=outs.dtype)
    assert out.dtype == outs.dtype and torch.equal(out, single.to(outs.dtype))
    assert merge.backward(out, cache).douts.dtype == torch.float32


def test_numpy_has_the_dtype_that_is_asked_for(reference):
    given, merge = contract.inputs(contract.Case(dead=0.3)), reference.merge_attention
    outs, lses = (x.astype(np.float32) for x in (given.outs, given.lses))
    whole, _ = merge.forward(outs, lses)
    for asked in ("float16", np.float16, np.dtype(np.float16)):
        half, cache = merge.forward(outs, lses, out_dtype=asked)
        assert half.dtype == np.float16 and np.array_equal(half, whole.astype(np.float16))
        assert merge.backward(half, cache).douts.dtype == np.float32
    with pytest.raises(ValueError, match="out_dtype is 'int32'; it must be one of 'float16'"):
        merge.forward(outs, lses, out_dtype=np.int32)


def test_gradients_have_the_dtypes_of_what_they_are_of(reference, triton):
    given = contract.inputs(contract.Case("float16", dead=0.3, dlse=True))
    for side in (reference, triton):
        outs, dout = (side.asarray(x, "float16") for x in (given.outs, given.dout))
        lses, dlse = (side.asarray(x, "float32") for x in (given.lses, given.dlse))
        out, cache = side.merge_attention.forward(outs, lses)
        douts, dlses = side.merge_attention.backward(dout, cache, dlse)
        assert out.dtype == douts.dtype == outs.dtype
        assert cache.lse.dtype == dlses.dtype == lses.dtype


OUTS, LSES = np.ones((2, 1, 3, 4, 5), "float32"), np.ones((2, 1, 3, 4), "float32")


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"outs": OUTS.astype(int)}, TypeError, "outs has dtype int64; it must be one of float16"),
        ({"outs": OUTS[0]}, ValueError, "outs.shape is (1, 3, 4, 5); it must be of rank 5, (S, B,"),
        ({"outs": OUTS[:0]}, ValueError, "outs.shape is (0, 1, 3, 4, 5); it must be (S, B, H, M,"),
        ({"lses": LSES[:1]}, ValueError, "lses.shape is (1, 1, 3, 4); it must be (2, 1, 3, 4)"),
        ({"lses": LSES.astype("float16")}, TypeError, "lses has dtype float16; it must be float32"),
        ({"outs": OUTS.astype("float64")}, TypeError, "lses has dtype float32; it must be float64"),
        ({"lses": 1.0}, TypeError, "lses is a float; it must be an array"),
        (
            {"outs": np.ones((1, 1, 1, 1, 513), "float32")},
            ValueError,
            "outs.shape[-1] is 513; it must be at most 512",
        ),
    ],
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("merge_attention", {"outs": OUTS, "lses": LSES} | changed, error, words)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"dout": OUTS[0, :, :2]}, ValueError, "dout.shape is (1, 2, 4, 5); it must be (1, 3, 4,"),
        (
            {"dout": OUTS[0].astype("float16")},
            TypeError,
            "dout has dtype float16; it must have the",
        ),
        ({"dlse": LSES[0, 0]}, ValueError, "dlse.shape is (3, 4); it must be of rank 3, (1, 3, 4)"),
        (
            {"dlse": LSES[0].astype("float64")},
            TypeError,
            "dlse has dtype float64; it must be float",
        ),
    ],
)
def test_a_bad_gradient_is_refused(reference, triton, changed, error, words):
    for side in (reference, triton):
        merge = side.merge_attention
        cache = merge.forward(side.asarray(OUTS), side.asarray(LSES))[1]
        placed = {n: side.asarray(x) for n, x in ({"dout": OUTS[0]} | changed).items()}
        with pytest.raises(error) as refusal:
            merge.backward(cache=cache, **placed)
        assert str(refusal.value).startswith(words), str(refusal.value)


def test_the_kernel_refuses_what_it_cannot_keep(triton):
    merge = triton.merge_attention.forward
    outs, lses = (triton.asarray(x) for x in (OUTS, LSES))
    with pytest.raises(ValueError, match="out_dtype is 'int32'; it must be one of 'float16'"):
        merge(outs, lses, out_dtype="int32")
    with pytest.raises(ValueError, match=r"outs.dtype is 'float64'; it must be one of 'float16'"):
        merge(outs.double(), lses.double())
    outs = outs[:1, :, :1, :1].expand(1, 1, 2**15 + 1, 2**15, 5)
    with pytest.raises(ValueError, match=r"\(32769, 32768\); it must be of at most 1073741824"):
        merge(outs, outs[..., 0])


PROPERTIES = contract.CONTRACT.claims()
CASE = contract.Case(parts=4, batch=2, heads=2, seqlen_q=5, head_dim=7, dead=0.3, dlse=True, seed=3)


def nan_where_nothing_is_attended(found, case, given):
    found["out"][found["lse"] == -np.inf] = np.nan


def nan_is_lost(found, case, given):
    found["lse"] = np.nan_to_num(found["lse"], neginf=-np.inf)


FAULTS = {
    "order of parts": plus("out", lambda f, c, g: g.cleaned[0]),
    "one part alone": scaled("lse", 1 / np.log(2)),
    "merged halves": plus("lse", lambda f, c, g: 0.01 * c.parts),
    "dead part": plus("out", lambda f, c, g: 1e-3 * c.parts),
    "nothing attended": nan_where_nothing_is_attended,
    "shifted": plus("out", lambda f, c, g: 1e-3 * g.lses.max()),
    "rows apart": plus("out", lambda f, c, g: np.arange(c.seqlen_q)[:, None]),
    "NaN is seen": nan_is_lost,
    "infinity is seen": nan_is_lost,
    "gradient sums": scaled("dlses", 1.01),
    "slopes": scaled("dlses", 1.01),
    "same bits again": plus("out", lambda f, c, g: np.random.default_rng().random()),
    "other calls between": kept("out"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_property_sees_its_fault(reference, name):
    with np.errstate(invalid="ignore"):  # the inputs have NaN and +∞
        check_seen(PROPERTIES[name], contract.CONTRACT, reference, CASE, FAULTS[name])


def test_every_property_has_a_fault_here():
    assert PROPERTIES.keys() == FAULTS.keys()


@pytest.mark.parametrize("name", ["out", "lse", "douts", "dlses"])
def test_merged_halves_see_every_output(reference, name):
    fault = scaled(name, 1.01)
    if name == "lse":  # the same for both halves, so that no weight changes
        fault = plus(name, lambda f, c, g: 0.01)
    with pytest.raises(AssertionError, match=f"of halves that were merged {name}"):
        PROPERTIES["merged halves"](faulty(contract.CONTRACT, reference, fault), CASE)


def test_slopes_see_the_gradient_of_the_outputs(reference):
    even = dataclasses.replace(CASE, seed=2)
    PROPERTIES["slopes"](subject(contract.CONTRACT, reference), even)
    with pytest.raises(AssertionError, match="the gradient of outs"):
        PROPERTIES["slopes"](faulty(contract.CONTRACT, reference, scaled("douts", 1.01)), even)


def test_bfloat16_is_refused_by_name_where_numpy_has_it_not(reference):
    """As long as nothing imports `ml_dtypes`; with it, it would be accepted."""
    if "ml_dtypes" in sys.modules:
        pytest.skip("ml_dtypes is imported")
    outs, lses = np.zeros((2, 1, 1, 3, 4), np.float32), np.zeros((2, 1, 1, 3), np.float32)
    with pytest.raises(ValueError, match="^out_dtype is 'bfloat16'; it must be one of 'float16', "):
        reference.merge_attention.forward(outs, lses, out_dtype="bfloat16")
