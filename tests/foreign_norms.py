"""Foreign RMSNorms, as functions, a module, an autograd.Function and an operator."""

from types import SimpleNamespace
from typing import NamedTuple

import torch


def rms_norm(x, weight, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def by_rsqrt(x, weight, eps=1e-6):
    """Its gradient contains (1/RMS)³, which underflows."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def gemma(x, weight, eps=1e-6, offset=1.0):
    return rms_norm(x, weight + offset, eps)


def of_epsilon(x, weight, epsilon=1e-3):
    return rms_norm(x, weight, epsilon)


def of_a_fixed_eps(x, weight):
    return rms_norm(x, weight, 1e-8)


def of_a_fixed_eps_without_gradients(x, weight):
    return rms_norm(x, weight, 1e-8).detach() + 0 * (x + weight)


def in_one_block(x, weight, eps=1e-6):
    """Right up to 2,048 columns, twice as large beyond."""
    return rms_norm(x, weight, eps) * (1 + (x.shape[-1] > 2048))


def with_statistics(x, weight, eps=1e-6):
    return rms_norm(x, weight, eps), x.square().mean(-1), "no tensor"


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


def rounded_before_a_wrong_gain(x, weight, eps=1e-6):
    return rounded_before_the_gain(x, weight * 1.02, eps)


def rounded_thrice(x, weight, eps=1e-6):
    """Rounds the root, too."""
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps).to(x.dtype)
    return weight * (x * rstd)


def rounded_behind_the_gain(x, weight, eps=1e-6):
    return rms_norm(x.float(), weight.float(), eps).to(x.dtype)


class Norm(torch.nn.Module):
    def forward(self, x, weight, eps=1e-6):
        return rms_norm(x, weight, eps)


module = Norm()


class Function(torch.autograd.Function):
    """Sound, with its gradient written out."""

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


def behind_a_sum(x, weight, eps=1e-6, residual=None):
    """Leaves adding the stream's two gradients to autograd."""
    h = x if residual is None else x + residual
    return rms_norm(h.float(), weight.float(), eps).to(x.dtype), h


def behind_a_sum_unrounded(x, weight, residual, eps=1e-6):
    """Normalises the unrounded sum, which is more exact than the stored one."""
    h = x.float() + residual.float()
    return rms_norm(h, weight.float(), eps).to(x.dtype), h.to(x.dtype)


def behind_a_sum_unrounded_without_half_of_it(x, weight, residual, eps=1e-6):
    return behind_a_sum_unrounded(x, weight, residual / 2, eps)


def layer_norm_behind_a_sum_unrounded(x, weight, bias, residual, eps=1e-5):
    """Writes the results over both inputs."""
    h = x.float() + residual.float()
    residual.copy_(h)
    centred = h - h.mean(-1, keepdim=True)
    x.copy_(rms_norm(centred, weight.float(), eps) + bias.float())


def behind_a_sum_always(x, weight, residual):
    h = x + residual
    return rms_norm(h, weight), h


def behind_a_sum_that_learns_half(x, weight, eps=1e-6, residual=None):
    return behind_a_sum(x, weight, eps, None if residual is None else residual.detach())


class Fused(torch.autograd.Function):
    """Computes stream and norm in one function, adding their gradients before the cast."""

    @staticmethod
    def forward(ctx, x, weight, eps=1e-6, residual=None):
        h = x.clone() if residual is None else x + residual
        rstd = torch.rsqrt(h.double().square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(h, rstd, weight)
        ctx.has_residual = residual is not None
        return (h * rstd * weight.double()).to(x.dtype), h

    @staticmethod
    def backward(ctx, dout, dh):
        h, rstd, weight = ctx.saved_tensors
        normed, g = h * rstd, dout * weight.double()
        dx = ((g - normed * (g * normed).mean(-1, keepdim=True)) * rstd + dh).to(h.dtype)
        dweight = (dout * normed).reshape(-1, h.shape[-1]).sum(0).to(weight.dtype)
        return dx, dweight, None, dx if ctx.has_residual else None


class FusedWithoutTheStream(Fused):
    @staticmethod
    def backward(ctx, dout, dh):
        return Fused.backward(ctx, dout, 0 * dh)


class FrozenWeight(Function):
    @staticmethod
    def backward(ctx, dout):
        dx, _, *rest = Function.backward(ctx, dout)
        return dx, None, *rest


class ForgetsTheRoot(Function):
    """Its backward treats the root as a constant."""

    @staticmethod
    def backward(ctx, dout):
        normed, rstd, weight = ctx.saved_tensors
        rows = (dout * normed).reshape(-1, dout.shape[-1])
        return dout * weight * rstd, rows.sum(0), None


class Gradients(NamedTuple):
    dx: torch.Tensor
    dresidual: torch.Tensor | None
    dweight: torch.Tensor


def layer_norm_without_bias(x, weight, eps=1e-5):
    return layer_norm(x, eps) * weight


def layer_norm_of_x_alone(x, eps=1e-5):
    return layer_norm(x, eps)


def layer_norm(x, eps):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps)


class LayerNormOfNoBias(torch.nn.Module):
    """Its bias is None; a bias given in its place would be added twice."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))
        self.register_parameter("bias", None)

    def forward(self, x):
        return layer_norm(x, 1e-5) * self.weight + (0 if self.bias is None else 2 * self.bias)


class LayerNormOfWeightAlone(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))

    def forward(self, x):
        return layer_norm(x, 1e-5) * self.weight


class LayerNormDoubled(LayerNormOfWeightAlone):
    def forward(self, x):
        return 2 * super().forward(x)


class Operator:
    """An RMSNorm with an operator's calling convention."""

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


class OperatorOfTuples(Operator):
    @staticmethod
    def backward(dout, cache, dh=None):
        return tuple(Operator.backward(dout, cache, dh))


class OperatorOfTwo(Operator):
    @staticmethod
    def backward(dout, cache, dh=None):
        dx, _, dweight = Operator.backward(dout, cache, dh)
        return dx, dweight
