"""What `AdamW` counts, and what it refuses: it names the parameter and changes nothing."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from twofold.adapters.optim import AdamW
from twofold.adapters.sides import use


def parameter(*shape, dtype=torch.float32):
    made = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
    made.grad = torch.full_like(made, 0.5)
    return made


def loaded(p, **changes):
    """Return a state dict as if saved, with changes."""
    state = {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(p.detach())}
    return {**state, "exp_avg_sq": torch.ones_like(p.detach()), **changes}


def sparse(p):
    p.grad = torch.eye(2, 3).to_sparse()
    return p


EXPANDED = torch.nn.Parameter(torch.ones(3).expand(2, 3))
EXPANDED.grad = torch.ones(2, 3)
REFUSED = {
    "transposed": (
        lambda: parameter(2, 3), {"exp_avg": torch.ones(3, 2)}, ValueError,
        r"shape of exp_avg of parameter 1 of group 1 is \(3, 2\); it must be \(2, 3\)",
    ),
    "longer": (
        lambda: parameter(3), {"exp_avg_sq": torch.ones(6)}, ValueError,
        r"shape of exp_avg_sq of parameter 1 of group 1 is \(6,\); it must be \(3,\)",
    ),
    "elsewhere": (
        lambda: parameter(3), {"exp_avg": torch.ones(3, device="meta")}, ValueError,
        "exp_avg of parameter 1 of group 1 is on meta; it must be on parameter 1 of group 1's dev",
    ),
    "of another dtype": (
        lambda: parameter(3), {"exp_avg": torch.ones(3).double()}, TypeError,
        "exp_avg of parameter 1 of group 1 has dtype float64; it must have the dtype of parameter",
    ),
    "an expanded moment": (
        lambda: parameter(2, 3), {"exp_avg": torch.ones(3).expand(2, 3)}, RuntimeError,
        "exp_avg of parameter 1 of group 1 is expanded, with strides",
    ),
    "an expanded parameter": (
        lambda: EXPANDED, None, RuntimeError, "parameter 1 of group 1 is expanded, with strides",
    ),
    "complex": (
        lambda: parameter(3, dtype=torch.complex64), None, RuntimeError,
        "parameter 1 of group 1 is complex; it must be dense and real",
    ),
    "sparse": (
        lambda: sparse(parameter(2, 3)), None, RuntimeError,
        "the gradient of parameter 1 of group 1 is torch.sparse_coo; it must be dense and real",
    ),
    "a count below 0": (
        lambda: parameter(3), {"step": torch.tensor(-3.0)}, ValueError,
        "step of parameter 1 of group 1 is -3.0; it must be at least 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "state", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_take_its_step_is_named_before_any_has(make, state, error, words):
    first, second, third = parameter(3), parameter(3), make()
    optimizer = AdamW([{"params": [first]}, {"params": [second, third]}], lr=0.1)
    if state is not None:
        optimizer.state[third] = loaded(third, **state)
    before = copy.copy(optimizer.state_dict()["state"])
    with pytest.raises(error, match=f"^{words}"):
        optimizer.step()
    assert torch.equal(first, torch.ones(3)) and torch.equal(second, torch.ones(3))
    assert optimizer.state_dict()["state"].keys() == before.keys()


def test_a_dtype_without_a_kernel_is_named():
    wide = parameter(3, dtype=torch.float64)
    words = "^dtype of parameter 1 of group 0 is 'float64'"
    with use("triton"), pytest.raises(ValueError, match=words):
        AdamW([parameter(3), wide]).step()


def test_a_group_that_is_added_is_refused_at_once():
    optimizer = AdamW([parameter(3)])
    with pytest.raises(ValueError, match="^eps is 0.0; it must be positive"):
        optimizer.add_param_group({"params": [parameter(2)], "eps": 0.0})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="^lr is inf; it must be at least 0 and finite"):
        optimizer.add_param_group({"params": [parameter(2)], "lr": float("inf")})
    for wrong, words in (
        ({"weight_decay": -0.1}, "^weight_decay is -0.1; it must be at least 0 and finite"),
        ({"betas": (1.0, 0.9)}, "^beta1 is 1.0; it must be at least 0 and below 1"),
        ({"betas": (0.9, -0.5)}, "^beta2 is -0.5; it must be at least 0 and below 1"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer.add_param_group({"params": [parameter(2)], **wrong})
    assert len(optimizer.param_groups) == 1
    numbers = {"lr": 1.5, "weight_decay": 2.0, "betas": (0.0, 0.0), "eps": 1e-3}
    optimizer.add_param_group({"params": [parameter(2)], **numbers})
    assert len(optimizer.param_groups) == 2
    optimizer.step()


def test_a_state_that_has_counted_no_step_is_a_new_one():
    first, second = parameter(3), parameter(3)
    optimizer = AdamW([first, second], lr=0.1)
    zero = torch.zeros(3)
    optimizer.state[second] = loaded(second, step=torch.tensor(0.0), exp_avg_sq=zero)
    optimizer.step()
    assert torch.equal(first, second) and not torch.equal(first, torch.ones(3))
    assert optimizer.state[second]["step"] == 1.0


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_what_has_no_numbers_is_counted(kind):
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        p = parameter(3)
        optimizer = AdamW([p])
        optimizer.step()
        optimizer.step()
    state = optimizer.state[p]
    assert all(state[name].shape == (3,) for name in ("exp_avg", "exp_avg_sq"))
    assert kind == "fake" or state["step"] == 2.0


def test_a_rate_is_read_once_for_all_parameters_of_a_group():
    read = []

    class Rate(float):
        def __float__(self):
            read.append(self)
            return self + 0.0

    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    for parameter in parameters:
        parameter.grad = torch.ones(2)
    optimizer = AdamW(parameters)
    optimizer.param_groups[0]["lr"] = Rate(0.5)
    optimizer.step()
    assert len(read) == 1 and all((p < 0.6).all() for p in parameters)
    before = [p.detach().clone() for p in parameters]
    optimizer.step(lambda: optimizer.param_groups[0].update(lr=0.0))  # read after the closure
    assert all(torch.equal(p, x) for p, x in zip(parameters, before, strict=True))
