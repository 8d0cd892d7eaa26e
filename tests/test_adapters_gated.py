"""Gated activation as a torch operator: every kind, and the autocast of torch's own product."""

import pytest
import torch
from test_adapters_beside_torch import normal

from twofold.adapters.gated_activation import gated_activation
from twofold.reference.activation import KINDS

SHAPE = (2, 3, 8)


def halves(dtype=torch.float64):
    return torch.randn(*SHAPE[:-1], 2 * SHAPE[-1], dtype=dtype, requires_grad=True)


def of_halves(x, kind="silu"):
    return gated_activation(*x.chunk(2, -1), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(lambda x: of_halves(x, kind), halves())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_takes_the_wider_dtype_as_torchs_product(dtype):
    gate, up = normal(*SHAPE).to(torch.bfloat16), normal(*SHAPE).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, theirs = gated_activation(gate, up), torch.nn.functional.silu(gate) * up
    assert found.dtype == theirs.dtype == dtype
    with pytest.raises(TypeError, match="up has dtype float64; it must have the dtype of gate"):
        gated_activation(gate.float(), up.double())


def test_what_is_no_tensor_is_refused_by_name():
    with pytest.raises(TypeError, match="gate is a NoneType; it must be an array"):
        gated_activation(None, normal(*SHAPE))
    with pytest.raises(ValueError, match=r"up\.shape is \(2, 3\); it must be of rank 3"):
        gated_activation(normal(*SHAPE), normal(2, 3))
