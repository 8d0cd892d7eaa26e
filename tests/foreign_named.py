"""Functions whose tensors are recognised by name or missing, and what is said of others."""

import torch

F = torch.nn.functional


def loss_of_a_maximum_from_zero(logits, targets):
    """Its running maximum starts at 0 instead of −∞."""
    x = logits.double()
    top = x.detach().amax(-1, keepdim=True).clamp(min=0)
    lse = (x - top).exp().sum(-1).log() + top[:, 0]
    return (lse - x.gather(1, targets[:, None])[:, 0]).mean().to(logits.dtype)


def bias_first(bias, x, weight):
    return _linear(x, weight, bias)


def bias_must_be_given(x, weight, bias):
    return _linear(x, weight, bias.to(x.dtype))


def without_bias(x, weight):
    return _linear(x, weight, None)


def matmul(a, b):
    """As in Triton's tutorial: two axes each, (M, K) and (K, N)."""
    (M, K), (rows, N) = a.shape, b.shape
    assert rows == K
    return (a.double() @ b.double()).to(a.dtype).view(M, N)


def matmul_of_the_transposed(a, b):
    M, K = a.shape
    return (a.double().flip(1) @ b.double().reshape(K, -1)).to(a.dtype)


def bias_doubled(bias, x, weight):
    return _linear(x, weight, None if bias is None else 2 * bias)


def _linear(x, weight, bias):
    y = x.double() @ weight.double().T
    return (y if bias is None else y + bias.double()).to(x.dtype)


def table_first(weight, input):
    return F.embedding(input, weight)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.softmax(x.double(), -1)
        ctx.save_for_backward(y)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, dout):
        (y,) = ctx.saved_tensors
        d = dout.double()
        return (y * (d - (d * y).sum(-1, keepdim=True))).to(dout.dtype)


softmax = _Softmax.apply


class Norm(torch.nn.Module):
    """Has its own parameter names; requires them contiguous, as a kernel that ignores strides."""

    def __init__(self, columns=8, eps=1e-5):
        super().__init__()
        self.gamma = torch.nn.Parameter(torch.ones(columns))
        self.beta = torch.nn.Parameter(torch.zeros(columns))
        self.eps = eps

    def forward(self, x):
        assert self.gamma.is_contiguous() and self.beta.is_contiguous()
        wide = F.layer_norm(x.double(), x.shape[-1:], None, None, self.eps)
        return (wide * self.gamma.double() + self.beta.double()).to(x.dtype)


norm = Norm()


def _rows(logits, labels):
    picked = labels.clamp(min=0)
    lost = torch.logsumexp(logits.double(), -1) - logits.double().gather(-1, picked[:, None])[:, 0]
    return torch.where(labels >= 0, lost, 0.0)


def mean_of_those_that_count(logits, labels):
    return (_rows(logits, labels).sum() / (labels >= 0).sum()).to(logits.dtype)


def mean_of_those_not_minus_100(logits, labels):
    """As torch's: only −100 is ignored, any other negative label is an error."""
    live = labels != -100
    if live.any() and labels[live].min() < 0:
        raise IndexError("a label is below 0")
    return (_rows(logits, labels).sum() / live.sum()).to(logits.dtype)


def mean_of_all(logits, labels):
    return _rows(logits, labels).mean().to(logits.dtype)


def mean_that_refuses(logits, labels):
    if labels.min() < 0:
        raise ValueError("labels are from 0 on")
    return mean_of_all(logits, labels)


def paged(query, key_cache, value_cache, block_tables, seq_lens, scale):
    """Called as vLLM's, with (batch, heads, head_dim): einsum itself refuses more axes."""
    out = torch.empty_like(query)
    for b, n in enumerate(seq_lens.tolist()):
        keys, values = (
            x[block_tables[b].long()].flatten(0, 1)[:n].double() for x in (key_cache, value_cache)
        )
        s = torch.einsum("hd,nhd->hn", query[b].double(), keys) * scale
        out[b] = torch.einsum("hn,nhd->hd", torch.softmax(s, -1), values).to(query.dtype)
    return out


def written_over(logits, labels):
    loss = mean_of_all(logits, labels)
    with torch.no_grad():
        logits.copy_(torch.softmax(logits, -1))
    return loss


def reads_dense(x):
    """Reads the rows as if they were contiguous."""
    flat = torch.as_strided(x, (x.numel(),), (1,), x.storage_offset())
    return torch.softmax(flat.view(x.shape).double(), -1).to(x.dtype)
