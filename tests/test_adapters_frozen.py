"""What the custom torch operators compute where some of their inputs need no gradient."""

import importlib

import pytest
import torch
from made import kept_by, made_by
from test_adapters_beside_torch import SIDES, normal, use

from twofold.adapters import custom, modules
from twofold.adapters.attention import attention
from twofold.adapters.layers import cross_entropy, layer_norm, linear, rotary
from twofold.adapters.multi_head_attention import multi_head_attention
from twofold.adapters.rms_norm import rms_norm


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_what_is_frozen_has_no_product(side, compiled, monkeypatch):
    """Three layers, the second frozen; nothing below the first learns."""
    x, inputs = normal(2, 3, 4), (normal(5, 4, grad=True), normal(5, grad=True))
    frozen, last = (normal(6, 5, seed=1), normal(6, seed=2)), normal(3, 6, seed=3, grad=True)

    def loss(x, w, b, frozen_w, frozen_b, last):
        hidden = linear(linear(x, w, b, "gelu"), frozen_w, frozen_b, "relu")
        return linear(hidden, last).square().sum()

    torch.compiler.reset()
    f = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    learned = (*inputs, last)
    with use(side):
        made = made_by(monkeypatch, "linear")
        found = torch.autograd.grad(f(x, *inputs, *frozen, last), learned)
        assert made == [{"dx", "dweight"}, {"dx"}, {"dweight", "dbias"}]
        everything = [y.detach().clone().requires_grad_() for y in (x, *inputs, *frozen, last)]
        expected = torch.autograd.grad(loss(*everything), everything)
    assert made[3:] == [{"dx", "dweight"}, *[{"dx", "dweight", "dbias"}] * 2]
    for one, other in zip(found, (*expected[1:3], expected[-1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_what_backward_needs_is_kept_where_autograd_records(side, compiled, monkeypatch):
    """With a weight that learns, layer and loss keep it; frozen or under no_grad, nothing."""
    x, targets = normal(2, 4), torch.tensor([1, 0])
    weight, frozen = normal(5, 4, grad=True), normal(5, 4)

    def loss(x, w):
        return cross_entropy(linear(x, w, None, "gelu"), targets)

    torch.compiler.reset()
    f = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    with use(side):
        kept = kept_by(monkeypatch, "linear"), kept_by(monkeypatch, "softmax_cross_entropy")
        losses = [f(x, weight), f(x, frozen)]
        with torch.no_grad():
            losses.append(f(x, weight))
        losses[0].backward()
    assert kept == ([True, False, False],) * 2
    assert torch.equal(losses[0], losses[2]) and weight.grad is not None


@pytest.mark.parametrize(
    ("learned", "made"),
    [
        (("x",), {"dx"}), (("context",), {"dcontext"}), (("bias",), {"dbias"}),
        (("w_out",), {"dw_qkv", "db_qkv", "dw_out", "db_out"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("side", SIDES)
def test_multi_head_attention_makes_what_is_learned(side, learned, made, monkeypatch):
    shapes = {
        "x": (1, 3, 4), "context": (1, 5, 4), "w_qkv": (12, 4), "b_qkv": (12,), "w_out": (4, 4),
        "b_out": (4,), "bias": (2, 3, 5),
    }  # fmt: skip
    given = {n: normal(*s, seed=i, grad=n in learned) for i, (n, s) in enumerate(shapes.items())}
    with use(side):
        found = made_by(monkeypatch, "multi_head_attention")
        multi_head_attention(**given, num_heads=2).sum().backward()
    assert found == [made]
    assert {name for name, x in given.items() if x.grad is not None} == {*learned}


@pytest.mark.parametrize("side", SIDES)
def test_a_frozen_module_makes_gradients_of_its_input_alone(side, monkeypatch):
    layer = modules.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
    layer.requires_grad_(False)
    with use(side):
        made = made_by(monkeypatch, "linear")
        layer(normal(2, 3, 8, grad=True)).sum().backward()
    assert made == [{"dx"}] * 4


@pytest.mark.parametrize("side", SIDES)
def test_a_bias_that_is_no_parameter_has_no_gradient_made(side, monkeypatch):
    q, k, v = (normal(1, 2, 5, 4, seed=i, grad=True) for i in range(3))
    bias = normal(1, 2, 5, 5, seed=3)
    with use(side):
        made = made_by(monkeypatch, "attention")
        without = torch.autograd.grad(attention(q, k, v, bias=bias).sum(), (q, k, v))
        learned = bias.clone().requires_grad_()
        *beside, dbias = torch.autograd.grad(
            attention(q, k, v, bias=learned).sum(), (q, k, v, learned)
        )
    assert made == [{"dq", "dk", "dv"}, {"dq", "dk", "dv", "dbias"}]
    assert dbias.shape == bias.shape
    assert all(torch.equal(x, y) for x, y in zip(without, beside, strict=True))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("name", "how", "made"),
    [
        ("layer norm", {}, 3),
        ("layer norm", {"dropout_p": 0.5, "seed": 3}, 4),
        ("rms norm", {}, 2),
    ],
)
def test_a_residuals_gradient_is_made_once(monkeypatch, side, compiled, name, how, made):
    """Unless it differs from the gradient of what was added to it."""
    norm, given = (layer_norm, ("weight", "bias")) if name == "layer norm" else (rms_norm, "w")
    x, residual = normal(3, 4, grad=True), normal(3, 4, seed=1, grad=True)
    weights = [normal(4, seed=2 + i, grad=True) for i in range(len(given))]
    returned = []
    monkeypatch.setattr(custom, "apart", lambda found: returned.append([*found]) or returned[-1])
    torch.compiler.reset()

    def norms(x, residual, *weights):
        return norm(x, *weights, residual=residual, **how)

    with use(side):
        f = torch.compile(norms, fullgraph=True, backend="aot_eager") if compiled else norms
        dx, dresidual = torch.autograd.grad(f(x, residual, *weights).square().sum(), (x, residual))
    assert torch.equal(dx, dresidual) == ("dropout_p" not in how)
    assert [len(found) for found in returned] == [made]


@pytest.mark.parametrize("side", SIDES)
def test_a_rotations_gradients_lie_as_they_are_written(monkeypatch, side):
    q, k = normal(2, 2, 3, 4, grad=True), normal(2, 1, 3, 4, seed=1, grad=True)
    angles = normal(3, 2, seed=2)
    with use(side):
        kept = custom.Operator._laid_out
        moved = []

        def laid_out(self, x):
            found = kept(self, x)
            moved.append(found is not x)
            return found

        monkeypatch.setattr(custom.Operator, "_laid_out", laid_out)
        (a, b) = rotary(q, k, angles.cos(), angles.sin())
        dq, dk = torch.autograd.grad(a.sum() + b.square().sum(), (q, k))
    assert moved == [side != "triton"] * 2
    assert dq.stride() == (24, 4, 8, 1) and dk.stride() == (12, 4, 4, 1)


def test_leave_to_take_tf32_reaches_the_kernel_and_its_way_back(monkeypatch):
    x, weight = normal(2, 4, grad=True), normal(5, 4, seed=1, grad=True)
    said, kernel = [], importlib.import_module("twofold.kernels.linear")

    def forward(*args, forward=kernel.forward, **how):
        said.append(how.get("allow_tf32"))
        return forward(*args, **how)

    def backward(dout, cache, backward=kernel.backward, **how):
        said.append(cache.allow_tf32)
        return backward(dout, cache, **how)

    monkeypatch.setattr(kernel, "forward", forward)
    monkeypatch.setattr(kernel, "backward", backward)
    with use("triton"):
        for allowed in (False, True):
            linear(x, weight, allow_tf32=allowed).sum().backward()
    assert said == [False, False, True, True]
