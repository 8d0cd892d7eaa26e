"""Our modules beside torch's own, with the same parameters."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from third import as_far_as_torch, barred, normal, results
from torch.nn.utils import prune

from twofold.adapters.modules import (
    MultiheadAttention,
    RMSNorm,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)

bools = st.booleans()
ENCODER = {
    MultiheadAttention: {"embed_dim": 6, "num_heads": 2, "batch_first": True},
    TransformerEncoderLayer: {
        "d_model": 6, "nhead": 2, "dim_feedforward": 9, "dropout": 0.0, "batch_first": True
    },
}  # fmt: skip


def twins(ours, theirs, **options):
    """Build one of our modules and torch's own with the same parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = ours(**options), theirs(**options)
    second.load_state_dict(first.state_dict())
    return first, second


def of_parameters(module, call):
    """Return the module as a function of its parameters and inputs."""
    names = list(dict(module.named_parameters()))

    def function(*given):
        parameters = dict(zip(names, given, strict=False))
        made = copy.deepcopy(module).to(given[0].dtype)
        return torch.func.functional_call(made, parameters, tuple(call(given[len(names) :])))

    return function


def as_far_as_the_module(ours, theirs, tensors, call):
    """Compare two modules with the same parameters, including the parameters' gradients."""
    given = [*(p.detach() for p in ours.parameters()), *tensors]
    as_far_as_torch(of_parameters(ours, call), of_parameters(theirs, call), given)


@given(
    st.fixed_dictionaries(
        {name: bools for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    ),
    st.sampled_from(("self", "other", "widths", "one sequence")),
    st.sampled_from((None, "bool", "float", "each head")),
    bools,
    bools,
    bools,
)
def test_multi_head_attention_is_that_of_torch(options, kind, masked, padded, weights, average):
    torch.manual_seed(0)
    B, M, E, H = 2, 5, 6, 2
    N = M if kind == "self" else 4
    more = {"kdim": 3, "vdim": 7} if kind == "widths" else {}
    ours, theirs = twins(
        MultiheadAttention, torch.nn.MultiheadAttention, embed_dim=E, num_heads=H, **options, **more
    )
    q, k, v = normal(B, M, E), normal(B, N, more.get("kdim", E)), normal(B, N, more.get("vdim", E))
    padding = barred(B, N) if padded else None
    if kind == "one sequence":
        B, (q, k, v) = 1, (x[0] for x in (q, k, v))
        padding = None if padding is None else padding[0]
    elif not options["batch_first"]:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    mask = {
        None: lambda: None,
        "bool": lambda: barred(M, N),
        "float": lambda: normal(M, N),
        "each head": lambda: barred(B * H, M, N),
    }[masked]()
    if masked == "float" and padding is not None:  # torch wants both of the same kind
        padding = torch.zeros(padding.shape).masked_fill(padding, -10.0)

    def call(given):
        a, b, c, m, p = given
        inputs = (a, a, a) if kind == "self" else (a, b, c)
        return (*inputs, p, weights, m, average)

    as_far_as_the_module(ours, theirs, (q, k, v, mask, padding), call)


def test_multi_head_attention_takes_a_causal_hint():
    ours, theirs = twins(
        MultiheadAttention, torch.nn.MultiheadAttention, embed_dim=6, num_heads=2, batch_first=True
    )
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    as_far_as_the_module(
        ours, theirs, (normal(2, 5, 6), mask), lambda x: (*x[:1] * 3, None, False, x[1], True, True)
    )
    x = normal(2, 5, 6)
    with pytest.raises(RuntimeError, match="attn_mask is None; it must be given with is_causal"):
        ours(x, x, x, is_causal=True)


def test_a_causal_hint_with_padding_leaves_the_mask_in_its_place():
    """As in torch; a mask that is more than a diagonal gets its gradient."""
    ours, theirs = twins(
        MultiheadAttention, torch.nn.MultiheadAttention, embed_dim=6, num_heads=2, batch_first=True
    )
    steps = torch.arange(5.0)
    mask = (steps - steps[:, None]).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e4)
    padding = torch.zeros(2, 5).masked_fill(torch.arange(5) > 3, -1e4)

    def call(given):
        return (*given[:1] * 3, given[2], False, given[1], True, True)

    as_far_as_the_module(ours, theirs, (normal(2, 5, 6), mask, padding), call)


@pytest.mark.parametrize("name", ["attn_mask", "key_padding_mask"])
def test_multi_head_attention_refuses_a_mask_of_integers(name):
    module, x = MultiheadAttention(6, 2, batch_first=True), normal(2, 5, 6)
    mask = torch.ones(5 if name == "attn_mask" else 2, 5, dtype=torch.int64)
    with pytest.raises(TypeError, match=f"^{name} has dtype int64; it must be bool or floating"):
        module(x, x, x, **{name: mask})


@given(
    st.fixed_dictionaries({name: bools for name in ("norm_first", "bias", "batch_first")}),
    st.sampled_from(
        (
            "relu", "gelu", torch.tanh, torch.nn.GELU("tanh"), torch.nn.ReLU(),
            torch.nn.functional.silu, torch.nn.SiLU(),
        )
    ),
    st.sampled_from((None, "bool", "causal")),
    bools,
)  # fmt: skip
def test_an_encoder_layer_is_that_of_torch(options, activation, masked, padded):
    torch.manual_seed(0)
    B, L, E = 2, 5, 6
    ours, theirs = twins(
        TransformerEncoderLayer, torch.nn.TransformerEncoderLayer,
        d_model=E, nhead=2, dim_feedforward=9, dropout=0.0, activation=activation, **options,
    )  # fmt: skip
    src = normal(B, L, E) if options["batch_first"] else normal(L, B, E)
    causal = torch.triu(torch.ones(L, L, dtype=torch.bool), 1)
    mask = {None: None, "bool": barred(L, L), "causal": causal}[masked]
    padding = barred(B, L) if padded else None
    as_far_as_the_module(ours, theirs, (src, mask, padding), lambda x: (*x, masked == "causal"))


def test_modules_leave_what_is_empty_to_torch():
    for ours, theirs, count in (
        (MultiheadAttention, torch.nn.MultiheadAttention, 3),
        (TransformerEncoderLayer, torch.nn.TransformerEncoderLayer, 1),
    ):
        found, expected = (module.double() for module in twins(ours, theirs, **ENCODER[ours]))
        for shape in ((0, 5, 6), (2, 0, 6)):
            given = [torch.ones(shape).double()] * count
            torch.testing.assert_close(found(*given), expected(*given))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_packs_what_is_padded_takes_our_layers():
    layers = twins(
        TransformerEncoderLayer, torch.nn.TransformerEncoderLayer,
        **ENCODER[TransformerEncoderLayer],
    )  # fmt: skip
    found, expected = (torch.nn.TransformerEncoder(x.double(), 2).eval() for x in layers)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    x = normal(2, 5, 6).double()
    with torch.no_grad():
        packed, whole = (f(x, src_key_padding_mask=padding) for f in (found, expected))
    assert packed[1, 3:].abs().max() == 0.0  # it did pack them
    torch.testing.assert_close(packed, whole)


class Twice(torch.nn.Linear):
    """A replacement for a linear layer."""

    def forward(self, x):
        return 2 * super().forward(x)


def replaced(layer):
    layer.linear1.__class__ = layer.linear2.__class__ = Twice


def normed_by_roots(layer):
    layer.norm1, layer.norm2 = (torch.nn.RMSNorm(6, dtype=torch.float64) for _ in range(2))


def without_parameters(layer):
    layer.norm2 = torch.nn.LayerNorm(6, elementwise_affine=False)


def pruned(layer):
    """Change the weight after pruning, as an optimizer would."""
    prune.l1_unstructured(layer.linear2, "weight", 0.5)
    layer.linear2.weight_orig.data += 1.0


def hooked(layer):
    for name in ("norm1", "linear1", "linear2", "dropout1", "dropout2"):
        getattr(layer, name).register_forward_hook(lambda module, given, out: 3 * out)


def left_as_it_is(layer):
    layer.dropout1 = torch.nn.Identity()
    layer.dropout2.p = 0.9
    layer.dropout2.eval()


def activated_in_place(layer):
    layer.activation = torch.nn.ELU(inplace=True)


def test_a_subclass_with_blocks_of_its_own_has_them_called():
    class Louder(TransformerEncoderLayer):
        def _sa_block(self, *args, **how):
            return 2 * super()._sa_block(*args, **how)

    class Reference(torch.nn.TransformerEncoderLayer):
        def _sa_block(self, *args, **how):
            return 2 * super()._sa_block(*args, **how)

    layers = twins(Louder, Reference, **ENCODER[TransformerEncoderLayer])
    x = normal(2, 5, 6)
    found, expected = (results(layer.double(), [x], torch.float64) for layer in layers)
    torch.testing.assert_close(found, expected)


def test_a_layer_draws_what_torchs_draws_and_no_more():
    drawn = []
    with torch.random.fork_rng():
        for kind in (TransformerEncoderLayer, torch.nn.TransformerEncoderLayer):
            torch.manual_seed(0)
            drawn.append([*kind(6, 2, 9).parameters(), torch.rand(1)])
    assert all(torch.equal(x, y) for x, y in zip(*drawn, strict=True))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        replaced, normed_by_roots, without_parameters, pruned, hooked, left_as_it_is,
        activated_in_place,
    ],
)  # fmt: skip
def test_parts_of_a_layer_that_were_changed_do_what_they_do_in_torchs(change, norm_first):
    options = {**ENCODER[TransformerEncoderLayer], "norm_first": norm_first}
    layers = twins(TransformerEncoderLayer, torch.nn.TransformerEncoderLayer, **options)
    x = normal(2, 5, 6)
    for layer in layers:
        change(layer.double())
    found, expected = (results(layer, [x], torch.float64) for layer in layers)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key_padding_mask": torch.zeros(5, 2).bool()}, "key_padding_mask.shape is .5, 2.; it"),
        ({"key_padding_mask": torch.zeros(2, 3).bool()}, "key_padding_mask.shape is .2, 3.; it"),
        ({"attn_mask": torch.zeros(1, 5).bool()}, "attn_mask.shape is .1, 5.; it must be .5, 5."),
        ({"attn_mask": torch.zeros(2, 5, 5)}, "attn_mask.shape is .2, 5, 5.; it must be .4, 5, 5"),
        ({"attn_mask": torch.zeros(2, 2, 5, 5)}, "attn_mask.shape is .2, 2, 5, 5.; it must be of"),
        ({"query": torch.zeros(1, 2, 5, 6)}, "query.dim.. is 4; it must be 2 or 3"),
        ({"value": torch.zeros(5, 6)}, "value.dim.. is 2; it must be that of query"),
    ],
)
def test_multi_head_attention_refuses_shapes_by_name(change, words):
    module, x = MultiheadAttention(6, 2, batch_first=True), normal(2, 5, 6)
    with pytest.raises(ValueError, match=f"^{words}"):
        module(**{"query": x, "key": x, "value": x, **change})


def test_an_encoder_of_our_layers_trains_with_dropout():
    layer = TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = encoder(torch.ones(1, 3, 8))
        torch.manual_seed(0)
        assert torch.equal(first, encoder(torch.ones(1, 3, 8)))
        assert not torch.equal(first, encoder(torch.ones(1, 3, 8)))
    first.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    encoder.eval()
    assert torch.equal(encoder(torch.ones(1, 3, 8)), encoder(torch.ones(1, 3, 8)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_stream_of_a_layer_under_autocast_has_torchs_dtype(dtype):
    x = torch.randn(2, 3, 8).to(dtype)
    made = [
        layer(8, 2, 16, norm_first=True)
        for layer in (torch.nn.TransformerEncoderLayer, TransformerEncoderLayer)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = (layer(x).dtype for layer in made)
    assert ours == theirs == dtype


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a_decoders_layer_is_that_of_torch(norm_first, causal):
    how = {**ENCODER[TransformerEncoderLayer], "norm_first": norm_first}
    ours, theirs = twins(TransformerDecoderLayer, torch.nn.TransformerDecoderLayer, **how)
    assert type(ours.self_attn) is type(ours.multihead_attn) is MultiheadAttention
    mask = torch.ones(4, 4, dtype=torch.bool).triu(1) if causal else None
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True

    def call(given):
        return (*given, mask, None, None, padding)

    as_far_as_the_module(ours, theirs, [normal(2, 4, 6), normal(2, 5, 6)], call)


OWN = torch.finfo(torch.float32).eps  # torch's default in float32 if eps is None


@pytest.mark.parametrize("shape", [6, (5, 6)])
@pytest.mark.parametrize("eps", [None, 1e-2])
@pytest.mark.parametrize("affine", [True, False])
def test_an_rms_norm_is_that_of_torch(shape, eps, affine):
    how = {"normalized_shape": shape, "elementwise_affine": affine}
    ours, theirs = RMSNorm(eps=eps, **how), torch.nn.RMSNorm(eps=eps or OWN, **how)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert repr(ours) == repr(torch.nn.RMSNorm(eps=eps, **how))
    small = 1e-4 * normal(2, 5, 6)  # where squares are as large as its own eps

    def of(module):
        def function(x, *weights):
            named = dict(zip(("weight",), weights, strict=False))
            return torch.func.functional_call(module, named, (x,))

        return function

    weights = [normal(*ours.normalized_shape)] if affine else []
    as_far_as_torch(of(ours), of(theirs), [small, *weights])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_eps_that_is_none_is_that_of_what_torch_computes_in(dtype):
    x = torch.full((1, 4), 2.0**-12, dtype=dtype)
    ours, theirs = (kind(4, dtype=dtype)(x) for kind in (RMSNorm, torch.nn.RMSNorm))
    torch.testing.assert_close(ours, theirs)
    of_float32 = RMSNorm(4, eps=OWN, dtype=dtype)(x)
    assert torch.equal(ours, of_float32) == (dtype != torch.float64)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_rms_norm_leaves_what_is_nested_to_torch():
    parts = [normal(2, 6), normal(3, 6)]
    packed = torch.nested.nested_tensor(parts, layout=torch.jagged)
    ours, theirs = (kind(6)(packed).unbind() for kind in (RMSNorm, torch.nn.RMSNorm))
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


def test_an_rms_norm_refuses_by_name():
    with pytest.raises(ValueError, match="^eps is 0.0; it must be positive"):
        RMSNorm(6, eps=0.0)
    with pytest.raises(ValueError, match=r"^x.shape is \(2, 6\); it must be \(…, 5, 6\)"):
        RMSNorm((5, 6))(normal(2, 6))
    with pytest.raises(TypeError, match="^weight has dtype float64; it must have the dtype of x"):
        RMSNorm(6).double()(normal(2, 6).float())
