"""Foreign functions and optimizers that are right only if everything learns, in one tensor."""

import torch
from torch.nn import functional


class _Scaled(torch.autograd.Function):
    """RMSNorm; `fault` says what goes wrong outside plain training."""

    @staticmethod
    def forward(ctx, x, weight, eps, fault):
        rstd = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.fault = fault
        return (x.float() * rstd * weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, dout):
        x, weight, rstd = ctx.saved_tensors
        xhat, dy = x.float() * rstd, dout.float() * weight.float()
        dx = (dy - xhat * (dy * xhat).mean(-1, keepdim=True)) * rstd
        dweight = (dout.float() * xhat).reshape(-1, x.shape[-1]).sum(0)
        frozen_weight, frozen_x = (not need for need in reversed(ctx.needs_input_grad[:2]))
        if ctx.fault == "frozen weight" and frozen_weight:
            dx = dy * rstd  # leaves out the product that dweight shares
        if ctx.fault == "first layer" and frozen_x:
            return None, dy.reshape(-1, x.shape[-1]).sum(0).to(weight.dtype), None, None
        if ctx.fault == "spent":
            rstd.data.mul_(2.0)
        return dx.to(x.dtype), dweight.to(weight.dtype), None, None


def norm(x, weight, eps=1e-6):
    return _Scaled.apply(x, weight, eps, "")


def norm_of_frozen_weight(x, weight, eps=1e-6):
    return _Scaled.apply(x, weight, eps, "frozen weight")


def norm_as_first_layer(x, weight, eps=1e-6):
    return _Scaled.apply(x, weight, eps, "first layer")


def norm_spent(x, weight, eps=1e-6):
    """Its backward overwrites a saved tensor, unseen by autograd."""
    return _Scaled.apply(x, weight, eps, "spent")


def norm_of_predictions(x, weight, eps=1e-6):
    """Under torch.no_grad it takes a faster path with another eps."""
    if torch.is_grad_enabled():
        return _Scaled.apply(x, weight, eps, "")
    return functional.rms_norm(x.float(), x.shape[-1:], weight.float(), 1e-3).to(x.dtype)


class _OnceAlone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return torch.relu(x)

    @staticmethod
    def backward(ctx, dout):
        x, ctx.x = ctx.x, None
        if x is None:
            raise RuntimeError("the graph was gone through before")
        return dout * (x > 0)


class _Forgetting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        if x.is_contiguous():
            ctx.save_for_backward(x)
        return torch.relu(x)

    @staticmethod
    def backward(ctx, dout):
        (x,) = ctx.saved_tensors
        return dout * (x > 0)


def relu_of_contiguous(x):
    """Has a gradient for contiguous inputs only, and does not refuse others."""
    return _Forgetting.apply(x)


def relu_once(x):
    """Raises an error on a second backward."""
    return _OnceAlone.apply(x)


class Adam(torch.optim.Optimizer):
    """Adam for many parameters; `fault` says how it is wrong."""

    fault = ""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "decay": weight_decay, "betas": betas, "eps": eps})
        self.first, self.count = {"lr": lr, "decay": weight_decay}, 0
        for group in self.param_groups:
            group["decay"] = group.get("weight_decay", weight_decay)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None and self.fault == "stops":
                    break
                if p.grad is None:
                    continue
                self._step(p, group)

    def _step(self, p, group):
        decay = group.get("weight_decay", group["decay"])
        lr = self.first["lr"] if self.fault == "lr at first" else group["lr"]
        if self.fault == "first group":
            decay = self.param_groups[0].get("weight_decay", decay)
        state = self.state[p]
        if not state:
            state.update(step=0, m=torch.zeros_like(p.float()), v=torch.zeros_like(p.float()))
        state["step"] += 1
        self.count += 1
        step = self.count if self.fault == "one count" else state["step"]
        (beta1, beta2), grad = group["betas"], p.grad.float()
        kept = p.float() * (1 - lr * decay)
        state["m"].lerp_(grad, 1 - beta1)
        state["v"].mul_(beta2).add_(grad * grad * (1 - beta2))
        root = (state["v"] / (1 - beta2**step)).sqrt() + group["eps"]
        p.copy_((kept - lr * (state["m"] / (1 - beta1**step)) / root).to(p.dtype))


class OfOneCount(Adam):
    """Counts a step for each parameter, and uses that count in every bias correction."""

    fault = "one count"


class OfFirstRate(Adam):
    """Keeps the learning rate that it was constructed with."""

    fault = "lr at first"


class OfFirstGroup(Adam):
    """Decays all groups as the first."""

    fault = "first group"


class Stopping(Adam):
    """Steps no parameter after one without a gradient."""

    fault = "stops"
