"""Drop-in replacements beside torch's own functions, over options that Hypothesis draws."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from hypothesis import given
from hypothesis import strategies as st
from third import barred, both_within_the_bound, no_further, normal, results

from twofold.adapters.functional import scaled_dot_product_attention
from twofold.adapters.optim import AdamW

sizes = st.integers(1, 9)
bools = st.booleans()


def nested(*shape):
    """Return two sequences of one shape, as torch packs them."""
    with warnings.catch_warnings(action="ignore"):  # what this may change
        return torch.nested.nested_tensor([torch.ones(shape)] * 2)


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


@pytest.mark.parametrize(
    ("shapes", "mask", "options"),
    [
        (((0, 4, 3, 6), (0, 4, 5, 6), (0, 4, 5, 2)), (3, 5), {}),
        (((2, 4, 0, 6), (2, 4, 5, 6), (2, 4, 5, 2)), (1, 5), {}),
        (((2, 4, 3, 6), (2, 4, 0, 6), (2, 4, 0, 2)), None, {"is_causal": True}),
        (((2, 4, 3, 0), (2, 4, 5, 0), (2, 4, 5, 2)), None, {}),
        (((2, 4, 3, 6), (2, 4, 5, 6), (2, 4, 5, 0)), None, {}),
        (((1, 3, 6), (1, 5, 6), (4, 5, 6)), (3, 5), {}),
        (((2, 4, 3, 6), (2, 1, 5, 6), (2, 2, 5, 6)), None, {"enable_gqa": True}),
        (((2, 3, 4, 5, 6), (2, 3, 4, 7, 6), (2, 3, 4, 7, 6)), (3, 4, 5, 7), {}),
        (((4, 3, 6), (2, 4, 5, 6), (5, 6)), (2, 1, 3, 1), {}),
    ],
    ids=str,
)
def test_scaled_dot_product_attention_broadcasts_and_takes_what_is_empty(shapes, mask, options):
    given = [None if shape is None else normal(*shape) for shape in (*shapes, mask)]
    peer = torch.nn.functional.scaled_dot_product_attention
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found, expected = (
            results(functools.partial(f, **options), given, torch.float64)
            for f in (scaled_dot_product_attention, peer)
        )
    torch.testing.assert_close(found, expected)


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
            "^key.shape is .2, 3, 4.; its heads, unless enable_gqa, must be broadcastable",
        ),
        ({"key": torch.ones(4, 3, 5)}, ValueError, "^key.shape is .4, 3, 5.; it must be .…, 3, 4."),
        (
            {"key": torch.ones(3, 3, 4), "enable_gqa": True, "value": torch.ones(3, 3, 4)},
            ValueError,
            "^key.shape.-3. is 3; it must divide query's heads, 4",
        ),
        (
            {"query": torch.ones(3, 4), "enable_gqa": True},
            ValueError,
            "^key.shape.-3. is 4; it must divide query's heads, 1",
        ),
        ({"value": torch.ones(4, 2, 4)}, ValueError, "^key.shape is .4, 3, 4.; it must be .…, 2, "),
        (
            {"attn_mask": torch.ones(2, 3).bool()},
            ValueError,
            "^attn_mask.shape is .2, 3.; it must be broadcastable to .4, 3, 3.",
        ),
        ({"query": [1.0]}, TypeError, "^query is a list; it must be a tensor"),
        ({"query": np.ones((4, 3, 4))}, TypeError, "^query is a ndarray; it must be a tensor"),
        ({"key": torch.ones(4, 3, 4).double()}, TypeError, "^key has dtype float64; it must have"),
        ({"key": torch.ones(4, 3, 4).to("meta")}, ValueError, "^key is on meta; it must be on que"),
        (
            {"attn_mask": torch.ones(3, 3).to("meta")},
            ValueError,
            "^attn_mask is on meta; it must be on query's device",
        ),
        ({"scale": float("nan")}, ValueError, "^scale is nan; it must be finite"),
        ({"scale": "a"}, TypeError, "^scale is a str; it must be a number"),
        ({"value": nested(3, 4)}, TypeError, "^value is nested; it must be padded"),
        ({"query": torch.ones(4)}, ValueError, "query.shape is .4,.; it must have two axes"),
        ({"dropout_p": 1.5}, ValueError, "dropout_p is 1.5; it must be"),
        ({"attn_mask": torch.ones(3, 3).long()}, TypeError, "attn_mask has dtype int64; it"),
    ],
)
def test_scaled_dot_product_attention_refuses(change, error, words):
    call = {name: torch.ones(4, 3, 4) for name in ("query", "key", "value")} | change
    with pytest.raises(error, match=words):
        scaled_dot_product_attention(**call)


def test_a_graph_serves_heads_of_every_size():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x: scaled_dot_product_attention(x, x, x),
        backend=counter,
        dynamic=True,
        fullgraph=True,
    )
    torch.compiler.reset()
    compiled(torch.ones(2, 3, 5, 4))
    before = counter.frame_count
    for features in (6, 8):
        compiled(torch.ones(2, 3, 5, features))
    assert counter.frame_count == before


def steps(optimizer, parameters, count):
    """Take steps with gradients that change from step to step."""
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
    """Half the steps in each is as accurate as all of them in torch's own."""
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
    with pytest.raises(ValueError, match="^eps is 0.0; it must be positive"):
        AdamW([{"params": [p]}, {"params": [q], "eps": 0.0}]).step()
    with pytest.raises(ValueError, match="^lr is nan; it must be at least 0"):
        AdamW([{"params": [p]}, {"params": [q], "lr": float("nan")}]).step()
    assert torch.equal(p, before)


def test_adamw_passes_over_what_is_empty():
    (p, *_), empty = parameters(), torch.nn.Parameter(torch.ones(0, 3))
    empty.grad = torch.ones_like(empty)
    before = p.detach().clone()
    steps(AdamW([empty, p]), [p], 1)
    assert not torch.equal(p, before)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_of_gradients_divides_them_and_leaves_out_steps(fused):
    """Steps with non-finite gradients are skipped; the others are those of the optimizer alone."""
    outcomes = []
    for kind in (AdamW, torch.optim.AdamW):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
        optimizer, scaler = kind([p], lr=0.1, eps=1.0, fused=fused), torch.amp.GradScaler("cpu")
        for factor in (1.0, float("inf"), 2.0):
            optimizer.zero_grad()
            scaler.scale((factor * p.sin()).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        outcomes.append(p.detach())
    torch.testing.assert_close(*outcomes)


def test_adamw_steps_in_half_precision():
    (p, *_) = parameters(torch.bfloat16)
    before = p.detach().clone()
    steps(AdamW([p], lr=0.1), [p], 1)
    assert not torch.equal(p, before)
