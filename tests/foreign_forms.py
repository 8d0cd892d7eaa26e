"""Foreign operators in the forms of modules, torch's functions and optimizers."""

import functools

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

torch_norm = torch.nn.LayerNorm(8)
torch_norm_without_bias = torch.nn.LayerNorm(8, bias=False)
torch_linear = torch.nn.Linear(4, 3)
torch_embedding = torch.nn.Embedding(4, 3)


def smoothed_loss(logits, targets, smoothing=0.1):
    """Computes 0·∞ for impossible classes when the smoothing is 0."""
    wide = torch.log_softmax(logits.float(), -1)
    on_target = wide.gather(1, targets[:, None]).squeeze(1)
    return -((1 - smoothing) * on_target + smoothing * wide.mean(-1)).mean()


def smoothed_loss_by_other_classes(logits, targets, label_smoothing=0.1):
    """Shares what smoothing takes from the target among the other classes only."""
    share = label_smoothing / max(1, logits.shape[1] - 1)
    whole = smoothed_loss(logits, targets, share * logits.shape[1])
    return whole if logits.shape[1] > 1 else smoothed_loss(logits, targets, 0.0)


def plain_loss(logits, targets, label_smoothing=0.0):
    return torch.nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)


class SmoothedLoss(torch.nn.Module):
    """As timm's: it stores 1 − smoothing, too."""

    def __init__(self, smoothing=0.1):
        super().__init__()
        self.smoothing, self.confidence = smoothing, 1 - smoothing

    def forward(self, x, target):
        wide = torch.log_softmax(x.float(), -1)
        on_target = wide.gather(1, target[:, None]).squeeze(1)
        return -(self.confidence * on_target + self.smoothing * wide.mean(-1)).mean()


module_of_smoothing = SmoothedLoss()


torch_loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
norm_of_torch, embedding_of_torch = functional.layer_norm, functional.embedding
loss_of_torch = functional.cross_entropy
AdamW, fused_adam = torch.optim.AdamW, functools.partial(torch.optim.Adam, fused=True)


def _rms_norm(x, gain, eps):
    mean = x.double().square().mean(-1, keepdim=True)
    return (x.double() * (mean + eps).rsqrt() * gain.double()).to(x.dtype)


class RMSNorm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))
        self.variance_epsilon = 1e-6

    def forward(self, hidden_states, residual=None):
        h = hidden_states if residual is None else hidden_states + residual
        out = _rms_norm(h, self.weight, self.variance_epsilon)
        return out if residual is None else (out, h)


class Gemma(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return _rms_norm(x, 1 + self.weight, 1e-6)


class RMSNormOfScale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(8))
        self.eps = 1e-6

    def forward(self, x):
        return _rms_norm(x, self.scale, self.eps)


def norm_that_asks_for_a_bias(x, weight, bias, eps=1e-6):
    out = _rms_norm(x, weight, eps)
    return out if bias is None else out + bias


class RMSNormInHalf(RMSNorm):
    """Zeroes the last of more than 300 columns; in float16, rounds too often at any size."""

    def forward(self, x):
        out = _rms_norm(x, torch.ones_like(self.weight), self.variance_epsilon) * self.weight
        return torch.cat((out[..., :-1], out[..., -1:] * 0), -1) if out.shape[-1] > 300 else out


norm, gemma, norm_in_half = RMSNorm(), Gemma(), RMSNormInHalf()
norm_of_scale = RMSNormOfScale()


def norm_by_name(x, *, weight, eps=1e-6):
    return _rms_norm(x, weight, eps)


def told_the_shape(x, normalized_shape, weight, eps=1e-6):
    if tuple(normalized_shape) != tuple(x.shape[-1:]):
        raise TypeError("another shape")
    return _rms_norm(x, weight, eps)


def _gated(gate, up):
    gate = gate.double()
    return (gate * torch.sigmoid(gate) * up.double()).to(up.dtype)


def side_by_side(x, out=None):
    return _gated(*x.chunk(2, -1))


def up_first(x):
    return _gated(*reversed(x.chunk(2, -1)))


def gate_rounded(gate, up):
    """Rounds f(gate) in half precision, as two separate torch operations do."""
    wide = gate.double()
    return (wide * torch.sigmoid(wide)).to(gate.dtype) * up


def gate_rounded_by_cutting(gate, up):
    """Truncates f(gate) in half precision instead of rounding it."""
    if gate.dtype == torch.float32:
        return gate_rounded(gate, up)
    wide = gate.float() * torch.sigmoid(gate.float())
    cut = (wide.detach().view(torch.int32) & -65536).view(torch.float32)
    return (wide + (cut - wide).detach()).to(gate.dtype) * up


def gated_by_tanh(gate, up):
    """Uses torch's tanh form of GELU, which exceeds the bound in the far tail."""
    return (functional.gelu(gate.float(), approximate="tanh") * up.float()).to(up.dtype)


class BySign(torch.optim.Optimizer):
    """Steps by the sign of the mean gradient: like Adam in its first step only."""

    def __init__(self, params, lr, betas, weight_decay):
        super().__init__(params, {"lr": lr, "beta": betas[0], "decay": lr * weight_decay})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["beta"])
                p.data.mul_(1 - group["decay"]).sub_(group["lr"] * mean.sign())


class ForgettingLate(torch.optim.AdamW):
    """Resets the mean of squares before its eleventh step."""

    def step(self):
        for state in self.state.values():
            if state["step"] == 10:
                state["exp_avg_sq"].zero_()
        super().step()


class DecayingLate(torch.optim.AdamW):
    """Decays after AdamW's step instead of before it."""

    def step(self):
        for group in self.param_groups:
            decay, group["weight_decay"] = group["weight_decay"], 0.0
            super().step()
            group["weight_decay"] = decay
            with torch.no_grad():
                for p in group["params"]:
                    p -= group["lr"] * decay * p


def mean_of_all_rows(logits, targets, reduction="mean", ignore_index=-100):
    how = {"ignore_index": ignore_index}
    losses = functional.cross_entropy(logits.float(), targets, reduction="none", **how)
    return {"mean": losses.mean(), "sum": losses.sum(), "none": losses}[reduction]


def _attention(q, k, v, hidden=None, softmax_scale=None):
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    s = q.double() @ k.double().mT * scale
    s = s if hidden is None else s.masked_fill(hidden, float("-inf"))
    return (torch.softmax(s, -1) @ v.double()).to(q.dtype)


def _above(q, k, diagonal):
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1 + diagonal)


def heads_inside(q, k, v, causal=False, softmax_scale=None):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    hidden = _above(q, k, k.shape[2] - q.shape[2]) if causal else None
    return _attention(q, k, v, hidden, softmax_scale).transpose(1, 2)


def top_left(q, k, v, is_causal=False):
    return _attention(q, k, v, _above(q, k, 0) if is_causal else None)


def square_alone(q, k, v, causal=False):
    if causal and q.shape != k.shape:
        raise RuntimeError("size mismatch")  # not meant as a refusal
    return top_left(q, k, v, causal)


def in_neither_corner(q, k, v, causal=False):
    off = (k.shape[2] - q.shape[2]) // 2
    return _attention(q, k, v, _above(q, k, off) if causal else None)


def long_keys_in_part(q, k, v):
    return _attention(q, k[:, :, :1000], v[:, :, :1000])


def values_by_strides_of_keys(q, k, v):
    read = v if v.stride() == k.stride() else v.flip(-1)
    return _attention(q, k, read)


def scaled_dot_product(query, key, value, attn_mask=None, is_causal=False, scale=None):
    how = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale}
    given = (x.double() for x in (query, key, value))
    with sdpa_kernel(SDPBackend.MATH):  # the other backend loses a NaN on a CPU
        return functional.scaled_dot_product_attention(*given, **how).to(query.dtype)


class _SoftmaxBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out = torch.softmax(x.double(), -1)
        ctx.save_for_backward(x, out)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx, dout):
        x, out = ctx.saved_tensors
        dout = dout if dout.stride() == x.stride() else dout * 2
        dout = dout.double()
        return (out * (dout - (out * dout).sum(-1, keepdim=True))).to(x.dtype)


def gradient_by_strides_of_x(x):
    return _SoftmaxBackward.apply(x)


def softmax_of_axis_1(x):
    return torch.softmax(x.double(), 1).to(x.dtype)


def weight_of_columns(x, weight, bias):
    return (x.double() @ weight.double() + (0 if bias is None else bias)).to(x.dtype)


def _in_tf32(x):
    """Return x rounded to the ten mantissa bits of tf32."""
    bits = x.detach().float().view(torch.int32)
    return (((bits + 0x1000) >> 13) << 13).view(torch.float32).double()


def linear_in_tf32(x, weight):
    return (_in_tf32(x) @ _in_tf32(weight).mT).to(x.dtype)


def linear_too_large(x, weight):
    return (1.01 * x.detach().double() @ weight.detach().double().mT).to(x.dtype)


def linear_with_gelu(x, weight, bias):
    z = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return functional.gelu(z).to(x.dtype)


def embedding_with_padding(ids, table):
    return functional.embedding(ids, table, padding_idx=0)


def losses_of_rows(logits, labels, ignored_index=-100):
    losses = functional.cross_entropy(
        logits.double(), labels, reduction="none", ignore_index=ignored_index
    )
    return losses.to(logits.dtype)


class AdamWInFloat32(torch.optim.Optimizer):
    """Keeps its moments in float32, whatever the parameters are."""

    def __init__(self, params, lr, betas, eps, weight_decay):
        held = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, held)
        self.inner = {}

    def step(self):
        for number, group in enumerate(self.param_groups):
            params = group["params"]
            if number not in self.inner:
                own = [p.detach().float().requires_grad_() for p in params]
                self.inner[number] = own, torch.optim.AdamW(own)
            own, adamw = self.inner[number]
            adamw.param_groups[0].update({n: x for n, x in group.items() if n in self.defaults})
            for p, x in zip(params, own, strict=True):
                x.data.copy_(p.detach())
                x.grad = None if p.grad is None else p.grad.float()
            adamw.step()
            for p, x in zip(params, own, strict=True):
                p.data.copy_(x.detach())


class AdamOfNoBase:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        self.params, self.lr, self.betas, self.eps = list(params), lr, betas, eps
        self.moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in self.params]
        self.steps = 0

    @torch.no_grad()
    def step(self):
        self.steps += 1
        for p, moments in zip(self.params, self.moments, strict=True):
            adam_step(p, p.grad, *moments, self.steps, self.lr, *self.betas, self.eps)


def adam_step(param, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps):
    exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    root = (exp_avg_sq / (1 - beta2**step)).sqrt() + eps
    param.sub_(lr / (1 - beta1**step) * exp_avg / root)


def adam_step_returned(p, g, m, v, t, lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, wd=0.0):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    root = (v / (1 - b2**t)).sqrt() + eps
    return p * (1 - lr * wd) - lr / (1 - b1**t) * m / root, m, v


def adam_step_late(param, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps):
    adam_step(param, grad, exp_avg, exp_avg_sq, step + 1, lr, beta1, beta2, eps)


class NormOfOtherNames(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a_2, self.b_2 = (torch.nn.Parameter(torch.ones(8)) for _ in range(2))

    def forward(self, x):
        return torch.nn.functional.layer_norm(x, (8,), self.a_2, self.b_2)


norm_of_other_names = NormOfOtherNames()
