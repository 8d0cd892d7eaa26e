"""The custom torch operators: each keeps the contract of the operator it wraps, on either side."""

import dataclasses

import numpy as np
import pytest
import torch
from adapted import FORWARD, adapted, plain
from hypothesis import given
from hypothesis import strategies as st

from twofold.adapters import attention as adapters_attention
from twofold.adapters import sides
from twofold.adapters.attention import attention, register_score_mod
from twofold.adapters.custom import Operator
from twofold.adapters.gated_activation import gated_activation
from twofold.adapters.layers import cross_entropy, embedding, layer_norm, linear, rotary, softmax
from twofold.adapters.multi_head_attention import multi_head_attention
from twofold.adapters.rms_norm import rms_norm
from twofold.core import ops
from twofold.core.verify import report
from twofold.core.verify.contract import fitting, hold
from twofold.reference.attention_scores import ScoreMod
from twofold.reference.rotary import Rotary

CONTRACTS = {name: report.contract(name) for name in FORWARD}


@pytest.mark.parametrize("operator", CONTRACTS)
@given(data=st.data())
def test_an_operator_of_torch_keeps_the_contract_with_kernels(triton, operator, data):
    case = plain(data.draw(CONTRACTS[operator].cases))
    with sides.use("triton"):
        hold(CONTRACTS[operator], adapted(triton), case, ())


@pytest.mark.parametrize("operator", CONTRACTS)
@given(data=st.data())
def test_an_operator_of_torch_keeps_the_contract_with_numpy(triton, operator, data):
    side = dataclasses.replace(adapted(triton), name="reference")
    case = fitting(side, plain(data.draw(CONTRACTS[operator].cases)))
    with sides.use("reference"):
        hold(CONTRACTS[operator], side, case, ())


def numbers(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


ANGLES = [torch.rand(L, 2, dtype=torch.float64) for L in (5, 5, 7, 7)]


def angles(like):
    return Rotary(*(x.to(like) for x in ANGLES))


COS, SIN = torch.rand(4, 2, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
IDS, TARGETS = torch.tensor([[3, 0], [6, 3]]), torch.tensor([1, 6, -100])
LINEAR = (numbers(2, 3, 4), numbers(5, 4), numbers(5))
NORM = (numbers(2, 3, 4), numbers(4), numbers(4), numbers(2, 3, 4))
PROJECTIONS = (numbers(2, 3, 8), numbers(24, 8), numbers(24), numbers(8, 8), numbers(8))
QKV = (numbers(2, 4, 5, 6), numbers(2, 2, 7, 6), numbers(2, 2, 7, 6))
BIAS, SINKS = numbers(4, 5, 7), numbers(4)
# How an operator is called, and with which differentiable inputs.
CALLS = {
    "attention": (lambda q, k, v: attention(q, k, v, causal=True, return_lse=True), QKV),
    "attention with everything": (
        lambda q, k, v, bias, sinks: attention(
            q, k, v, bias=bias, sinks=sinks, softcap=3.0, window_size=(4, 2), dropout_p=0.2, seed=4,
            key_lengths=torch.tensor([7, 3], device=q.device), rotary=angles(q), return_lse=True,
        ),
        (*QKV, BIAS, SINKS),
    ),
    "multi-head attention": (
        lambda *x: multi_head_attention(*x, num_heads=2, causal=True, dropout_p=0.1, seed=2),
        PROJECTIONS,
    ),
    "linear": (linear, LINEAR),
    "linear with GELU": (lambda x, w, b: linear(x, w, b, "gelu"), LINEAR),
    "linear with ReLU": (lambda x, w, b: linear(x, w, b, "relu"), LINEAR),
    "layer norm": (lambda *x: layer_norm(*x, return_stream=True), NORM[:3]),
    "layer norm of a sum": (
        lambda x, w, b, residual: layer_norm(
            x, w, b, residual=residual, dropout_p=0.2, seed=3, return_stream=True
        ),
        NORM,
    ),
    "rms norm": (lambda *x: rms_norm(*x, return_stream=True), NORM[:2]),
    "rms norm of a sum": (
        lambda x, w, residual: rms_norm(
            x, w, residual=residual, offset=1.0, eps=1e-3, return_stream=True
        ),
        (*NORM[:2], NORM[3]),
    ),
    "gated activation": (gated_activation, (numbers(2, 3, 4), numbers(2, 3, 4))),
    "rotary": (
        lambda q, k: rotary(q, k, COS.to(q), SIN.to(q)),
        (numbers(2, 3, 4, 6), numbers(2, 1, 4, 6)),
    ),
    "embedding": (lambda table: embedding(IDS.to(table.device), table), (numbers(7, 3),)),
    "softmax": (softmax, (numbers(2, 3, 7),)),
    "cross-entropy": (
        lambda x: cross_entropy(x, TARGETS.to(x.device), label_smoothing=0.1),
        (numbers(3, 7),),
    ),
    "cross-entropy of each": (
        lambda x: cross_entropy(x, TARGETS.to(x.device), reduction="none"),
        (numbers(3, 7),),
    ),
}  # fmt: skip
every_call = pytest.mark.parametrize(("function", "inputs"), CALLS.values(), ids=CALLS)


@every_call
def test_gradients_are_those_of_finite_differences(function, inputs):
    assert torch.autograd.gradcheck(function, inputs)


def test_gradients_of_gradients_are_those_of_finite_differences():
    def function(q, k, v):
        return attention(
            q, k, v, causal=True, softcap=2.0, dropout_p=0.1, seed=1, rotary=angles(q),
            return_lse=True,
        )  # fmt: skip

    assert torch.autograd.gradgradcheck(function, QKV)


def test_gradients_of_gradients_need_no_gradient_of_lse():
    assert torch.autograd.gradgradcheck(attention, QKV)


def test_gradients_of_gradients_where_lse_alone_has_a_gradient():
    assert torch.autograd.gradgradcheck(lambda *x: attention(*x, return_lse=True)[1], QKV)


@pytest.mark.parametrize("transform", ["grad", "vjp", "jacrev"])
def test_transforms_that_do_not_reach_an_operator_say_so(transform):
    q, k, v = (x.detach() for x in QKV)
    call = {
        "grad": lambda f: torch.func.grad(f)(q),
        "vjp": lambda f: torch.func.vjp(f, q),
        "jacrev": lambda f: torch.func.jacrev(f)(q),
    }[transform]
    with pytest.raises(RuntimeError, match="^twofold.attention.default is within a transform"):
        call(lambda q: attention(q, k, v).sum())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_forward_derivatives_are_refused_and_not_zero():
    q, k, v = (x.detach() for x in QKV)
    for function in (
        lambda: torch.func.jvp(lambda q: attention(q, k, v), (q,), (q,)),
        lambda: torch.func.jacfwd(lambda k: attention(q, k, v))(k),
        lambda: dual(q, k, v),
    ):
        with pytest.raises(RuntimeError, match="^[qk] of twofold.attention.default has a tangent"):
            function()


def dual(q, k, v):
    with torch.autograd.forward_ad.dual_level():
        assert attention(q, k, v).isfinite().all()  # without a tangent, all is well
        return attention(torch.autograd.forward_ad.make_dual(q, q), k, v)


@pytest.mark.parametrize(
    "name", ["linear", "layer norm", "rms norm", "embedding", "multi-head attention"]
)
def test_an_output_that_backward_does_not_read_may_be_changed_in_place(name):
    function, inputs = CALLS[name]

    def gradients(change):
        found = function(*inputs)
        out = found[0] if isinstance(found, tuple) else found
        return torch.autograd.grad(change(out).sin().sum(), inputs)

    copied, changed = (gradients(f) for f in (lambda x: x.clone().mul_(2), lambda x: x.mul_(2)))
    for x, y in zip(copied, changed, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", ["bias", "sinks"])
def test_gradients_of_gradients_refuse_what_they_take_for_constant(name):
    more = {"bias": BIAS, "sinks": SINKS}[name]
    out = attention(*QKV, **{name: more})
    (dq,) = torch.autograd.grad(out.sum(), QKV[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name} has a gradient; it must have none"):
        dq.sum().backward()


@pytest.mark.parametrize("side", ops.SIDES)
@every_call
def test_torch_finds_nothing_wrong_with_an_operator(triton, monkeypatch, function, inputs, side):
    """`opcheck` on forward and backward, with the arguments that a call makes."""
    asked = []

    def remember(self, *args):
        asked.append((self.op, args))
        return self.op(*args)

    monkeypatch.setattr(Operator, "__call__", remember)
    place = (triton.device, torch.float32) if side == "triton" else ("cpu", torch.float64)
    with sides.use(side):
        function(*(x.detach().to(*place).requires_grad_() for x in inputs))
        ((op, args),) = asked
        torch.library.opcheck(op, args)


@every_call
def test_a_compiled_graph_has_the_operators_whole(function, inputs):
    def loss(*x):
        found = function(*x)
        return sum(y.sin().sum() for y in (found if isinstance(found, tuple) else (found,)))

    torch.compiler.reset()  # it counts how often a function is compiled
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    one, other = (torch.autograd.grad(f(*inputs), inputs) for f in (loss, compiled))
    for x, y in zip(one, other, strict=True):
        assert torch.equal(x, y)


def test_a_compiled_graph_draws_dropout_anew():
    compiled = torch.compile(
        lambda q, k, v: attention(q, k, v, dropout_p=0.5), fullgraph=True, backend="aot_eager"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = compiled(*QKV), compiled(*QKV)
        torch.manual_seed(0)
        again = compiled(*QKV)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_honoured(dtype):
    with torch.autocast("cpu", dtype):
        out, lse = attention(*(x.float() for x in QKV), return_lse=True)
        assert (out.dtype, lse.dtype) == (dtype, torch.float32)
        assert linear(*(x.float() for x in LINEAR)).dtype == dtype
        assert layer_norm(*(x.to(dtype) for x in NORM[:3])).dtype == torch.float32
        assert rms_norm(*(x.to(dtype) for x in NORM[:2])).dtype == torch.float32
        assert softmax(BIAS[0].to(dtype)).dtype == torch.float32
        assert cross_entropy(BIAS[0].to(dtype), torch.arange(5)).dtype == torch.float32
        shares = BIAS[0].detach().softmax(-1).to(dtype)
        assert cross_entropy(BIAS[0].to(dtype), shares).dtype == torch.float32
        whole = (attention, QKV), (linear, LINEAR), (layer_norm, NORM[:3]), (rms_norm, NORM[:2])
        for function, given in whole:
            assert function(*given).dtype == torch.float64  # as torch's own
    assert attention(*QKV).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@every_call
def test_an_operator_has_shapes_without_numbers(triton, function, inputs, dtype):
    """Those of the kernels' results; NumPy's are copied into tensors of the same shapes."""
    with sides.use("triton"):
        expected = function(*(x.detach().to(triton.device, dtype) for x in inputs))
    found = function(*(x.detach().to("meta", dtype) for x in inputs))
    for x, y in zip(*(y if isinstance(y, tuple) else (y,) for y in (found, expected)), strict=True):
        assert x.is_meta
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


def test_dtypes_that_differ_are_refused_though_numpy_would_have_both_in_32_bits():
    for function, inputs in CALLS.values():
        for i, x in enumerate(inputs[1:], 1):
            mixed = [x.detach().float() for x in inputs]
            mixed[i] = x.detach().bfloat16()
            if x is SINKS:  # which may have a dtype of their own
                function(*mixed)
                continue
            with pytest.raises(TypeError, match="has dtype bfloat16; it must have the dtype of"):
                function(*mixed)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_a_loop():
    many = [torch.stack((x, 2 * x)).detach() for x in QKV]
    mapped = torch.func.vmap(attention)(*many)
    for i, one in enumerate(mapped):
        assert torch.equal(one, attention(*(x[i] for x in many)))


def test_a_diagonal_that_there_is_none_of_is_refused():
    with pytest.raises(ValueError, match="^causal is ''; it must be one of 'bottom-right', 'top-"):
        attention(*QKV, causal="")


def test_a_function_of_the_scores_is_told_by_name():
    def function(s, b, h, i, j, args):
        return s + 0.1 * j

    def slope(s, b, h, i, j, args):
        return np.ones_like(s)

    register_score_mod("further", reference=ScoreMod(function, slope))
    columns = 0.1 * torch.arange(7, dtype=torch.float64)
    assert torch.equal(attention(*QKV, score_mod="further"), attention(*QKV, bias=columns))
    with sides.use("triton"), pytest.raises(ValueError, match="'further'.*registered for triton"):
        attention(*(x.float() for x in QKV), score_mod="further")
    with pytest.raises(ValueError, match="score_mod is 'nearer'; it must be registered"):
        attention(*QKV, score_mod="nearer")
    with pytest.raises(ValueError, match="cuda is no side"):
        register_score_mod("further", cuda=ScoreMod(function, slope))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"rotary": tuple(ANGLES[:2])}, TypeError, "rotary is a tuple; it must be a Rotary"),
        ({"window_size": 5}, ValueError, "window_size is 5; it must be a pair"),
        ({"window_size": (1, 2, 3)}, ValueError, "window_size is (1, 2, 3); it must be a pair"),
        ({"block_size": [8, 8]}, ValueError, "block_size is [8, 8]; it must be an int ≥ 1, or a"),
        ({"seed": 1.5}, TypeError, "seed is a float; it must be an int"),
        ({"seed": torch.tensor(1.5)}, TypeError, "seed has dtype float32; it must be int32 or"),
        ({"seed": torch.tensor([1, 2])}, ValueError, "seed.shape is (2,); it must be of rank 0"),
        ({"seed": True, "dropout_p": 0.5}, TypeError, "seed is a bool; it must be an int"),
    ],
)
def test_options_that_are_none_are_refused_by_name(change, error, words):
    with pytest.raises(error) as refused:
        attention(*QKV, **change)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize("x", [None, np.ones((2, 4)), [1.0]], ids=["None", "NumPy", "a list"])
def test_what_is_no_tensor_is_refused_by_name(x):
    weight = torch.ones(3, 4)
    for name, inputs in (("x", (x, weight)), ("weight", (weight, x))):
        refuses = pytest.raises((RuntimeError, TypeError))
        with torch.autocast("cpu", enabled=name == "x"), refuses as refused:
            linear(*inputs)
        said = str(refused.value)
        assert f"for argument '{name}'" in said or f"{name} is a NoneType; it must be" in said


def test_rotary_positions_that_are_none_are_refused_by_name():
    x, w = torch.ones(1, 3, 8), torch.ones(24, 8)
    for wrong, words in (
        (tuple(ANGLES[:2]), "a tuple of 2"),
        (ANGLES[0], "a Tensor"),
        ("a", "a str"),
    ):
        with pytest.raises(TypeError, match=f"^rotary is {words}; it must be .cos, sin, interl"):
            multi_head_attention(x, w, None, w[:8], None, num_heads=2, rotary=wrong)


def test_no_function_of_the_scores_is_registered(monkeypatch):
    monkeypatch.setattr(adapters_attention, "SCORE_MODS", {})
    with pytest.raises(ValueError, match="^score_mod is 'a'; it must be registered first; none"):
        attention(*QKV, score_mod="a")


def test_another_side_is_refused():
    with pytest.raises(ValueError, match="side is 'cuda'; it must be one of"), sides.use("cuda"):
        pass


def test_it_says_that_it_computes_with_numpy(monkeypatch, caplog):
    monkeypatch.setattr(sides, "_said", set())
    attention(*QKV)
    attention(*QKV)
    assert [r.message for r in caplog.records] == [
        "no GPU: twofold computes with NumPy, which is right and not fast"
    ]
