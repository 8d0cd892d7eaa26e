"""Unsloth's Triton kernels: norms, cross-entropy, gated activations, rotary embedding.

Its rotary embedding is documented to overwrite q and k in some memory layouts; the backward of its
gated activations overwrites all three inputs; its norm for decoding overwrites x and the residual.
Each gets a copy, so that the judge's inputs stay unchanged.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from twofold.core.verify.peers import interpreted


def _stand_in() -> None:
    """Stand in for what the kernels' modules import but nothing judged here uses.

    Its companion unsloth_zoo needs a GPU and much more: only its version comparison, a logger,
    torch.compile for FP8, and patches of other libraries, unused here, are provided.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("UNSLOTH_ALLOW_CPU", "1")  # Unsloth's own: modules load as with CUDA
    if importlib.util.find_spec("unsloth_zoo") is not None:
        return
    from packaging.version import Version

    def nothing(*_: Any, **__: Any) -> None:
        raise NotImplementedError("unsloth_zoo is not installed")

    parts: dict[str, dict[str, Any]] = {
        "unsloth_zoo": {},
        "unsloth_zoo.utils": {"Version": Version},
        "unsloth_zoo.log": {"logger": logging.getLogger("unsloth_zoo")},
        "unsloth_zoo.temporary_patches": {},
        "unsloth_zoo.temporary_patches.common": {"torch_compile": torch.compile},
        "unsloth_zoo.patching_utils": {"patch_layernorm": nothing},
        "unsloth_zoo.loss_utils": {
            "patch_loss_functions": nothing,
            "post_patch_loss_function": nothing,
        },
    }
    for name, held in parts.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(held)
        sys.modules[name] = module


interpreted.prepare()
interpreted.bare("unsloth")
interpreted.bare("unsloth.kernels")
_stand_in()

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no GPU
    from unsloth.kernels import fused_add_rms_layernorm, geglu, rms_layernorm, rope_embedding
    from unsloth.kernels import swiglu as silu

    if not torch.cuda.is_available():  # whether loads may have hints: it queries the current GPU
        rope_embedding._eviction_hints_ok = lambda device: False
    from unsloth.kernels.cross_entropy_loss import Fast_CrossEntropyLoss, fast_cross_entropy_loss
    from unsloth.kernels.layernorm import fast_layernorm


def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Normalise the rows."""
    norm = SimpleNamespace(elementwise_affine=True, weight=weight, bias=bias, eps=eps)
    return fast_layernorm(norm, x)


def rms_norm(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """Divide the rows by their root mean square, casting them before the gain."""
    return rms_layernorm.fast_rms_layernorm(SimpleNamespace(weight=weight, eps=eps), x)


def rms_norm_of_gemma(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """Divide the rows by their root mean square, all of it in float32; the gain is 1 + weight."""
    norm = SimpleNamespace(weight=weight, eps=eps)
    return rms_layernorm.fast_rms_layernorm(norm, x, gemma=True)


def rms_norm_of_several_rows(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """Divide rows of 33 to 128 columns by their root mean square, several rows per program."""
    return _several_rows(x, weight, eps)


class _SeveralRows(torch.autograd.Function):
    """The library's own function, without its trial run beforehand.

    The trial needs the same bits as with one row per program, whose sums follow the order of a
    GPU's lanes; the interpreter has no such order.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, eps: float) -> Any:
        ctx.settings = rms_layernorm._multirow_settings(x.shape[-1], x.device)
        if ctx.settings is None:
            raise NotImplementedError("of rows of 33 to 128 columns")
        ctx.eps = eps
        rows, weight = x.reshape(-1, x.shape[-1]).contiguous(), weight.contiguous()
        y, r = rms_layernorm._rms_forward(
            rows, weight, eps, False, rms_layernorm._eager_kernel, ctx.settings
        )
        ctx.save_for_backward(rows, weight, r)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, weight, r = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1]).contiguous()
        dx = torch.empty_like(rows)
        dweight = rms_layernorm._rms_backward(
            rows, dx, x, weight, r, ctx.eps, False, rms_layernorm._eager_kernel, ctx.settings,
            train_w=ctx.needs_input_grad[1],
        )  # fmt: skip
        return dx.view(dy.shape), dweight, None


_several_rows: Any = _SeveralRows.apply


def add_rms_norm(x: Any, weight: Any, residual: Any, eps: float = 1e-6) -> Any:
    """Add the residual and normalise the sum, as in decoding: without a backward, on copies."""
    x, residual = x.detach().clone(), residual.detach().clone()
    weight = weight.detach().contiguous()
    if any(fused_add_rms_layernorm._rows(a) is None for a in (x, residual)):
        raise NotImplementedError("of rows one after the other")
    out = fused_add_rms_layernorm.fast_add_rms_layernorm_inference(x, residual, weight, eps)
    return out, residual


def cross_entropy(logits: Any, targets: Any, reduction: str = "mean") -> Any:
    """Take softmax cross-entropy; "none" gives the losses of rows, which its function adds up."""
    if reduction == "none":
        return Fast_CrossEntropyLoss.apply(logits, targets)
    n_items = {"mean": None, "sum": 1}[reduction]
    return fast_cross_entropy_loss(logits[None], targets[None], n_items=n_items)


class _Gated(torch.autograd.Function):
    """The library's pair of functions, one for each pass; backward's overwrites copies."""

    @staticmethod
    def forward(ctx: Any, gate: Any, up: Any, forward: Any, backward: Any) -> Any:
        ctx.save_for_backward(gate, up)
        ctx.of_gradients = backward
        return forward(gate, up)

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        # out, dup and dgate overwrite dout, gate and up, in this order
        rows = (x.reshape(-1, x.shape[-1]) for x in (dout, *ctx.saved_tensors))
        copies = (x.clone(memory_format=torch.contiguous_format) for x in rows)
        _, dup, dgate = ctx.of_gradients(*copies)
        return dgate.view(dout.shape), dup.view(dout.shape), None, None


_gated: Any = _Gated.apply
_SWIGLU = silu.swiglu_fg_kernel, silu.swiglu_DWf_DW_dfg_kernel


def swiglu_of_strided(gate: Any, up: Any) -> Any:
    """Compute SwiGLU of tensors that are not contiguous, as they are."""
    if gate.is_contiguous() and up.is_contiguous():
        raise NotImplementedError("of what is not contiguous")
    return _gated(gate, up, *_SWIGLU)


def swiglu_of_contiguous(gate: Any, up: Any) -> Any:
    """Compute SwiGLU of contiguous copies."""
    return _gated(*_contiguous(gate, up), *_SWIGLU)


def geglu_of_contiguous(gate: Any, up: Any, kind: str) -> Any:
    """Compute GEGLU of contiguous copies."""
    if kind != "gelu":
        raise NotImplementedError("it is gelu")
    passes = geglu.geglu_exact_forward_kernel, geglu.geglu_exact_backward_kernel
    return _gated(*_contiguous(gate, up), *passes)


def geglu_tanh_of_contiguous(gate: Any, up: Any, kind: str) -> Any:
    """Compute GEGLU in its tanh form, of contiguous copies."""
    if kind != "gelu_tanh":
        raise NotImplementedError("it is gelu_tanh")
    passes = geglu.geglu_approx_forward_kernel, geglu.geglu_approx_backward_kernel
    return _gated(*_contiguous(gate, up), *passes)


def _contiguous(*tensors: Any) -> tuple[Any, ...]:
    return tuple(x.contiguous() for x in tensors)


def rotary(q: Any, k: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    """Rotate q and k, the two halves of a head against each other."""
    return rope_embedding.fast_rope_embedding(
        q.clone(), k.clone(), *_tables(q, cos, sin, interleaved)
    )


def _tables(q: Any, cos: Any, sin: Any, interleaved: bool) -> tuple[Any, Any]:
    """Return cos and sin as wide as a head, as models have them."""
    if interleaved:
        raise NotImplementedError("it turns halves")
    if 2 * cos.shape[-1] != q.shape[-1]:
        raise NotImplementedError("it turns whole heads")
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
