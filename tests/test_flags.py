"""Yes-or-no options: both sides refuse anything else with the same words."""

import inspect

import numpy as np
import pytest

from twofold.core import ops
from twofold.reference.rotary import Rotary

X, W = np.ones((1, 3, 8), "f4"), np.ones((24, 8), "f4")
HEADS, ANGLES = np.ones((1, 2, 3, 4), "f4"), np.ones((3, 2), "f4")
IDS, TABLE = np.zeros((1, 3), int), np.ones((5, 4), "f4")
ATTENTION = {"q": HEADS, "k": HEADS, "v": HEADS}
MULTI_HEAD = {"x": X, "w_qkv": W, "b_qkv": None, "w_out": W[:8], "b_out": None, "num_heads": 2}
DECODE = {"q": HEADS, "k_cache": HEADS, "v_cache": HEADS, "key_lengths": np.array([3])}
SCALES = dict.fromkeys(("q_scale", "k_scale", "v_scale"), np.ones((1, 1), "f4"))
WEIGHTS = {"q": HEADS, "k": HEADS, "lse": HEADS[..., 0]}
FLAT = np.ones(8, "f4")

# Calls, by operator, function and option.
CALLS = {
    ("rotary", "forward", "interleaved"): {"q": HEADS, "k": HEADS, "cos": ANGLES, "sin": ANGLES},
    ("positional_encoding", "forward", "learned"): {
        "ids": IDS, "table": TABLE, "position_table": TABLE,
    },
    ("optimizers", "adam", "decoupled"): {
        "params": FLAT, "grads": FLAT, "m": FLAT, "v": FLAT, "step": 1, "lr": 0.1,
    },
    ("optimizers", "sgd", "nesterov"): {
        "params": FLAT, "grads": FLAT, "momentum_buffer": FLAT, "lr": 0.1, "momentum": 0.9,
    },
    ("attention", "forward", "causal"): ATTENTION,
    ("attention_decode", "forward", "causal"): DECODE,
    ("attention_fp8", "forward", "causal"): ATTENTION | SCALES,
    ("attention_weights", "weights", "causal"): WEIGHTS,
    ("attention_weights", "received", "causal"): WEIGHTS,
    ("multi_head_attention", "forward", "causal"): MULTI_HEAD,
    ("linear", "forward", "keep"): {"x": X, "weight": W},
    ("softmax_cross_entropy", "forward", "keep"): {"logits": X[0], "targets": IDS[0]},
}  # fmt: skip
BACKWARDS = {
    "linear": ({"x": X, "weight": W, "bias": W[:, 0]}, ("of_x", "of_weight", "of_bias")),
    "attention": (ATTENTION, ("of_bias",)),
    "multi_head_attention": (MULTI_HEAD, ("of_x", "of_context", "of_weights", "of_bias")),
}
NEITHER = ("coupled", 1, 2, None)


def words(name, wrong):
    """Return how the refusal begins."""
    return f"{name} is a {type(wrong).__name__}; it must be a bool"


def test_every_option_is_asked_here(reference):
    asked = set(CALLS) | {
        (op, "backward", n) for op, (_, names) in BACKWARDS.items() for n in names
    }
    there = {
        (operator, function, parameter.name)
        for operator in ops.OPERATORS
        for function, f in inspect.getmembers(getattr(reference, operator), inspect.isfunction)
        if f.__module__.endswith(f".{operator}")
        for parameter in inspect.signature(f).parameters.values()
        if "bool" in str(parameter.annotation) and parameter.default is not parameter.empty
    }
    assert there - {("activation", "activate", "spare")} == asked  # which only linear calls


@pytest.mark.parametrize(
    ("operator", "function", "name", "wrong"),
    # Strings that say where the diagonal is have their own test.
    [(*call, x) for call in CALLS for x in NEITHER if call[2] != "causal" or x != "coupled"],
)
def test_what_is_neither_is_refused(both_refuse, operator, function, name, wrong):
    arguments = CALLS[operator, function, name] | {name: wrong}
    both_refuse(operator, arguments, TypeError, words(name, wrong), function)


@pytest.mark.parametrize("wrong", NEITHER)
@pytest.mark.parametrize(
    ("operator", "name"), [(op, name) for op, (_, names) in BACKWARDS.items() for name in names]
)
def test_what_is_neither_is_refused_of_gradients(reference, triton, operator, name, wrong):
    said = []
    for side in (reference, triton):
        given = BACKWARDS[operator][0]
        placed = {n: side.asarray(x) if isinstance(x, np.ndarray) else x for n, x in given.items()}
        out, cache = getattr(side, operator).forward(**placed)
        with pytest.raises(TypeError) as refusal:
            getattr(side, operator).backward(out, cache, **{name: wrong})
        said.append(str(refusal.value))
    assert said == [words(name, wrong)] * 2


@pytest.mark.parametrize("wrong", NEITHER)
def test_pairs_of_rotary_positions_are_one_or_the_other(both_refuse, wrong):
    turns = Rotary(ANGLES, ANGLES, interleaved=wrong)
    said = words("rotary.interleaved", wrong)
    both_refuse("attention", ATTENTION | {"rotary": turns}, TypeError, said)
    both_refuse("attention_decode", DECODE | {"rotary": turns}, TypeError, said)
    both_refuse("multi_head_attention", MULTI_HEAD | {"rotary": turns}, TypeError, said)


def test_those_of_numpy_are_taken(side):
    cos, sin = side.rotary.tables(side.asarray(np.arange(3)), 4, dtype="float32")
    q = side.asarray(np.arange(24).reshape(HEADS.shape), "float32")
    found, expected = (
        [
            *side.rotary.forward(q, q, cos, sin, interleaved=yes)[0],
            side.attention.forward(q, q, q, causal=yes)[0],
            side.attention.forward(q, q, q, rotary=Rotary(cos, sin, interleaved=yes))[0],
        ]
        for yes in (np.True_, True)
    )
    for x, y in zip(found, expected, strict=True):
        assert np.array_equal(side.to_numpy(x), side.to_numpy(y))


@pytest.mark.parametrize("wrong", NEITHER)
@pytest.mark.parametrize("operator", ["attention", "attention_decode", "linear"])
def test_tf32_is_allowed_or_not(triton, operator, wrong):
    given = {"attention": ATTENTION, "attention_decode": DECODE}.get(
        operator, BACKWARDS["linear"][0]
    )
    placed = {name: triton.asarray(x) for name, x in given.items()}
    with pytest.raises(TypeError) as refusal:
        getattr(triton, operator).forward(**placed, allow_tf32=wrong)
    assert str(refusal.value) == words("allow_tf32", wrong)
