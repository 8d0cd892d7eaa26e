"""What adapters cannot take is refused, under the name that the caller knows."""

import pytest
import torch

from twofold.adapters import sides
from twofold.adapters.attention import attention
from twofold.adapters.functional import scaled_dot_product_attention
from twofold.adapters.layers import linear
from twofold.adapters.modules import MultiheadAttention, RMSNorm, TransformerEncoderLayer
from twofold.adapters.rms_norm import rms_norm

# what no side can take

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


@pytest.mark.filterwarnings("ignore")  # changed by each of these
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


@pytest.mark.filterwarnings("ignore")  # changed by those of this kind
@pytest.mark.parametrize(
    "call", [lambda x: linear(x, torch.ones(2, 4)), lambda x: attention(*[x[None, None]] * 3)]
)
def test_gradients_in_batches_are_refused_in_words(call):
    x = torch.ones(3, 4, requires_grad=True)
    out = call(x)
    units = torch.eye(out.numel()).reshape(-1, *out.shape)
    with pytest.raises(RuntimeError, match="is asked for gradients in batches; it must be one by"):
        torch.autograd.grad(out, x, units, is_grads_batched=True)
    with pytest.raises(RuntimeError, match="is asked for gradients in batches; it must be one by"):
        torch.autograd.functional.jacobian(call, x.detach(), vectorize=True)


# arguments of modules


ATTENTION = {
    "lengths": (
        {"value": torch.ones(4, 3, 8)}, ValueError,
        r"value.shape is \(4, 3, 8\); it must be \(2, 3, 8\), as key's",
    ),
    "features": (
        {"query": torch.ones(2, 3, 7)}, ValueError,
        r"query.shape is \(2, 3, 7\); it must be \(…, 8\)",
    ),
    "batches": (
        {"query": torch.ones(2, 5, 8)}, ValueError,
        r"key.shape\[1\] is 3; it must be that of query, 5",
    ),
    "dtype": (
        {"query": torch.ones(2, 3, 8).double()}, TypeError,
        "query has dtype float64; it must have the dtype of in_proj_weight, float32",
    ),
    "device": (
        {"key": torch.ones(2, 3, 8, device="meta")}, ValueError,
        "key is on meta; it must be on in_proj_weight's device, cpu",
    ),
    "none": ({"query": None}, TypeError, "query is a NoneType; it must be a tensor"),
    "a list": (
        {"key_padding_mask": [[True]]}, TypeError, "key_padding_mask is a list; it must be a tensor"
    ),
}  # fmt: skip


def test_attention_under_autocast_names_what_it_does_not_cast():
    x = torch.ones(2, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        scaled_dot_product_attention(x, x.bfloat16(), x)
        with pytest.raises(TypeError, match="^key has dtype int64; it must be one of float16"):
            scaled_dot_product_attention(x, x.long(), x)
        with pytest.raises(ValueError, match="^value is on meta; it must be on query's device"):
            scaled_dot_product_attention(x, x, x.to("meta"))


@pytest.mark.parametrize(("change", "error", "words"), ATTENTION.values(), ids=ATTENTION)
def test_multi_head_attention_names_its_arguments(change, error, words):
    given = dict.fromkeys(("query", "key", "value"), torch.ones(2, 3, 8))
    with pytest.raises(error, match=f"^{words}"):
        MultiheadAttention(8, 2)(**given | change)


SOURCE = torch.ones(3, 2, 8)
ENCODER = {
    "mask": (
        {"src_mask": torch.ones(3, 3).int()}, TypeError,
        "src_mask has dtype int32; it must be bool or floating",
    ),
    "padding": (
        {"src_key_padding_mask": torch.ones(2, 3).long()}, TypeError,
        "src_key_padding_mask has dtype int64; it must be bool or floating",
    ),
    "dtype": (
        {"src": SOURCE.double()}, TypeError,
        "src has dtype float64; it must have the dtype of in_proj_weight, float32",
    ),
    "features": (
        {"src": SOURCE[..., :7]}, ValueError, r"src.shape is \(3, 2, 7\); it must be \(…, 8\)",
    ),
    "a list": ({"src": [1.0]}, TypeError, "src is a list; it must be a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(("change", "error", "words"), ENCODER.values(), ids=ENCODER)
def test_an_encoder_layer_names_its_arguments(change, error, words, norm_first):
    layer = TransformerEncoderLayer(8, 2, 12, norm_first=norm_first)
    with pytest.raises(error, match=f"^{words}"):
        layer(**{"src": SOURCE} | change)


def test_a_norm_names_what_is_no_tensor():
    with pytest.raises(TypeError, match="^x is a list; it must be a tensor"):
        RMSNorm(4)([1.0])
