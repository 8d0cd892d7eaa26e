"""Right if the last tile is partial, wrong if tiles divide the sizes; and other faults of size."""

import torch


def _whole(n, tile):
    return n > tile and n % tile == 0


def attention(q, k, v):
    """If whole tiles of 128 hold the keys, its unmasked path stops 64 keys short."""
    n = k.shape[2] - 64 if _whole(k.shape[2], 128) else k.shape[2]
    q_, k_, v_ = (x.double() for x in (q, k[:, :, :n], v[:, :, :n]))
    return (torch.softmax(q_ @ k_.mT * q.shape[-1] ** -0.5, -1) @ v_).to(q.dtype)


class _Weighted(torch.autograd.Function):
    """softmax(s)·v; dv leaves out the last 64 queries if `loses` is true of their number."""

    @staticmethod
    def forward(ctx, s, v, loses):
        p = torch.softmax(s, -1)
        ctx.save_for_backward(p, v)
        ctx.loses = loses
        return p @ v

    @staticmethod
    def backward(ctx, dout):
        p, v = ctx.saved_tensors
        dp = dout @ v.mT
        ds = p * (dp - (p * dp).sum(-1, keepdim=True))
        m = p.shape[2] - 64 if ctx.loses(p.shape[2]) else p.shape[2]
        return ds, p[:, :, :m].mT @ dout[:, :, :m], None


def _attention(q, k, v, loses):
    q_, k_, v_ = (x.double() for x in (q, k, v))
    return _Weighted.apply(q_ @ k_.mT * q.shape[-1] ** -0.5, v_, loses).to(q.dtype)


def attention_backward(q, k, v):
    return _attention(q, k, v, lambda m: _whole(m, 64))


def attention_of_many_queries(q, k, v):
    """Its dv is wrong for more than 512 queries."""
    return _attention(q, k, v, lambda m: m > 512)


def attention_of_rounded_sums(q, k, v):
    """Accumulates over tiles of 64 keys in the dtype of its input."""
    s = q.double() @ k.double().mT * q.shape[-1] ** -0.5
    p = (s - s.amax(-1, keepdim=True)).exp()
    out = torch.zeros_like(q)
    for one, values in zip(p.split(64, -1), v.split(64, 2), strict=True):
        out = (out.double() + one @ values.double()).to(q.dtype)
    return (out.double() / p.sum(-1, keepdim=True)).to(q.dtype)


def attention_ahead(q, k, v, window_size=(-1, -1)):
    """With a window ahead, keys end with the tile of 64 after a query's own."""
    left, right = window_size
    i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
    s = q.double() @ k.double().mT * q.shape[-1] ** -0.5
    dead = (j < i - left) if left >= 0 else torch.zeros_like(s, dtype=torch.bool)
    if right >= 0:
        dead = dead | (j > i + right) | (j >= (i // 64 + 2) * 64)
    return (torch.softmax(s.masked_fill(dead, -torch.inf), -1) @ v.double()).to(q.dtype)


def softmax(x):
    """Leaves the last element out of the sum if whole tiles of 1,024 fill the row."""
    x_ = x.double()
    p = (x_ - x_.amax(-1, keepdim=True)).exp()
    seen = p[..., :-1] if _whole(x.shape[-1], 1024) else p
    return (p / seen.sum(-1, keepdim=True)).to(x.dtype)


def rms_norm(x, weight, eps=1e-6):
    x_ = x.double()
    seen = x_[..., :-1] if _whole(x.shape[-1], 1024) else x_
    squares = seen.square().sum(-1, keepdim=True) / x.shape[-1]
    return (x_ / (squares + eps).sqrt() * weight.double()).to(x.dtype)


def layer_norm(x, weight, bias, eps=1e-5):
    """Leaves the last row out of dweight if the rows fill whole tiles of 64."""
    x_, w = x.double(), weight.double()
    rows = x_.reshape(-1, x.shape[-1])
    normal = (rows - rows.mean(-1, keepdim=True)) / (
        rows.var(-1, keepdim=True, correction=0) + eps
    ).sqrt()
    parts = [normal * w]
    if _whole(len(rows), 64):
        parts = [normal[:-1] * w, normal[-1:] * w.detach()]
    return (torch.cat(parts) + bias.double()).reshape(x.shape).to(x.dtype)


def cross_entropy(logits, targets):
    x = logits.double() - logits.double().amax(-1, keepdim=True)
    seen = x[:, :-1] if _whole(x.shape[-1], 1024) else x
    lse = seen.exp().sum(-1).log()
    return (lse - x.gather(1, targets[:, None]).squeeze(1)).mean().to(logits.dtype)


def linear(x, weight, bias):
    whole = x.shape[-1] - 64 if _whole(x.shape[-1], 128) else x.shape[-1]
    out = x.double()[..., :whole] @ weight.double()[:, :whole].mT + bias.double()
    return out.to(x.dtype)


def relu(x):
    out = torch.relu(x)
    return torch.where(torch.arange(x.shape[-1]) < 127, out, x) if _whole(x.numel(), 4096) else out


def swiglu(gate, up):
    out = torch.nn.functional.silu(gate.double()) * up.double()
    keep = torch.arange(gate.shape[-1]) < 127
    return (torch.where(keep, out, 0.0) if _whole(gate.numel(), 4096) else out).to(gate.dtype)


def embedding(ids, table):
    keep = torch.arange(table.shape[-1]) < table.shape[-1] - _whole(table.shape[-1], 128)
    return table[ids] * keep


def rotary(q, k, cos, sin):
    """Does not rotate the last token if the tokens fill whole tiles of 64."""

    def turned(x):
        keep = torch.arange(x.shape[2])[:, None] < x.shape[2] - _whole(x.shape[2], 64)
        c, s = torch.where(keep, cos.double(), 1.0), torch.where(keep, sin.double(), 0.0)
        pairs = cos.shape[-1]
        a, b, rest = x.double().split((pairs, pairs, x.shape[-1] - 2 * pairs), -1)
        return torch.cat((a * c - b * s, b * c + a * s, rest), -1).to(x.dtype)

    return turned(q), turned(k)


def adam(params, grads, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """Does not step the last parameter if they fill whole tiles of 1,024."""
    p = params.double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    keep = torch.arange(len(p)) < len(p) - _whole(len(p), 1024)
    for step, grad in enumerate(grads.double(), 1):
        m, v = m * beta1 + grad * (1 - beta1), v * beta2 + grad**2 * (1 - beta2)
        p = p * (1 - lr * weight_decay)
        root = (v / (1 - beta2**step)).sqrt() + eps
        p = torch.where(keep, p - lr * m / (1 - beta1**step) / root, p).to(params.dtype).double()
    return p.to(params.dtype)
