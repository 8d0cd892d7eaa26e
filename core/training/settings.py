"""A run's settings, in one dataclass: `run.json` in the run's folder.

The defaults are for the movie reviews; the table below has other data sets' different ones. All
were chosen on validation data.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from twofold.core.data.datasets import NAMES, Dataset, load_dataset
from twofold.core.model.config import ClassifierConfig
from twofold.core.training.recipe import Recipe
from twofold.reference import checks

# Where a data set's defaults differ from those of ClassifierConfig and Recipe.
PREFERENCES: dict[str, dict[str, dict[str, Any]]] = {
    "trec": {"model": {}, "recipe": {"epochs": 16, "batch_size": 32}},
    "digits": {
        "model": {
            "num_layers": 2,
            "embedding_dropout": 0.0,
            "dropout": 0.1,
            "attention_dropout": 0.1,
        },
        "recipe": {
            "epochs": 40,
            "batch_size": 32,
            "warmup": 0.1,
            "word_dropout": 0.0,
            "weight_decay": 0.01,
        },
    },
}
LONGEST = 256  # most tokens read of a text
QUICK_EXAMPLES = 3000  # training examples of a quick run


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything needed to start or resume a run.

    Attributes:
        data: name of a data set, or path of a file.
        text_column, label_column: of such a file; None for the usual names.
        data_sha256: of the data that were read, so that a run never resumes with others.
        labels: names of the classes.
        side: "reference" or "triton".
        tokenizer: "words" or "bpe"; "wordpiece" is a pretrained model's.
        tokenizer_sha256: of the vocabulary file, so that a run never resumes with another; None
            for images, and in runs from before it was recorded.
        init: name or folder of the pretrained model that training begins with, or None.
        init_sha256: of its weights, so that a run never resumes with others.
        longest: most tokens read of a text; None for as many as the model has positions.
        patch: edge of an image's patches, in pixels.
        quick: a short run: few examples, few epochs.
        model, recipe: sizes and choices.
    """

    data: str
    text_column: str | None = None
    label_column: str | None = None
    data_sha256: str
    labels: tuple[str, ...]
    side: str = "reference"
    tokenizer: str = "words"
    tokenizer_sha256: str | None = None
    init: str | None = None
    init_sha256: str | None = None
    longest: int | None = None
    patch: int = 2
    quick: bool = False
    model: ClassifierConfig
    recipe: Recipe

    def dataset(self) -> Dataset:
        """Return the run's data, from the path it had or, failing that, from the current folder."""
        return dataset_of(there_or_here(self.data), self.text_column, self.label_column, self.quick)

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, ready for `json.dump`."""
        return dataclasses.asdict(self)

    def __post_init__(self) -> None:
        self.recipe.check_side(self.side)
        several = all(isinstance(label, str) for label in self.labels)
        several = several and len(set(self.labels)) == self.model.num_classes
        must = f"{self.model.num_classes} names, no two alike"
        checks.require(several, "labels", self.labels, must)
        for name in ("text_column", "label_column"):
            column = getattr(self, name)
            checks.require(column is None or isinstance(column, str), name, column, "a name")

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the settings from their fields.

        Raises:
            ValueError, TypeError: naming a field that is missing, unknown or impossible.
        """
        if not isinstance(fields, Mapping):
            raise TypeError(f"the run's settings are a {type(fields).__name__}, not an object")
        known = {f.name: f for f in dataclasses.fields(cls)}
        for name in fields.keys() ^ known.keys():
            if name not in known:
                raise ValueError(f"{name} is unknown in the run's settings")
            if known[name].default is dataclasses.MISSING:
                raise ValueError(f"{name} is missing in the run's settings")
        if not isinstance(fields["labels"], list | tuple):
            raise TypeError(f"labels is a {type(fields['labels']).__name__}, not a list")
        for name in ("model", "recipe"):
            if not isinstance(fields[name], Mapping):
                raise TypeError(f"{name} is a {type(fields[name]).__name__}, not an object")
        return cls(
            **{
                **fields,
                "labels": tuple(fields["labels"]),
                "model": ClassifierConfig.from_json(fields["model"]),
                "recipe": Recipe.from_json(fields["recipe"]),
            }
        )


def located(data: str) -> str:
    """Return a data set's name unchanged, a file's path as an absolute one."""
    return data if data in NAMES else str(Path(data).resolve())


def there_or_here(located: str) -> str:
    """Return the path or, if it no longer exists, what has its name in the current folder."""
    path = Path(located)
    return path.name if not path.exists() and Path(path.name).exists() else located


def dataset_of(
    data: str, text_column: str | None, label_column: str | None, quick: bool
) -> Dataset:
    """Return a data set as a run reads it: whole, or shortened for a quick run."""
    dataset = load_dataset(data, text_column=text_column, label_column=label_column)
    return shortened(dataset, QUICK_EXAMPLES) if quick else dataset


def preferred(data: str, part: str) -> dict[str, Any]:
    """Return a data set's own defaults for "model" or "recipe"."""
    return dict(PREFERENCES.get(data, {}).get(part, {}))


def shortened(dataset: Dataset, examples: int) -> Dataset:
    """Return a data set with this many training examples, taken evenly from all of them."""
    n = len(dataset.train_y)
    if n <= examples:
        return dataset
    chosen = np.linspace(0, n - 1, examples).astype(int)
    targets = dataset.train_targets
    return dataclasses.replace(
        dataset,
        train_x=[dataset.train_x[i] for i in chosen],
        train_y=dataset.train_y[chosen],
        train_targets=None if targets is None else targets[chosen],
    )


def fingerprint(dataset: Dataset) -> str:
    """Return the sha256 of a data set's examples and labels."""
    digest = hashlib.sha256()
    for x, y in ((dataset.train_x, dataset.train_y), (dataset.test_x, dataset.test_y)):
        for example in x:
            content = (
                example.encode() if isinstance(example, str) else np.asarray(example).tobytes()
            )
            digest.update(len(content).to_bytes(8, "little") + content)
        digest.update(np.asarray(y, np.int64).tobytes())
    return digest.hexdigest()
