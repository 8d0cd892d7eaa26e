"""BERT as saved by Hugging Face: its names of tensors and sizes, and ours for them.

`places` is the one table of parameters: files are read and written through it. Where BERT has three
matrices for queries, keys and values, we have one, three times as high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from twofold.core.model.config import ClassifierConfig
from twofold.reference import checks

EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "embedding.table",
    "embeddings.position_embeddings.weight": "positions.table",
    "embeddings.token_type_embeddings.weight": "types.table",
    "embeddings.LayerNorm.weight": "embedding.norm.weight",
    "embeddings.LayerNorm.bias": "embedding.norm.bias",
}
QUERY_KEY_VALUE = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))
LAYER = {
    "attention.output.dense.weight": "attention.w_out",
    "attention.output.dense.bias": "attention.b_out",
    "attention.output.LayerNorm.weight": "attention.norm.weight",
    "attention.output.LayerNorm.bias": "attention.norm.bias",
    "intermediate.dense.weight": "feed_forward.w_in",
    "intermediate.dense.bias": "feed_forward.b_in",
    "output.dense.weight": "feed_forward.w_out",
    "output.dense.bias": "feed_forward.b_out",
    "output.LayerNorm.weight": "feed_forward.norm.weight",
    "output.LayerNorm.bias": "feed_forward.norm.bias",
}
POOLER = {"pooler.dense.weight": "pooler.weight", "pooler.dense.bias": "pooler.bias"}
HEAD = {"classifier.weight": "head.weight", "classifier.bias": "head.bias"}
PREFIX = "bert."  # on every tensor but the classifier's, in files that have a classifier
# Names in older files, and in models trained for another task, whose heads we do not use.
OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
UNUSED = ("embeddings.position_ids", "cls.predictions.", "cls.seq_relationship.")

# BERT's names for activations, and ours; of several that mean one of ours, the first is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
# BERT's names for sizes, each of which must be in its config, and ours.
SIZES = {
    "vocab_size": "input_size",
    "max_position_embeddings": "max_length",
    "type_vocab_size": "token_types",
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "intermediate_size": "d_ff",
}
DROPOUTS = {
    "hidden_dropout_prob": ("dropout", "embedding_dropout"),
    "attention_probs_dropout_prob": ("attention_dropout",),
}
OF_POOLED = ("classifier_dropout", "pooled_dropout")
# The choices that make our classifier a BERT.
ARCHITECTURE: dict[str, Any] = {
    "input": "tokens",
    "norm": "post",
    "positions": "learned",
    "scaled_embeddings": False,
    "embedding_norm": True,
    "pooling": "first",
    "pooler": True,
}
EPS = 1e-12


class Place(NamedTuple):
    """BERT's name of a tensor, our name of the parameter, and which third of it the tensor is.

    `third` is None where the tensor is the whole parameter.
    """

    theirs: str
    ours: str
    third: int | None = None

    def of(self, params: Mapping[str, Any]) -> Any:
        """Return the tensor's view of our parameters, or gradients, given by name."""
        whole = params[self.ours]
        if self.third is None:
            return whole
        rows = whole.shape[0] // 3
        return whole[self.third * rows : (self.third + 1) * rows]


def places(num_layers: int) -> list[Place]:
    """Return where every tensor of a BERT belongs, the pooler's and the classifier's last."""
    found = [Place(*names) for names in EMBEDDINGS.items()]
    for n in range(num_layers):
        theirs, ours = f"encoder.layer.{n}.", f"layers.{n}."
        for third, name in enumerate(QUERY_KEY_VALUE):
            found.append(Place(f"{theirs}{name}.weight", f"{ours}attention.w_qkv", third))
            found.append(Place(f"{theirs}{name}.bias", f"{ours}attention.b_qkv", third))
        found += [Place(theirs + name, ours + mine) for name, mine in LAYER.items()]
    return found + [Place(*names) for names in (*POOLER.items(), *HEAD.items())]


def plain_name(name: str) -> str | None:
    """Return a tensor's name without what differs between files, or None if it is not used."""
    name = name.removeprefix(PREFIX)
    for old, new in OLD_ENDINGS.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return None if name.startswith(UNUSED) else name


def config_of(theirs: Mapping[str, Any], **changed: Any) -> ClassifierConfig:
    """Return our config for a BERT's, with some fields changed.

    Raises:
        TypeError, ValueError: naming the field, what it was and what it must be.
    """
    kind = theirs.get("model_type", "missing")
    checks.require(kind == "bert", "model_type", repr(kind), "'bert': no other architecture fits")
    for name in ("is_decoder", "add_cross_attention"):
        checks.require(not theirs.get(name), name, theirs.get(name), "false: BERT is an encoder")
    positions = theirs.get("position_embedding_type") or "absolute"
    checks.choice("position_embedding_type", positions, ("absolute",))
    activation = theirs.get("hidden_act", "gelu")
    checks.choice("hidden_act", activation, tuple(ACTIVATIONS))
    fields = ARCHITECTURE | {"activation": ACTIVATIONS[activation]}
    for name, ours in SIZES.items():
        checks.require(name in theirs, name, "missing", "there")
        fields[ours] = theirs[name]
    for name, several in DROPOUTS.items():
        fields |= dict.fromkeys(several, theirs.get(name, 0.1))
    if "dropout" not in changed:  # a changed dropout holds for the pooled vector too
        fields[OF_POOLED[1]] = theirs.get(OF_POOLED[0])
    fields |= {"eps": theirs.get("layer_norm_eps", EPS), "num_classes": len(labels_of(theirs))}
    try:
        return ClassifierConfig(**(fields | changed))
    except (TypeError, ValueError) as error:
        text = str(error)
        for name, ours in (*SIZES.items(), OF_POOLED):  # name the field as the file does
            if text.startswith(f"{ours} is"):
                raise type(error)(text.replace(ours, name, 1)) from None
        raise


def labels_of(theirs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a BERT's classes, in order; two classes if its config says nothing.

    Raises:
        TypeError, ValueError: the classes are not numbered from 0, or `num_labels` is not a
            positive integer.
    """
    named = theirs.get("id2label")
    if not named:
        classes = theirs.get("num_labels", 2)
        checks.count("num_labels", classes, 1)
        return tuple(f"LABEL_{n}" for n in range(classes))
    numbered = isinstance(named, Mapping) and {str(n) for n in range(len(named))} == set(named)
    checks.require(numbered, "id2label", named, "names of classes, numbered from 0")
    return tuple(str(named[str(n)]) for n in range(len(named)))


def is_bert(config: ClassifierConfig) -> bool:
    """Return whether a model is a BERT with BERT's own pooler, so that it can be exported."""
    return all(getattr(config, name) == value for name, value in ARCHITECTURE.items())


def config_for(config: ClassifierConfig, labels: Sequence[str]) -> dict[str, Any]:
    """Return the config from which `transformers` reads our BERT classifier.

    Raises:
        ValueError: naming the choice that is not BERT's.
    """
    for name, value in ARCHITECTURE.items():
        was = getattr(config, name)
        checks.require(was == value, name, repr(was), f"{value!r} to be written as a BERT")
    activation = next(a for a, ours in ACTIVATIONS.items() if ours == config.activation)
    return {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_act": activation,
        "layer_norm_eps": config.eps,
        "position_embedding_type": "absolute",
        "pad_token_id": 0,
        "problem_type": "single_label_classification",
        "id2label": {str(n): label for n, label in enumerate(labels)},
        "label2id": {label: n for n, label in enumerate(labels)},
        **{name: getattr(config, ours) for name, ours in SIZES.items()},
        **{name: getattr(config, several[0]) for name, several in DROPOUTS.items()},
        OF_POOLED[0]: config.pooled_dropout,
    }
