"""BERTs to test with: transformers' own, drawn at random, and ours of the same numbers."""

import json

import numpy as np
import torch
import transformers

from twofold.core.data.wordpiece import SPECIAL

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
WORDS = ("a", "film", "of", "rare", "warm", "##th", "awful", "good", "bad", "##ly", "!", ",")


def theirs(seed=0, kind=transformers.BertForSequenceClassification, **sizes):
    """Return a BERT of theirs whose every parameter is drawn, far from where it would start."""
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
    """Write a model of theirs, with a vocabulary as long as its table."""
    model.save_pretrained(path)
    size = model.config.vocab_size
    tokens = [*SPECIAL, *WORDS, *(f"w{n}" for n in range(size))]
    tokens = tokens[:size] if vocabulary is None else vocabulary
    (path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    (path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return path


def masked(lengths, longest):
    """Return their mask of what is no padding."""
    return torch.tensor((np.arange(longest) < np.asarray(lengths)[:, None]).astype(int))


def batch(rng, rows, sizes):
    """Return ids with types (B, L, 2), and lengths."""
    longest = int(rng.integers(1, sizes["max_position_embeddings"] + 1))
    lengths = rng.integers(1, longest + 1, rows)
    lengths[rng.integers(rows)] = longest
    ids = rng.integers(0, sizes["vocab_size"], (rows, longest))
    types = rng.integers(0, sizes["type_vocab_size"], (rows, longest))
    return np.stack([ids, types], axis=2), lengths
