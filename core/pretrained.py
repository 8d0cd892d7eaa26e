"""A pretrained BERT with its tokenizer: load, predict, train, save.

bert = pretrained.load("minilm", labels=("bad", "good"))
trainer = bert.trainer(optimizer="adam")
trainer.step([bert.encode("A film of rare warmth.")], [1], step=1, lr=1e-5)
pretrained.save("folder", bert.model, bert.tokenizer, bert.labels)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twofold.core import ops as sides
from twofold.core import whole
from twofold.core.data.pretrained import pretrained_folder
from twofold.core.data.wordpiece import WordPieceTokenizer, longest_of
from twofold.core.model import weights
from twofold.core.model.classifier import Classifier
from twofold.core.training import inference, trainer
from twofold.core.training.recipe import Recipe
from twofold.reference import checks

Array = np.ndarray[Any, np.dtype[Any]]

# Fields of a recipe that a trainer uses; the others govern a whole run.
TAUGHT_BY = (
    "seed", "parts", "optimizer", "weight_decay", "momentum", "frozen", "layer_decay", "max_norm",
    "label_smoothing", "average", "precision",
)  # fmt: skip
# Defaults with which an optimizer takes its plain steps and nothing else.
PLAIN = {"parts": 1, "weight_decay": 0.0, "max_norm": 0.0, "average": 0.0}


class Pretrained(NamedTuple):
    """A model with its tokenizer and the names of its classes.

    Attributes:
        model: of BERT's architecture.
        tokenizer: the model's own.
        labels: names of the classes.
        missing: tensors that were not taken from the file but drawn.
        longest: the most ids of a text; longer texts are cut.
    """

    model: Classifier
    tokenizer: WordPieceTokenizer
    labels: tuple[str, ...]
    missing: tuple[str, ...]
    longest: int

    def encode(self, text: str, second: str | None = None) -> Array:
        """Return a text's ids (L,), or a pair's with their types (L, 2); a text too long is cut."""
        if second is None:
            return self.tokenizer.encode(text, self.longest)
        return self.tokenizer.encode_pair(text, second, self.longest)

    def predict(self, texts: Sequence[str]) -> Array:
        """Return the probabilities of the classes, (n, C) float32."""
        texts = _several("texts", texts)
        return inference.predict(self.model, [self.encode(text) for text in texts])

    def embed(self, texts: Sequence[str]) -> Array:
        """Return mean-pooled embeddings of norm 1, (n, d_model) float32."""
        texts = _several("texts", texts)
        return inference.embed(self.model, [self.encode(text) for text in texts])

    def trainer(self, **recipe: Any) -> trainer.Trainer:
        """Return a trainer of the model, by default with one part and the plain optimizer.

        Raises:
            TypeError, ValueError: a field of `Recipe` is unknown, impossible, or not a trainer's.
        """
        for name in recipe:
            checks.choice("a field of the recipe", name, TAUGHT_BY)
        return trainer.Trainer(self.model, Recipe(**(PLAIN | recipe)))


def load(
    name_or_path: str | Path,
    *,
    labels: Sequence[str] | None = None,
    ops: sides.Side | None = None,
    seed: int = 0,
    dtype: str = "float32",
    **changed: Any,
) -> Pretrained:
    """Return a BERT by name, "minilm", or from a folder in Hugging Face's format.

    Args:
        name_or_path: of the model; "minilm" is fetched at first use.
        labels: names of the classes; by default the folder's own, which may be given in any order.
            With other names, the head is drawn.
        ops: the side; NumPy by default.
        seed: of the parameters that are drawn.
        dtype: of everything.
        changed: other fields of `ClassifierConfig`, such as dropouts.

    Raises:
        DataError, WeightsError: naming the file, the tensor or field, and the fault.
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    if ops is not None and not isinstance(ops, sides.Side):
        raise TypeError(f"ops is a {type(ops).__name__}; it must be a Side, as ops.load returns")
    if labels is not None:
        labels = _several("labels", labels)
        _names(labels, len(labels))
    folder = pretrained_folder(name_or_path)
    config, own = weights.read_config(folder, **changed)
    if labels is not None:
        config, _ = weights.read_config(folder, num_classes=len(labels), **changed)
    labels = own if labels is None else tuple(labels)
    tokenizer = WordPieceTokenizer.read(folder, config.input_size)
    model = Classifier(config, ops or sides.load("reference"), seed=seed, dtype=dtype)
    classes = weights.classes_of(labels, own)
    missing = weights.read_into(model, folder / weights.WEIGHTS_FILE, classes)
    longest = longest_of(folder, config.max_length)
    return Pretrained(model, tokenizer, tuple(labels), tuple(missing), longest)


def save(
    folder: str | Path,
    model: Classifier,
    tokenizer: WordPieceTokenizer,
    labels: Sequence[str],
    *,
    longest: int | None = None,
) -> None:
    """Write a folder for `transformers.BertForSequenceClassification`, or leave it unchanged.

    A model saved there is replaced; a folder with anything else in it is refused.

    Args:
        folder: where to write.
        model: of BERT's architecture.
        tokenizer: the model's.
        labels: names of the classes.
        longest: how many ids `transformers` is to cut texts to; None for as many as the model
            takes.

    Raises:
        TypeError, ValueError: naming the option in which the model is not a BERT, what else is in
            the folder, or the argument and what it must be.
    """
    labels = _several("labels", labels)
    _names(labels, model.config.num_classes)
    files = weights.files(model, tuple(labels))
    most = model.config.max_length
    if longest is not None:
        checks.count("longest", longest, 1)
        checks.require(longest <= most, "longest", longest, f"at most the model's {most} positions")
    settings = tokenizer.files(most if longest is None else longest)
    files |= {name: text.encode() for name, text in settings.items()}
    folder = Path(folder).resolve()
    here = folder == Path.cwd()
    checks.require(not here, "folder", f"{str(folder)!r}, where we are", "another: it is replaced")
    if folder.exists():
        checks.require(folder.is_dir(), "folder", f"{str(folder)!r}, a file", "a folder's name")
        others = sorted(path.name for path in folder.iterdir() if path.name not in files)
        was = f"{str(folder)!r}, which holds {', '.join(others[:3])}"
        checks.require(not others, "folder", was, "empty, or hold a model that was saved")
    whole.write_folder(folder, files)


def _several(name: str, texts: Iterable[str]) -> list[str]:
    """Return the texts as a list; refuse a single string, which would be read letter by letter."""
    checks.require(not isinstance(texts, str), name, f"the text {texts!r:.40}", "a list of them")
    if not isinstance(texts, Iterable):
        raise TypeError(f"{name} is a {type(texts).__name__}; it must be a list of texts")
    found = list(texts)
    for n, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{n}] is a {type(text).__name__}; it must be a str")
    return found


def _names(labels: list[str], classes: int) -> None:
    """Refuse class names unless there is one for each class, all different."""
    fits = len(set(labels)) == len(labels) == classes > 0
    must = f"{max(classes, 1)} names, no two alike"
    checks.require(fits, "labels", tuple(labels), must)
