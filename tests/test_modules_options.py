"""Our modules: hints beside their own keys and weights, dropout, eps, narrow weights, hooks."""

import pytest
import torch
from test_modules import ENCODER, as_far_as_the_module, twins
from third import normal, results

from twofold.adapters import modules
from twofold.adapters.modules import MultiheadAttention, TransformerEncoderLayer

CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)


def test_a_causal_hint_where_weights_are_asked_for_leaves_the_mask_in_its_place():
    layers = twins(MultiheadAttention, torch.nn.MultiheadAttention, **ENCODER[MultiheadAttention])
    as_far_as_the_module(
        *layers, (normal(2, 5, 6), CAUSAL), lambda x: (*x[:1] * 3, None, True, x[1], True, True)
    )


@pytest.mark.parametrize("own", ["add_bias_kv", "add_zero_attn"])
def test_a_causal_hint_bars_no_query_from_keys_of_the_modules_own(own):
    """Where torch looks only at the hint, it counts them as the last keys."""
    module, x = MultiheadAttention(6, 2, batch_first=True, **{own: True}), normal(2, 5, 6)
    how = {"attn_mask": CAUSAL, "need_weights": False}
    hinted, plain = (module(x, x, x, is_causal=c, **how)[0] for c in (True, False))
    assert torch.equal(hinted, plain)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("name", ["self_attn", "dropout", "dropout1", "dropout2"])
def test_each_dropout_of_a_layer_drops_while_it_is_trained(name, norm_first):
    layer = TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
    x, part = normal(2, 3, 8), getattr(layer, name)
    whole = layer(x)
    if name == "self_attn":
        part.dropout = 0.5
    else:
        part.p = 0.5
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), whole)


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_layer_has_the_eps_that_it_is_given(norm_first):
    options = {**ENCODER[TransformerEncoderLayer], "norm_first": norm_first, "layer_norm_eps": 0.5}
    layers = twins(TransformerEncoderLayer, torch.nn.TransformerEncoderLayer, **options)
    x = normal(2, 5, 6)
    found, expected = (results(layer.double(), [x], torch.float64) for layer in layers)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("register", ["full_backward_hook", "full_backward_pre_hook"])
def test_a_hook_of_a_parts_gradient_is_called(register):
    """A fused path calls no hooks, so a part that has one is called itself."""
    layer = TransformerEncoderLayer(6, 2, 9, batch_first=True)
    for name in ("norm1", "linear1", "linear2", "dropout1", "dropout2"):
        part, told = getattr(layer, name), []
        handle = getattr(part, f"register_{register}")(lambda *_, told=told: told.append(None))
        layer(normal(2, 5, 6)).sum().backward()
        handle.remove()
        assert len(told) == 1, name


def test_weights_of_narrow_heads_are_made_in_float32():
    """With scores past the largest float16, and under autocast, which would round them."""
    q, k = torch.full((1, 1, 2, 4), 300.0), torch.full((1, 1, 3, 4), 300.0)
    k[..., 1, :] -= 2  # a score of 178800 beside 180000
    mask = torch.tensor([[True, True, False], [False, False, False]])
    expected = torch.tensor([[[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]])
    for dtype in (torch.float16, torch.float32, torch.float64):
        found = modules._weights(q.to(dtype), k.to(dtype), mask, None)
        assert found.dtype == dtype and torch.equal(found, expected.to(dtype))
    x = normal(1, 1, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = modules._weights(x, x, None, None)
    assert torch.equal(found, modules._weights(x, x, None, None))


@pytest.mark.parametrize("shapes", [((2, 5, 6), (2, 0, 6)), ((2, 0, 6), (2, 5, 6))])
def test_attention_to_nothing_and_of_nothing_is_torchs(shapes):
    layers = twins(MultiheadAttention, torch.nn.MultiheadAttention, **ENCODER[MultiheadAttention])
    q, k = (normal(*shape).double() for shape in shapes)
    found, expected = (layer.double()(q, k, k) for layer in layers)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_attention_of_others_is_called_as_it_is(norm_first):
    options = {**ENCODER[TransformerEncoderLayer], "norm_first": norm_first}
    layers = twins(TransformerEncoderLayer, torch.nn.TransformerEncoderLayer, **options)
    layers[0].self_attn.__class__ = torch.nn.MultiheadAttention
    x = normal(2, 5, 6)
    found, expected = (results(layer.double(), [x], torch.float64) for layer in layers)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("batch_first", [False, True])
def test_inputs_are_one_where_they_are_one_tensor_and_not_where_two_of_them_are(
    monkeypatch, batch_first
):
    """If all three are one tensor they take one product, and the output another."""
    options = {**ENCODER[MultiheadAttention], "batch_first": batch_first}
    layers = twins(MultiheadAttention, torch.nn.MultiheadAttention, **options)
    found, expected = (layer.double() for layer in layers)
    x, y = normal(2, 5, 6).double(), normal(2, 5, 6).double()
    made, linear = [], modules.linear
    monkeypatch.setattr(modules, "linear", lambda *given: made.append(given) or linear(*given))
    for given, products in (((x, x, x), 2), ((x, x, y), 4), ((x, y, x), 4), ((x, y, y), 4)):
        made.clear()
        torch.testing.assert_close(found(*given), expected(*given))
        assert len(made) == products
