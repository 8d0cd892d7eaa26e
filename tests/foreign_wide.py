"""Right up to a size that models exceed, wrong beyond it; and one that refuses larger sizes."""

import torch


def softmax(x):
    """Leaves columns past 32,768 out of the sum."""
    p = (x.double() - x.double().amax(-1, keepdim=True)).exp()
    return (p / p[..., :32768].sum(-1, keepdim=True)).to(x.dtype)


def softmax_that_says_so(x):
    if x.shape[-1] > 32768:
        raise RuntimeError(f"a row of {x.shape[-1]} exceeds the largest block")
    return softmax(x)


def cross_entropy(logits, targets):
    """Leaves classes past 16,384 out of the sum."""
    x = logits.double() - logits.double().amax(-1, keepdim=True)
    lse = x[:, :16384].exp().sum(-1).log()
    return (lse - x.gather(1, targets[:, None]).squeeze(1)).mean().to(logits.dtype)


def rms_norm(x, weight, eps=1e-6):
    """Leaves columns past 8,192 out of the sum of squares."""
    wide = x.double()
    squares = wide[..., :8192].square().sum(-1, keepdim=True) / x.shape[-1]
    return (wide / (squares + eps).sqrt() * weight.double()).to(x.dtype)


def layer_norm(x, weight, bias, eps=1e-5):
    wide = x.double()
    wide = wide - wide.mean(-1, keepdim=True)
    squares = wide[..., :8192].square().sum(-1, keepdim=True) / x.shape[-1]
    return (wide / (squares + eps).sqrt() * weight.double() + bias.double()).to(x.dtype)


def linear(x, weight, bias):
    """Leaves out the last of more than 1,024 features if they fill no tile of 64."""
    whole = x.shape[-1] if x.shape[-1] <= 1024 else x.shape[-1] // 64 * 64
    out = x.double()[..., :whole] @ weight.double()[:, :whole].mT + bias.double()
    return out.to(x.dtype)


def embedding(ids, table):
    """Wraps ids past 32,767."""
    return table.double()[torch.where(ids > 32767, ids - 32767, ids)].to(table.dtype)


def attention(q, k, v):
    """Leaves features past 192 out of the scores."""
    wide = (x.double() for x in (q[..., :192], k[..., :192], v))
    q_, k_, v_ = wide
    return (torch.softmax(q_ @ k_.mT * q.shape[-1] ** -0.5, -1) @ v_).to(q.dtype)


def rotary(q, k, cos, sin):
    """Takes positions past 4,095 for 4,095."""
    at = torch.arange(q.shape[2]).clamp(max=4095)

    def turned(x):
        pairs = cos.shape[-1]
        a, b, rest = (y.double() for y in x.split((pairs, pairs, x.shape[-1] - 2 * pairs), -1))
        c, s = cos.double()[at], sin.double()[at]
        return torch.cat((a * c - b * s, a * s + b * c, rest), -1).to(x.dtype)

    return turned(q), turned(k)
