"""Tokenizers: text to ids, by words or by byte-pair pieces of words, both saved as JSON.

Both read the same words: lower-cased runs of letters and digits, apostrophes inside them kept
("isn't"), and every other visible character by itself. Only as much of a text is read as the
requested ids can come from, so a text of ten million characters costs no more than that.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers as hf

from twofold.core.data.errors import DataError
from twofold.core.data.wordpiece import WordPieceTokenizer
from twofold.reference import checks

Array = np.ndarray[Any, np.dtype[Any]]

PADDING, UNKNOWN = 0, 1
RESERVED = ("[PAD]", "[UNK]")  # never in a text: brackets are words by themselves
LONGEST_PIECE = 32
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> Iterator[str]:
    """Yield the words and punctuation marks of a text, lower-cased."""
    # A lone surrogate (from a badly decoded command line) has no UTF-8 and becomes "?".
    text = text.encode("utf-8", "replace").decode("utf-8")
    return (match[0] for match in WORD.finditer(text.lower()))


class WordTokenizer:
    """An id for every word seen often enough; more frequent words have smaller ids."""

    unknown = UNKNOWN

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self._ids = {word: i for i, word in enumerate(self.vocabulary, start=len(RESERVED))}

    @classmethod
    def train(cls, texts: Iterable[str], min_count: int = 2) -> Self:
        """Return a tokenizer of all words that occur at least `min_count` times in the texts."""
        checks.require(min_count >= 1, "min_count", min_count, "at least 1")
        counts = Counter(itertools.chain.from_iterable(map(words, texts)))
        frequent = [(-count, word) for word, count in counts.items() if count >= min_count]
        return cls(word for _, word in sorted(frequent))

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, padding (0) and unknown (1) among them."""
        return len(RESERVED) + len(self.vocabulary)

    def encode(self, text: str, max_length: int) -> Array:
        """Return the first ids, (L,) int64 with 1 ≤ L ≤ max_length; [1] for a text without any."""
        checks.require(max_length >= 1, "max_length", max_length, "at least 1")
        first = itertools.islice(words(text), max_length)
        return np.array([self._ids.get(word, UNKNOWN) for word in first] or [UNKNOWN], np.int64)

    def to_json(self) -> str:
        """Return the JSON that `load_tokenizer` reads."""
        return json.dumps({"kind": "words", "vocabulary": self.vocabulary}, ensure_ascii=False)

    def save(self, path: str | Path) -> None:
        """Write `to_json` into a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")


class BPETokenizer:
    """Byte-pair encoding: pieces of words, merged by how often they adjoin (Sennrich 2016)."""

    unknown = UNKNOWN

    def __init__(self, tokenizer: hf.Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], pieces: int = 4000) -> Self:
        """Return a tokenizer of at most `pieces` ids; every character of the texts is a piece."""
        checks.require(pieces > len(RESERVED), "pieces", pieces, f"above {len(RESERVED)}")
        tokenizer = hf.Tokenizer(hf.models.BPE(unk_token=RESERVED[UNKNOWN]))
        # Mark where words begin. The library could instead mark where they continue, but it would
        # then number characters in the order of its hash table, and two trainings would differ.
        tokenizer.pre_tokenizer = hf.pre_tokenizers.Metaspace()
        trainer = hf.trainers.BpeTrainer(
            vocab_size=pieces,
            min_frequency=2,
            show_progress=False,
            special_tokens=list(RESERVED),
            max_token_length=LONGEST_PIECE,
        )
        tokenizer.train_from_iterator((" ".join(words(text)) for text in texts), trainer)
        return cls(tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, padding (0) and unknown (1) among them."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, max_length: int) -> Array:
        """Return the first ids, (L,) int64 with 1 ≤ L ≤ max_length; [1] for a text without any."""
        checks.require(max_length >= 1, "max_length", max_length, "at least 1")
        # A word has at least one piece, a piece at most LONGEST_PIECE characters.
        first = itertools.islice(words(text), max_length)
        shown = " ".join(word[: LONGEST_PIECE * max_length] for word in first)
        ids = self._tokenizer.encode(shown, add_special_tokens=False).ids[:max_length]
        return np.array(ids or [UNKNOWN], np.int64)

    def to_json(self) -> str:
        """Return the JSON that `load_tokenizer` reads."""
        tokenizer = json.loads(self._tokenizer.to_str())
        return json.dumps({"kind": "bpe", "tokenizer": tokenizer}, ensure_ascii=False)

    def save(self, path: str | Path) -> None:
        """Write `to_json` into a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")


def load_tokenizer(json_or_path: str | Path) -> WordTokenizer | BPETokenizer | WordPieceTokenizer:
    """Return the tokenizer from its `to_json`, or from a file that `save` wrote."""
    given = str(json_or_path)
    in_place = given.lstrip().startswith("{")
    named = "the tokenizer's JSON" if in_place else given
    try:
        saved = json.loads(given if in_place else Path(given).read_text(encoding="utf-8"))
        if saved["kind"] == "words":
            return WordTokenizer(_strings(saved["vocabulary"]))
        if saved["kind"] == "bpe":
            return BPETokenizer(hf.Tokenizer.from_str(json.dumps(saved["tokenizer"])))
        if saved["kind"] == "wordpiece":
            return WordPieceTokenizer(hf.Tokenizer.from_str(json.dumps(saved["tokenizer"])))
    except OSError as fault:
        raise DataError(f"{named}: cannot be read ({fault.strerror})") from fault
    except Exception as fault:  # the library raises Exception itself
        raise DataError(f"{named}: is not what a tokenizer wrote ({fault!r})") from fault
    raise DataError(
        f"{named}: the kind is {saved['kind']!r}; it must be 'words', 'bpe' or 'wordpiece'"
    )


def _strings(listed: object) -> list[str]:
    if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
        raise TypeError("the vocabulary must be a list of words")
    return listed
