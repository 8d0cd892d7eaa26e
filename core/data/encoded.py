"""A cache of token ids, so that texts are tokenised once.

A file's name is the hash of all that the ids depend on: the texts, the tokenizer, how many ids of a
text are read, the code that splits texts into words and the versions of the libraries it uses. A
file begins with the hash of its own name and content, so a damaged or foreign one is made again; it
is put in place in one step. A cache that cannot be read or written costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers as hf

from twofold.core.data import tokenizers, wordpiece
from twofold.core.data.errors import DataError
from twofold.core.data.fetch import cache_folder, scratch

Array = np.ndarray[Any, np.dtype[Any]]

FOLDER, KEPT = "ids", 32  # files kept: those used last
STORED = np.dtype("<i4")  # lengths of the texts, then their ids
DIGEST = hashlib.sha256().digest_size


class Tokenizer(Protocol):
    """Turns texts into ids."""

    def encode(self, text: str, max_length: int) -> Array:
        """Return the first ids, (L,) int64 with 1 ≤ L ≤ max_length."""

    def to_json(self) -> str:
        """Return all that the ids depend on besides the text."""


def encoded(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[Array]:
    """Return every text's ids, (L,) int64 with 1 ≤ L ≤ max_length, from the cache if possible."""
    path = _path(tokenizer, texts, max_length)
    found = None if path is None else _read(path, len(texts))
    if found is None:
        found = [tokenizer.encode(text, max_length) for text in texts]
        _write(path, found)
    return found


def keep(tokenizer: Tokenizer, texts: Sequence[str], max_length: int, ids: list[Array]) -> None:
    """Put ids into the cache, where `encoded` finds them with the same arguments."""
    _write(_path(tokenizer, texts, max_length), ids)


def _path(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> Path | None:
    """Return where the ids are cached, or None if there can be no cache folder."""
    try:
        folder = cache_folder()
    except DataError:
        return None
    digest = hashlib.sha256(_code())
    for part in _parts(tokenizer, texts, max_length):
        content = part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return folder / FOLDER / digest.hexdigest()


def _parts(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> Iterator[str]:
    yield tokenizer.to_json()
    yield str(max_length)
    yield from texts


@functools.cache
def _code() -> bytes:
    """Return the hash of what splits texts: our code, and the versions of library and Unicode."""
    digest = hashlib.sha256(f"{hf.__version__} {unicodedata.unidata_version}".encode())
    for module in (tokenizers, wordpiece):
        digest.update(Path(inspect.getfile(module)).read_bytes())
    return digest.digest()


def _read(path: Path, texts: int) -> list[Array] | None:
    """Return the ids in a file, or None if it is missing or not as it was written."""
    try:
        content = path.read_bytes()
        os.utime(path)  # mark it as used
    except OSError:
        return None
    if content[:DIGEST] != _signature(path, content[DIGEST:]):
        return None
    numbers = np.frombuffer(content, STORED, offset=DIGEST)
    ends = np.cumsum(numbers[:texts])
    return np.split(numbers[texts:].astype(np.int64), ends[:-1])[:texts]


def _write(path: Path | None, ids: list[Array]) -> None:
    if path is None:
        return
    lengths = np.array([len(x) for x in ids], np.int64)
    content = np.concatenate([lengths, *ids]).astype(STORED).tobytes()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path.parent, ".part-") as apart:
            part = apart / path.name
            part.write_bytes(_signature(path, content) + content)
            os.replace(part, path)
        files = [file for file in path.parent.iterdir() if file.is_file()]
        files.sort(key=lambda file: file.stat().st_mtime)
        for file in files[:-KEPT]:
            file.unlink()


def _signature(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + content).digest()
