"""Models of `transformers` on our attention: each of their calls is within its bound."""

import sys

import numpy as np
import pytest
import torch
import transformers
from third import no_further
from transformers import AttentionInterface, AttentionMaskInterface

from twofold.adapters import hugging_face, sides
from twofold.adapters.attention import attention
from twofold.core import ops
from twofold.core.verify import attention_bound
from twofold.core.verify.attention_problem import problem
from twofold.core.verify.contract import compare
from twofold.core.verify.rounding import machine
from twofold.reference.attention_scores import Options

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "vocab_size": 30, "max_position_embeddings": 32, "initializer_range": 0.3,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 4, "sliding_window": 4, "query_pre_attn_scalar": 7}  # scaling
SOFTCAP = {"attn_logit_softcapping": 0.5}
CONFIGS = {
    "BERT": lambda: transformers.BertConfig(**SMALL),
    "GPT-2": lambda: transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=4, vocab_size=30, n_positions=32, bos_token_id=0,
        eos_token_id=1, loss_type="ForCausalLMLoss",
    ),
    "Llama": lambda: transformers.LlamaConfig(**GROUPED),
    "Mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=4),
    "Gemma 2": lambda: transformers.Gemma2Config(**GEMMA, **SOFTCAP),
    "Gemma 3": lambda: transformers.Gemma3TextConfig(**GEMMA),
}  # fmt: skip
LENGTH, PADDED = 9, 3


@pytest.fixture(scope="module", autouse=True)
def registered():
    hugging_face.register()
    AttentionInterface.register("beside-eager", beside_eager)
    AttentionMaskInterface.register("beside-eager", transformers.masking_utils.sdpa_mask)


def beside_eager(module, query, key, value, attention_mask, **kwargs):
    """Attend, and hold that and the model's own eager attention to the bound."""
    out, _ = hugging_face.attention_forward(module, query, key, value, attention_mask, **kwargs)
    mask, (M, N) = attention_mask, (query.shape[2], key.shape[2])
    if mask is None:
        causal = module.is_causal and M > 1
        seen = torch.ones(M, N, dtype=torch.bool, device=query.device)
        mask = seen.tril(0 if causal else N)[None, None]
    eager = sys.modules[type(module).__module__].eager_attention_forward
    added = torch.zeros_like(mask, dtype=torch.float32)
    added.masked_fill_(~mask, torch.finfo(torch.float32).min)
    peer, _ = eager(module, query, key, value, added, **kwargs)
    scale, softcap = kwargs.get("scaling"), kwargs.get("softcap")
    options = Options(scale, softcap=softcap, mask=mask.cpu().numpy())
    given = (x.detach().cpu().double().numpy() for x in (query, key, value))
    truth = attention_bound.forward(problem(*given, machine("float32"), options)).out
    assert compare("out", out.transpose(1, 2).detach().cpu().numpy(), truth)[2] == ""
    attends = mask.any(-1).expand(*query.shape[:3])[..., None]
    seen = torch.where(attends, peer.transpose(1, 2), 0.0)  # eager attends to all if to none
    assert compare("out", seen.detach().cpu().numpy(), truth)[2] == ""
    calls.append(module)
    return out, None


calls: list[torch.nn.Module] = []


def built(name, implementation, dtype=torch.float32):
    """Return a model with parameters drawn at random, the same for every implementation."""
    auto = transformers.AutoModelForMaskedLM if name == "BERT" else None
    auto = auto or transformers.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (
            auto.from_config(CONFIGS[name](), attn_implementation=implementation).to(dtype).eval()
        )


def batch(name, padded):
    """Return token ids, the mask of padding and labels; causal models are padded on the left."""
    ids = torch.randint(2, 30, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    mask, labels = torch.ones_like(ids), ids.clone()
    if padded:
        mask[0, slice(-PADDED, None) if name == "BERT" else slice(PADDED)] = 0
        labels[0, : PADDED + 1] = -100  # the first checks what padding holds
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def learned(model, given):
    """Return the loss, the logits outside the padding, and every parameter's gradient."""
    found = model(**given)
    found.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    logits = found.logits[given["attention_mask"] == 1]
    return [x.detach() for x in (found.loss, logits, *gradients)]


@pytest.mark.parametrize("side", ops.SIDES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_call_of_a_model_is_within_the_bound(triton, name, padded, side):
    calls.clear()
    device = triton.device if side == "triton" else "cpu"
    given = {n: x.to(device) for n, x in batch(name, padded).items()}
    with sides.use(side):
        built(name, "beside-eager").to(device)(**given)
    assert len(calls) == 2


# Except in these two, eager float32 softmax is NaN where a float64 model hides all keys.
LEARN = [(name, False) for name in CONFIGS] + [("BERT", True), ("GPT-2", True)]


@pytest.mark.parametrize(("name", "padded"), LEARN)
def test_a_model_learns_what_it_learns_with_eager_attention(name, padded):
    """Loss, logits and gradients are no further from float64 than eager's."""
    given = batch(name, padded)
    judged = learned(built(name, "twofold"), given)
    single, double = (
        learned(built(name, "eager", dtype), given) for dtype in (torch.float32, torch.float64)
    )
    no_further(judged, single, double)


def written(model, given, cache):
    """Return a model's greedy continuation of its input."""
    return model.generate(
        **given, min_new_tokens=8, max_new_tokens=8, do_sample=False, pad_token_id=0,
        cache_implementation=cache, disable_compile=True,
    )  # fmt: skip


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "BERT"])
def test_a_model_writes_what_it_writes_with_eager_attention(tmp_path, name, cache, padded):
    given = batch(name, padded)
    del given["labels"]
    built(name, "eager").save_pretrained(tmp_path)
    first, second = (
        written(
            transformers.AutoModelForCausalLM.from_pretrained(
                tmp_path, attn_implementation=implementation
            ),
            given,
            cache,
        )
        for implementation in ("twofold", "eager")
    )
    assert torch.equal(first, second)
    assert first.shape == (2, LENGTH + 8)


def test_what_only_some_models_ask_for(reference):
    """A bias beside a mask that is too long, sinks, and values of another width than keys."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 3, 6), torch.randn(1, 2, 5, 6), torch.randn(1, 2, 5, 4)
    bias, added, sinks = torch.randn(1, 4, 3, 5), torch.randn(1, 1, 3, 8), torch.randn(4)
    out, weights = hugging_face.attention_forward(
        torch.nn.Module(), q, k, v, added, position_bias=bias, s_aux=sinks
    )
    assert weights is None
    options = Options(bias=(added[..., :5] + bias).double().numpy(), sinks=sinks.double().numpy())
    wide = torch.nn.functional.pad(v, (0, 2))
    given = (x.double().numpy() for x in (q, k, wide))
    truth = attention_bound.forward(problem(*given, machine("float32"), options)).out[..., :4]
    assert compare("out", out.transpose(1, 2).numpy(), truth)[2] == ""


@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("queries", [1, 2, 3])
@pytest.mark.parametrize(
    ("own", "asked"), [(True, None), (False, None), (None, None), (True, False), (False, True)]
)
def test_a_call_without_a_mask_is_causal_and_scaled_as_it_says(queries, own, asked, scaling):
    """A bias of another dtype is added, with or without a mask."""
    module, drawn = torch.nn.Module(), torch.Generator().manual_seed(0)
    if own is not None:
        module.is_causal = own
    q, k, v = (torch.randn(1, h, n, 6, generator=drawn) for h, n in ((4, queries), (2, 3), (2, 3)))
    bias = torch.randn(1, 4, queries, 3, generator=drawn)
    out, _ = hugging_face.attention_forward(
        module, q, k, v, None, is_causal=asked, scaling=scaling, position_bias=bias.double()
    )
    causal = queries > 1 and (own is not False if asked is None else asked)
    mask = np.tri(queries, 3, dtype=bool)[None, None] if causal else None
    options = Options(scaling, mask=mask, bias=bias.double().numpy())
    given = (x.double().numpy() for x in (q, k, v))
    truth = attention_bound.forward(problem(*given, machine("float32"), options)).out
    assert compare("out", out.transpose(1, 2).numpy(), truth)[2] == ""


def test_weights_are_dropped_as_attention_drops_them():
    x = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        found, _ = hugging_face.attention_forward(torch.nn.Module(), x, x, x, None, dropout=0.5)
        torch.manual_seed(1)
        assert torch.equal(found, attention(x, x, x, causal=True, dropout_p=0.5).transpose(1, 2))
    assert not torch.equal(found, attention(x, x, x, causal=True).transpose(1, 2))


def test_a_mask_of_integers_is_refused():
    x, mask = torch.ones(1, 2, 3, 4), torch.ones(1, 1, 3, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match="^attention_mask has dtype int64; it must be bool or flo"):
        hugging_face.attention_forward(torch.nn.Module(), x, x, x, mask)


def test_weights_that_are_not_there_are_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(
        sides, "_said", {"no GPU: twofold computes with NumPy, which is right and not fast"}
    )
    ids = batch("Llama", False)["input_ids"]
    built("Llama", "twofold")(ids)
    assert not caplog.records
    for _ in range(2):
        built("Llama", "twofold")(ids, output_attentions=True)
    (record,) = caplog.records
    assert record.message.startswith("output_attentions is True; it must be False with twofold")


def test_a_model_of_its_own_attention_is_refused():
    """It would add a boolean mask to its scores and see later tokens."""
    config = transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=4, vocab_size=30)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="twofold")
    with pytest.raises(ValueError, match="attn_implementation is 'twofold' for bloom; it must be"):
        model(torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize(
    "config",
    [
        lambda: transformers.FalconConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=30
        ),
        lambda: transformers.GPTNeoConfig(
            hidden_size=16, num_layers=1, num_heads=2, vocab_size=30,
            attention_types=[[["global"], 1]], bos_token_id=0, eos_token_id=1,
        ),
    ],
)  # fmt: skip
def test_models_with_tables_of_their_own_do_not_know_the_name(config):
    with pytest.raises(KeyError, match="twofold"):
        transformers.AutoModelForCausalLM.from_config(config(), attn_implementation="twofold")


DECODERS = {
    "NllbMoe": {"num_experts": 2, "router_jitter_noise": 0.0},
    "BigBirdPegasus": {"attention_type": "original_full"},
    "PegasusX": {"block_size": 4, "num_global_tokens": 2},
}


@pytest.mark.parametrize("name", DECODERS)
def test_layers_that_do_not_say_that_they_are_causal_see_nothing_later(name):
    """`transformers` supports no sdpa in these, and builds no causal mask for them."""
    sizes = {"vocab_size": 30, "d_model": 16, "max_position_embeddings": 32, "pad_token_id": 0}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 24}
    config = getattr(transformers, f"{name}Config")(**sizes, **DECODERS[name])
    kind = getattr(transformers, f"{name}ForConditionalGeneration")
    torch.manual_seed(0)
    model = kind._from_config(config, attn_implementation="twofold").eval()
    ids = torch.randint(2, 30, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[:, -1] = (ids[:, -1] - 1) % 28 + 2
    with torch.no_grad():
        first, second = (model(input_ids=ids, decoder_input_ids=x).logits for x in (ids, other))
    assert torch.equal(first[:, :-1], second[:, :-1])
    assert not torch.equal(first[:, -1], second[:, -1])


@pytest.mark.parametrize("name", ["sinks", "indices", "block_indices"])
def test_what_would_change_the_result_is_refused(name):
    x, places = torch.ones(1, 2, 3, 4), torch.arange(3)
    module = torch.nn.Module()
    hugging_face.attention_forward(module, x, x, x, None, position_ids=places, **{name: None})
    with pytest.raises(ValueError, match=rf"^{name} is a tensor \(3,\); it must be None"):
        hugging_face.attention_forward(module, x, x, x, None, **{name: places})
