"""Kernels such as others write, sound and faulty, for `twofold verify module:function`."""

import math
import os
import signal
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch.nn.attention import SDPBackend, sdpa_kernel

BLOCK = tl.constexpr(16)


@triton.jit
def _attention(
    q_ptr,  # (heads, M, D), as k, v and out, rows contiguous
    k_ptr,
    v_ptr,
    out_ptr,
    M,
    N,
    scale,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    FAULT: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head, columns = tl.program_id(1), tl.arange(0, D)
    here = rows[:, None] < M
    at = (head * M + rows[:, None]) * D + columns[None, :]
    q = tl.load(q_ptr + at, mask=here, other=0.0)
    if FAULT != "scale":
        qk_scale = scale
    else:
        qk_scale = 1.0
    m = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    acc = tl.zeros((BLOCK, D), tl.float32)
    for start in range(0, N, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        key_at = (head * N + keys[:, None]) * D + columns[None, :]
        there = keys[:, None] < N
        if FAULT == "bounds":
            k = tl.load(k_ptr + key_at)
        else:
            k = tl.load(k_ptr + key_at, mask=there, other=0.0)
        v = tl.load(v_ptr + key_at, mask=there, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * qk_scale
        if FAULT != "lanes":
            s = tl.where(keys[None, :] < N, s, float("-inf"))
        if CAUSAL:
            if FAULT == "causal":
                s = tl.where(keys[None, :] <= rows[:, None] + 1, s, float("-inf"))
            else:
                s = tl.where(keys[None, :] <= rows[:, None], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp(s - m_new[:, None])
        alpha = tl.exp(m - m_new)
        total = total * alpha + tl.sum(p, 1)
        if FAULT != "rescale":
            acc = acc * alpha[:, None]
        acc += tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    if FAULT != "normalise":
        acc = acc / total[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=here)


def _launch(q, k, v, softmax_scale, causal, fault):
    B, H, M, D = q.shape
    if D not in (16, 32, 64, 128):
        raise ValueError(f"head_dim is {D}; it must be 16, 32, 64 or 128")
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    _attention[(triton.cdiv(M, 16), B * H)](
        q, k, v, out, M, k.shape[2], softmax_scale, D, causal, fault
    )
    return out


def sound(q, k, v, softmax_scale, causal=False):
    return _launch(q.detach(), k.detach(), v.detach(), softmax_scale, causal, "")


def _faulty(fault):
    def function(q, k, v, softmax_scale, causal=False):
        return _launch(q.detach(), k.detach(), v.detach(), softmax_scale, causal, fault)

    return function


no_rescale, no_scale, causal_off_by_one = map(_faulty, ("rescale", "scale", "causal"))
unmasked_lanes, out_of_bounds, not_normalised = map(_faulty, ("lanes", "bounds", "normalise"))


def torch_attention(q, k, v, attn_mask=None, is_causal=False, scale=None):
    if is_causal and attn_mask is not None:
        raise NotImplementedError("a mask and causal")
    if attn_mask is not None:  # torch's GPU kernel refuses a broadcast last axis
        attn_mask = attn_mask.expand(*q.shape[:3], k.shape[2]).contiguous()
    with sdpa_kernel(SDPBackend.MATH):  # the other backend loses a NaN on a CPU
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale
        )


class _WrongGradient(torch.autograd.Function):
    """The forward is sound; the backward leaves the softmax's mean out of dS."""

    @staticmethod
    def forward(ctx, q, k, v):
        p = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    def backward(ctx, dout):
        q, k, v, p = ctx.saved_tensors
        ds = p * (dout @ v.mT) / math.sqrt(q.shape[-1])
        return ds @ k, ds.mT @ q, p.mT @ dout


def wrong_gradient(q, k, v):
    return _WrongGradient.apply(q, k, v)


def with_wrong_lse(q, k, v):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1) / math.log(2)


def crashes(q, k, v):
    return torch.cat((q, v), 3) @ k


def hangs(q, k, v):
    while True:
        pass


def ends_the_process(q, k, v):
    os.kill(os.getpid(), signal.SIGSEGV)


def exits(q, k, v):
    raise SystemExit(3)


def plain(q, k, v, causal=False):
    return torch_attention(q, k, v, is_causal=causal)


def halved(q, k, v, causal=False):
    return plain(q, k, v, causal) / 2


def fails_at_some_size(q, k, v, causal=False):
    if q.shape[0] > 8:
        raise RuntimeError("so many")
    return plain(q, k, v, causal)


def crashes_at_some_size(q, k, v, causal=False):
    if q.shape[0] > 8:
        ends_the_process(q, k, v)
    return plain(q, k, v, causal)


def hangs_at_some_size(q, k, v, causal=False):
    while q.shape[0] > 8:
        pass
    return plain(q, k, v, causal)


def two_arguments(q, k):
    return q


def returns_a_list(q, k, v):
    return [q]


def of_another_shape(q, k, v):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)[..., :1, :] @ v


def writes_to_its_inputs(q, k, v):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    v.detach()[..., :1, :] = 0.5
    return torch.softmax(scores, -1) @ v


class Norm:
    """Layer norm with an operator's calling convention."""

    @staticmethod
    def forward(x, weight, bias, *, residual=None, dropout_p=0.0, seed=0, eps=1e-5):
        if dropout_p:
            raise NotImplementedError("dropout")
        h = x if residual is None else x + residual
        leaves = [t.detach().requires_grad_() for t in (h, weight, bias)]
        out = layer_norm(*leaves, eps)
        return out.detach(), SimpleNamespace(h=h, out=out, leaves=leaves, fused=h is not x)

    @staticmethod
    def backward(dout, cache, dh=None):
        dx, dweight, dbias = torch.autograd.grad(cache.out, cache.leaves, dout)
        dx = dx if dh is None else dx + dh
        return NormGradients(dx, dx.clone() if cache.fused else None, dweight, dbias)


class NormGradients(NamedTuple):
    dx: torch.Tensor
    dresidual: torch.Tensor | None
    dweight: torch.Tensor
    dbias: torch.Tensor


def refuses(q, k, v):
    raise ValueError("nothing suits it")


def layer_norm(x, weight, bias, eps):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def layer_norm_without_eps(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt() * weight + bias


def cross_entropy(logits, targets, reduction="mean"):
    return torch.nn.functional.cross_entropy(logits, targets, reduction=reduction)


def cross_entropy_always_mean(logits, targets, reduction="mean"):
    return torch.nn.functional.cross_entropy(logits, targets)


def gelu(x):
    # not torch's own, whose float32 gradient on a CPU exceeds the bound by a third
    return x * (0.5 * (1 + torch.erf(x * math.sqrt(0.5))))


def gelu_by_tanh(x):
    return torch.nn.functional.gelu(x, approximate="tanh")


def swiglu(gate, up):
    # not torch's own, whose gradient has a cancelling 1 − σ
    return gate * torch.exp(torch.nn.functional.logsigmoid(gate)) * up


def ignores_window(q, k, v, window_size=None):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def second_tile_is_late(q, k, v, causal=False):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        rows, keys = (torch.arange(x.shape[2], device=q.device) for x in (q, k))
        rows = rows[:, None]
        scores = scores.where(
            (keys <= rows) & ((keys < 128) | (rows < 128) | (keys % 128 > 0)), -math.inf
        )
    return torch.softmax(scores, -1) @ v


class _SumsOneTile(torch.autograd.Function):
    """Sound except for dweight, which sums only the first 64 rows."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return layer_norm(x, weight, bias, eps)

    @staticmethod
    def backward(ctx, dout):
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            out = layer_norm(*leaves, ctx.eps)
            dx, _, dbias = torch.autograd.grad(out, leaves, dout, retain_graph=True)
            (dweight,) = torch.autograd.grad(out[:64], leaves[1:2], dout[:64])
        return dx, dweight, dbias, None


def layer_norm_of_one_tile(x, weight, bias, eps=1e-5):
    return _SumsOneTile.apply(x, weight, bias, eps)


def cross_entropy_counts_all(logits, targets, ignore_index=-100):
    return torch.nn.functional.cross_entropy(logits, targets.clamp(min=0))


def refuses_windows(q, k, v, window_size=None):
    if window_size is not None:
        raise ValueError("no windows")
    return ignores_window(q, k, v)


def _grouped(q, k, v, kinder):
    groups = q.shape[1] // k.shape[1]
    k, v = (kinder(x, groups) for x in (k, v))
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def groups_from_shapes(q, k, v, dropout_p=0.0):
    return _grouped(q, k, v, lambda x, groups: x.repeat_interleave(groups, 1))


def groups_in_turn(q, k, v):
    return _grouped(q, k, v, lambda x, groups: x.repeat(1, groups, 1, 1))


def groups_of_one_batch(q, k, v, enable_gqa=False):
    if not enable_gqa:
        return _grouped(q, k, v, lambda x, groups: x)
    return _grouped(q, k, v, lambda x, groups: x[:1].repeat_interleave(groups, 1))


def cross_entropy_of_counted(logits, targets, ignore_index=-100):
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=ignore_index)


def fails_in_numpy(q, k, v):
    if q.shape[2] > 16:
        np.zeros(16)[:] = np.zeros(q.shape[2])
    return _grouped(q, k, v, lambda x, groups: x)


def of_full_tiles(q, k, v):
    if q.shape[2] % 64:
        raise ValueError("seqlen_q must be a multiple of 64")
    return _grouped(q, k, v, lambda x, groups: x)


def in_float64(q, k, v):
    return _grouped(q, k, v, lambda x, groups: x).double()


def lse_in_half(q, k, v):
    scores = q.float() @ k.float().mT / math.sqrt(q.shape[-1])
    out = (torch.softmax(scores, -1) @ v.float()).to(q.dtype)
    return out, torch.logsumexp(scores, -1).to(q.dtype)


def cross_entropy_in_float32(logits, targets):
    return torch.nn.functional.cross_entropy(logits.float(), targets)


@triton.autotune(configs=[triton.Config({"ROWS": 4}), triton.Config({"ROWS": 8})], key=["C"])
@triton.jit
def _softmax(x_ptr, out_ptr, R, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    here = (rows < R) & (columns < C)
    x = tl.load(x_ptr + rows * C + columns, mask=here, other=float("-inf")).to(tl.float32)
    p = tl.exp(x - tl.max(x, 1)[:, None])
    tl.store(out_ptr + rows * C + columns, p / tl.sum(p, 1)[:, None], mask=here)


def autotuned_softmax(x):
    x = x.detach().contiguous()
    out, (R, C) = torch.empty_like(x), x.shape
    _softmax[lambda meta: (triton.cdiv(R, meta["ROWS"]),)](
        x, out, R, C, COLUMNS=triton.next_power_of_2(C)
    )
    return out


def with_defaults_of_its_own(q, k, v, window_size=(-1, -1), softcap=0.0):
    (left, right), (M, N) = window_size, (q.shape[2], k.shape[2])
    scores = q.detach() @ k.detach().mT / math.sqrt(q.shape[-1])
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    ahead = torch.arange(N, device=q.device) - torch.arange(M, device=q.device)[:, None]
    if left >= 0:
        scores = scores.masked_fill(ahead < -left, -math.inf)
    if right >= 0:
        scores = scores.masked_fill(ahead > right, -math.inf)
    return torch.softmax(scores, -1) @ v.detach(), None


def crashes_where_odd(q, k, v):
    if q.shape[2] % 2:
        raise RuntimeError(f"{q.shape[2]} is odd")
    return torch_attention(q, k, v)


def wrong_and_then_ends_the_process(q, k, v, window_size=None):
    if q.shape[2] > 64:
        ends_the_process(q, k, v)
    return ignores_window(q, k, v)
