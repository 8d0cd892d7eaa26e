"""BERTs to test with: transformers' own with random parameters, and what theirs and ours store."""

import json

import numpy as np
import torch
import transformers

from twofold.core.data.wordpiece import SPECIAL
from twofold.core.model.layers import Pass
from twofold.core.verify.bert_bound import Layer
from twofold.reference.multi_head_attention import join

transformers.utils.logging.disable_progress_bar()

SMALL = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
# Their modules that read x, heads, attended, y, hidden and fed (`bert_bound.Layer`).
READERS = (
    "attention.self.query",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
WORDS = ("a", "film", "of", "rare", "warm", "##th", "awful", "good", "bad", "##ly", "!", ",")


def theirs(seed=0, kind=transformers.BertForSequenceClassification, **sizes):
    """Return a BERT of transformers with random parameters, far from the usual initial ones."""
    config = transformers.BertConfig(**(SMALL | sizes), attn_implementation="eager")
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim < 2 else 1.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if name.endswith("LayerNorm.weight"):
                parameter.add_(1.0)
    return model


def folder_of(model, path, vocabulary=None):
    """Write a model of transformers, with a vocabulary as long as its table."""
    model.save_pretrained(path)
    size = model.config.vocab_size
    tokens = [*SPECIAL, *WORDS, *(f"w{n}" for n in range(size))]
    tokens = tokens[:size] if vocabulary is None else vocabulary
    (path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    (path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return path


def masked(lengths, longest):
    """Return transformers' mask, which is 1 where there is no padding."""
    return torch.tensor((np.arange(longest) < np.asarray(lengths)[:, None]).astype(int))


def batch(rng, rows, sizes):
    """Return ids with types (B, L, 2), and lengths."""
    longest = int(rng.integers(1, sizes["max_position_embeddings"] + 1))
    lengths = rng.integers(1, longest + 1, rows)
    lengths[rng.integers(rows)] = longest
    ids = rng.integers(0, sizes["vocab_size"], (rows, longest))
    types = rng.integers(0, sizes["type_vocab_size"], (rows, longest))
    return np.stack([ids, types], axis=2), lengths


def stored(model, inputs, lengths):
    """Return our embeddings, and what each layer reads and stores."""
    given, lengths = model.ops.asarray(inputs), model.ops.asarray(lengths)
    states = model.hidden_states(given, lengths)
    _, cache = model.encoder.forward(states[0], model.params, Pass(lengths))
    layers = []
    for n, out in enumerate(states[1:]):
        attention, (into, _, outof) = cache.sublayers[2 * n : 2 * n + 2]
        attended, fed = (norm.h for norm in cache.norms[2 * n : 2 * n + 2])
        read = attention.attention
        q, k, v = (join(model.ops.to_numpy(x)) for x in (read.q, read.k, read.v))
        others = (attention.output.x, attended, into.x, outof.x, fed, out)
        x, *others = (model.ops.to_numpy(x) for x in (attention.projection.x, *others))
        layers.append(Layer(x, np.concatenate([q, k, v], -1), *others))
    return model.ops.to_numpy(states[0]), layers


def stored_by_theirs(model, inputs, lengths):
    """Return their embeddings, what each layer reads and stores, and their logits or None."""
    read, made = {}, {}

    def keep(name):
        def hook(module, given, out):
            read[name], made[name] = given[0].numpy(), out.numpy()

        return hook

    encoder = getattr(model, "bert", model)
    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in encoder.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm)
    ]
    with torch.no_grad():
        found = model(
            torch.tensor(inputs[..., 0]),
            token_type_ids=torch.tensor(inputs[..., 1]),
            attention_mask=masked(lengths, inputs.shape[1]),
        )
    for hook in hooks:
        hook.remove()
    layers = []
    for n in range(model.config.num_hidden_layers):
        at = f"encoder.layer.{n}."
        q, k, v = (made[f"{at}attention.self.{name}"] for name in ("query", "key", "value"))
        x, *others = (read[at + name] for name in READERS)
        out = made[f"{at}output.LayerNorm"]
        layers.append(Layer(x, np.concatenate([q, k, v], -1), *others, out))
    logits = found.get("logits")
    return made["embeddings.LayerNorm"], layers, None if logits is None else logits.numpy()
