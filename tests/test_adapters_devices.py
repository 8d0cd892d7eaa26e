"""Where the custom torch operators run: their tensors' device, and captured graphs."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from twofold.adapters import attention as attentions
from twofold.adapters import layers, sides
from twofold.adapters.arguments import read_seed, seed_tensor
from twofold.adapters.attention import attention
from twofold.adapters.layers import layer_norm, softmax
from twofold.adapters.multi_head_attention import multi_head_attention
from twofold.adapters.optim import AdamW
from twofold.adapters.rms_norm import rms_norm


def numbers(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


class OnGPU(SimpleNamespace):
    """What is asked of a tensor, answered as by one on the second GPU."""

    dtype, device, is_cuda = torch.float32, torch.device("cuda", 1), True

    def get_device(self):
        return 1


def test_kernels_are_launched_where_tensors_are(triton, monkeypatch):
    from twofold.kernels.precision import supported

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: f"with {device}")
    assert sides.current(OnGPU()) == "with cuda:1"
    with pytest.raises(ValueError, match=r"x.device is cuda:1; it must be the current device, cud"):
        supported("x", OnGPU())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for x in (OnGPU(), torch.ones(1)):
        supported("x", x)
        with sides.current(x):
            pass


def test_gradients_are_on_the_device_of_what_they_are_of(triton, monkeypatch):
    from twofold.kernels import precision

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    there, here = OnGPU(shape=torch.Size([4])), torch.ones(4)
    precision.gradient("dout", there, there)
    for dout, output in ((here, there), (there, here)):
        with pytest.raises(ValueError, match=r"dout is on c.*; it must be on output's device, c"):
            precision.gradient("dout", dout, output)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(ValueError, match=r"dout.device is cuda:1; it must be the current device, "):
        precision.gradient("dout", there, there)


@pytest.mark.parametrize(
    ("name", "cache", "output"),
    [
        ("softmax", lambda x: (x,), "dout"),
        ("activation", lambda x: (x, "gelu", None), "dout"),
        ("gated_activation", lambda x: (x, x, "silu"), "dout"),
        ("layer_norm", lambda x: (x, x[0, :2], x[0, :2], x[0], False, 0.0, 0), "dout"),
        ("rms_norm", lambda x: (x, x[0, :2], x[0], 0.0, False), "dout"),
        ("softmax_cross_entropy", lambda x: (x, False), "cache.dlogits"),
    ],
)
def test_every_backward_looks_where_its_gradient_is(triton, monkeypatch, name, cache, output):
    from twofold.kernels import precision

    looked = []
    monkeypatch.setattr(precision, "on_current_device", lambda name, x: looked.append(name))
    operator, x = getattr(triton, name), triton.asarray(np.ones((2, 4)), "float32")
    dout = 1.0 if name == "softmax_cross_entropy" else x
    operator.backward(dout, operator.Cache(*cache(x)))
    assert looked == [output]


@pytest.mark.parametrize("name", ["attention", "attention_double_backward", "merge_attention"])
def test_every_backward_of_attention_looks_where_its_gradient_is(triton, monkeypatch, name):
    from twofold.kernels import merge_attention, precision

    x = triton.asarray(np.ones((1, 1, 2, 4)), "float32")
    out, cache = triton.attention.forward(x, x, x)
    of_parts = triton.merge_attention.forward(out[None], cache.lse[None])[1]
    looked = []
    for module in (precision, merge_attention):
        monkeypatch.setattr(module, "on_current_device", lambda name, x: looked.append(name))
    backward = getattr(triton, name).backward
    arguments = {"attention": (x, cache), "merge_attention": (x, of_parts)}
    backward(*arguments.get(name, (x, x, x, x, cache)))
    assert looked == ["dout"]


@pytest.mark.parametrize("name", ["attention", "layer norm", "rms norm", "softmax"])
def test_the_device_is_made_current_for_both_passes(monkeypatch, name):
    entered = []
    monkeypatch.setattr(sides, "current", lambda x: entered.append(x) or contextlib.nullcontext())
    x = numbers(1, 1, 2, 4).requires_grad_()
    functions = {
        "attention": lambda: attention(x, x, x),
        "layer norm": lambda: layer_norm(x, numbers(4), numbers(4)),
        "rms norm": lambda: rms_norm(x, numbers(4)),
        "softmax": lambda: softmax(x),
    }
    out = functions[name]()
    assert len(entered) == 1 and entered[0].data_ptr() == x.data_ptr()
    out.sum().backward()
    assert len(entered) == 2


def test_what_a_captured_graph_would_repeat_is_refused(monkeypatch):
    q, parameter = numbers(1, 1, 2, 4), torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = AdamW([parameter])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="seed is the host's while a CUDA graph is captured; it"):
        attention(q, q, q, dropout_p=0.5)
    attention(q, q, q)
    with pytest.raises(RuntimeError, match="AdamW steps while a CUDA graph is captured; it must"):
        optimizer.step()
    assert parameter.tolist() == [1, 1]


def test_a_seed_is_drawn_where_the_mask_is(monkeypatch):
    x = torch.empty(1, 1, 2, 4, device="meta")
    drawn = seed_tensor(0.5, None, x)
    assert drawn.is_meta and drawn.shape == () and drawn.dtype == torch.int64
    assert seed_tensor(0.5, 7, x).device.type == "cpu"  # which a kernel is told, or refuses
    given = []
    for module in (layers, attentions):
        monkeypatch.setattr(module, "seed_tensor", lambda p, seed, x: given.append(x))
    ones = torch.ones(4, device="meta")
    for call in (
        lambda: layer_norm(x, ones, ones, dropout_p=0.5),
        lambda: attention(x, x, x, dropout_p=0.5),
        lambda: multi_head_attention(
            x[0], x.new_empty(12, 4), None, x.new_empty(4, 4), None, num_heads=1, dropout_p=0.5
        ),
    ):
        assert call().is_meta and given.pop().is_meta and not given


def test_a_seed_on_a_gpu_is_left_there():
    seed = SimpleNamespace(is_cuda=True)
    assert read_seed(seed) is seed
    assert read_seed(torch.tensor(5, dtype=torch.int32)) == 5 and read_seed(None) == 0
