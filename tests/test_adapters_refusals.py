"""What adapters cannot take is refused by the name that the caller knows."""

import pytest
import torch

from twofold.adapters import sides
from twofold.adapters.attention import attention
from twofold.adapters.layers import linear
from twofold.adapters.rms_norm import rms_norm

# what no side can be given

X = torch.eye(4)
OTHERS = {
    "sparse": (X.to_sparse, "has layout torch.sparse_coo; it must be torch.strided"),
    "mkldnn": (X.to_mkldnn, "has layout torch._mkldnn; it must be torch.strided"),
    "quantised": (
        lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.quint8),
        "has dtype quint8; it must be bfloat16, or one that NumPy has",
    ),
    "of 8 bits": (
        lambda: X.to(torch.float8_e4m3fn),
        "has dtype float8_e4m3fn; it must be bfloat16, or one that NumPy has",
    ),
    "nested": (lambda: packed(torch.strided), "is nested; it must be padded, or packed"),
    "jagged": (lambda: packed(torch.jagged), "is nested; it must be padded, or packed"),
}


def packed(layout):
    return torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=layout)


@pytest.mark.filterwarnings("ignore")  # that all of these may change
@pytest.mark.parametrize("side", ["reference", "triton"])
@pytest.mark.parametrize(("make", "words"), OTHERS.values(), ids=OTHERS)
def test_what_no_side_can_be_given_is_named(triton, side, make, words):
    x = make()
    calls = {
        "x": lambda: linear(x, X), "weight": lambda: rms_norm(X, x),
        "mask": lambda: attention(X[None, None], X[None, None], X[None, None], mask=x),
    }  # fmt: skip
    for name, call in calls.items():
        with sides.use(side), pytest.raises(TypeError, match=f"^{name} {words}"):
            call()


@pytest.mark.filterwarnings("ignore")  # that those of this kind may change
@pytest.mark.parametrize("call", [lambda x: linear(x, torch.ones(2, 4)), lambda x: attention(*[x[None, None]] * 3)])  # fmt: skip
def test_gradients_in_batches_are_refused_in_words(call):
    x = torch.ones(3, 4, requires_grad=True)
    out = call(x)
    units = torch.eye(out.numel()).reshape(-1, *out.shape)
    with pytest.raises(RuntimeError, match="is asked for gradients in batches; it must be one by"):
        torch.autograd.grad(out, x, units, is_grads_batched=True)
    with pytest.raises(RuntimeError, match="is asked for gradients in batches; it must be one by"):
        torch.autograd.functional.jacobian(call, x.detach(), vectorize=True)
