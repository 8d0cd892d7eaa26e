"""The classifier: against torch's own encoder and autograd, differences, and padding."""

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from made import made_by

from twofold.core.model.bert import ARCHITECTURE
from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.model.parameters import ALIGNMENT, Layout
from twofold.core.model.seeds import dropout_seeds
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import dropout

TINY = ClassifierConfig(
    input_size=11,
    num_classes=3,
    max_length=7,
    d_model=8,
    num_heads=2,
    num_layers=2,
    d_ff=13,
    activation="gelu",
    pooling="mean",
    hidden_dropout=0.1,
)
PATCHES = dataclasses.replace(TINY, input="patches", input_size=5)
VARIANTS = [
    *(
        dataclasses.replace(TINY, norm=norm, positions=positions, pooling=pooling)
        for norm, positions, pooling in itertools.product(
            ("pre", "post"), ("sinusoidal", "learned", "rotary"), ("first", "mean")
        )
    ),
    dataclasses.replace(PATCHES, positions="learned"),
    dataclasses.replace(TINY, activation="gelu_tanh"),
    dataclasses.replace(TINY, **ARCHITECTURE, token_types=2),
    dataclasses.replace(TINY, embedding_norm=True, pooler=True),
]


def name_of(config):
    name = f"{config.input}-{config.norm}-{config.positions}-{config.pooling}-{config.activation}"
    return name + "-typed" * (config.token_types > 0) + "-pooler" * config.pooler


def batch(config, rng):
    """Return inputs and lengths, with some rows padded."""
    lengths = np.array([5, 1, 6, 3])
    if config.token_types > 0:
        sizes = (config.input_size, config.token_types)
        return np.stack([rng.integers(0, size, (4, 6)) for size in sizes], axis=2), lengths
    if config.input == "tokens":
        return rng.integers(0, config.input_size, (4, 6)), lengths
    return rng.standard_normal((4, 6, config.input_size)), lengths


def model_of(config, reference, rng):
    """Return a float64 model away from its initial values: no bias is 0, no norm's weight 1."""
    model = Classifier(config, reference, dtype="float64")
    for view in model.params.values():
        view += 0.3 * rng.standard_normal(view.shape)
    return model


@pytest.mark.parametrize("config", VARIANTS, ids=name_of)
@pytest.mark.parametrize("dropped", [False, True], ids=["plain", "dropout"])
def test_gradients_are_slopes(reference, config, dropped):
    """Where the model is smooth; ReLU and the maximum are judged by torch's autograd."""
    rng = np.random.default_rng(0)
    model = model_of(config, reference, rng)
    inputs, lengths = batch(config, rng)
    dlogits = rng.standard_normal((4, 3))
    seeds = dropout_seeds(7, 1, 0, config.sites) if dropped else None
    grads = np.full_like(model.flat, np.nan)
    _, cache = model.forward(inputs, lengths, seeds)
    model.backward(dlogits, cache, model.layout.views(grads))

    unused = np.isnan(grads)
    assert unused.sum() == model.layout.numel - model.layout.parameters
    grads[unused] = 0

    def value(flat):
        moved = Classifier(config, reference, flat, dtype="float64")
        return float((moved.forward(inputs, lengths, seeds)[0] * dlogits).sum())

    check_gradients(value, {"flat": model.flat}, {"flat": grads}, rng)


NEAR = 1000 * 2.0**-53  # of the largest: float64's unit, times the roundings along a path of sums


def distance(x, y):
    return np.abs(x - y).max()


class TorchClassifier(torch.nn.Module):
    """The same model built from torch's own modules, without dropout."""

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        if c.input == "tokens":
            self.embedding = torch.nn.Embedding(c.input_size, c.d_model)
        else:
            self.embedding = torch.nn.Linear(c.input_size, c.d_model)
        layer = torch.nn.TransformerEncoderLayer(
            c.d_model,
            c.num_heads,
            c.d_ff,
            0.0,
            activation=c.activation,
            layer_norm_eps=c.eps,
            batch_first=True,
            norm_first=c.norm == "pre",
        )
        norm = torch.nn.LayerNorm(c.d_model, c.eps) if c.norm == "pre" else None
        self.encoder = torch.nn.TransformerEncoder(
            layer, c.num_layers, norm, enable_nested_tensor=False
        )
        self.positions = torch.nn.Parameter(torch.zeros(c.max_length, c.d_model))
        self.head = torch.nn.Linear(c.pooled_size, c.num_classes)
        self.double()

    def forward(self, inputs, lengths):
        c, L = self.config, inputs.shape[1]
        x = self.embedding(inputs) * c.d_model**0.5 + self.positions[:L]
        padding = torch.arange(L) >= lengths[:, None]
        x = self.encoder(x, src_key_padding_mask=padding)
        kept = x.masked_fill(padding[..., None], 0.0)
        mean = kept.sum(1) / lengths[:, None]
        largest = x.masked_fill(padding[..., None], -torch.inf).amax(1)
        pooled = {"mean": mean, "max": largest, "first": x[:, 0]}
        pooled["mean_max"] = torch.cat([mean, largest], 1)
        return self.head(pooled[c.pooling])


def torch_names(config):
    """Return our names of parameters by torch's."""
    ours = {
        "self_attn.in_proj_weight": "attention.w_qkv",
        "self_attn.in_proj_bias": "attention.b_qkv",
        "self_attn.out_proj.weight": "attention.w_out",
        "self_attn.out_proj.bias": "attention.b_out",
        "linear1.weight": "feed_forward.w_in",
        "linear1.bias": "feed_forward.b_in",
        "linear2.weight": "feed_forward.w_out",
        "linear2.bias": "feed_forward.b_out",
        "norm1.weight": "attention.norm.weight",
        "norm1.bias": "attention.norm.bias",
        "norm2.weight": "feed_forward.norm.weight",
        "norm2.bias": "feed_forward.norm.bias",
    }
    names = {
        f"encoder.layers.{n}.{t}": f"layers.{n}.{o}"
        for n in range(config.num_layers)
        for t, o in ours.items()
    }
    names |= {"head.weight": "head.weight", "head.bias": "head.bias"}
    names |= {"positions": "positions.table"}
    if config.norm == "pre":
        names |= {f"encoder.norm.{n}": f"final.norm.{n}" for n in ("weight", "bias")}
    if config.input == "tokens":
        return names | {"embedding.weight": "embedding.table"}
    return names | {f"embedding.{n}": f"patches.{n}" for n in ("weight", "bias")}


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(base, norm=norm, pooling=pooling, activation=act, positions="learned")
        for base, norm, pooling, act in [
            (TINY, "pre", "mean_max", "relu"),
            (TINY, "post", "first", "gelu"),
            (TINY, "post", "max", "relu"),
            (PATCHES, "pre", "mean", "gelu"),
        ]
    ],
    ids=name_of,
)
def test_it_is_torchs_encoder(reference, config):
    """In float64 they agree up to rounding; the factor allows for a deep chain of sums."""
    rng = np.random.default_rng(1)
    model = model_of(config, reference, rng)
    inputs, lengths = batch(config, rng)
    dlogits = rng.standard_normal((4, 3))
    theirs = TorchClassifier(config)
    theirs.train()  # without dropout, train mode only keeps torch off its inference fast path
    names = torch_names(config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.tensor(model.params[names[name]]))
    expected = theirs(torch.tensor(inputs), torch.tensor(lengths))
    (expected * torch.tensor(dlogits)).sum().backward()
    logits, cache = model.forward(inputs, lengths)
    grads = model.layout.views(np.full_like(model.flat, np.nan))
    model.backward(dlogits, cache, grads)
    expected = expected.detach().numpy()
    assert distance(logits, expected) <= NEAR * np.abs(expected).max()
    assert len(grads) == len(list(theirs.parameters()))
    for name, parameter in theirs.named_parameters():
        ours, gradient = grads[names[name]], parameter.grad.numpy()
        # A gradient that is zero in theory (a key's bias) holds only its neighbours' rounding.
        assert distance(ours, gradient) <= NEAR * max(1.0, np.abs(gradient).max()), name


@pytest.mark.parametrize("config", VARIANTS, ids=name_of)
def test_padding_changes_nothing(reference, config):
    """What the padding holds changes no bit, and it has no gradient."""
    rng = np.random.default_rng(2)
    model = model_of(config, reference, rng)
    inputs, lengths = batch(config, rng)
    seeds = dropout_seeds(3, 1, 0, config.sites)
    other = inputs.copy()
    padding = np.arange(6) >= lengths[:, None]
    other[padding] = inputs[::-1, ::-1][padding]
    results = []
    for x in (inputs, other):
        logits, cache = model.forward(x, lengths, seeds)
        grads = np.zeros_like(model.flat)
        model.backward(np.ones((4, 3)), cache, model.layout.views(grads))
        results.append((logits, grads))
    assert np.array_equal(results[0][0], results[1][0])
    assert distance(results[0][1], results[1][1]) <= NEAR * np.abs(results[0][1]).max()


def test_seeds_name_every_mask_apart():
    seeds = {
        seed
        for run, step, part in itertools.product((0, 1, 2**62), (1, 2, 70000), (0, 1))
        for seed in dropout_seeds(run, step, part, 5)
    }
    assert len(seeds) == 3 * 3 * 2 * 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert dropout_seeds(3, 4, 1, 2) == dropout_seeds(3, 4, 1, 9)[:2]
    words = dropout.philox(*(np.array([c], np.uint32) for c in (4, 1, 0, 0)), 3)
    assert dropout_seeds(3, 4, 1, 1)[0] == (int(words[1][0]) * 2**32 + int(words[0][0])) // 2


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_frozen_layers_change_no_other_gradient(reference, norm):
    """Layers below all that learn are not passed through; the other gradients are the same."""
    rng = np.random.default_rng(6)
    config = dataclasses.replace(TINY, norm=norm, num_layers=3, positions="learned")
    model = model_of(config, reference, rng)
    inputs, lengths = batch(config, rng)
    _, cache = model.forward(inputs, lengths)
    whole = model.layout.views(np.zeros_like(model.flat))
    model.backward(np.ones((4, 3)), cache, whole)
    for frozen in range(5):
        grads = {n: np.zeros_like(x) for n, x in whole.items() if model.part(n) >= frozen}
        model.backward(np.ones((4, 3)), cache, grads)
        assert all(np.array_equal(x, whole[n]) for n, x in grads.items())
    assert {model.part(n) for n in whole} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_the_lowest_layer_that_learns_makes_no_gradient_for_those_below(
    reference, monkeypatch, pooling
):
    """Pre-norm layers do, since they have a norm with parameters below them."""
    rng = np.random.default_rng(6)
    changed = {"norm": "post", "num_layers": 3, "positions": "learned", "pooling": pooling}
    config = dataclasses.replace(TINY, **changed)
    model = model_of(config, reference, rng)
    inputs, lengths = batch(config, rng)
    _, cache = model.forward(inputs, lengths)
    made = made_by(monkeypatch, "multi_head_attention")
    for frozen, learned in ((0, 3), (1, 3), (2, 2), (3, 1), (4, 0)):
        grads = model.layout.views(np.zeros_like(model.flat))
        grads = {n: x for n, x in grads.items() if model.part(n) >= frozen}
        made.clear()
        model.backward(np.ones((4, 3)), cache, grads)
        below = [bool({"dx", "dcontext"} & names) for names in made]
        assert below == [True] * (learned - 1) + [frozen == 0] * (learned > 0)


def test_no_gradient_is_made_for_pixels(reference, monkeypatch):
    rng = np.random.default_rng(6)
    model = model_of(PATCHES, reference, rng)
    _, cache = model.forward(*batch(PATCHES, rng))
    made = made_by(monkeypatch, "linear")
    model.backward(np.ones((4, 3)), cache, model.layout.views(np.zeros_like(model.flat)))
    assert made[-1] == {"dweight", "dbias"}
    assert all("dx" in names for names in made[:-1])


def test_evaluation_drops_nothing_and_training_does(reference):
    rng = np.random.default_rng(4)
    model = model_of(TINY, reference, rng)
    inputs, lengths = batch(TINY, rng)
    plain, again = (model.forward(inputs, lengths)[0] for _ in range(2))
    assert np.array_equal(plain, again)
    one, two = (
        model.forward(inputs, lengths, dropout_seeds(0, n, 0, TINY.sites))[0] for n in (1, 2)
    )
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, plain)


@pytest.mark.parametrize("config", VARIANTS, ids=name_of)
def test_logits_alone_are_those_of_forward(reference, config):
    rng = np.random.default_rng(5)
    model = model_of(config, reference, rng)
    inputs, lengths = batch(config, rng)
    assert np.array_equal(model.logits(inputs, lengths), model.forward(inputs, lengths)[0])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_logits_alone_take_the_memory_of_one_layer(reference, norm):
    """However many layers there are: what backward would need is freed."""

    def peak(function, layers):
        model = Classifier(dataclasses.replace(TINY, norm=norm, num_layers=layers), reference)
        tracemalloc.start()
        getattr(model, function)(np.ones((512, 7), int), np.full(512, 6))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    for function in ("logits", "mean_state"):
        assert peak(function, 12) < 1.1 * peak(function, 2)
    assert peak("forward", 12) > 3 * peak("forward", 2)  # most of it is what layers save


def test_layout_puts_matrices_first_and_aligns_every_view():
    layout = Layout({"b": (3,), "w": (2, 5), "c": (40,), "table": (33, 1)})
    assert list(layout.shapes) == ["w", "table", "b", "c"]
    assert all(offset % ALIGNMENT == 0 for offset in layout.offsets.values())
    assert layout.decay_numel == 32 + 64 == layout.offsets["b"]
    assert layout.numel == 32 + 64 + 32 + 64
    assert layout.parameters == 3 + 10 + 40 + 33
    flat = np.zeros(layout.numel)
    for view in layout.views(flat).values():
        view += 1
    assert flat.sum() == layout.parameters
    with pytest.raises(ValueError, match=r"flat.shape is \(3,\); it must be \(192,\)"):
        layout.views(np.zeros(3))


def test_config_survives_json():
    assert ClassifierConfig.from_json(PATCHES.to_json()) == PATCHES


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(d_model=0), ValueError, "d_model is 0; it must be at least 1"),
        (dict(num_heads=3), ValueError, "num_heads is 3; it must be a divisor of d_model, 8"),
        (dict(num_heads=8, positions="rotary"), ValueError, "d_model / num_heads is 1; it must"),
        (dict(norm="both"), ValueError, "norm is 'both'; it must be one of 'pre', 'post'"),
        (dict(positions="none"), ValueError, "positions is 'none'; it must be one of 'sinus"),
        (dict(pooling="last"), ValueError, "pooling is 'last'; it must be one of 'first'"),
        (dict(activation="swish"), ValueError, "activation is 'swish'; it must be one of 'gelu'"),
        (dict(input="words"), ValueError, "input is 'words'; it must be one of 'tokens'"),
        (dict(dropout=1.0), ValueError, "dropout is 1.0; it must be at least 0 and below 1"),
        (dict(embedding_dropout=-0.1), ValueError, "embedding_dropout is -0.1; it must be"),
        (dict(token_types=2), ValueError, "token_types is 2; it must be 0 unless input is"),
        (dict(pooler=1), TypeError, "pooler is a int; it must be of type bool"),
        (dict(eps=0.0), ValueError, "eps is 0.0; it must be positive"),
        (dict(d_ff="64"), TypeError, "d_ff is a str; it must be of type int"),
        (dict(dropout=True), TypeError, "dropout is a bool; it must be of type float"),
        (dict(depth=2), ValueError, "a field of the model's config is 'depth'; it must be one of"),
    ],
)
def test_config_refuses(changed, error, words):
    with pytest.raises(error) as refusal:
        ClassifierConfig.from_json(TINY.to_json() | changed)
    assert str(refusal.value).startswith(words)


def test_config_refuses_a_missing_field():
    fields = TINY.to_json()
    del fields["num_classes"]
    with pytest.raises(ValueError, match="num_classes is missing; it must be in the model's"):
        ClassifierConfig.from_json(fields)


@pytest.mark.parametrize(
    ("config", "inputs", "error", "words"),
    [
        (TINY, np.zeros((2, 3)), TypeError, "inputs has dtype float64; it must be int32 or int64"),
        (TINY, np.zeros((2, 8), int), ValueError, "inputs.shape[1] is 8; it must be at most max_"),
        (TINY, np.zeros((2,), int), ValueError, "inputs.shape is (2,); it must be of rank 2"),
        (PATCHES, np.zeros((2, 3, 4)), ValueError, "inputs.shape is (2, 3, 4); it must be (B, L"),
        (PATCHES, np.zeros((2, 3, 5), "f4"), TypeError, "params has dtype float64; it must have"),
    ],
)
def test_bad_batches_are_refused(reference, config, inputs, error, words):
    model = Classifier(config, reference, dtype="float64")
    with pytest.raises(error) as refusal:
        model.forward(inputs, np.ones(2, int))
    assert str(refusal.value).startswith(words)
