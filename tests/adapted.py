"""A side whose operators are torch's custom operators and their gradients, for contracts to judge.

Tiles are the table's choice, and gradients go into new tensors: options that say otherwise are
left out of the cases (`plain`).
"""

import dataclasses
from types import SimpleNamespace

import torch

from twofold.adapters import attention, layers, multi_head_attention, rms_norm
from twofold.adapters.gated_activation import gated_activation
from twofold.core.ops import Side, load


class Adapted(Side):
    """The operators that have adapters."""

    def __getattr__(self, operator):
        return SimpleNamespace(
            forward=FORWARD[operator],
            backward=BACKWARD.get(operator, backward),
            tables=load("triton").rotary.tables,
        )


def adapted(triton):
    """Return the adapters as a side, named after the one whose tensors it takes."""
    fields = {field.name: getattr(triton, field.name) for field in dataclasses.fields(Side)}
    return Adapted(**fields)


def plain(case):
    """Return the case without what the adapters cannot be given.

    Where a norm has nothing to add, its stream is x itself; autograd adds the gradients, rounded.
    """
    fields = {"tile": None, "into": "", "unread": ()}
    if not (getattr(case, "residual", False) or getattr(case, "dropout_p", 0.0)):
        fields["stream_gradient"] = False
    return dataclasses.replace(case, **{n: x for n, x in fields.items() if hasattr(case, n)})


class Cache(SimpleNamespace):
    """Outputs, inputs by name, and what a contract reads."""


def tracked(**inputs):
    """Return aliases of the inputs, sharing their memory, that require gradients."""
    return {n: None if x is None else x.detach().requires_grad_() for n, x in inputs.items()}


def backward(dout, cache, second=None, **how):
    """Return the gradients of the inputs, given those of the outputs."""
    grads = dout if isinstance(dout, tuple) else (dout, second)
    pairs = [(y, g) for y, g in zip(cache.outputs, grads, strict=False) if g is not None]
    inputs = {n: x for n, x in cache.inputs.items() if x is not None}
    outputs, given = ([pair[i] for pair in pairs] for i in (0, 1))
    if cache.outputs[0].dim() == 0:
        given = [g.reshape(()) for g in given]
    found = dict(zip(inputs, torch.autograd.grad(outputs, inputs.values(), given), strict=True))
    gradients = {f"d{n}": found.get(n) for n in cache.inputs}
    return SimpleNamespace(**gradients, _asdict=lambda: gradients)


def _attention(q, k, v, *, score_mod=None, seed=0, bias=None, sinks=None, **options):
    if score_mod is not None:
        attention.register_score_mod("judged", triton=score_mod, reference=score_mod)
    x = tracked(q=q, k=k, v=v, bias=bias, sinks=sinks)
    out, lse = attention.attention(
        **x, score_mod="" if score_mod is None else "judged", seed=seed, return_lse=True, **options
    )
    return out.detach(), Cache(outputs=(out, lse), inputs=x, lse=lse.detach())


def _multi_head_attention(
    x, w_qkv, b_qkv, w_out, b_out, *, context=None, bias=None, sinks=None, score_mod=None, seed=0,
    **options,
):  # fmt: skip
    if score_mod is not None:
        attention.register_score_mod("judged", triton=score_mod, reference=score_mod)
    x = tracked(
        x=x, context=context, w_qkv=w_qkv, b_qkv=b_qkv, w_out=w_out, b_out=b_out, bias=bias,
        sinks=sinks,
    )  # fmt: skip
    named = "" if score_mod is None else "judged"
    out = multi_head_attention.multi_head_attention(**x, seed=seed, score_mod=named, **options)
    return out.detach(), Cache(outputs=(out,), inputs=x)


def _rotary(q, k, cos, sin, *, interleaved=False):
    x = tracked(q=q, k=k)
    turned = layers.rotary(**x, cos=cos, sin=sin, interleaved=interleaved)
    return tuple(y.detach() for y in turned), Cache(outputs=turned, inputs=x)


def _rotary_backward(dq_out, dk_out, cache):
    return backward((dq_out, dk_out), cache)


def _layer_norm(x, weight, bias, *, residual=None, seed=0, **options):
    inputs = tracked(x=x, residual=residual, weight=weight, bias=bias)
    out, h = layers.layer_norm(**inputs, seed=seed, return_stream=True, **options)
    return out.detach(), Cache(outputs=(out, h), inputs=inputs, h=h.detach())


def _rms_norm(x, weight, *, residual=None, **options):
    inputs = tracked(x=x, residual=residual, weight=weight)
    out, h = rms_norm.rms_norm(**inputs, return_stream=True, **options)
    return out.detach(), Cache(outputs=(out, h), inputs=inputs, h=h.detach())


def _linear(x, weight, bias, activation, *, keep=True, allow_tf32=False):
    inputs = tracked(x=x, weight=weight, bias=bias)
    with torch.set_grad_enabled(keep):
        out = layers.linear(**inputs, activation=activation, allow_tf32=allow_tf32)
    return out.detach(), Cache(outputs=(out,), inputs=inputs)


def _gated_activation(gate, up, kind):
    inputs = tracked(gate=gate, up=up)
    out = gated_activation(**inputs, kind=kind)
    return out.detach(), Cache(outputs=(out,), inputs=inputs)


def _embedding(ids, table):
    x = tracked(table=table)
    out = layers.embedding(ids, **x)
    return out.detach(), Cache(outputs=(out,), inputs=x)


def _softmax(x):
    inputs = tracked(x=x)
    out = layers.softmax(**inputs)
    return out.detach(), Cache(outputs=(out,), inputs=inputs)


def _softmax_cross_entropy(logits, targets, *, keep=True, **options):
    x = tracked(logits=logits)
    with torch.set_grad_enabled(keep):
        loss = layers.cross_entropy(**x, targets=targets, **options)
    return loss.detach(), Cache(outputs=(loss,), inputs=x)


FORWARD = {
    "attention": _attention,
    "multi_head_attention": _multi_head_attention,
    "rotary": _rotary,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "gated_activation": _gated_activation,
    "embedding": _embedding,
    "softmax": _softmax,
    "softmax_cross_entropy": _softmax_cross_entropy,
}
BACKWARD = {"rotary": _rotary_backward}
