"""Optimizers: the reference against torch.optim and mpmath; the kernels by contract."""

import dataclasses
import re

import mpmath
import numpy as np
import pytest
import torch

from twofold.core.verify import rounding
from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import optimizers as contract
from twofold.core.verify.contracts import optimizers_domain as domain
from twofold.reference import optimizers

TORCH_NAMES = {
    "m": "exp_avg",
    "v": "exp_avg_sq",
    "momentum_buffer": "momentum_buffer",
    "sum_of_squares": "sum",
}


def torch_optimizer(case, groups):
    """Return torch's optimizer of a case."""
    betas = (case.momentum, case.beta2)
    if case.optimizer == "adam":
        return torch.optim.Adam(groups, case.lr, betas, case.eps)
    if case.optimizer == "adamw":
        return torch.optim.AdamW(groups, case.lr, betas, case.eps)
    if case.optimizer == "adagrad":
        return torch.optim.Adagrad(groups, case.lr, eps=case.eps)
    momentum = 0.0 if case.optimizer == "sgd" else case.momentum
    return torch.optim.SGD(groups, case.lr, momentum, nesterov=case.optimizer == "nesterov")


@pytest.mark.parametrize("clip", [None, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", domain.STATE)
def test_reference_is_torch(optimizer, weight_decay, clip):
    """Five steps in float64: torch is no further off than float64's own bound.

    Torch clips by T/(‖g‖ + 1e-6) and we by max_norm/‖g‖, which is the same number, and below 1 for
    the same norms, if T = max_norm·(‖g‖ + 1e-6)/‖g‖. Elements that do not decay are a separate
    parameter.
    """
    case = domain.Case(
        dtype="float64",
        optimizer=optimizer,
        numel=101,
        steps=5,
        lr=0.01,
        weight_decay=weight_decay,
        decaying=0.6,
        clip=clip,
    )
    x, cut = domain.inputs(case), [case.decay_numel]
    parts = [torch.tensor(a) for a in np.split(x.params, cut)]
    decays = (weight_decay, 0.0)
    stepper = torch_optimizer(
        case, [{"params": p, "weight_decay": d} for p, d in zip(parts, decays, strict=True)]
    )
    for grads in x.grads:
        for p, g in zip(parts, np.split(grads, cut), strict=True):
            p.grad = torch.tensor(g)
        if x.max_norm is not None:
            norm = np.sqrt((grads**2).sum())
            torch.nn.utils.clip_grad_norm_(parts, x.max_norm * (norm + 1e-6) / norm)
        stepper.step()
    theirs = {"params": parts}
    for name in domain.STATE[optimizer]:
        theirs[name] = [stepper.state[p][TORCH_NAMES[name]] for p in parts]
    bounds = contract.truth(case)
    for name, found in theirs.items():
        assert compare(name, torch.cat(found).numpy(), bounds[name])[2] == ""


def test_adam_is_the_formula_at_high_precision():
    """Kingma & Ba's algorithm 1 with decoupled decay, thirty steps, sixty digits."""
    rng = np.random.default_rng(0)
    params, grads = rng.standard_normal(3), rng.standard_normal((30, 3))
    case = domain.Case(
        dtype="float64", numel=3, steps=30, lr=0.01, weight_decay=0.1, beta2=0.95, eps=1e-3
    )
    given = domain.Inputs(params, grads, {"m": np.zeros(3), "v": np.zeros(3)}, None)
    with mpmath.workdps(60):
        lr, decay, eps, beta1, beta2 = map(mpmath.mpf, (0.01, 0.1, 1e-3, 0.9, 0.95))
        theta = [mpmath.mpf(a) for a in params]
        m, v = [mpmath.mpf(0)] * 3, [mpmath.mpf(0)] * 3
        for t, gradient in enumerate(grads, start=1):
            for i, g in enumerate(map(mpmath.mpf, gradient)):
                m[i] = beta1 * m[i] + (1 - beta1) * g
                v[i] = beta2 * v[i] + (1 - beta2) * g * g
                m_hat, v_hat = m[i] / (1 - beta1**t), v[i] / (1 - beta2**t)
                theta[i] -= lr * decay * theta[i] + lr * m_hat / (mpmath.sqrt(v_hat) + eps)
        expected = np.array([float(a) for a in theta])
    ours, state = params.copy(), (np.zeros(3), np.zeros(3))
    for i in range(30):
        optimizers.adam(ours, grads[i], *state, **domain.options(case, given, 1 + i))
    bound = contract.truth(case, given)["params"]
    assert compare("params", ours, dataclasses.replace(bound, value=expected))[2] == ""


def test_the_norm_is_not_a_running_sum(reference, triton):
    """Two million equal numbers: a running float32 sum of squares would be off by 2%.

    On neither side does a number take part in more than 2¹⁴ float32 additions: NumPy sums blocks
    and adds these in float64, the kernels sum shares and then add the shares.
    """
    x, on = np.full(2_000_000, 0.1, np.float32), rounding.machine("float32")
    square = rounding.exact(np.float64(x[0]) ** 2 * x.size, on)
    error = rounding.gamma(1 << 14, on.u) * square.value
    bound = rounding.sqrt(dataclasses.replace(square, error=error))
    for side in (reference, triton):
        found = side.to_numpy(side.optimizers.global_norm(side.asarray(x)))
        assert compare("norm", found, bound)[2] == ""


@pytest.mark.parametrize("numel", [1, 1023, 1024, 1025, 1024 * 1024 + 1, 2_097_169])
def test_the_norm_reads_every_element_once(triton, numel):
    """With ones, as many as float32 can count, every partial sum is exact; only the root rounds."""
    norm = triton.to_numpy(triton.optimizers.global_norm(triton.asarray(np.ones(numel), "float32")))
    on = rounding.machine("float32")
    bound = rounding.sqrt(rounding.exact(np.float64(numel), on))
    assert compare("norm", norm, bound)[2] == ""


@pytest.mark.parametrize("optimizer", domain.STATE)
def test_zero_gradients_change_nothing_but_by_decay(reference, triton, optimizer):
    case = domain.Case(optimizer=optimizer, numel=37, magnitude="zeros", clip=1.0)
    params = np.random.default_rng(0).standard_normal(37).astype(np.float32)
    given = domain.inputs(case)._replace(params=params.astype(np.float64))
    for side in (reference, triton):
        assert np.array_equal(side.to_numpy(contract.run(side, case, given)["params"]), params)


def test_the_norm_stays_on_the_device(triton):
    norm = triton.optimizers.global_norm(triton.asarray(np.ones(9), "float32"))
    assert norm.shape == () and norm.device.type == triton.device


@pytest.mark.parametrize("optimizer", domain.STATE)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_step_whose_numbers_are_read_from_memory_has_the_same_bits(triton, optimizer, clip):
    """Whatever step and rate are given beside them; and if told not to go, nothing changes."""
    how = dict(numel=1031, first_step=7, weight_decay=0.1, decaying=0.6, clip=clip)
    case = domain.Case(optimizer=optimizer, **how)
    given = domain.inputs(case)
    expected = contract.run(triton, case, given)
    options = domain.options(case, given, 7)
    if "step" in options:
        names = ("step", "lr", "beta1", "beta2", "weight_decay")
        numbers = triton.optimizers.adam_numbers(**{name: options[name] for name in names})
        options |= {"step": 1000}
    else:
        numbers = (case.lr,)
    options |= {"lr": 0.0, "numbers": triton.asarray(np.array(numbers), "float32")}
    grads = triton.asarray(given.grads[0], "float32")
    if clip is not None:
        options["grad_norm"] = triton.optimizers.global_norm(grads)
    function = contract.function(triton, case)
    for go in (False, True):
        params = triton.asarray(given.params, "float32")
        state = {name: triton.asarray(x, "float32") for name, x in given.state.items()}
        buffers = state or ({"momentum_buffer": None} if optimizer == "sgd" else {})
        function(params, grads, **buffers, **options, go=triton.asarray(np.array(go)))
        wanted = expected if go else {"params": given.params} | given.state
        for name, found in ({"params": params} | state).items():
            same = triton.asarray(wanted[name], "float32")
            assert np.array_equal(triton.to_numpy(found), triton.to_numpy(same)), name


N = np.ones(4)
ADAM = {"params": N, "grads": N, "m": N, "v": N, "step": 1, "lr": 0.1}
SGD = {"params": N, "grads": N, "momentum_buffer": N, "lr": 0.1}
ADAGRAD = {"params": N, "grads": N, "sum_of_squares": N, "lr": 0.1}


@pytest.mark.parametrize(
    ("function", "arguments", "error", "words"),
    [
        ("adam", ADAM | {"params": np.ones(4, int)}, TypeError, "params has dtype int64; it must"),
        ("adam", ADAM | {"params": np.ones((2, 2))}, ValueError, "params.shape is (2, 2); it must"),
        ("adam", ADAM | {"grads": N.astype("f4")}, TypeError, "grads has dtype float32; it must"),
        ("adam", ADAM | {"v": np.ones(5)}, ValueError, "v.shape is (5,); it must be (4,)"),
        ("adam", ADAM | {"step": 0}, ValueError, "step is 0; it must be at least 1"),
        ("adam", ADAM | {"lr": -1.0}, ValueError, "lr is -1.0; it must be at least 0"),
        ("adam", ADAM | {"lr": np.inf}, ValueError, "lr is inf; it must be at least 0 and finite"),
        ("adam", ADAM | {"eps": np.inf}, ValueError, "eps is inf; it must be finite"),
        ("adam", ADAM | {"beta1": 1.0}, ValueError, "beta1 is 1.0; it must be at least 0 and"),
        ("adam", ADAM | {"beta2": -0.1}, ValueError, "beta2 is -0.1; it must be at least 0 and"),
        ("adam", ADAM | {"eps": 0.0}, ValueError, "eps is 0.0; it must be positive"),
        ("adam", ADAM | {"weight_decay": -0.1}, ValueError, "weight_decay is -0.1; it must be"),
        ("adam", ADAM | {"decay_numel": 5}, ValueError, "decay_numel is 5; it must be from 0 to 4"),
        ("adam", ADAM | {"max_norm": 0.0}, ValueError, "max_norm is 0.0; it must be positive"),
        ("adam", ADAM | {"max_norm": 1.0}, ValueError, "grad_norm is None; it must be given along"),
        ("adam", ADAM | {"params": None}, TypeError, "params is a NoneType; it must be an array"),
        ("adam", ADAM | {"grads": None}, TypeError, "grads is a NoneType; it must be an array"),
        ("adam", ADAM | {"v": None}, TypeError, "v is a NoneType; it must be an array"),
        ("adam", ADAM | {"step": 1.5}, TypeError, "step is a float; it must be an int"),
        (
            "adam",
            ADAM | {"max_norm": 1.0, "grad_norm": np.ones(3)},
            ValueError,
            "grad_norm.shape is (3,); it must be of rank 0, ()",
        ),
        (
            "adam",
            ADAM | {"max_norm": 1.0, "grad_norm": np.array(3)},
            TypeError,
            "grad_norm has dtype int64; it must be one of",
        ),
        ("adam", ADAM | {"grad_norm": 1.0}, TypeError, "grad_norm is a float; it must be an array"),
        ("sgd", SGD | {"momentum": 1.0}, ValueError, "momentum is 1.0; it must be at least 0 and"),
        (
            "sgd",
            SGD | {"momentum": 0.9, "momentum_buffer": None},
            ValueError,
            "momentum_buffer is None; it must be a buffer where momentum is used",
        ),
        ("sgd", SGD | {"nesterov": True}, ValueError, "momentum is 0.0; it must be positive with"),
        ("adagrad", ADAGRAD | {"eps": -1.0}, ValueError, "eps is -1.0; it must be positive"),
        (
            "adagrad",
            ADAGRAD | {"sum_of_squares": None},
            TypeError,
            "sum_of_squares is a NoneType; ",
        ),
        ("adagrad", ADAGRAD | {"sum_of_squares": 3.0}, TypeError, "sum_of_squares is a float; it"),
        ("global_norm", {"grads": np.ones((2, 2))}, ValueError, "grads.shape is (2, 2); it must"),
        ("global_norm", {"grads": np.ones(2, int)}, TypeError, "grads has dtype int64; it must be"),
    ],
)
def test_bad_input_is_refused(both_refuse, function, arguments, error, words):
    both_refuse("optimizers", arguments, error, words, function)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"numbers": np.ones(3)}, TypeError, "numbers has dtype float64; it must be float32"),
        ({"numbers": np.ones(2, "f4")}, ValueError, "numbers.shape is (2,); it must be (3,)"),
        ({"go": np.array(1)}, TypeError, "go has dtype int64; it must be bool"),
        ({"go": np.ones(1, bool)}, ValueError, "go.shape is (1,); it must be of rank 0, ()"),
    ],
)
def test_numbers_that_would_be_read_amiss_are_refused(triton, changed, error, words):
    arrays = {n: triton.asarray(x, "float32") for n, x in ADAM.items() if x is N}
    given = ADAM | arrays
    with pytest.raises(error, match=re.escape(words)):
        triton.optimizers.adam(**given, **{n: triton.asarray(x) for n, x in changed.items()})
