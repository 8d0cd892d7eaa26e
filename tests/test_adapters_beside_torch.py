"""What torch's users do besides calling: change in place, replace parts, ask for more."""

import contextlib
import functools
import subprocess
import sys

import pytest
import torch
from outside import by_triton_s_interpreter
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from twofold.adapters import modules, sides
from twofold.adapters.attention import attention
from twofold.adapters.functional import scaled_dot_product_attention
from twofold.adapters.gated_activation import gated_activation
from twofold.adapters.layers import (
    cross_entropy,
    embedding,
    layer_norm,
    linear,
    rotary,
    softmax,
)
from twofold.adapters.optim import AdamW
from twofold.adapters.rms_norm import rms_norm
from twofold.core import ops

SIDES = ("reference", "triton")


@contextlib.contextmanager
def use(side):
    """Compute on a side, with interpreted kernels run strictly."""
    with sides.use(side), contextlib.ExitStack() as stack:
        if side == "triton" and ops.triton_device() == "cpu":
            from twofold.core.verify.strict import strict_interpreter

            stack.enter_context(strict_interpreter())
        yield


def normal(*shape, seed=0, dtype=torch.float32, grad=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    return x.requires_grad_(grad)


def angles(length=3, pairs=2):
    return tuple(normal(length, pairs, seed=i) for i in (8, 9))


# optimizer


def test_what_was_saved_before_a_step_is_not_taken_for_what_it_was():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer, y = AdamW([w], lr=0.1), (w**3).sum()
    w.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_steps_are_counted_whatever_the_default_dtype(monkeypatch):
    w = torch.nn.Parameter(torch.ones(3))
    optimizer, before = AdamW([w]), torch.get_default_dtype()
    w.grad = torch.ones(3)
    torch.set_default_dtype(torch.bfloat16)
    try:
        optimizer.step()
    finally:
        torch.set_default_dtype(before)
    assert optimizer.state[w]["step"].dtype == torch.float32


def test_what_adamw_cannot_is_refused_when_it_is_built():
    w = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="^differentiable is True; it must be False"):
        AdamW([w], differentiable=True)
    with pytest.raises(ValueError, match="^amsgrad is True; it must be False"):
        AdamW([w], amsgrad=True)


def test_adamw_steps_the_share_of_a_distributed_parameter(tmp_path):
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        found = []
        for kind in (AdamW, torch.optim.AdamW):
            whole = normal(4, 3, dtype=torch.float64)
            w = torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
            w.grad = distribute_tensor(whole**2, mesh, [Shard(0)])
            kind([w], lr=0.1, eps=1.0).step()
            assert isinstance(w.data, DTensor)
            found.append(w.detach().full_tensor())
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    finally:
        torch.distributed.destroy_process_group()


# attention


@pytest.mark.parametrize("variant", [causal_upper_left, causal_lower_right])
@pytest.mark.parametrize("M", [3, 5])
def test_torchs_causal_biases_are_diagonals(variant, M):
    q, k, v = normal(2, 2, M, 4), normal(2, 2, 5, 4, seed=1), normal(2, 2, 5, 4, seed=2)
    found = scaled_dot_product_attention(q, k, v, variant(M, 5))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, variant(M, 5))
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="^attn_mask's lengths is .*; it must be"):
        scaled_dot_product_attention(q, k, v, variant(M, 6))


@pytest.mark.parametrize("variant", [causal_upper_left, causal_lower_right])
def test_a_causal_bias_is_not_forgotten_where_there_are_no_features(variant):
    q, k, v = normal(1, 1, 3, 0), normal(1, 1, 4, 0), torch.arange(4.0).reshape(1, 1, 4, 1)
    found, expected = (
        f(q, k, v, variant(3, 4), scale=1.0)
        for f in (scaled_dot_product_attention, torch.nn.functional.scaled_dot_product_attention)
    )
    torch.testing.assert_close(found, expected)
    assert len(found.unique()) == 3


PLAIN = """
import torch
from twofold.adapters.attention import attention
from twofold.adapters.sides import use
q, bias = torch.ones(1, 2, 3, 4), torch.zeros(2, 3, 3, requires_grad=True)
with use("triton"):
    attention(q, q, q, bias=bias).square().sum().backward()
print(bias.grad.abs().sum().item())
"""


@by_triton_s_interpreter
def test_kernels_run_in_tritons_own_interpreter_too():
    """The strict interpreter hands kernels other kinds of numbers than this one."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-6


@pytest.mark.parametrize("side", SIDES)
def test_results_may_be_changed_in_place(side):
    q, k, v = (normal(1, 2, 3, 4, seed=i, grad=True) for i in range(3))
    with use(side):
        out = attention(q, k, v)
        expected = torch.autograd.grad(out.sum(), q)[0]
        turned, _ = rotary(q, k, *angles())
        turned.mul_(2)
        attention(q.detach(), k, v).mul_(2)
        torch.testing.assert_close(torch.autograd.grad(attention(q, k, v).sum(), q)[0], expected)
        own, _ = rotary(q, k, *angles())
        (dq,) = torch.autograd.grad(turned.sum(), q)
        torch.testing.assert_close(dq, 2 * torch.autograd.grad(own.sum(), q)[0])


# which inputs require gradients


REFUSED = {
    "targets": lambda x: cross_entropy(normal(2, 3, grad=True), x.softmax(-1)[:, :3]),
    "weight": lambda x: cross_entropy(normal(2, 3), torch.tensor([0, 1]), weight=x[0, :3]),
    "cos": lambda x: rotary(*(normal(1, 1, 2, 4),) * 2, x[:, :2], x[:, :2].detach()),
    "alibi_slopes": lambda x: attention(*(normal(1, 2, 3, 4),) * 3, alibi_slopes=x[:1, :2]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_gradient_that_is_never_made_is_refused(name):
    with pytest.raises(RuntimeError, match=f"^{name} of .* requires a gradient; it must not"):
        REFUSED[name](normal(2, 4, grad=True))
    REFUSED[name](normal(2, 4))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("k", lambda x, there: attention(x, there, x)),
        ("weight", lambda x, there: layer_norm(x, there[0, 0, 0], there[0, 0, 0])),
        ("weight", lambda x, there: rms_norm(x, there[0, 0, 0])),
        ("weight", lambda x, there: linear(x, there[0, 0])),
    ],
)
def test_tensors_without_numbers_beside_others_are_refused(name, call):
    x = normal(1, 1, 3, 4)
    with pytest.raises(ValueError, match=f"^{name} of .* is on device meta; it must be on that of"):
        call(x, x.to("meta"))
    assert call(x.to("meta"), x.to("meta")).is_meta


def test_a_seed_is_the_hosts_whatever_the_default_device():
    with torch.device("meta"):
        x = normal(1, 1, 3, 4).to("meta")
        assert attention(x, x, x, dropout_p=0.5, seed=3).is_meta


# derivatives of derivatives, and many at a time


def test_gradients_of_many_outputs_may_be_taken_at_once():
    x, w = normal(2, 3, dtype=torch.float64, grad=True), normal(4, 3, seed=1, dtype=torch.float64)
    q = normal(1, 1, 2, 4, dtype=torch.float64, grad=True)
    for out, given in ((linear(x, w), x), (attention(q, q, q), q)):
        units = torch.eye(out.numel(), dtype=torch.float64).reshape(-1, *out.shape)

        def pulled(unit, out=out, given=given):
            return torch.autograd.grad(out, given, unit, retain_graph=True)[0]

        many = torch.func.vmap(pulled)(units)
        assert torch.equal(many, torch.stack([pulled(unit) for unit in units]))


def test_what_has_no_further_derivative_says_so():
    x = normal(2, 3, grad=True)
    (dx,) = torch.autograd.grad(linear(x, normal(4, 3)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated again; it must be that of linear once"):
        dx.sum().backward()
    q = normal(1, 1, 3, 4, grad=True)
    (dq,) = torch.autograd.grad(attention(q, q, q).square().sum(), q, create_graph=True)
    (ddq,) = torch.autograd.grad(dq.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="it must be that of attention once or twice"):
        ddq.sum().backward()


# memory


ROWS, WIDE = 8, 64
CALLS = {  # elements kept, at most
    "cross_entropy": (lambda x: cross_entropy(x, torch.arange(ROWS)), ROWS * WIDE),
    "softmax": (softmax, ROWS * WIDE),
    "SwiGLU": (lambda x: gated_activation(x, 2 * x), 2 * ROWS * WIDE),
    "SwiGLU of a gate without a gradient": (
        lambda x: gated_activation(x.detach(), 2 * x), ROWS * WIDE,
    ),
    "rotary": (lambda x: rotary(x[None, None], x[None, None], *angles(ROWS, 2))[0], 4 * ROWS),
    "embedding": (lambda x: embedding(torch.arange(3), x), 3),
    "layer_norm": (
        lambda x: layer_norm(x, *(torch.ones(WIDE),) * 2), ROWS * WIDE + WIDE + 2 * ROWS,
    ),
    "layer_norm with a residual": (
        lambda x: layer_norm(2 * x, *(torch.ones(WIDE),) * 2, residual=x),
        ROWS * WIDE + WIDE + 2 * ROWS,
    ),
    "rms_norm": (lambda x: rms_norm(x, torch.ones(WIDE)), ROWS * WIDE + WIDE + ROWS),
    "rms_norm with a residual": (
        lambda x: rms_norm(2 * x, torch.ones(WIDE), residual=x), ROWS * WIDE + WIDE + ROWS,
    ),
    "linear": (
        lambda x: linear(x, torch.ones(3, WIDE, requires_grad=True), torch.ones(3)),
        ROWS * WIDE + 3 * WIDE,
    ),
    "linear of frozen weights": (
        lambda x: linear(x, torch.ones(3, WIDE), torch.ones(3)), 3 * WIDE,
    ),
    "linear of what has no gradient": (
        lambda x: linear(x.detach(), torch.ones(3, WIDE, requires_grad=True)), ROWS * WIDE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", CALLS)
def test_what_backward_does_not_read_is_not_kept(side, name):
    call, most = CALLS[name]
    sizes = {}

    def kept(x):
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes() // x.element_size()
        return x

    x = normal(ROWS, WIDE, grad=True)
    with use(side), torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
        call(x).sum().backward()
    few = 4 * len(sizes)  # stand-ins of one element
    assert sum(sizes.values()) <= most + few


@pytest.mark.parametrize("name", ["cross_entropy", "softmax", "rotary", "embedding"])
def test_what_backward_does_not_read_may_be_changed(name):
    x = normal(ROWS, WIDE, grad=True)
    expected = torch.autograd.grad(CALLS[name][0](x * 1.0).square().sum(), x)[0]
    given = x * 1.0
    out = CALLS[name][0](given)
    given.detach().zero_()
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x)[0], expected)


# modules


def encoder_layers(**options):
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, **options).eval()
    ours = modules.TransformerEncoderLayer(8, 2, 12, batch_first=True, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def doubled(layer, name):
    part = getattr(layer, name)
    before = part.forward
    part.forward = lambda *x: 2 * before(*x)


CHANGES = {
    **{n: functools.partial(doubled, name=n) for n in ("linear1", "linear2", "norm1", "norm2")},
    "_ff_block": lambda layer: setattr(layer, "_ff_block", lambda x: 0 * x),
    "norm of two axes": lambda layer: setattr(layer, "norm1", torch.nn.LayerNorm((3, 8))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layers_parts_may_be_changed(change):
    x, found = normal(2, 3, 8), []
    for layer in encoder_layers():
        CHANGES[change](layer)
        with torch.enable_grad():  # torch's fast path would check nothing
            found.append(layer(x))
    torch.testing.assert_close(*found)


def test_hooks_of_all_modules_see_all_parts():
    seen = [[], []]
    for names, layer in zip(seen, encoder_layers(), strict=True):
        handle = torch.nn.modules.module.register_module_forward_hook(
            lambda module, given, out, names=names: names.append(type(module).__name__)
        )
        try:
            layer(normal(2, 3, 8))
        finally:
            handle.remove()
    assert sorted(x for x in seen[0] if "Attention" not in x and "Encoder" not in x) == sorted(
        x for x in seen[1] if "Attention" not in x and "Encoder" not in x
    )


def test_a_layer_without_numbers_takes_none():
    layer = modules.TransformerEncoderLayer(8, 2, 12, batch_first=True).to("meta")
    with pytest.raises((ValueError, RuntimeError, NotImplementedError), match="meta"):
        layer(torch.ones(2, 3, 8))


def test_what_was_given_may_be_resized():
    x = normal(2, 3)
    softmax(x)
    x.resize_(100)
    assert x.shape == (100,)
