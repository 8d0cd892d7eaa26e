"""Batches without rows, as a filter or a last shard leaves them, beside torch's own functions."""

import functools
import re

import pytest
import torch
from test_adapters_beside_torch import SIDES, normal, use

from twofold.adapters import modules
from twofold.adapters.attention import attention
from twofold.adapters.gated_activation import gated_activation
from twofold.adapters.layers import (
    cross_entropy,
    embedding,
    layer_norm,
    linear,
    rotary,
    softmax,
)
from twofold.adapters.multi_head_attention import multi_head_attention
from twofold.adapters.rms_norm import rms_norm

F = torch.nn.functional
IDS, TARGETS = torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
PARAMETERS = ((5, 4), (5,))
# Ours, torch's, and the shapes of differentiable inputs.
CALLS = {
    "linear": (linear, F.linear, ((0, 4), *PARAMETERS)),
    "linear with GELU": (
        functools.partial(linear, activation="gelu"), lambda *x: F.gelu(F.linear(*x)),
        ((2, 0, 4), *PARAMETERS),
    ),
    "SwiGLU": (gated_activation, lambda x, y: F.silu(x) * y, ((2, 0, 4), (2, 0, 4))),
    "layer norm": (layer_norm, lambda x, *w: F.layer_norm(x, (4,), *w), ((0, 3, 4), (4,), (4,))),
    "layer norm of a sum": (
        lambda x, w, b, y: layer_norm(x, w, b, residual=y, dropout_p=0.1),
        lambda x, w, b, y: F.layer_norm(x + y, (4,), w, b),
        ((0, 4), (4,), (4,), (0, 4)),
    ),
    "rms norm": (rms_norm, lambda x, w: F.rms_norm(x, (4,), w, 1e-6), ((0, 3, 4), (4,))),
    "rms norm of a sum": (
        lambda x, w, y: rms_norm(x, w, residual=y, offset=1.0),
        lambda x, w, y: F.rms_norm(x + y, (4,), w + 1.0, 1e-6),
        ((0, 4), (4,), (0, 4)),
    ),
    "embedding": (lambda t: embedding(IDS, t), lambda t: F.embedding(IDS, t), ((7, 4),)),
    "softmax": (softmax, lambda x: F.softmax(x, -1), ((0, 4),)),
    "softmax of no columns": (softmax, lambda x: F.softmax(x, -1), ((3, 0),)),
    "cross-entropy of each": (
        lambda x: cross_entropy(x, TARGETS, reduction="none"),
        lambda x: F.cross_entropy(x, TARGETS, reduction="none"),
        ((0, 4),),
    ),
    "rotary": (
        lambda q, k: torch.cat(rotary(q, k, torch.ones(3, 2), torch.ones(3, 2)), 1),
        lambda q, k: torch.cat((q, k), 1),
        ((0, 2, 3, 4), (0, 1, 3, 4)),
    ),
    "attention": (
        attention, F.scaled_dot_product_attention, ((0, 2, 3, 4), (0, 2, 5, 4), (0, 2, 5, 4)),
    ),
    "attention of no queries": (
        attention, F.scaled_dot_product_attention, ((1, 2, 0, 4), (1, 2, 5, 4), (1, 2, 5, 4)),
    ),
    "multi-head attention": (
        lambda *x: multi_head_attention(*x, num_heads=2),
        lambda x, w_qkv, b_qkv, w_out, b_out: F.multi_head_attention_forward(
            *(x.transpose(0, 1),) * 3, 4, 2, w_qkv, b_qkv, None, None, False, 0.0, w_out, b_out
        )[0].transpose(0, 1),
        ((0, 3, 4), (12, 4), (12,), (4, 4), (4,)),
    ),
}  # fmt: skip


def differentiated(function, shapes):
    """Return the output and all gradients."""
    given = [normal(*shape, seed=i, grad=True) for i, shape in enumerate(shapes)]
    out = function(*given)
    return [out.detach(), *torch.autograd.grad(out.sum(), given)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("ours", "theirs", "shapes"), CALLS.values(), ids=CALLS)
def test_a_batch_of_no_rows_is_torchs(side, ours, theirs, shapes):
    with use(side):
        found = differentiated(ours, shapes)
    for one, other in zip(found, differentiated(theirs, shapes), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert torch.equal(one, other) and not other.any()


@pytest.mark.parametrize(("ours", "theirs", "shapes"), CALLS.values(), ids=CALLS)
def test_a_compiled_graph_takes_no_rows_too(ours, theirs, shapes):
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for one, other in zip(*(differentiated(f, shapes) for f in (compiled, ours)), strict=True):
        assert torch.equal(one, other)


def test_a_layer_takes_a_batch_of_no_rows():
    layer = modules.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    x = normal(0, 3, 4, grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: linear(normal(0, 4), normal(5, 3)),
            r"weight.shape is \(5, 3\); it must be \(N, 4",
        ),
        (lambda: layer_norm(normal(0, 4), normal(4), normal(3)), r"bias.shape is \(3,\); it must "),
        (lambda: linear(normal(2, 0), normal(5, 0)), r"x.shape is \(2, 0\); it must be without"),
        (
            lambda: layer_norm(normal(2, 0), normal(0), normal(0)),
            r"x.shape is \(2, 0\); it must be",
        ),
        (lambda: rms_norm(normal(0, 4), normal(3)), r"weight.shape is \(3,\); it must be \(4,\)"),
        (lambda: cross_entropy(normal(0, 4), TARGETS), r"logits.shape is \(0, 4\); it must be "),
        (
            lambda: attention(normal(1, 1, 2, 4), *(normal(1, 1, 0, 4),) * 2),
            r"k.shape is \(1, 1, 0, 4\); it must be ",
        ),
    ],
)
def test_what_is_wrong_beside_no_rows_is_refused_all_the_same(side, call, words):
    with use(side), pytest.raises(ValueError, match=f"^{words}"):
        call()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: attention(normal(0, 2, 3, 4), *(normal(1, 2, 5, 4),) * 2),
            "k.shape is (1, 2, 5, 4); it must be (6, K, N, 4) (with 6 for what is empty)",
        ),
        (
            lambda: attention(
                normal(0, 2, 3, 4), *(normal(0, 2, 5, 4),) * 2, key_lengths=torch.ones(1).int()
            ),
            "key_lengths.shape is (1,); it must be (6,) (with 6 for what is empty)",
        ),
        (
            lambda: multi_head_attention(
                normal(0, 3, 4), normal(12, 4), None, normal(4, 4), None, num_heads=2,
                context=normal(1, 5, 4),
            ),
            "context.shape is (1, 5, 4); it must be (6, N, 4) (with 6 for what is empty)",
        ),
        (
            lambda: layer_norm(normal(0, 4), normal(4), normal(4), residual=normal(1, 4)),
            "residual.shape is (1, 4); it must be (2, 4) (with 2 for what is empty)",
        ),
        (
            lambda: rms_norm(normal(0, 4), normal(4), residual=normal(1, 4)),
            "residual.shape is (1, 4); it must be (2, 4) (with 2 for what is empty)",
        ),
        (
            lambda: cross_entropy(
                normal(0, 4), torch.zeros(1, dtype=torch.int64), reduction="none"
            ),
            "targets.shape is (1,); it must be (2,) (with 2 for what is empty)",
        ),
        (  # a mask for no batches does not broadcast to two
            lambda: attention(
                normal(2, 1, 0, 4), *(normal(2, 1, 5, 4),) * 2,
                mask=torch.ones(0, 1, 1, 5, dtype=torch.bool),
            ),
            "mask.shape is (3, 1, 1, 5); it must be broadcastable to (2, 1, 3, 5) (with 3",
        ),
        (
            lambda: attention(normal(0, 3, 4), *(normal(0, 3, 4),) * 2),
            "q.shape is (2, 3, 4); it must be of rank 4, (B, H, M, D) (with 2",
        ),
        (
            lambda: attention(
                normal(1, 2, 0, 4), *(normal(1, 2, 5, 4),) * 2,
                cu_seqlens_q=torch.zeros(2).int(), cu_seqlens_k=torch.tensor([0, 5]).int(),
                max_seqlen_q=1, max_seqlen_k=5,
            ),
            "cu_seqlens_q is [0, 0]; it must be non-decreasing from 0 to 3 (with 3",
        ),
        (
            lambda: multi_head_attention(
                normal(2, 3, 0), normal(0, 0), None, normal(0, 0), None, num_heads=1
            ),
            "w_qkv.shape is (4, 4); it must be (12, 4) (with 4 for what is empty)",
        ),
        (
            lambda: attention(*(normal(0, 1, 3, 4),) * 3, softcap=-2.5),
            "softcap is -2.5; it must be positive",
        ),
        (
            lambda: multi_head_attention(
                normal(0, 2, 4), normal(12, 4), None, normal(4, 4), None, num_heads=3
            ),
            "num_heads is 3; it must be a divisor of x.shape[-1], 4",
        ),
        (lambda: linear(normal(0, 4), None), "weight is a NoneType; it must be an array"),
    ],
)  # fmt: skip
def test_what_does_not_agree_with_no_rows_is_refused_in_words_of_the_call(side, call, words):
    with use(side), pytest.raises((TypeError, ValueError), match=f"^{re.escape(words)}"):
        call()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4)])
def test_second_derivatives_of_no_rows_are_zero(side, shape):
    given = [
        normal(*s, seed=i, grad=True) for i, s in enumerate([shape, *[(shape[0], 2, 5, 4)] * 2])
    ]
    with use(side):
        out, lse = attention(*given, return_lse=True)
        first = torch.autograd.grad(out.sum() + lse.sum(), given, create_graph=True)
        found = torch.autograd.grad(sum(g.sum() for g in first), given)
    for one, x in zip(found, given, strict=True):
        assert one.shape == x.shape and one.dtype == x.dtype and not one.any()
