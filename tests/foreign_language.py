"""Kernels that use Triton's language under other names, and functions of libdevice."""

import importlib.util

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as of_cuda


def _afresh(name):
    """Return a function from a second copy of the libdevice module."""
    spec = importlib.util.find_spec("triton.language.extra.libdevice")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


cast = tl.cast
root = _afresh("rsqrt")


@triton.jit
def _softmax(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    row = cast(tl.program_id(0), tl.int64)
    i = tl.arange(0, BLOCK)
    x = cast(tl.load(x_ptr + row * columns + i, i < columns, float("-inf")), tl.float32)
    p = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + row * columns + i, p / tl.sum(p, 0), i < columns)


def softmax(x):
    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    out = torch.empty_like(rows)
    columns = rows.shape[1]
    _softmax[(len(rows),)](rows, out, columns, triton.next_power_of_2(columns))
    return out.reshape(x.shape)


@triton.jit
def _gelu(x_ptr, out_ptr, n, OF_CUDA: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, i < n, 0.0).to(tl.float32)
    if OF_CUDA:
        phi = 0.5 * of_cuda.fma(of_cuda.erf(x * 0.7071067811865476), 1.0, 1.0)
    else:
        phi = 0.5 * (1.0 + libdevice.erf(x * 0.7071067811865476))
    tl.store(out_ptr + i, x * phi, i < n)


def gelu(x, kernel_of_cuda=False):
    given = x.detach().contiguous()
    out = torch.empty_like(given)
    _gelu[(triton.cdiv(x.numel(), 1024),)](given, out, x.numel(), kernel_of_cuda, 1024)
    return out


def gelu_of_cuda(x):
    return gelu(x, True)


@triton.jit
def _rms_norm(x_ptr, weight_ptr, out_ptr, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + i, i < columns, 0.0).to(tl.float32)
    weight = tl.load(weight_ptr + i, i < columns, 0.0).to(tl.float32)
    rstd = root(tl.sum(libdevice.pow(x, 2.0), 0) / columns + eps)
    tl.store(out_ptr + row * columns + i, x * rstd * weight, i < columns)


def rms_norm(x, weight, eps=1e-6):
    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    out = torch.empty_like(rows)
    columns, weight = rows.shape[1], weight.detach().contiguous()
    block = triton.next_power_of_2(columns)
    _rms_norm[(len(rows),)](rows, weight, out, columns, eps, block)
    return out.reshape(x.shape)


@triton.jit
def _erf_of_half(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, libdevice.erf(tl.load(x_ptr + i, i < n, 0.0)), i < n)


def erf_of_half(x):
    given = x.detach().contiguous()
    out = torch.empty_like(given)
    _erf_of_half[(triton.cdiv(x.numel(), 1024),)](given, out, x.numel(), 1024)
    return out


def softmax_untold(x):
    """Overwrites its output unseen by autograd, which records only the copy of x."""
    out = torch.empty_like(x)
    out.copy_(x)
    out.detach().copy_(softmax(x))
    return out
