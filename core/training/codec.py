"""Codecs: from texts and images to what a model reads, token ids or patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from twofold.core.data import encoded
from twofold.core.data.datasets import Dataset
from twofold.core.data.fetch import sha256_of
from twofold.core.data.patches import patches
from twofold.core.data.tokenizers import BPETokenizer, WordTokenizer, load_tokenizer
from twofold.core.data.wordpiece import WordPieceTokenizer
from twofold.core.training.batches import Array
from twofold.core.training.settings import LONGEST, Settings
from twofold.reference import checks

TOKENIZER_FILE = "tokenizer.json"
FILES = (TOKENIZER_FILE,)  # the names that `stored` may return
TOKENIZERS = ("words", "bpe")


class Codec(Protocol):
    """Turns examples into inputs of a model; `unknown` is the id of an unknown word."""

    unknown: int

    def encode(self, examples: Sequence[Any] | Array) -> list[Array]:
        """Return ids (L,) int64 or patches (L, P) float32 for every example."""

    def encode_set(self, examples: Sequence[Any] | Array) -> list[Array]:
        """Return the same for a data set, whose texts are tokenised once and then cached."""

    def sizes(self) -> dict[str, Any]:
        """Return the model config's fields `input`, `input_size` and `max_length`."""


class TextCodec:
    """Token ids; texts are cut off at `max_length` tokens."""

    def __init__(
        self, tokenizer: WordTokenizer | BPETokenizer | WordPieceTokenizer, max_length: int
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.unknown = tokenizer.unknown

    def encode(self, examples: Sequence[Any] | Array) -> list[Array]:
        """Return ids (L,) int64 for every text."""
        return [self.tokenizer.encode(text, self.max_length) for text in examples]

    def encode_set(self, examples: Sequence[Any] | Array) -> list[Array]:
        """Return the same for a data set, from the cache if it was encoded before."""
        return encoded.encoded(self.tokenizer, list(examples), self.max_length)

    def sizes(self) -> dict[str, Any]:
        """Return what the model's config must know."""
        return {
            "input": "tokens",
            "input_size": self.tokenizer.vocabulary_size,
            "max_length": self.max_length,
        }


class PatchCodec:
    """Square patches of images, row by row."""

    def __init__(self, size: int, input_size: int, max_length: int) -> None:
        self.size, self.input_size, self.max_length = size, input_size, max_length
        self.unknown = 0  # never used: no patch is unknown

    def encode(self, examples: Sequence[Any] | Array) -> list[Array]:
        """Return patches (L, P) float32 for every image."""
        return list(patches(np.asarray(examples, np.float32), self.size))

    def encode_set(self, examples: Sequence[Any] | Array) -> list[Array]:
        """Return the same, uncached: cutting patches is as quick as reading a cache."""
        return self.encode(examples)

    def sizes(self) -> dict[str, Any]:
        """Return what the model's config must know."""
        return {
            "input": "patches",
            "input_size": self.input_size,
            "max_length": self.max_length,
        }


def new(dataset: Dataset, tokenizer: str, patch: int) -> Codec:
    """Make a data set's codec: a vocabulary from its training texts, or the size of its patches."""
    if dataset.kind == "images":
        first = patches(np.asarray(dataset.train_x[:1], np.float32), patch)
        return PatchCodec(patch, first.shape[2], first.shape[1])
    texts = list(dataset.train_x)
    made = BPETokenizer.train(texts) if tokenizer == "bpe" else WordTokenizer.train(texts)
    ids = [made.encode(text, LONGEST) for text in texts]
    codec = TextCodec(made, -(-max(len(x) for x in ids) // 8) * 8)
    # No text is longer than max_length, so the codec would compute the same ids.
    encoded.keep(made, texts, codec.max_length, ids)
    return codec


def stored(codec: Codec) -> dict[str, bytes]:
    """Return, by name, the files for what the run's settings do not hold: the vocabulary."""
    if not isinstance(codec, TextCodec):
        return {}
    return {TOKENIZER_FILE: codec.tokenizer.to_json().encode()}


def restore(settings: Settings, folder: Path) -> Codec:
    """Return the codec of a run.

    Raises:
        ValueError: the run's tokenizer has more words than the model, or is not the one that the
            run was begun with.
    """
    model = settings.model
    if model.input == "patches":
        return PatchCodec(settings.patch, model.input_size, model.max_length)
    longest = settings.longest or model.max_length
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    size, most = tokenizer.vocabulary_size, f"at most the model's input_size, {model.input_size}"
    checks.require(size <= model.input_size, "the tokenizer's vocabulary", size, most)
    begun, found = settings.tokenizer_sha256, sha256_of(folder / TOKENIZER_FILE)
    must = f"that with which the run was begun, {begun}"
    checks.require(begun in (None, found), f"the sha256 of {TOKENIZER_FILE}", found, must)
    return TextCodec(tokenizer, longest)
