"""More foreign functions: torch's modules and functions, objects, weights, offsets past 2³¹."""

import math
from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from foreign_kernels import autotuned_softmax, plain, torch_attention

__all__ = ["autotuned_softmax", "plain"]  # judged under this module's name, too


class Attention(torch.nn.Module):
    def forward(self, q, k, v, is_causal=False):
        return torch_attention(q, k, v, is_causal=is_causal)


class OfOneSize(torch.nn.Module):
    def __init__(self, head_dim):
        super().__init__()


module = Attention()
module_without_scale = torch.nn.Module()
module_without_scale.forward = lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v
torch_norm = torch.nn.LayerNorm(8)


class Applied(torch.autograd.Function):
    """Sound, with an option; its backward differentiates torch's attention."""

    @staticmethod
    def forward(ctx, q, k, v, causal=False):
        ctx.save_for_backward(q, k, v)
        ctx.causal = causal
        return torch_attention(q, k, v, is_causal=causal)

    @staticmethod
    def backward(ctx, dout):
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            out = torch_attention(*leaves, is_causal=ctx.causal)
        return *torch.autograd.grad(out, leaves, dout), None


class WrongWithContext(torch.autograd.Function):
    """Uses the newer form, with setup_context; its backward forgets the causal mask."""

    @staticmethod
    def forward(q, k, v, causal):
        return torch_attention(q, k, v, is_causal=causal)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx, dout):
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            out = torch_attention(*leaves)
        return *torch.autograd.grad(out, leaves, dout), None


class NoForward(torch.autograd.Function):
    pass


only_forward = SimpleNamespace(forward=plain)
with_cache = SimpleNamespace(forward=lambda q, k, v: (plain(q, k, v), {"q": q}))
nothing_to_call = SimpleNamespace(forwards=plain)


def _weights(q, k, causal, softmax_scale=None):
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    s = q.float() @ k.float().mT * scale
    if causal:
        s = s.masked_fill(s.new_ones(s.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return torch.softmax(s, -1)


def with_weights(q, k, v, softmax_scale=None, causal=False):
    p = _weights(q, k, causal, softmax_scale)
    return (p @ v.float()).to(q.dtype), p


def with_weights_in_half(q, k, v):
    p = _weights(q, k, False)
    return (p @ v.float()).to(q.dtype), p.to(q.dtype)


def with_weights_before_the_mask(q, k, v, causal=False):
    return (_weights(q, k, causal) @ v.float()).to(q.dtype), _weights(q, k, False)


def with_lse_of_an_axis_too_many(q, k, v):
    p = _weights(q, k, False)
    lse = torch.logsumexp(q @ k.mT * q.shape[-1] ** -0.5, -1, keepdim=True)
    return p @ v, lse


@triton.jit
def _far_softmax(x_ptr, out_ptr, stride_x, C, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    row, columns = tl.program_id(0), tl.arange(0, COLUMNS)
    start = row.to(tl.int64) * stride_x if WIDE else row * stride_x
    x = tl.load(x_ptr + start + columns, mask=columns < C, other=float("-inf")).to(tl.float32)
    p = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + row * C + columns, p / tl.sum(p, 0), mask=columns < C)


def _softmax_of_strides(x, wide):
    x = x.detach() if x.stride(-1) == 1 else x.detach().contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    R, C = x.shape
    _far_softmax[(R,)](x, out, x.stride(0), C, triton.next_power_of_2(C), wide)
    return out


def softmax_of_wide_offsets(x):
    return _softmax_of_strides(x, True)


def softmax_of_narrow_offsets(x):
    return _softmax_of_strides(x, False)
