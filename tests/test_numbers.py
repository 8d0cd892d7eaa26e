"""NumPy scalars are numbers on both sides; what is no number is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from twofold.core.ops import Side


class Call(NamedTuple):
    """An operator's function, its arrays, and numbers that it takes exactly."""

    operator: str
    function: str
    arrays: dict[str, Any]
    numbers: dict[str, Any]


X = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype("float32")
WIDE = X[:, 0, :, :]  # (2, 6, 8)
ROW = X[0, 0, 0]  # (8,)
QKV = {"q": X, "k": X, "v": X}
STARTS = np.array([0, 2, 6], dtype="int32")
PACKED = {name: X[:1] for name in QKV} | {"cu_seqlens_q": STARTS, "cu_seqlens_k": STARTS}
STEP = {"lr": 0.25, "weight_decay": 0.5, "decay_numel": 3, "max_norm": 0.5}
GIVEN = {"params": ROW, "grads": ROW, "grad_norm": np.ones((), "float32")}
IDS = np.array([[1, 0, 2], [2, 2, 1]])

CALLS = [
    Call("attention", "forward", QKV, {"softmax_scale": 0.5, "softcap": 2.0}),
    Call("attention", "forward", QKV, {"dropout_p": 0.5, "seed": 3}),
    Call("attention", "forward", QKV, {"window_size": (1, None)}),
    Call("attention", "forward", PACKED, {"max_seqlen_q": 4, "max_seqlen_k": 4}),
    Call("attention", "forward", QKV | {"block_mask": np.eye(3) > 0}, {"block_size": 2}),
    Call("attention", "forward", QKV | {"block_mask": np.eye(3) > 0}, {"block_size": (2, 2)}),
    Call(
        "attention_decode", "forward",
        {
            "q": X[:1], "k_cache": X, "v_cache": X, "key_lengths": np.array([5, 6]),
            "cu_seqlens_q": STARTS,
        },
        {"max_seqlen_q": 4, "softmax_scale": 0.5, "window_size": (3, 0)},
    ),
    Call(
        "multi_head_attention", "forward",
        {"x": WIDE, "w_qkv": np.tile(WIDE[0].T, (2, 2))[:, :8], "b_qkv": None,
         "w_out": X[0, :, :2].reshape(8, 8), "b_out": None},
        {"num_heads": 4, "num_kv_heads": 2},
    ),
    Call(
        "layer_norm", "forward", {"x": X, "weight": ROW, "bias": ROW},
        {"dropout_p": 0.5, "seed": 3, "eps": 0.25},
    ),
    Call("rms_norm", "forward", {"x": X, "weight": ROW}, {"eps": 0.25, "offset": 0.5}),
    Call("dropout", "forward", {"x": X}, {"p": 0.5, "seed": 3}),
    Call(
        "positional_encoding", "forward",
        {"ids": IDS, "table": WIDE[0], "position_table": WIDE[1]},
        {"scale": 0.5, "dropout_p": 0.5, "seed": 3},
    ),
    Call("positional_encoding", "sinusoidal", {"positions": np.arange(5)}, {"d_model": 6}),
    Call("rotary", "tables", {"positions": np.arange(5)}, {"rotary_dim": 4, "base": 64.0}),
    Call(
        "softmax_cross_entropy", "forward", {"logits": WIDE[0], "targets": np.arange(6)},
        {"label_smoothing": 0.5, "ignore_index": 2},
    ),
    Call(
        "softmax_cross_entropy", "forward",
        {"logits": WIDE[0], "targets": np.abs(WIDE[0]), "reduction": "none"},
        {"label_smoothing": 0.5},
    ),
    Call("attention_weights", "weights", {"q": X, "k": X, "lse": X[..., 0]},
         {"softmax_scale": 0.5, "softcap": 2.0}),
    Call(
        "optimizers", "adam", GIVEN | {"m": ROW, "v": ROW * ROW},
        STEP | {"step": 2, "beta1": 0.5, "beta2": 0.75, "eps": 0.25},
    ),
    Call("optimizers", "sgd", GIVEN | {"momentum_buffer": ROW}, STEP | {"momentum": 0.5}),
    Call("optimizers", "adagrad", GIVEN | {"sum_of_squares": ROW * ROW}, STEP | {"eps": 0.25}),
]  # fmt: skip
EACH = [(call, name) for call in CALLS for name in call.numbers]


def given(side: Side, call: Call) -> dict[str, Any]:
    """Return writable copies of a call's arrays on a side."""
    return {
        name: side.asarray(x.copy()) if isinstance(x, np.ndarray) else x
        for name, x in call.arrays.items()
    }


def results(side: Side, call: Call, numbers: dict[str, Any]) -> list[Any]:
    """Call, and return the first result and what the call may have changed."""
    arrays = given(side, call)
    found = getattr(getattr(side, call.operator), call.function)(**arrays, **numbers)
    return [side.to_numpy(x) for x in (*within(found), *within(tuple(arrays.values())))]


def within(x: Any) -> Iterator[Any]:
    """Yield the arrays in a result, including those of a cache."""
    if isinstance(x, tuple):
        for y in x:
            yield from within(y)
    elif hasattr(x, "dtype") and not isinstance(x, np.generic):
        yield x


def of_numpy(x: Any, floating: Any) -> Any:
    """Return a number, or each of a pair, as a NumPy scalar."""
    if isinstance(x, tuple):
        return tuple(of_numpy(y, floating) for y in x)
    return x if x is None else floating(x) if isinstance(x, float) else np.int64(x)


@pytest.mark.parametrize("call", CALLS, ids=lambda c: f"{c.operator}.{c.function} {[*c.numbers]}")
@pytest.mark.parametrize("floating", [np.float16, np.float32, np.float64])
def test_numbers_of_numpy_are_numbers(side: Side, floating: Any, call: Call) -> None:
    """They decide no dtype, neither of results nor of what is saved."""
    ours = results(side, call, call.numbers)
    theirs = results(side, call, {n: of_numpy(x, floating) for n, x in call.numbers.items()})
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize(("call", "name"), EACH, ids=lambda x: getattr(x, "operator", x))
@pytest.mark.parametrize("wrong", ["2", True])
def test_what_is_no_number_is_refused_by_name(
    both_refuse: Callable[..., None], call: Call, name: str, wrong: Any
) -> None:
    numbers = call.numbers | {name: wrong}
    arguments = {n: x for n, x in call.arrays.items()} | numbers
    both_refuse(call.operator, arguments, (TypeError, ValueError), f"{name} is ", call.function)
