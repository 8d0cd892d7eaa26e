"""How foreign functions are called: their own defaults, missing options, compiled functions."""

import pytest
import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from twofold.core.verify import foreign
from twofold.core.verify.foreign import verdict as foreign_verdict


def judged(function, op, **how):
    return foreign.judge(function, op, 6, ["float32"], **how)


@pytest.mark.parametrize(("power", "holds"), [(-0.5, True), (-1.0, False)])
def test_a_scale_that_is_not_given_is_the_functions_own(power, holds):
    def attention(q, k, v, sm_scale=None):
        scale = q.shape[-1] ** power if sm_scale is None else sm_scale
        return torch.softmax(q @ k.mT * scale, -1) @ v

    assert (judged(attention, "attention").failures == []) == holds


def test_a_scale_whose_default_is_a_number_is_always_given():
    def attention(q, k, v, scale=1.0):
        return torch.softmax(q @ k.mT * scale, -1) @ v

    assert judged(attention, "attention").failures == []


@pytest.mark.parametrize("decoupled", [False, True])
def test_weight_decay_of_an_unnamed_kind_is_that_of_either_adam(decoupled):
    def step(params, grads, lr, beta1, beta2, eps, weight_decay):
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        out = torch.nn.Parameter(params.clone())
        optimizer = kind([out], lr, (beta1, beta2), eps, weight_decay)
        for grad in grads:
            out.grad = grad.clone()
            optimizer.step()
        return out.detach()

    verdict = judged(step, "optimizers")
    kind = "adamw" if decoupled else "adam"
    assert verdict.failures == []
    assert f"without decoupled, its optimizer is taken to be {kind}" in verdict.taken


def test_a_compiled_function_is_judged_as_it_is_compiled():
    """With a backend that is wrong in half precision, which is judged last."""
    built = []

    def backend(graph, inputs):
        built.append(graph)
        wrong = any(x.dtype == torch.bfloat16 for x in inputs if isinstance(x, torch.Tensor))
        return lambda *args: tuple(1.5 * x if wrong else x for x in graph(*args))

    softmax = torch.compile(lambda x: F.softmax(x, -1), backend=backend)
    verdict = foreign.judge(softmax, "softmax", 60, claimed=0)
    assert {f.precision for f in verdict.found} == {"bfloat16"} and len(built) > 8


def test_who_exits_has_failed():
    def softmax(x):
        raise SystemExit(3)

    assert "SystemExit: 3 (at test_foreign_calls.py" in judged(softmax, "softmax").failures[0]


def test_an_assertion_of_a_library_is_raised_by_the_function():
    def softmax(x):
        torch.testing.assert_close(x, x + 1)

    failure, *_ = judged(softmax, "softmax").found
    assert failure.raised and failure.fault.startswith("AssertionError: ")


def test_who_writes_to_an_input_is_told():
    def softmax(x):
        with torch.no_grad():
            x += 1
        return F.softmax(x, -1) * 2

    said = foreign.digest(judged(softmax, "softmax"))
    assert "  with it, input 0 of shape (1, 1) was written to" in said


@triton.jit
def assembled_kernel(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < N)
    x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], tl.float32, True, 1)
    tl.store(y_ptr + i, x, mask=i < N)


def test_of_what_the_interpreter_cannot_run_nothing_is_said(triton):
    if triton.device == "cuda":
        pytest.skip("a GPU runs it")

    def softmax(x):
        x = x.contiguous()
        y = torch.empty_like(x)
        assembled_kernel[(1,)](x, y, x.numel(), BLOCK=2**17)
        return y

    verdict = judged(softmax, "softmax")
    assert verdict.found == [] and any("inline_asm not supported" in n for n in verdict.notes)


def test_dtypes_make_no_two_faults_of_one():
    words = "out is float32; it must be {}, as x is"
    assert len({foreign_verdict.alike(words.format(d)) for d in ("float16", "bfloat16")}) == 1


KINDS_OF_TORCH = {"silu": F.silu, "relu": F.relu}


@pytest.mark.parametrize("kind", KINDS_OF_TORCH)
def test_an_activation_without_a_kind_is_the_one_that_fits(kind):
    verdict = judged(lambda x: KINDS_OF_TORCH[kind](x), "activation", claimed=0)
    assert f"without kind, its kind is taken to be {kind}" in verdict.taken
    assert not any(f.pass_ == "forward" for f in verdict.found)


def test_a_kind_that_a_table_lacks_is_refused():
    verdict = judged(lambda x, activation: KINDS_OF_TORCH[activation](x), "activation", claimed=0)
    assert any("KeyError: 'gelu'" in note for note in verdict.notes)
    assert not any(f.raised for f in verdict.found)


def test_what_is_off_by_little_is_said_to_be_and_fails():
    slope = foreign.digest(judged(lambda x: F.silu(x), "activation", claimed=0))
    wrong = foreign.digest(judged(lambda x: 1.001 * F.relu(x), "activation", claimed=0))
    assert foreign_verdict.ROUNDED in "".join(slope)
    assert "times its bound" in "".join(wrong) and foreign_verdict.ROUNDED not in "".join(wrong)
