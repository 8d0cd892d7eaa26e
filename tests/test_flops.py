"""The adapters' operations, counted by torch's counter as it counts torch's own layers."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from twofold.adapters import flops, layers, modules
from twofold.adapters.attention import attention
from twofold.adapters.multi_head_attention import multi_head_attention

flops.register()


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("learns", [(True, True), (True, False), (False, True)])
def test_a_linear_layer_has_those_of_torchs(learns):
    x, weight = (
        torch.randn(shape, requires_grad=r)
        for shape, r in zip(((4, 5, 3), (7, 3)), learns, strict=True)
    )
    for function in (torch.nn.functional.linear, layers.linear):
        found = counted(lambda f=function: f(x, weight).sum().backward())
        assert found == 2 * 20 * 3 * 7 * (1 + sum(learns))


def test_attention_has_two_products_and_five_of_backward():
    """As torch counts its flash attention, whose backward recomputes the scores."""
    q = torch.randn(2, 4, 5, 8, requires_grad=True)
    k, v = (torch.randn(2, 2, 7, 8, requires_grad=True) for _ in range(2))
    product = 2 * 2 * 4 * 5 * 7 * 8
    assert counted(lambda: attention(q, k, v)) == 2 * product
    assert counted(lambda: attention(q, k, v).sum().backward()) == 7 * product


def test_an_encoder_layer_has_those_of_torchs_but_the_scores_again():
    x = torch.randn(2, 6, 16, requires_grad=True)
    theirs, ours = (
        counted(lambda m=made: m(x).sum().backward())
        for made in (
            torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
            modules.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        )
    )
    assert ours == theirs + 2 * 2 * 4 * 6 * 6 * 4


def test_a_context_is_projected_for_itself():
    q, k = (torch.randn(2, n, 16, requires_grad=True) for n in (3, 5))
    layer = modules.MultiheadAttention(16, 4, batch_first=True)
    found = counted(lambda: layer(q, k, k, need_weights=False)[0].sum().backward())
    products = 2 * 2 * 4 * 3 * 5 * 4
    assert found == 3 * 2 * 2 * (3 * 2 + 5 * 2) * 16 * 16 + 7 * products


@pytest.mark.parametrize("other", [False, True])
def test_multi_head_attention_at_once_has_those_of_its_parts(other):
    """All three of a tensor, or keys and values of another one."""
    B, M, N, E, H = 2, 3, 5 if other else 3, 16, 4
    x, y = (torch.randn(B, n, E, requires_grad=True) for n in (M, N))
    w_qkv = torch.randn(3 * E, E, requires_grad=True)
    w_out = torch.randn(E, E, requires_grad=True)
    given = {"context": y} if other else {}

    def forward():
        return multi_head_attention(x, w_qkv, None, w_out, None, num_heads=H, **given)

    products = 2 * B * E * E * (2 * M + 2 * N)
    scores = 2 * B * H * M * N * (E // H)
    assert counted(forward) == products + 2 * scores
    assert counted(lambda: forward().sum().backward()) == 3 * products + 7 * scores
    w_out.requires_grad_(False)  # whose product has one gradient then
    y.requires_grad_(False)  # and those of keys and values have one, where they are of it
    fewer = 2 * B * E * E * (M + 2 * N * other)
    assert counted(lambda: forward().sum().backward()) == 3 * products - fewer + 7 * scores
