"""RMSNorms that are not ours, as functions, a module, a function of autograd, and an operator."""

from types import SimpleNamespace
from typing import NamedTuple

import torch


def rms_norm(x, weight, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def by_rsqrt(x, weight, eps=1e-6):
    """Its gradient has the third power of 1/RMS in it, which underflows."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def gemma(x, weight, eps=1e-6, offset=1.0):
    return rms_norm(x, weight + offset, eps)


def eps_outside(x, weight, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * weight


def without_offset(x, weight, eps=1e-6, offset=0.0):
    return rms_norm(x, weight, eps)


def centred(x, weight, eps=1e-6):
    return rms_norm(x - x.mean(-1, keepdim=True), weight, eps)


def rounded_before_the_gain(x, weight, eps=1e-6):
    wide = x.float()
    normed = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()
    return weight * normed.to(x.dtype)


def rounded_behind_the_gain(x, weight, eps=1e-6):
    return rms_norm(x.float(), weight.float(), eps).to(x.dtype)


class Norm(torch.nn.Module):
    def forward(self, x, weight, eps=1e-6):
        return rms_norm(x, weight, eps)


module = Norm()
of_torch = torch.nn.RMSNorm(8)  # its weight is its own


class Function(torch.autograd.Function):
    """Sound, and written out."""

    @staticmethod
    def forward(ctx, x, weight, eps=1e-6):
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x * rstd, rstd, weight)
        return x * rstd * weight

    @staticmethod
    def backward(ctx, dout):
        normed, rstd, weight = ctx.saved_tensors
        g = dout * weight
        dx = (g - normed * (g * normed).mean(-1, keepdim=True)) * rstd
        rows = (dout * normed).reshape(-1, dout.shape[-1])
        return dx, rows.sum(0), None


class ForgetsTheRoot(Function):
    """Its root is a constant to backward."""

    @staticmethod
    def backward(ctx, dout):
        normed, rstd, weight = ctx.saved_tensors
        rows = (dout * normed).reshape(-1, dout.shape[-1])
        return dout * weight * rstd, rows.sum(0), None


class Gradients(NamedTuple):
    dx: torch.Tensor
    dresidual: torch.Tensor | None
    dweight: torch.Tensor


class Operator:
    """An RMSNorm with the call of an operator."""

    @staticmethod
    def forward(x, weight, *, residual=None, eps=1e-6, offset=0.0):
        h = x if residual is None else x + residual
        leaves = [t.detach().requires_grad_() for t in (h, weight)]
        out = Function.apply(leaves[0], leaves[1] + offset, eps)
        return out.detach(), SimpleNamespace(h=h, out=out, leaves=leaves, fused=h is not x)

    @staticmethod
    def backward(dout, cache, dh=None):
        dx, dweight = torch.autograd.grad(cache.out, cache.leaves, dout)
        dx = dx if dh is None else dx + dh
        return Gradients(dx, dx.clone() if cache.fused else None, dweight)
