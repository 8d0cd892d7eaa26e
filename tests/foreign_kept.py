"""Functions that are right only if each call's backward directly follows its forward."""

import torch
import triton
import triton.language as tl


def softmax(x):
    return torch.softmax(x.float(), -1).to(x.dtype)


class OnTheClass(torch.autograd.Function):
    """Keeps its result on the class, where the next call overwrites it."""

    last = None

    @staticmethod
    def forward(ctx, x):
        OnTheClass.last = softmax(x)
        return OnTheClass.last

    @staticmethod
    def backward(ctx, dout):
        y, d = OnTheClass.last.float(), dout.float()
        return (y * (d - (d * y).sum(-1, keepdim=True))).to(dout.dtype)


on_the_class = OnTheClass.apply

buffers = {}


class IntoOneBuffer(torch.autograd.Function):
    """Returns a buffer that the next call of the same shape overwrites."""

    @staticmethod
    def forward(ctx, x):
        y = softmax(x)
        ctx.save_for_backward(y)
        buffer = buffers.setdefault((y.shape, y.dtype), torch.empty_like(y))
        buffer.copy_(y)
        return buffer.data

    @staticmethod
    def backward(ctx, dout):
        y, d = ctx.saved_tensors[0].float(), dout.float()
        return (y * (d - (d * y).sum(-1, keepdim=True))).to(dout.dtype)


into_one_buffer = IntoOneBuffer.apply


class Copies:
    """A norm that copies a weight when it first sees it, and misses later changes."""

    def __init__(self):
        self.copies = {}

    def __call__(self, x, weight, eps=1e-6):
        _, copy = self.copies.setdefault(weight.data_ptr(), (weight, weight.detach().clone()))
        weight = weight + (copy - weight).detach()
        h = x.float()
        rstd = (h.square().mean(-1, keepdim=True) + eps).rsqrt()
        return (h * rstd * weight.float()).to(x.dtype)


copied_weight = Copies()


@triton.jit
def _add_rows(ids_ptr, dout_ptr, dtable_ptr, C, BLOCK: tl.constexpr):
    token, c = tl.program_id(0), tl.arange(0, BLOCK)
    row = tl.load(ids_ptr + token)
    x = tl.load(dout_ptr + token * C + c, mask=c < C, other=0.0).to(tl.float32)
    tl.atomic_add(dtable_ptr + row * C + c, x, mask=c < C)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids, table):
        ctx.save_for_backward(ids, table)
        return table[ids]

    @staticmethod
    def backward(ctx, dout):
        ids, table = ctx.saved_tensors
        columns = table.shape[1]
        dtable = torch.zeros(table.shape, device=table.device)
        rows = dout.reshape(-1, columns).contiguous()
        block = triton.next_power_of_2(columns)
        _add_rows[(len(rows),)](ids.reshape(-1).contiguous(), rows, dtable, columns, block)
        return None, dtable.to(table.dtype)


def embedding_by_atomics(ids, table):
    """Adds in whatever order programs run, but keeps nothing between calls."""
    return _LookUp.apply(ids, table)
