"""FlagGems' Triton kernels, which replace torch's operators.

Where torch's autograd would call one of FlagGems' functions for the backward pass, an autograd
function here does, as FlagGems registers both passes with torch only on a GPU. Fused functions that
have no backward, or are documented to overwrite their inputs, run forward only, on copies.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional

from twofold.core import ops
from twofold.core.verify.peers import interpreted

interpreted.prepare()

_GENERATED = tempfile.TemporaryDirectory(prefix="flag_gems-")  # deleted at exit


def _without_a_gpu() -> None:
    """Make its modules importable, and its kernels launchable, where there is no GPU.

    The package detects the vendor by asking for a device, and keeps tuning results in a database
    that need not be installed. Its `libentry` and `libtuner` look up compiled kernels, of which
    there are none here: kernels are launched, and tuned, by Triton. None of this computes anything.
    """
    import triton

    os.environ.setdefault("GEMS_VENDOR", "nvidia")
    os.environ.setdefault("FLAGGEMS_CACHE_DIR", _GENERATED.name)
    for package in ("flag_gems", "flag_gems.ops", "flag_gems.fused"):
        interpreted.bare(package)
    launching: Any = ModuleType("flag_gems.utils.libentry")
    launching.libentry = lambda: lambda kernel: kernel
    launching.libtuner = lambda configs, key, **_: triton.autotune(configs, key)
    sys.modules[launching.__name__] = launching
    _pointwise()


class _View(torch.Tensor):
    """A tensor with other strides, which knows the tensor whose memory it shows."""

    base: Any

    def unwrap(self) -> Any:
        return self.base


def _view(base: Any, shape: Any, strides: Any) -> Any:
    view = base.as_strided(shape, strides).as_subclass(_View)
    view.base = base
    return view


def _pointwise() -> None:
    """Make its generator of pointwise kernels work with interpreted functions.

    The generator reads attributes that only compiled functions have, and passes kernels a buffer
    type of its own where the interpreter accepts only tensors. Of its two ways to address memory
    the preferred one, block pointers, is no longer in Triton.
    """
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    function: Any = InterpretedFunction
    function.src = property(lambda self: JITFunction(self.fn).src)
    function.cache_key = property(lambda self: f"{self.fn.__module__}.{self.fn.__name__}")
    function.__globals__ = property(lambda self: self.fn.__globals__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU
        generator: Any = importlib.import_module("flag_gems.utils.pointwise_dynamic")
        generator.get_device_capability()  # which is cached
    generator.JITFunction, generator.StridedBuffer = InterpretedFunction, _view
    generator.get_codegen_config().prefer_block_pointer = False


if ops.triton_device() == "cpu":
    _without_a_gpu()

from flag_gems.fused.cross_entropy_loss import cross_entropy_loss  # noqa: E402
from flag_gems.fused.fused_add_rms_norm import fused_add_rms_norm  # noqa: E402
from flag_gems.fused.geglu import dgeglu, geglu  # noqa: E402
from flag_gems.fused.gelu_and_mul import gelu_and_mul  # noqa: E402
from flag_gems.fused.reglu import dreglu, reglu  # noqa: E402
from flag_gems.fused.rotary_embedding import apply_rotary_pos_emb  # noqa: E402
from flag_gems.fused.silu_and_mul import silu_and_mul  # noqa: E402
from flag_gems.fused.skip_layernorm import skip_layer_norm  # noqa: E402
from flag_gems.fused.swiglu import dswiglu  # noqa: E402
from flag_gems.fused.swiglu import swiglu as swiglu_of_both  # noqa: E402
from flag_gems.ops import attention as attentions  # noqa: E402
from flag_gems.ops import embedding as embeddings  # noqa: E402
from flag_gems.ops import gelu as gelus  # noqa: E402
from flag_gems.ops import layernorm as layer_norms  # noqa: E402
from flag_gems.ops import relu as relus  # noqa: E402
from flag_gems.ops import rms_norm as rms_norms  # noqa: E402
from flag_gems.ops import silu as silus  # noqa: E402
from flag_gems.ops import softmax as softmaxes  # noqa: E402
from flag_gems.ops import threshold as thresholds  # noqa: E402

if ops.triton_device() == "cpu":  # the kernel asserts this, and otherwise does not compile
    attentions._attn_fwd.early_config_prune = lambda configs, given, **_: [
        config for config in configs if config.kwargs["BLOCK_N"] <= given["HEAD_DIM"]
    ]


def _applied(function: Any, *inputs: Any) -> Any:
    return function.apply(*inputs)


@torch.no_grad()
def sdpa_forward(
    q: Any, k: Any, v: Any, softmax_scale: float | None = None, causal: bool = False
) -> Any:
    """Compute softmax(q·kᵀ·scale)·v, forward only."""
    return _attended(q, k, v, None, causal, softmax_scale)


def sdpa(
    q: Any,
    k: Any,
    v: Any,
    softmax_scale: float | None = None,
    causal: bool = False,
    bias: Any = None,
) -> Any:
    """Compute softmax(q·kᵀ·scale + bias)·v of contiguous tensors; the bias is its float mask."""
    q, k, v = (x.contiguous() for x in (q, k, v))
    if bias is not None:
        bias = bias.expand(*q.shape[:-1], k.shape[-2])
    return _attended(q, k, v, bias, causal, softmax_scale)


def _attended(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float | None) -> Any:
    return attentions.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, dim: int) -> Any:
        out = softmaxes.softmax(x, dim)
        ctx.save_for_backward(out)
        ctx.dim = dim
        return out

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        (out,) = ctx.saved_tensors
        return softmaxes.softmax_backward(dout, out, ctx.dim, out.dtype), None


def softmax(x: Any) -> Any:
    """Take the softmax over the last axis."""
    return _applied(_Softmax, x, -1)


def softmax_of_whole_blocks(x: Any) -> Any:
    """Take the softmax of rows padded with −∞ to whole blocks of every configuration."""
    columns = x.shape[-1]
    return softmax(functional.pad(x, (0, -columns % 1024), value=-math.inf))[..., :columns]


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        out, mean, rstd = layer_norms.layer_norm(x, x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        every = (True, True, True)
        gradients = layer_norms.layer_norm_backward(
            dout, x, x.shape[-1:], mean, rstd, weight, bias, every
        )
        return *gradients, None


def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Normalise the rows."""
    return _applied(_LayerNorm, x, weight, bias, eps)


def layer_norm_of_whole_blocks(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Normalise rows of whole blocks in every configuration, padded by rows of 0."""
    if x.shape[-1] % 2048:
        raise NotImplementedError("of rows that fill a block")
    rows = x.reshape(-1, x.shape[-1])
    filled = functional.pad(rows, (0, 0, 0, -len(rows) % 128))
    return layer_norm(filled, weight, bias, eps)[: len(rows)].reshape(x.shape)


def layer_norm_forward(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Normalise the rows, forward only."""
    with torch.no_grad():
        return layer_norm(x, weight, bias, eps)


@torch.no_grad()
def add_layer_norm(x: Any, weight: Any, bias: Any, residual: Any, eps: float = 1e-5) -> Any:
    """Normalise the rows of a sum; it has no backward."""
    return skip_layer_norm(x, residual, x.shape[-1:], weight, bias, eps)


def rms_norm(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """Divide the rows by their root mean square."""
    return rms_norms.rms_norm(x, x.shape[-1:], weight, eps)


@torch.no_grad()
def add_rms_norm(x: Any, weight: Any, residual: Any, eps: float = 1e-6) -> Any:
    """Divide the rows of a sum by their root mean square, on copies; it has no backward."""
    return fused_add_rms_norm(x.clone(), residual.clone(), x.shape[-1:], weight, eps)


def cross_entropy(
    logits: Any,
    targets: Any,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Any:
    """Take softmax cross-entropy."""
    return cross_entropy_loss(
        logits,
        targets,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


def cross_entropy_of_contiguous(
    logits: Any,
    targets: Any,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Any:
    """Take softmax cross-entropy of a contiguous copy."""
    return cross_entropy(logits.contiguous(), targets, label_smoothing, reduction, ignore_index)


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, function: Any, way_back: Any) -> Any:
        ctx.save_for_backward(x)
        ctx.way_back = way_back
        return function(x)

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        return ctx.way_back(dout, *ctx.saved_tensors), None, None


def _activation(name: str, function: Any, way_back: Any) -> Callable[..., Any]:
    def activation(x: Any, kind: str) -> Any:
        """Apply one of the activations; the others are refused."""
        if kind != name:
            raise NotImplementedError(f"it is {name}")
        return _applied(_Pointwise, x, function, way_back)

    return activation


relu = _activation("relu", relus.relu, lambda dout, x: thresholds.threshold_backward(dout, x, 0))
gelu = _activation("gelu", gelus.gelu, gelus.gelu_backward)
gelu_tanh = _activation(
    "gelu_tanh",
    functools.partial(gelus.gelu, approximate="tanh"),
    functools.partial(gelus.gelu_backward, approximate="tanh"),
)
silu = _activation("silu", silus.silu, silus.silu_backward)


def swiglu_of_two(gate: Any, up: Any) -> Any:
    """Compute SwiGLU."""
    return silu_and_mul(gate, up)


def geglu_of_two(gate: Any, up: Any, kind: str) -> Any:
    """Compute GEGLU, in either form."""
    if kind not in ("gelu", "gelu_tanh"):
        raise NotImplementedError("it is gelu or gelu_tanh")
    return gelu_and_mul(gate, up, approximate="tanh" if kind == "gelu_tanh" else "none")


class _OnGPU(torch.Tensor):
    """A tensor that claims to be on a GPU, for a function that refuses CPU tensors."""

    is_cuda = True


def swiglu(gate: Any, up: Any) -> Any:
    """Compute SwiGLU of one tensor holding both."""

    def function(both: Any) -> Any:
        return swiglu_of_both(both.as_subclass(_OnGPU)).as_subclass(torch.Tensor)

    return _applied(_Pointwise, torch.cat((gate, up), dim=-1), function, dswiglu)


def geglu_tanh(gate: Any, up: Any, kind: str) -> Any:
    """Compute GEGLU in its tanh form, of one tensor holding both."""
    if kind != "gelu_tanh":
        raise NotImplementedError("it is gelu_tanh")
    return _applied(_Pointwise, torch.cat((gate, up), dim=-1), geglu, dgeglu)


def reglu_of_gate(gate: Any, up: Any, kind: str) -> Any:
    """Compute ReGLU of one tensor holding both."""
    if kind != "relu":
        raise NotImplementedError("it is relu")
    return _applied(_Pointwise, torch.cat((gate, up), dim=-1), reglu, dreglu)


@torch.no_grad()
def rotary(q: Any, k: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    """Rotate q and k, on contiguous copies in its order of axes; it has no backward."""
    turned = (x.transpose(1, 2).contiguous() for x in (q, k))
    q, k = apply_rotary_pos_emb(*turned, cos, sin, rotary_interleaved=interleaved)
    return q.transpose(1, 2), k.transpose(1, 2)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Any, table: Any) -> Any:
        ctx.save_for_backward(ids)
        ctx.rows = len(table)
        return embeddings.embedding(table, ids)

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        (ids,) = ctx.saved_tensors
        return None, embeddings.embedding_backward(dout, ids, ctx.rows)


def embedding(ids: Any, table: Any) -> Any:
    """Look rows up."""
    return _applied(_Embedding, ids, table)
