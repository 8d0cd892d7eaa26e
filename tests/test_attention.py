"""Attention: the reference against torch, slopes and mpmath; the kernel by contract."""

import contextlib
import dataclasses
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core import ops
from twofold.core.verify import attention_bound, rounding
from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import attention as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.core.verify.strict import strict_interpreter
from twofold.reference import attention
from twofold.reference.attention_scores import Options, pack
from twofold.reference.checks import dtype_name


class Squash(torch.autograd.Function):
    """s/(1 + |s|): autograd's own gradient would cancel, this one is checked by slopes."""

    @staticmethod
    def forward(context, s):
        context.save_for_backward(s)
        return s / (1 + s.abs())

    @staticmethod
    def backward(context, dy):
        (s,) = context.saved_tensors
        return dy / (1 + s.abs()) ** 2


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Torch's softmax on the same scores, in float64: no further off than float64's own bound.

    Torch has NaN where a query has no key; those rows are given a key and left out. Rotary
    positions are compared in `test_attention_rotary`.
    """
    case = dataclasses.replace(case, dtype="float64", allow_tf32=False, rotary=None)
    given_ = contract.inputs(case)
    problem, x = contract.problem(case, given_), contract.padded(case, given_)
    q, k, v = (torch.tensor(a, requires_grad=True) for a in (x.q, x.k, x.v))
    bias, sinks = (
        None if a is None else torch.tensor(a, requires_grad=True) for a in (x.bias, x.sinks)
    )
    live = torch.tensor(problem.live)
    s = q @ k.repeat_interleave(case.groups, 1).mT * contract.scale(case)
    if case.softcap is not None:
        s = case.softcap * torch.tanh(s / case.softcap)
    if case.score_mod is not None:
        limit, slope = contract.SQUASHED.reference().args
        b, h, i, j = np.ogrid[: case.batch, : case.heads, : case.seqlen_q, : case.seqlen_k]
        s = limit * Squash.apply(s) - torch.tensor(slope * (h + 1) * abs(i - j) - b)
    if x.alibi_slopes is not None:
        shift = case.seqlen_k - case.seqlen_q
        if case.packed:
            lengths = np.diff(given_.cu_seqlens_k) - np.diff(given_.cu_seqlens_q)
            shift = torch.tensor(lengths)[:, None, None, None]
        shift = 0 if case.causal == "top-left" else shift
        distance = torch.arange(case.seqlen_q)[:, None] + shift - torch.arange(case.seqlen_k)
        s = s - torch.tensor(x.alibi_slopes)[..., None, None] * distance.abs()
    if bias is not None:
        s = s + bias
    attends = live.any(-1, keepdim=True)
    s = torch.where(live | ~attends, s, -torch.inf)
    if sinks is not None:
        column = sinks[:, None, None].expand(*s.shape[:-1], 1)
        s = torch.cat((torch.where(attends, s, -torch.inf), column), -1)
    has_lse = attends[..., 0] if sinks is None else torch.ones_like(attends[..., 0])
    weights = torch.softmax(s, -1)[..., : case.seqlen_k] * torch.tensor(problem.dropout)
    out = torch.where(attends, weights @ v.repeat_interleave(case.groups, 1), 0.0)
    lse = torch.where(has_lse, torch.logsumexp(s, -1), 0.0)
    loss = (out * torch.tensor(x.dout)).sum()
    if x.dlse is not None:
        loss = loss + (lse * torch.tensor(x.dlse)).sum()
    loss.backward()
    lse = torch.where(has_lse, lse, -torch.inf)
    theirs = {"out": out, "lse": lse, "dq": q.grad, "dk": k.grad, "dv": v.grad}
    theirs |= {"dbias": getattr(bias, "grad", None), "dsinks": getattr(sinks, "grad", None)}
    theirs = {name: a.detach().numpy() for name, a in theirs.items() if a is not None}
    theirs = contract.repacked(theirs, given_, pack)
    for name, bound in contract.truth(case).items():
        assert compare(name, theirs[name], bound)[2] == ""


@pytest.mark.parametrize("score", [-1000.0, -200.0, -64.0, -63.0, 63.0, 64.0, 200.0, 1000.0])
def test_scores_of_any_size_have_weights(score):
    N = 5
    q, k = np.zeros((1, 1, 3, 4), np.float32), np.zeros((1, 1, N, 4), np.float32)
    out, cache = attention.forward(q, k, np.ones_like(k), bias=np.full((3, N), score, np.float32))
    # N weights, their sum and a quotient each round once; lse rounds its sum's log and itself
    limit = (N + 4) * np.finfo(np.float32).eps
    assert np.abs(out - 1).max() <= limit
    lse = score + math.log(N)
    assert np.abs(cache.lse - lse).max() <= limit * max(1, abs(lse))


def test_a_sink_alone_has_its_own_log_sum(reference):
    x = np.zeros((1, 1, 2, 4), np.float32)
    sinks, nothing = np.array([-200.0], np.float32), np.zeros((2, 2), bool)
    out, cache = reference.attention.forward(x, x, x, sinks=sinks, mask=nothing)
    assert (out == 0).all() and (cache.lse == -200).all()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"causal": True, "softmax_scale": -0.7},
        {"key_lengths": np.array([3, 0]), "dropout_p": 0.3, "seed": 5},
        {"mask": np.arange(4 * 7).reshape(4, 7) % 3 > 0, "causal": True, "dropout_p": 0.1},
        {"window_size": (1, 2), "softcap": 0.7, "alibi_slopes": np.array([0.5, 0.25, -0.1])},
        {"score_mod": contract.SQUASHED.reference(), "sinks": np.array([0.1, -1.0, 2.0])},
    ],
    ids=["plain", "causal", "key lengths", "mask", "window, softcap, ALiBi", "own function"],
)
def test_gradients_are_slopes(how):
    rng = np.random.default_rng(0)
    q, dout = rng.standard_normal((2, 2, 3, 4, 5))
    k, v = rng.standard_normal((2, 2, 3, 7, 5))
    dlse = rng.standard_normal((2, 3, 4))
    arguments = {"q": q, "k": k, "v": v}

    def value(**arguments):
        out, cache = attention.forward(**arguments, **how)
        lse = np.where(np.isfinite(cache.lse), cache.lse, 0)
        return float((out * dout).sum() + (lse * dlse).sum())

    gradients = attention.backward(dout, attention.forward(**arguments, **how)[1], dlse)
    check_gradients(value, arguments, {n: getattr(gradients, f"d{n}") for n in arguments}, rng)


def test_forward_is_the_formula_at_high_precision():
    """Scores of 700 and −700, where exp by itself over- and underflows."""
    q, k, v = [[1.0, 700.0]], [[0.25, 1.0], [0.5, 1.0], [0.125, -1.0]], [[1.0, 2], [-3, 5], [7, 1]]
    with mpmath.workdps(60):
        s = [mpmath.fdot(q[0], row) for row in k]
        w = [mpmath.exp(x) for x in s]
        total = mpmath.fsum(w)
        lse = float(mpmath.log(total))
        out = [float(mpmath.fdot(w, column) / total) for column in zip(*v, strict=True)]
    arrays = [np.array(a, np.float64)[None, None] for a in (q, k, v)]
    found, cache = attention.forward(*arrays, softmax_scale=1.0)
    on = rounding.machine("float64")
    bound = attention_bound.forward(
        attention_bound.problem(*arrays, on, Options(softmax_scale=1.0))
    )
    out_bound = dataclasses.replace(bound.out, value=np.array([[[out]]]))
    lse_bound = dataclasses.replace(bound.lse[..., 0], value=np.array([[[lse]]]))
    assert compare("out", found, out_bound)[2] == ""
    assert compare("lse", cache.lse, lse_bound)[2] == ""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_run_has_the_same_bits(triton, dtype):
    """A hundred runs on a GPU; in the interpreter a few, each with its programs in another order.

    With dropout, shared keys, and a broadcast bias, whose gradients are summed.
    """
    on_gpu = triton.device == "cuda"
    B, H, L, D = (4, 16, 1000, 64) if on_gpu else (2, 4, 40, 16)
    rng = np.random.default_rng(0)
    shapes = [(B, H, L, D), (B, H // 2, L, D), (B, H // 2, L, D), (B, H, L, D), (1, H, 1, L)]
    q, k, v, dout, bias = (triton.asarray(rng.standard_normal(s), dtype) for s in shapes)
    first = None
    for run in range(100 if on_gpu else 4):
        with contextlib.nullcontext() if on_gpu else strict_interpreter(seed=run):
            out, cache = triton.attention.forward(
                q, k, v, causal=True, bias=bias, dropout_p=0.1, seed=3
            )
            found = (out, cache.lse, *triton.attention.backward(dout, cache)[:4])
        first = found if first is None else first
        assert all(torch.equal(x, y) for x, y in zip(found, first, strict=True)), f"run {run}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_of_sinks_has_their_dtype(triton, dtype):
    rng = np.random.default_rng(0)
    q, k, v, dout = rng.standard_normal((4, 1, 2, 3, 4)).astype(np.float32)
    sinks = np.ones(2, dtype)
    for side in (ops.load("reference"), triton):
        given = [side.asarray(x) for x in (q, k, v)]
        _, cache = side.attention.forward(*given, sinks=side.asarray(sinks))
        dsinks = side.attention.backward(side.asarray(dout), cache).dsinks
        assert dtype_name(dsinks) == dtype


@pytest.mark.parametrize("sink", [100.0, -np.inf])
def test_a_sink_has_no_gradient_of_what_is_no_query(reference, triton, sink):
    """With packed sequences it has that of each; its sums of subnormal numbers are exact."""
    rows, starts = np.ones((1, 1, 3, 1), "float32"), np.array([0, 1, 3], "int32")

    def dsinks(side, x, **how):
        x, sinks = side.asarray(x), side.asarray(np.full(1, sink, "float32"))
        how = {n: side.asarray(a) if isinstance(a, np.ndarray) else a for n, a in how.items()}
        _, cache = side.attention.forward(x, x, x, sinks=sinks, **how)
        return side.to_numpy(side.attention.backward(x, cache).dsinks)

    packing = {"cu_seqlens_q": starts, "cu_seqlens_k": starts}
    packing |= {"max_seqlen_q": 2, "max_seqlen_k": 2}
    for side in (reference, triton):
        each = [dsinks(side, rows[:, :, :1]), dsinks(side, rows[:, :, 1:])]
        assert dsinks(side, rows, **packing) == sum(each)
        assert dsinks(side, rows, mask=np.zeros((3, 3), bool)) == 0


def test_a_bias_whose_gradient_nobody_asks_for_has_none(reference, triton):
    rng = np.random.default_rng(0)
    q, bias = rng.standard_normal((1, 2, 5, 4)), rng.standard_normal((2, 5, 5))
    for side in (reference, triton):
        given, added = side.asarray(q, "float32"), side.asarray(bias, "float32")
        _, cache = side.attention.forward(given, given, given, bias=added)
        whole = side.attention.backward(given, cache)
        part = side.attention.backward(given, cache, of_bias=False)
        assert whole.dbias.shape == bias.shape and part.dbias is None
        for x, y in zip(whole[:3], part[:3], strict=True):
            assert side.to_numpy(x).tobytes() == side.to_numpy(y).tobytes()
