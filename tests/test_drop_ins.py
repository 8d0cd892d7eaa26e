"""What is called as something of torch's, beside that, over options that Hypothesis draws."""

import copy
import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from third import as_far_as_torch, both_within_the_bound, no_further

from twofold.adapters.functional import scaled_dot_product_attention
from twofold.adapters.modules import MultiheadAttention, TransformerEncoderLayer
from twofold.adapters.optim import AdamW

sizes = st.integers(1, 9)
bools = st.booleans()


def normal(*shape):
    return torch.randn(shape)


def barred(*shape):
    """Draw a mask of torch's modules, True where a query may not attend; each has its first key."""
    mask = torch.rand(shape) > 0.6
    mask[..., 0] = False
    return mask


@st.composite
def attention_calls(draw):
    """Draw shapes and options of `scaled_dot_product_attention`."""
    batch = draw(st.sampled_from(((), (2,), (2, 3))))
    groups, K = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    M, N, E, V = (draw(sizes) for _ in range(4))
    heads = draw(bools) or batch != ()
    options = {"scale": draw(st.none() | st.just(0.3)), "enable_gqa": groups > 1 and heads}
    q, k, v = (
        (*batch, n, *rest) if heads else rest
        for n, rest in ((groups * K, (M, E)), (K, (N, E)), (K, (N, V)))
    )
    mask = draw(st.sampled_from((None, "bool", "float", "causal")))
    shape = (M, N) if not heads or draw(bools) else (*(1 for _ in batch), groups * K, M, N)
    options["is_causal"] = mask == "causal"
    made = {"bool": lambda: ~barred(*shape), "float": lambda: normal(*shape)}
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 99)))
        tensors = normal(*q), normal(*k), normal(*v), made.get(mask, lambda: None)()
    return tensors, options


@given(attention_calls())
def test_scaled_dot_product_attention_is_that_of_torch(call):
    given, options = call
    peer = torch.nn.functional.scaled_dot_product_attention
    functions = [functools.partial(f, **options) for f in (scaled_dot_product_attention, peer)]
    how = {name: options[name] for name in ("is_causal", "scale")}
    both_within_the_bound(functions, *given, **how)


def test_scaled_dot_product_attention_drops_what_torchs_generator_says():
    q, k, v = (torch.ones(1, 1, 8, 8) for _ in range(3))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, second = (scaled_dot_product_attention(q, k, v, None, 0.5) for _ in range(2))
        torch.manual_seed(1)
        assert torch.equal(first, scaled_dot_product_attention(q, k, v, None, 0.5))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"is_causal": True, "attn_mask": torch.ones(3, 3)}, RuntimeError, "attn_mask was given"),
        (
            {"key": torch.ones(2, 3, 4), "value": torch.ones(2, 3, 4)},
            ValueError,
            "key.shape.-3. is",
        ),
        ({"query": torch.ones(4)}, ValueError, "query.shape is .4,.; it must have two axes"),
        ({"dropout_p": 1.5}, ValueError, "dropout_p is 1.5; it must be"),
        ({"attn_mask": torch.ones(3, 3).long()}, TypeError, "attn_mask has dtype int64; it"),
    ],
)
def test_scaled_dot_product_attention_refuses(change, error, words):
    call = {name: torch.ones(4, 3, 4) for name in ("query", "key", "value")} | change
    with pytest.raises(error, match=words):
        scaled_dot_product_attention(**call)


def twins(ours, theirs, **options):
    """Build a module of ours and one of torch's with the same parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = ours(**options), theirs(**options)
    second.load_state_dict(first.state_dict())
    return first, second


def of_parameters(module, call):
    """Return the module as a function of its parameters and inputs."""
    names = list(dict(module.named_parameters()))

    def function(*given):
        parameters = dict(zip(names, given, strict=False))
        made = copy.deepcopy(module).to(given[0].dtype)
        return torch.func.functional_call(made, parameters, tuple(call(given[len(names) :])))

    return function


def as_far_as_the_module(ours, theirs, tensors, call):
    """Compare two modules with the same parameters, those among what has gradients."""
    given = [*(p.detach() for p in ours.parameters()), *tensors]
    as_far_as_torch(of_parameters(ours, call), of_parameters(theirs, call), given)


@given(
    st.fixed_dictionaries(
        {name: bools for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    ),
    st.sampled_from(("self", "other", "widths", "one sequence")),
    st.sampled_from((None, "bool", "float", "each head")),
    bools,
    bools,
    bools,
)
def test_multi_head_attention_is_that_of_torch(options, kind, masked, padded, weights, average):
    torch.manual_seed(0)
    B, M, E, H = 2, 5, 6, 2
    N = M if kind == "self" else 4
    more = {"kdim": 3, "vdim": 7} if kind == "widths" else {}
    ours, theirs = twins(
        MultiheadAttention, torch.nn.MultiheadAttention, embed_dim=E, num_heads=H, **options, **more
    )
    q, k, v = normal(B, M, E), normal(B, N, more.get("kdim", E)), normal(B, N, more.get("vdim", E))
    padding = barred(B, N) if padded else None
    if kind == "one sequence":
        B, (q, k, v) = 1, (x[0] for x in (q, k, v))
        padding = None if padding is None else padding[0]
    elif not options["batch_first"]:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    mask = {
        None: lambda: None,
        "bool": lambda: barred(M, N),
        "float": lambda: normal(M, N),
        "each head": lambda: barred(B * H, M, N),
    }[masked]()
    if masked == "float" and padding is not None:  # torch wants both of one kind
        padding = torch.zeros(padding.shape).masked_fill(padding, -10.0)

    def call(given):
        a, b, c, m, p = given
        inputs = (a, a, a) if kind == "self" else (a, b, c)
        return (*inputs, p, weights, m, average)

    as_far_as_the_module(ours, theirs, (q, k, v, mask, padding), call)


def test_multi_head_attention_takes_a_causal_hint():
    ours, theirs = twins(
        MultiheadAttention, torch.nn.MultiheadAttention, embed_dim=6, num_heads=2, batch_first=True
    )
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    as_far_as_the_module(
        ours, theirs, (normal(2, 5, 6), mask), lambda x: (*x[:1] * 3, None, False, x[1], True, True)
    )
    x = normal(2, 5, 6)
    with pytest.raises(RuntimeError, match="attn_mask is None; it must be given with is_causal"):
        ours(x, x, x, is_causal=True)


@pytest.mark.parametrize("name", ["attn_mask", "key_padding_mask"])
def test_multi_head_attention_refuses_a_mask_of_integers(name):
    module, x = MultiheadAttention(6, 2, batch_first=True), normal(2, 5, 6)
    mask = torch.ones(5 if name == "attn_mask" else 2, 5, dtype=torch.int64)
    with pytest.raises(TypeError, match=f"^{name} has dtype int64; it must be bool or floating"):
        module(x, x, x, **{name: mask})


@given(
    st.fixed_dictionaries({name: bools for name in ("norm_first", "bias", "batch_first")}),
    st.sampled_from(("relu", "gelu", torch.tanh, torch.nn.GELU("tanh"), torch.nn.ReLU())),
    st.sampled_from((None, "bool", "causal")),
    bools,
)
def test_an_encoder_layer_is_that_of_torch(options, activation, masked, padded):
    torch.manual_seed(0)
    B, L, E = 2, 5, 6
    ours, theirs = twins(
        TransformerEncoderLayer, torch.nn.TransformerEncoderLayer,
        d_model=E, nhead=2, dim_feedforward=9, dropout=0.0, activation=activation, **options,
    )  # fmt: skip
    src = normal(B, L, E) if options["batch_first"] else normal(L, B, E)
    causal = torch.triu(torch.ones(L, L, dtype=torch.bool), 1)
    mask = {None: None, "bool": barred(L, L), "causal": causal}[masked]
    padding = barred(B, L) if padded else None
    as_far_as_the_module(ours, theirs, (src, mask, padding), lambda x: (*x, masked == "causal"))


def test_an_encoder_of_our_layers_trains_with_dropout():
    layer = TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = encoder(torch.ones(1, 3, 8))
        torch.manual_seed(0)
        assert torch.equal(first, encoder(torch.ones(1, 3, 8)))
        assert not torch.equal(first, encoder(torch.ones(1, 3, 8)))
    first.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    encoder.eval()
    assert torch.equal(encoder(torch.ones(1, 3, 8)), encoder(torch.ones(1, 3, 8)))


def steps(optimizer, parameters, count):
    """Take steps with gradients that count on."""
    for i in range(count):
        for n, p in enumerate(parameters):
            p.grad = torch.sin(torch.arange(p.numel()) + 3.0 * i + n).reshape(p.shape).to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in parameters]


def parameters(dtype=torch.float32):
    made = (torch.linspace(-1, 1, 12).reshape(3, 4), torch.ones(5), torch.eye(4)[:, :3].T)
    return [torch.nn.Parameter(x.to(dtype)) for x in made]


@given(
    st.fixed_dictionaries(
        {"lr": st.just(0.1), "weight_decay": st.sampled_from((0.0, 0.3)), "eps": st.just(1e-2)}
    )
)
def test_adamw_takes_the_steps_of_torch(options):
    ours, theirs, double = parameters(), parameters(), parameters(torch.float64)
    found = steps(AdamW(ours, **options), ours, 5)
    single = steps(torch.optim.AdamW(theirs, **options), theirs, 5)
    truth = steps(torch.optim.AdamW(double, **options), double, 5)
    no_further(found, single, truth)


@pytest.mark.parametrize("first", [AdamW, torch.optim.AdamW])
@pytest.mark.parametrize("second", [AdamW, torch.optim.AdamW])
def test_either_adamw_goes_on_with_the_state_of_the_other(first, second):
    """Half way in one and the rest in the other is as near as all the way in torch's own."""
    ours, theirs, double = parameters(), parameters(), parameters(torch.float64)
    before = first(ours, lr=0.1)
    steps(before, ours, 3)
    after = second(ours, lr=0.5)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    found = steps(after, ours, 3)
    whole, exact = torch.optim.AdamW(theirs, lr=0.1), torch.optim.AdamW(double, lr=0.1)
    for optimizer, of in ((whole, theirs), (exact, double)):
        steps(optimizer, of, 3)
    no_further(found, steps(whole, theirs, 3), steps(exact, double, 3))


def test_adamw_refuses():
    p, q, *_ = parameters()
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    before = p.detach().clone()
    for name in ("amsgrad", "maximize"):
        with pytest.raises(ValueError, match=f"{name} is True; it must be False"):
            AdamW([{"params": [p]}, {"params": [q], name: True}]).step()
    assert torch.equal(p, before)
    p.grad = torch.ones_like(p).to_sparse()
    with pytest.raises(RuntimeError, match="it must be dense"):
        AdamW([p]).step()


def test_adamw_steps_in_half_precision():
    (p, *_) = parameters(torch.bfloat16)
    before = p.detach().clone()
    steps(AdamW([p], lr=0.1), [p], 1)
    assert not torch.equal(p, before)
