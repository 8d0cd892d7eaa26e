"""The adapters' operations, counted by torch's counter as it counts torch's own layers."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from twofold.adapters import flops, layers, modules
from twofold.adapters.attention import attention

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
