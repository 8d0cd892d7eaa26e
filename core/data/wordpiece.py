"""WordPiece, BERT's tokenizer, as Hugging Face stores it: `tokenizer.json` or `vocab.txt`.

Words and punctuation marks, lower-cased or not, are split into the longest pieces in a vocabulary
(Wu et al. 2016, "Google's Neural Machine Translation System", section 4.1); a text is enclosed in
[CLS] and [SEP], and the second text of a pair is followed by another [SEP].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers as hf

from twofold.core.data.errors import DataError
from twofold.reference import checks

Array = np.ndarray[Any, np.dtype[Any]]

TOKENIZER_FILE, VOCABULARY_FILE, SETTINGS_FILE = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NEEDED = SPECIAL[:4]
LONGEST_WORD = 100  # characters; a longer word is unknown
SHOWN = 1000  # characters of a text that are read, for each id requested
PADDED = 128  # an embedding table's rows may be padded to a multiple of this


class WordPieceTokenizer:
    """A WordPiece tokenizer, giving the ids that BERT was trained with."""

    def __init__(self, tokenizer: hf.Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        ids = []
        for token in NEEDED:
            number = tokenizer.token_to_id(token)
            if number is None:
                raise ValueError(f"{token} is not in the vocabulary")
            ids.append(int(number))
        _, self.unknown, self._cls, self._sep = ids

    @classmethod
    def read(cls, folder: Path, rows: int | None = None) -> Self:
        """Return the tokenizer in a folder, from `tokenizer.json` or else from `vocab.txt`.

        Args:
            folder: a model's.
            rows: of the model's embedding table, which the vocabulary must fit.

        Raises:
            DataError: naming the file and the fault.
        """
        path = folder / TOKENIZER_FILE
        if not path.exists():
            path = folder / VOCABULARY_FILE
        try:
            if path.name == TOKENIZER_FILE:
                made = cls(hf.Tokenizer.from_str(path.read_text(encoding="utf-8")))
            else:
                # Not splitlines: tokens may contain other characters that it splits at.
                lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
                made = cls.of_vocabulary(lines, lower_case=_lower_case(folder))
        except OSError as fault:
            raise DataError(f"{path}: cannot be read ({fault.strerror})") from fault
        except Exception as fault:  # the library raises Exception itself
            raise DataError(f"{path}: is no WordPiece tokenizer ({fault})") from fault
        size = made.vocabulary_size
        if rows is not None and not size <= rows < size + PADDED:
            raise DataError(
                f"{path}: has a vocabulary of {size}, and the model's embeddings have {rows} rows; "
                "they must belong together"
            )
        return made

    @classmethod
    def of_vocabulary(cls, tokens: list[str], *, lower_case: bool = True) -> Self:
        """Return a tokenizer of these tokens, numbered in order."""
        numbered = {token: n for n, token in enumerate(tokens)}
        if len(numbered) < len(tokens):
            twice = next(token for n, token in enumerate(tokens) if numbered[token] != n)
            raise ValueError(f"{twice!r} is there twice")
        for token in NEEDED:
            if token not in numbered:
                raise ValueError(f"{token} is not in the vocabulary")
        model = hf.models.WordPiece(
            numbered, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD
        )
        tokenizer = hf.Tokenizer(model)
        tokenizer.normalizer = hf.normalizers.BertNormalizer(lowercase=lower_case)
        tokenizer.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = hf.decoders.WordPiece()
        present = [token for token in SPECIAL if token in numbered]
        tokenizer.add_special_tokens(present)
        tokenizer.post_processor = hf.processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, numbered[token]) for token in ("[CLS]", "[SEP]")],
        )
        return cls(tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, max_length: int) -> Array:
        """Return [CLS], the first ids of the text, [SEP]: (L,) int64, 2 ≤ L ≤ max_length."""
        checks.require(max_length >= 2, "max_length", max_length, "at least 2")
        ids = self._pieces(text, max_length)[: max_length - 2]
        return np.array([self._cls, *ids, self._sep], np.int64)

    def encode_pair(self, first: str, second: str, max_length: int) -> Array:
        """Return [CLS] first [SEP] second [SEP] with their types, 0 and 1: (L, 2) int64.

        If they do not fit, the longer one is cut; if that is not enough, each gets half the room.
        """
        checks.require(max_length >= 3, "max_length", max_length, "at least 3")
        one, two = (self._pieces(text, max_length) for text in (first, second))
        room = max_length - 3
        if len(one) + len(two) > room:
            short, long = sorted((len(one), len(two)))
            long = max(short, room - short)
            if short + long > room:
                short, long = room // 2, room - room // 2
            cut = (short, long) if len(one) <= len(two) else (long, short)
            one, two = one[: cut[0]], two[: cut[1]]
        ids = np.array([self._cls, *one, self._sep, *two, self._sep], np.int64)
        types = np.arange(len(ids)) >= len(one) + 2
        return np.stack([ids, types.astype(np.int64)], axis=1)

    def _pieces(self, text: str, max_length: int) -> list[int]:
        # A lone surrogate (from a badly decoded command line) has no UTF-8 and becomes "?".
        shown = text[: SHOWN * max_length].encode("utf-8", "replace").decode("utf-8")
        return list(self._tokenizer.encode(shown, add_special_tokens=False).ids)

    def to_json(self) -> str:
        """Return the JSON that `load_tokenizer` reads."""
        tokenizer = json.loads(self._tokenizer.to_str())
        return json.dumps({"kind": "wordpiece", "tokenizer": tokenizer}, ensure_ascii=False)

    def files(self, max_length: int) -> dict[str, str]:
        """Return, by name, the files for `transformers`, which cuts texts to `max_length` ids."""
        numbered = self._tokenizer.get_vocab()
        tokens = sorted(numbered, key=lambda token: numbered[token])
        normalizer = json.loads(self._tokenizer.to_str())["normalizer"] or {}
        settings = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": bool(normalizer.get("lowercase", True)),
            "model_max_length": max_length,
            **{f"{token[1:-1].lower()}_token": token for token in SPECIAL},
        }
        return {
            TOKENIZER_FILE: self._tokenizer.to_str(),
            VOCABULARY_FILE: "".join(f"{token}\n" for token in tokens),
            SETTINGS_FILE: json.dumps(settings, indent=1) + "\n",
        }


def longest_of(folder: Path, most: int) -> int:
    """Return how many ids a folder's model cuts texts to, `most` if it does not say.

    Raises:
        DataError: the number in the folder is not at least 1.
    """
    said = _settings(folder).get("model_max_length", most)
    if not isinstance(said, int | float) or not said >= 1:  # refuses NaN too, which JSON may hold
        raise DataError(
            f"{folder / SETTINGS_FILE}: model_max_length is {said!r}; it must be a number from 1 on"
        )
    return int(min(said, most))


def _lower_case(folder: Path) -> bool:
    return bool(_settings(folder).get("do_lower_case", True))


def _settings(folder: Path) -> dict[str, Any]:
    """Return a folder's tokenizer settings, empty if there is no file."""
    path = folder / SETTINGS_FILE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise DataError(f"{path}: is no JSON ({fault})") from fault
    if not isinstance(found, dict):
        raise DataError(f"{path}: is no JSON object")
    return found
