"""Seeds read from memory give the bits of the same number, wherever dropout is drawn."""

import dataclasses
import importlib

import numpy as np
import pytest

from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.model.seeds import dropout_seeds

SEED = 2**62 + 2**33 + 5  # both words of the key are in use


def placed(side, *shapes):
    rng = np.random.default_rng(0)
    return [side.asarray(rng.standard_normal(shape), "float32") for shape in shapes]


def dropout(side, seed):
    x, dout = placed(side, (3, 400), (3, 400))
    out, cache = side.dropout.forward(x, 0.4, seed)
    return out, *side.dropout.backward(dout, cache)


def layer_norm(side, seed):
    x, residual, weight, bias, dout = placed(side, (9, 70), (9, 70), (70,), (70,), (9, 70))
    how = {"residual": residual, "dropout_p": 0.4, "seed": seed}
    out, cache = side.layer_norm.forward(x, weight, bias, **how)
    return out, cache.h, *side.layer_norm.backward(dout, cache)


def positional_encoding(side, seed):
    table, positions, dout = placed(side, (11, 40), (70, 40), (2, 70, 40))
    ids = side.asarray(np.arange(140).reshape(2, 70) % 3)  # rows with whole chunks, and without
    how = {"dropout_p": 0.4, "seed": seed}
    out, cache = side.positional_encoding.forward(ids, table, positions, **how)
    return out, *side.positional_encoding.backward(dout, cache)


def attention(side, seed):
    q, k, v, bias, dout, *doubled = placed(
        side, (2, 2, 9, 16), (2, 2, 21, 16), (2, 2, 21, 16), (2, 2, 9, 21), (2, 2, 9, 16),
        (2, 2, 9, 16), (2, 2, 21, 16), (2, 2, 21, 16),
    )  # fmt: skip
    out, cache = side.attention.forward(q, k, v, bias=bias, dropout_p=0.4, seed=seed)
    grads = side.attention.backward(dout, cache)
    again = side.attention_double_backward.backward(*doubled, dout, cache)
    return out, *grads[:4], *again[:4]


def attention_decode(side, seed):
    q, k, v = placed(side, (2, 2, 3, 16), (2, 2, 40, 16), (2, 2, 40, 16))
    how = {"key_lengths": side.asarray(np.array([40, 17])), "dropout_p": 0.4, "seed": seed}
    return side.attention_decode.forward(q, k, v, **how)


def attention_fp8(side, seed):
    q, k, v = placed(side, (2, 2, 9, 16), (2, 2, 21, 16), (2, 2, 21, 16))
    given = {}
    for name, x in (("q", q), ("k", k), ("v", v)):
        given[name], given[f"{name}_scale"] = side.attention_fp8.quantize(x)
    return side.attention_fp8.forward(**given, dropout_p=0.4, seed=seed)


def multi_head_attention(side, seed):
    x, w_qkv, w_out = placed(side, (2, 9, 32), (96, 32), (32, 32))
    how = {"num_heads": 2, "dropout_p": 0.4, "seed": seed}
    out, _ = side.multi_head_attention.forward(x, w_qkv, None, w_out, None, **how)
    return (out,)


OPERATORS = (
    dropout, layer_norm, positional_encoding, attention, attention_decode, attention_fp8,
    multi_head_attention,
)  # fmt: skip


@pytest.mark.parametrize("function", OPERATORS)
def test_a_seed_in_memory_gives_the_bits_of_the_number(triton, function):
    """It is not read before the kernels run, nor kept: a new number there gives its own bits."""
    memory = triton.asarray(np.array(SEED))
    runs = {seed: function(triton, seed) for seed in (SEED, SEED + 1)}
    for seed, wanted in runs.items():
        memory.fill_(seed)
        found = function(triton, memory)
        for a, b in zip(found, wanted, strict=True):
            assert np.array_equal(triton.to_numpy(a), triton.to_numpy(b))
    outs = (triton.to_numpy(run[0]) for run in runs.values())
    assert not np.array_equal(*outs)


def test_backward_reads_the_seed_where_forward_did(triton):
    x, dout = placed(triton, (3, 400), (3, 400))
    seed = triton.asarray(np.array(SEED))
    _, cache = triton.dropout.forward(x, 0.4, seed)
    assert cache.seed is seed


@pytest.mark.parametrize("function", OPERATORS)
def test_numbers_of_numpy_are_seeds_on_both_sides(reference, triton, function):
    for side in (reference, triton):
        for seed in (np.int64(SEED), np.array(SEED)) if side is reference else (np.int64(SEED),):
            for a, b in zip(function(side, seed), function(side, SEED), strict=True):
                assert np.array_equal(side.to_numpy(a), side.to_numpy(b))


@pytest.mark.parametrize(
    ("seed", "error", "words"),
    [
        (np.array(1, np.int32), TypeError, "seed has dtype int32; it must be int64"),
        (np.array([1]), ValueError, "seed.shape is (1,); it must be of rank 0, ()"),
        (1.5, TypeError, "seed is a float; it must be an int"),
        (np.array(-3), ValueError, "seed is -3; it must be at least 0 and below 2**63"),
    ],
)
@pytest.mark.parametrize("function", OPERATORS)
def test_other_arrays_are_no_seeds(reference, triton, function, seed, error, words):
    for side in (reference, triton):
        given = side.asarray(seed) if isinstance(seed, np.ndarray) else seed
        with pytest.raises(error) as refused:
            function(side, given)
        assert words in str(refused.value)


def test_a_seed_elsewhere_is_refused(triton):
    import torch

    x = torch.ones(3, device="meta")
    with pytest.raises(ValueError, match="seed is on cpu; it must be on x's device, meta"):
        triton.dropout.forward(x, 0.4, torch.tensor(1))


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("embedding_norm", [False, True])
def test_every_place_of_a_model_has_a_seed_and_a_share_of_its_own(
    reference, monkeypatch, norm, embedding_norm
):
    """Masks with one seed would be the same, though gradients would still be right."""
    config = ClassifierConfig(
        input_size=9, num_classes=2, max_length=5, d_model=8, num_heads=2, num_layers=3, d_ff=12,
        dropout=0.1, attention_dropout=0.2, hidden_dropout=0.3, embedding_dropout=0.4,
        pooled_dropout=0.5,
    )  # fmt: skip
    config = dataclasses.replace(config, norm=norm, embedding_norm=embedding_norm)
    drawn = []
    for name in ("multi_head_attention", "layer_norm", "positional_encoding", "dropout"):
        module = importlib.import_module(f"twofold.reference.{name}")

        def forward(x, *args, name=name, forward=module.forward, **how):
            p, seed = args if name == "dropout" else (how.get("dropout_p"), how.get("seed"))
            if seed is not None:
                drawn.append((seed, p))
            return forward(x, *args, **how)

        monkeypatch.setattr(module, "forward", forward)
    seeds = dropout_seeds(7, 1, 0, config.sites)
    model = Classifier(config, reference)
    model.forward(np.ones((2, 5), np.int64), np.array([5, 3]), seeds)
    # Embeddings and the pooled vector; each layer's weights, output, hidden features and output.
    shares = [0.4, 0.5, *[0.2, 0.1, 0.3, 0.1] * config.num_layers]
    assert sorted(drawn) == sorted(zip(seeds, shares, strict=True))
