"""Weights requested from `MultiheadAttention`, in every dtype, beside those of float64."""

import copy

import pytest
import torch

from twofold.adapters.modules import MultiheadAttention

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def asked(module, x, mask=None):
    """Return the weights of each head."""
    return module(x, x, x, attn_mask=mask, average_attn_weights=False)[1]


def identity(dtype):
    """Return one-head attention whose projections are identities."""
    module = MultiheadAttention(64, 1, bias=False, batch_first=True)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.eye(64).repeat(3, 1))
    return module.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32.0, 2.0**10])
def test_weights_are_shares_however_large_the_scores(dtype, size):
    """In float16 the products of 64 features of 32 each are infinite before they are scaled."""
    x = (torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0)) * size).to(dtype)
    found, exact = asked(identity(dtype), x), asked(identity(torch.float64), x.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_under_autocast_are_shares(dtype):
    torch.manual_seed(0)
    module, x = MultiheadAttention(64, 4), 6 * torch.randn(2, 16, 64)
    with torch.autocast("cpu", dtype):
        found = asked(module, x)
    sums = found.double().sum(-1)
    assert (sums - 1.0).abs().max() <= 16 * torch.finfo(dtype).eps / 2


def test_gradients_of_weights_are_those_of_torch_but_of_rows_without_a_key():
    torch.manual_seed(0)
    ours, x = MultiheadAttention(6, 2, batch_first=True).double(), torch.randn(2, 4, 6).double()
    theirs = copy.deepcopy(ours)
    theirs.__class__ = torch.nn.MultiheadAttention
    units = torch.randn(2, 2, 4, 4).double()
    mask = torch.ones(4, 4, dtype=torch.bool).triu(1)

    def learned(module, mask):
        given = x.clone().requires_grad_()
        found = asked(module, given, mask)
        return found.detach(), *torch.autograd.grad((found * units).sum(), given)

    torch.testing.assert_close(learned(ours, mask), learned(theirs, mask))
    mask[0] = True
    units[:, :, 0] = 0.0
    weights, gradient = learned(ours, mask)
    assert not weights[:, :, 0].any()
    assert gradient.isfinite().all()
