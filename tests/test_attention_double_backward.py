"""Gradients of gradients: the reference against autograd's own check; the kernels by contract."""

import dataclasses

import numpy as np
import pytest
import torch
from allocated import Largest
from faulty import check_seen, faulty, kept, plus, scaled

from twofold.core.verify import domains
from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import attention_double_backward as contract
from twofold.core.verify.contracts.attention_scoring import SMOOTH
from twofold.reference import attention, attention_double_backward
from twofold.reference.attention_scores import ScoreMod
from twofold.reference.rotary import Rotary

RNG = np.random.default_rng(0)


def angles(of_q, of_k, interleaved):
    turns = (RNG.uniform(-np.pi, np.pi, shape) for shape in (of_q, of_k))
    return Rotary(*(f(x) for x in turns for f in (np.cos, np.sin)), interleaved)


def test_what_is_learned_may_lie_in_any_strides(triton):
    """Rows laid out differently are copied, but autograd does not record the copy."""
    x = triton.asarray(np.random.default_rng(0).standard_normal((1, 2, 5, 24)), "float32")
    heads_inside = x.transpose(1, 2).contiguous().transpose(1, 2)
    _, cache = triton.attention.forward(x, x, x)
    expected = triton.attention_double_backward.backward(x, x, x, x, cache)
    given = (t.requires_grad_() for t in (x.clone(), x.clone(), x.clone(), heads_inside))
    found = triton.attention_double_backward.backward(*given, cache)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if a is not None)


HOW = {
    "plain": {},
    "causal": {"causal": True, "softmax_scale": -0.7},
    "causal top-left": {"causal": "top-left"},
    "window": {"window_size": (2, 1)},
    "key lengths, dropout": {"key_lengths": np.array([3, 0]), "dropout_p": 0.3, "seed": 5},
    "sinks, ALiBi": {
        "sinks": np.array([0.1, -1.0, 2.0, 0.3]),
        "alibi_slopes": np.array([0.5, 0.25, -0.1, 1.0]),
    },
    "bias, mask, dropout": {
        "bias": RNG.standard_normal((4, 3, 5)),
        "mask": RNG.random((2, 1, 3, 5)) < 0.7,
        "dropout_p": 0.2,
    },
    "softcap, ALiBi": {"softcap": 0.8, "alibi_slopes": np.array([0.5, 0.25, -0.1, 1.0])},
    "function of scores": {"score_mod": SMOOTH.reference(), "dropout_p": 0.2},
    "softcap, function of scores": {
        "softcap": 1.5,
        "score_mod": SMOOTH.reference(),
        "causal": True,
        "sinks": np.array([0.1, -1.0, 2.0, 0.3]),
    },
    "packed": {
        "cu_seqlens_q": np.array([0, 2, 2, 3], np.int32),
        "cu_seqlens_k": np.array([0, 1, 3, 5], np.int32),
        "max_seqlen_q": 2,
        "max_seqlen_k": 2,
    },
    "packed, softcap, causal, key lengths": {
        "cu_seqlens_q": np.array([0, 1, 3], np.int32),
        "cu_seqlens_k": np.array([0, 2, 5], np.int32),
        "max_seqlen_q": 2,
        "max_seqlen_k": 4,
        "softcap": 1.0,
        "causal": True,
        "key_lengths": np.array([1, 3]),
    },
    "rotary, dropout": {"rotary": angles((2, 3, 1), (5, 1), False), "dropout_p": 0.2},
    "packed, rotary, softcap": {
        "cu_seqlens_q": np.array([0, 2, 2, 3], np.int32),
        "cu_seqlens_k": np.array([0, 1, 3, 5], np.int32),
        "max_seqlen_q": 2,
        "max_seqlen_k": 2,
        "rotary": angles((3, 1), (1, 5, 1), True),
        "softcap": 1.0,
    },
}


def attended(how):
    """Return the reference's attention as an autograd function that can be differentiated twice."""

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(context, q, k, v, dout, dlse):
            context.save_for_backward(q, k, v, dout, dlse)
            q, k, v, dout, dlse = (x.numpy() for x in (q, k, v, dout, dlse))
            cache = attention.forward(q, k, v, **how)[1]
            return tuple(map(torch.tensor, attention.backward(dout, cache, dlse)[:3]))

        @staticmethod
        def backward(context, ddq, ddk, ddv):
            q, k, v, dout, dlse, ddq, ddk, ddv = (
                x.numpy() for x in (*context.saved_tensors, ddq, ddk, ddv)
            )
            cache = attention.forward(q, k, v, **how)[1]
            second = attention_double_backward.backward(ddq, ddk, ddv, dout, cache, dlse)
            return tuple(map(torch.tensor, second))

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(context, q, k, v):
            context.save_for_backward(q, k, v)
            out, cache = attention.forward(*(x.numpy() for x in (q, k, v)), **how)
            return torch.tensor(out), torch.tensor(np.where(np.isfinite(cache.lse), cache.lse, 0.0))

        @staticmethod
        def backward(context, dout, dlse):
            return Backward.apply(*context.saved_tensors, dout, dlse)

    return Forward.apply


@pytest.mark.parametrize("name", HOW)
def test_the_reference_passes_gradgradcheck(name):
    """In float64, with grouped heads, out and lse: for q, k, v and the gradients of out and lse."""
    rng, batch = np.random.default_rng(1), 1 if name.startswith("packed") else 2
    inputs = tuple(
        torch.tensor(rng.standard_normal((batch, heads, length, 3)), requires_grad=True)
        for heads, length in ((4, 3), (2, 5), (2, 5))
    )
    assert torch.autograd.gradgradcheck(attended(HOW[name]), inputs)


def doubled(s, b, h, i, j, args):
    return s * args[0]


@pytest.mark.parametrize(
    "how",
    [
        {"softcap": np.float64(5)},
        {"score_mod": ScoreMod(doubled, doubled, (np.float64(2),), doubled)},
    ],
    ids=["softcap", "score_mod"],
)
def test_numbers_of_float64_leave_float32_what_it_is(how):
    x = np.ones((1, 1, 3, 2), np.float32)
    _, cache = attention.forward(x, x, x, **how)
    assert cache.slope.dtype == np.float32
    found = attention_double_backward.backward(x, x, x, x, cache, x[..., 0])
    assert {grad.dtype for grad in found} == {x.dtype}


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_the_truth_is_what_autograd_finds_for_a_gradient_penalty(softcap):
    """‖dq‖² + ‖dk‖² + ‖dv‖² of attention written in torch, differentiated twice by torch."""
    case = contract.Case("float64", 2, 2, 5, 7, 4, softcap=softcap, seed=3)
    call = contract.inputs(case).call
    q, k, v, dout = (
        torch.tensor(x, requires_grad=True) for x in (call.q, call.k, call.v, call.dout)
    )
    s = q @ k.mT / 2
    out = torch.softmax(s if softcap is None else softcap * torch.tanh(s / softcap), -1) @ v
    first = torch.autograd.grad(out, (q, k, v), dout, create_graph=True)
    penalty = sum((x**2).sum() for x in first)
    theirs = dict(
        zip(("dq", "dk", "dv", "ddout"), torch.autograd.grad(penalty, (q, k, v, dout)), strict=True)
    )
    cotangents = (2 * x.detach().numpy() for x in first)
    given = contract.Inputs(call, *cotangents)  # ∂ℓ/∂dq = 2·dq, …
    for name, bound in contract.truth(case, given).items():
        assert compare(name, theirs[name].numpy(), bound)[2] == ""


@pytest.mark.parametrize("head_dim", [16, 20])
def test_however_the_gradients_lie_in_memory_the_bits_are_the_same(triton, head_dim):
    """They are copied where their strides are not those of q, k and v."""
    case = contract.Case(batch=2, seqlen_q=5, seqlen_k=9, head_dim=head_dim)
    given = contract.inputs(case)
    call = given.call
    cache = triton.attention.forward(*(triton.asarray(x, "float32") for x in call[:3]))[1]
    found = [
        triton.attention_double_backward.backward(
            *(domains.place(triton, x, "float32", layout) for x in (*given[1:], call.dout)), cache
        )
        for layout in domains.LAYOUTS
    ]
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0][:4], other[:4], strict=True))


def test_nothing_of_queries_times_keys_is_allocated_for_gradients_of_gradients(triton):
    """The largest array holds the copies for keys, four of N rows of 16."""
    case = contract.Case(seqlen_q=160, seqlen_k=160, window_size=(2, 2), dlse=True)
    given = contract.inputs(case)
    with Largest() as largest:
        contract.run(triton, case, given)
    assert 0 < largest.elements <= 4 * 160 * 16 < 160 * 160


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (
            {"ddq": np.ones((2, 2, 4, 4), "float32")},
            ValueError,
            "ddq.shape is (2, 2, 4, 4); it must",
        ),
        (
            {"ddk": np.ones((2, 2, 5, 4), "float32")},
            ValueError,
            "ddk.shape is (2, 2, 5, 4); it must",
        ),
        (
            {"ddv": np.ones((1, 1, 5, 4), "float32")},
            ValueError,
            "ddv.shape is (1, 1, 5, 4); it must",
        ),
        (
            {"ddq": np.ones((2, 2, 3, 4))},
            TypeError,
            "ddq has dtype float64; it must have the dtype",
        ),
        ({"ddv": np.ones((2, 1, 5, 4), int)}, TypeError, "ddv has dtype int64; it must be one of"),
        ({"ddk": 1.0}, TypeError, "ddk is a float; it must be an array"),
        (
            {"dout": np.ones((2, 2, 3), "float32")},
            ValueError,
            "dout.shape is (2, 2, 3); it must be",
        ),
        (
            {"dlse": np.ones((2, 2), "float32")},
            ValueError,
            "dlse.shape is (2, 2); it must be of ran",
        ),
        (
            {"how": {"score_mod": ScoreMod(abs, abs)}},
            ValueError,
            "cache.options.score_mod.second_derivative is None; it must be a function",
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_both_sides_refuse_bad_input(reference, triton, changed, error, words):
    x, y = np.ones((2, 2, 3, 4), "float32"), np.ones((2, 1, 5, 4), "float32")
    how = changed.get("how", {})
    said = []
    for side in (reference, triton):
        # Forward's options are in the cache, whether or not forward ran with them.
        cache = side.attention.forward(*(side.asarray(z) for z in (x, y, y)))[1]
        cache = cache._replace(options=cache.options._replace(**how))
        arguments = {"ddq": x, "ddk": y, "ddv": y, "dout": x} | changed
        arguments.pop("how", None)
        placed = {
            name: side.asarray(z) if isinstance(z, np.ndarray) else z
            for name, z in arguments.items()
        }
        with pytest.raises(error) as refusal:
            side.attention_double_backward.backward(**placed, cache=cache)
        said.append(str(refusal.value))
    assert said[0].startswith(words), said[0]
    assert said[0] == said[1]


PROPERTIES = contract.CONTRACT.claims()
CASE = contract.Case(batch=2, heads=2, seqlen_q=5, seqlen_k=7, head_dim=8, dlse=True, seed=3)


FAULTS = {
    "zero cotangents": plus("dq", lambda f, c, g: g.call.q),
    "powers of two": plus("dk", lambda f, c, g: g.ddk**2),
    "parts": plus("dv", lambda f, c, g: 0.01 * g.ddv * (g.ddk**2).sum()),
    "permuted heads": plus("ddout", lambda f, c, g: 0.1 * np.arange(c.heads)[:, None, None]),
    "repeated heads": plus("dk", lambda f, c, g: 0.1 * c.groups**2),
    "symmetry": scaled("dk", 1.1),
    "moved keys": plus("dq", lambda f, c, g: 0.01 * g.ddk[:, :, :1]),
    "moved values": plus("dk", lambda f, c, g: 0.01 * g.ddv),
    "gradient sums": plus("dv", lambda f, c, g: 0.01),
    "single key": scaled("ddlse", 1.01),
    "masked rows": plus("ddout", lambda f, c, g: 1.0),
    "other strides": plus("dq", lambda f, c, g: 0.1 * (c.layout == "contiguous")),
    "other tiles": plus("dq", lambda f, c, g: 0.1 * (c.tile is None)),
    "reordered keys": plus("dq", lambda f, c, g: g.call.k[:, :, :1]),
    "packed is padded": plus("dk", lambda f, c, g: 0.1 * c.packed),
    "causality": plus("ddout", lambda f, c, g: g.call.v[:, :, -1:]),
    "padding is not read": plus("dv", lambda f, c, g: g.ddv.sum()),
    "same bits again": plus("dq", lambda f, c, g: np.random.default_rng().random()),
    "other calls between": kept("dq"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_property_sees_its_fault(reference, triton, name):
    side = triton if name == "other tiles" else reference
    changes = {
        "masked rows": {"seqlen_q": 9, "causal": True},
        "packed is padded": {"packed": True, "batch": 3},
    }
    case = dataclasses.replace(CASE, **changes.get(name, {}))
    check_seen(PROPERTIES[name], contract.CONTRACT, side, case, FAULTS[name])


def test_every_property_has_a_fault_here_but_that_of_numbers():
    assert PROPERTIES.keys() - FAULTS.keys() == {"NaN is seen"}  # test_not_numbers


@pytest.mark.parametrize("name", ["dq", "dk", "dv"])
def test_symmetry_sees_every_part_of_the_hessian(reference, name):
    with pytest.raises(AssertionError, match="⟨H·u, w⟩ is not ⟨u, H·w⟩"):
        PROPERTIES["symmetry"](faulty(contract.CONTRACT, reference, scaled(name, 1.1)), CASE)


def test_the_gradient_of_a_gradient_has_its_dtype(reference, triton):
    """That of lse may have any dtype."""
    x = RNG.standard_normal((1, 2, 3, 8))
    for side in (reference, triton):
        q, dlse = side.asarray(x, "float32"), side.asarray(x[..., 0], "float16")
        _, cache = side.attention.forward(q, q, q)
        found = side.attention_double_backward.backward(q, q, q, q, cache, dlse)
        assert found.ddlse.dtype == dlse.dtype
