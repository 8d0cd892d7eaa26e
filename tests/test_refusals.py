"""What no operator takes: float64 in a kernel, and gradients that do not match its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from twofold.core.ops import Side
from twofold.reference.activation import KINDS

ANGLES = np.zeros((3, 2))

# Operator, floating arguments, the rest, and gradients of other shapes than the output's.
CALLS = {
    "activation": ((np.ones((2, 4)),), (), (np.ones((1, 4)),)),
    "gated_activation": ((np.ones((2, 4)), np.ones((2, 4))), (), (np.ones((1, 4)),)),
    "linear": ((np.ones((4, 3)), np.ones((2, 3))), (), (np.ones((2, 2)),)),
    "layer_norm": ((np.ones((2, 4)), np.ones(4), np.ones(4)), (), (np.ones((4, 4)),)),
    "rms_norm": ((np.ones((2, 4)), np.ones(4)), (), (np.ones((4, 4)),)),
    "softmax": ((np.ones((2, 4)),), (), (np.ones((4, 2)),)),
    "pooling": ((np.ones((2, 3, 4)),), (np.array([1, 2]), "mean_max"), (np.ones((5, 8)),)),
    "embedding": ((np.ones((5, 4)),), (np.array([[1, 2, 0]]),), (np.ones((2, 4)),)),
    "positional_encoding": (
        (np.ones((5, 4)), np.ones((3, 4))), (np.array([[1, 2, 0]]),), (np.ones((1, 2, 4)),),
    ),
    "rotary": (
        (np.ones((1, 2, 3, 4)), np.ones((1, 2, 3, 4)), ANGLES, ANGLES), (),
        (np.ones((1, 2, 2, 4)), np.ones((1, 2, 2, 4))),
    ),
    "softmax_cross_entropy": ((np.ones((4, 3)),), (np.array([0, 1, 2, 0]),), (np.ones(3),)),
    "attention": ((np.ones((1, 1, 2, 4)),) * 3, (), (np.ones((1, 1, 3, 4)),)),
    "dropout": ((np.ones(8),), (0.5, 1), (np.ones(9),)),
}  # fmt: skip


def arguments(side: Side, operator: str, dtype: str) -> list[Any]:
    """Return the operator's arguments in order, the floating ones in this dtype."""
    floating, rest, _ = CALLS[operator]
    given = [side.asarray(x, dtype) for x in floating]
    others = [side.asarray(x, "int64") if isinstance(x, np.ndarray) else x for x in rest]
    ids_first = operator in ("embedding", "positional_encoding")
    return [*others, *given] if ids_first else [*given, *others]


def forward(side: Side, operator: str, dtype: str) -> tuple[Any, Any]:
    """Call the operator with its arguments in this dtype."""
    made: tuple[Any, Any] = getattr(side, operator).forward(*arguments(side, operator, dtype))
    return made


@pytest.mark.parametrize("operator", CALLS)
def test_kernels_refuse_float64(triton: Side, operator: str) -> None:
    with pytest.raises(ValueError, match=r"^\w+\.dtype is 'float64'; it must be one of 'float16'"):
        forward(triton, operator, "float64")


@pytest.mark.parametrize("operator", CALLS)
def test_kernels_refuse_bfloat16_in_an_interpreter_that_has_it_wrong(
    interpreted: Side, operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime import interpreter

    forward(interpreted, operator, "bfloat16")
    bare = interpreter.InterpreterBuilder()
    monkeypatch.setattr(interpreter, "interpreter_builder", bare)
    words = r"^\w+\.dtype is bfloat16; it must be float16 or float32 in Triton's own interpreter"
    with pytest.raises(ValueError, match=words):
        forward(interpreted, operator, "bfloat16")


@pytest.mark.parametrize(
    ("function", "buffers", "more"),
    [
        ("adam", ("params", "grads", "m", "v"), {"step": 1, "lr": 0.1}),
        ("sgd", ("params", "grads", "momentum_buffer"), {"lr": 0.1}),
        ("adagrad", ("params", "grads", "sum_of_squares"), {"lr": 0.1}),
        ("global_norm", ("grads",), {}),
    ],
)
def test_optimizers_refuse_float64(
    triton: Side, function: str, buffers: tuple[str, ...], more: dict[str, Any]
) -> None:
    given = {name: triton.asarray(np.ones(8), "float64") for name in buffers}
    with pytest.raises(ValueError, match=rf"^{buffers[0]}\.dtype is 'float64'; it must be one of"):
        getattr(triton.optimizers, function)(**given, **more)


@pytest.mark.parametrize("operator", [n for n in CALLS if n != "softmax_cross_entropy"])
def test_kernels_refuse_gradients_of_float64(triton: Side, operator: str) -> None:
    out, cache = forward(triton, operator, "float32")
    outs = out if isinstance(out, tuple) else (out,)
    gradients = [triton.asarray(np.ones(tuple(x.shape)), "float64") for x in outs]
    words = r"^d\w+(\.dtype is '| has dtype )float64'?; it must"
    with pytest.raises((TypeError, ValueError), match=words):
        getattr(triton, operator).backward(*gradients, cache)


@pytest.mark.parametrize(
    "operator", ["activation", "gated_activation", "linear", "layer_norm", "rms_norm", "softmax"]
)
def test_gradients_of_another_dtype_are_refused(side: Side, operator: str) -> None:
    out, cache = forward(side, operator, "float32")
    dout = side.asarray(np.ones(tuple(out.shape)), "float16")
    with pytest.raises(TypeError, match="^dout has dtype float16; it must have .*float32"):
        getattr(side, operator).backward(dout, cache)


def test_numbers_that_float32_has_not_are_refused(reference: Side) -> None:
    x = np.ones((2, 4))
    norm, q = reference.layer_norm.forward, np.ones((1, 1, 2, 4))
    for eps, words in ((1e-60, "1e-60; it must be from 1e-37"), (10**400, "an int of more than")):
        with pytest.raises(ValueError, match=f"^eps is {words}"):
            norm(x, x[0], x[0], eps=eps)
    with pytest.raises(ValueError, match=r"^softcap is 1e\+300; it must be from 1e-37 to 1e\+37"):
        reference.attention.forward(q, q, q, softcap=1e300)
    with pytest.raises(ValueError, match=r"^window_size .* from 0 to 2\*\*31 - 2, or None"):
        reference.attention.forward(q, q, q, window_size=(2**31, 0))


def test_what_cannot_be_written_to_is_refused_before_anything_is(reference: Side) -> None:
    params, grads, m, v = (np.ones(3) for _ in range(4))
    v.flags.writeable = False
    with pytest.raises(ValueError, match="^v is read-only; it must be an array to be written to"):
        reference.optimizers.adam(params, grads, m, v, step=1, lr=0.1)
    assert np.array_equal(params, np.ones(3)) and np.array_equal(m, np.ones(3))
    x = np.ones((2, 3))
    _, cache = reference.layer_norm.forward(x, x[0], x[0])
    with pytest.raises(ValueError, match="^into's dbias is read-only"):
        reference.layer_norm.backward(x, cache, into=(None, v))


def test_what_several_programs_would_write_at_once_is_refused(triton: Side) -> None:
    x = triton.asarray(np.ones((1, 2, 3, 4)), "float32")
    _, cache = triton.attention.forward(x, x, x)
    shared = x[:, :1].expand(1, 2, 3, 4)
    must = r"^into's dk.stride\(\) is \(24, 0, 4, 1\); it must be without 0 where there are several"
    with pytest.raises(ValueError, match=must):
        triton.attention.backward(x, cache, into=(None, shared, None))
    one = x[:, :, :1]
    _, cache = triton.attention.forward(one, one, one)
    into = [one.new_empty(8).as_strided((1, 2, 1, 4), (0, 4, 0, 1)) for _ in range(3)]
    triton.attention.backward(one, cache, into=into)  # with one element there is only one


@pytest.mark.parametrize("operator", CALLS)
def test_gradients_of_another_shape_are_refused(side: Side, operator: str) -> None:
    _, cache = forward(side, operator, "float32")
    gradients = [side.asarray(x, "float32") for x in CALLS[operator][2]]
    with pytest.raises(ValueError, match=r"^d\w+\.shape is \(.*\); it must be "):
        getattr(side, operator).backward(*gradients, cache)


@pytest.mark.parametrize("operator", ["embedding", "positional_encoding"])
def test_gradients_of_another_width_are_refused(side: Side, operator: str) -> None:
    out, cache = forward(side, operator, "float32")
    wide = side.asarray(np.ones((*out.shape[:-1], out.shape[-1] + 1)), "float32")
    with pytest.raises(ValueError, match=r"^dout\.shape is \(1, 3, 5\); it must be \(1, 3, 4\)"):
        getattr(side, operator).backward(wide, cache)


@pytest.mark.parametrize("operator", CALLS)
def test_no_gradient_at_all_is_refused_by_name(side: Side, operator: str) -> None:
    _, cache = forward(side, operator, "float32")
    gradients = [None for _ in CALLS[operator][2]]
    with pytest.raises(TypeError, match=r"^d\w+ is a NoneType; it must be "):
        getattr(side, operator).backward(*gradients, cache)


@pytest.mark.parametrize("operator", CALLS)
def test_no_argument_at_all_is_refused_by_name(side: Side, operator: str) -> None:
    given = arguments(side, operator, "float32")
    arrays = len(CALLS[operator][0]) + (operator in ("embedding", "positional_encoding"))
    for i in range(arrays):
        without = [None if i == j else x for j, x in enumerate(given)]
        if operator == "positional_encoding" and i == 2:
            continue  # sinusoids stand in for the table
        with pytest.raises(TypeError, match=r"^\w+ is a NoneType; it must be "):
            getattr(side, operator).forward(*without)


@pytest.mark.parametrize("kind", ["first", "mean", "max", "mean_max"])
def test_pooled_gradients_of_another_width_are_refused(side: Side, kind: str) -> None:
    x, lengths = side.asarray(np.ones((2, 3, 4)), "float32"), side.asarray(np.array([1, 2]))
    out, cache = side.pooling.forward(x, lengths, kind)
    wide = side.asarray(np.ones((2, out.shape[1] + 2)), "float32")
    with pytest.raises(ValueError, match=r"^dout\.shape is \(2, \d+\); it must be \(2, "):
        side.pooling.backward(wide, cache)


@pytest.mark.parametrize(
    ("operator", "names"), [("attention", ("dq", "dk", "dv")), ("rotary", ("dq", "dk"))]
)
def test_what_is_too_small_for_gradients_is_refused(
    side: Side, operator: str, names: tuple[str, ...]
) -> None:
    out, cache = forward(side, operator, "float32")
    dout = out if isinstance(out, tuple) else (out,)
    for i, name in enumerate(names):
        into = [side.zeros(tuple(dout[0].shape)) for _ in names]
        into[i] = into[i][:, :, :-1]
        with pytest.raises(
            ValueError, match=rf"^into's {name}\.shape is \(1, .*; it must be \(1, "
        ):
            getattr(side, operator).backward(*dout, cache, into=into)


def test_gradients_that_do_not_belong_together_are_refused(side: Side) -> None:
    def ones(*shape: int, dtype: str = "float32") -> Any:
        return side.asarray(np.ones(shape), dtype)

    _, cache = forward(side, "rotary", "float32")
    for shape in ((2, 2, 3, 4), (1, 2, 3, 6)):
        with pytest.raises(ValueError, match=r"^dk_out\.shape is .*; it must be \(1, K, 3, 4\)"):
            side.rotary.backward(ones(1, 2, 3, 4), ones(*shape), cache)
    with pytest.raises(TypeError, match=r"^dk_out has dtype float16; it must have the dtype of"):
        side.rotary.backward(ones(1, 2, 3, 4), ones(1, 2, 3, 4, dtype="float16"), cache)
    _, cache = forward(side, "linear", "float16")
    with pytest.raises(TypeError, match=r"^dout has dtype float32; it must have the dtype of x"):
        side.linear.backward(ones(4, 2), cache)
    _, cache = forward(side, "attention", "float32")
    with pytest.raises(TypeError, match=r"^dlse has dtype int64; it must be one of"):
        dlse = side.asarray(np.ones((1, 1, 2)), "int64")
        side.attention.backward(ones(1, 1, 2, 4), cache, dlse)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_of_float16_are_those_of_float32_rounded(reference: Side, kind: str) -> None:
    x = np.arange(-12, 13, dtype=np.float16)
    half, single = (reference.activation.forward(z, kind) for z in (x, x.astype(np.float32)))
    assert np.array_equal(half[0], single[0].astype(np.float16))
    slopes = [
        reference.activation.backward(np.ones(x.shape, z.dtype), cache).dx
        for z, cache in (half, single)
    ]
    assert np.array_equal(slopes[0], slopes[1].astype(np.float16))
    assert slopes[0].dtype == half[0].dtype == np.float16
