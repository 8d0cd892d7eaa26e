"""Ids in the cache folder are those that tokenising gives, whatever happens to the files."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_training import begin, toy

from twofold.core.data import encoded
from twofold.core.data.patches import patches
from twofold.core.data.tokenizers import BPETokenizer, WordTokenizer
from twofold.core.data.wordpiece import SPECIAL, WordPieceTokenizer
from twofold.core.training import codec, loop

TEXTS = ["It isn't a film; it's THE film.", "", "A film, a film!", "\ud800 naïve", "a film " * 99]
TOKENIZERS = {
    "words": WordTokenizer.train(TEXTS[:3]),
    "bpe": BPETokenizer.train(TEXTS[:3], 60),
    "wordpiece": WordPieceTokenizer.of_vocabulary([*SPECIAL, "a", "film", "is", "##n", "it"]),
}


class Counting:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.texts = tokenizer, 0

    def encode(self, text, max_length):
        self.texts += 1
        return self.tokenizer.encode(text, max_length)

    def to_json(self):
        return self.tokenizer.to_json()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / encoded.FOLDER


def equal(found, expected) -> bool:
    return len(found) == len(expected) and all(
        a.dtype == b.dtype == np.int64 and np.array_equal(a, b)
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_are_tokenised_once(name, folder):
    counting = Counting(TOKENIZERS[name])
    expected = [TOKENIZERS[name].encode(text, 7) for text in TEXTS]
    for _ in range(3):
        assert equal(encoded.encoded(counting, TEXTS, 7), expected)
    assert counting.texts == len(TEXTS) and len(list(folder.iterdir())) == 1


def test_other_texts_tokenizers_and_lengths_have_files_of_their_own(folder):
    lots = [["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "c", ""]]
    for tokenizer in TOKENIZERS.values():
        for texts in lots:
            for longest in (2, 3):
                expected = [tokenizer.encode(text, longest) for text in texts]
                assert equal(encoded.encoded(tokenizer, texts, longest), expected)
    assert len(list(folder.iterdir())) == len(TOKENIZERS) * len(lots) * 2


def test_other_code_has_files_of_its_own(folder, monkeypatch):
    counting = Counting(TOKENIZERS["words"])
    encoded.encoded(counting, TEXTS, 7)
    monkeypatch.setattr(encoded, "_code", lambda: b"another")
    encoded.encoded(counting, TEXTS, 7)
    assert counting.texts == 2 * len(TEXTS)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "another's", "a folder"])
def test_a_damaged_file_is_made_anew(damage, folder):
    tokenizer = TOKENIZERS["words"]
    expected = encoded.encoded(tokenizer, TEXTS, 7)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    if damage == "another's":
        encoded.encoded(tokenizer, TEXTS[::-1], 7)
        (other,) = set(folder.iterdir()) - {path}
        os.replace(other, path)
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        path.write_bytes({"cut": content[:-4], "changed": flipped, "empty": b""}[damage])
    assert equal(encoded.encoded(tokenizer, TEXTS, 7), expected)
    if damage != "a folder":
        assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_only_costs_time(folder, monkeypatch):
    counting = Counting(TOKENIZERS["words"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            encoded.encoded(counting, TEXTS, 7)
    assert list(folder.iterdir()) == []  # an interrupted write leaves nothing
    folder.rmdir()
    folder.write_text("in the way")
    expected = [TOKENIZERS["words"].encode(text, 7) for text in TEXTS]
    for _ in range(2):
        assert equal(encoded.encoded(counting, TEXTS, 7), expected)
    assert counting.texts == 3 * len(TEXTS)


def test_a_user_without_a_home_tokenises_every_time(monkeypatch):
    counting = Counting(TOKENIZERS["words"])
    expected = [TOKENIZERS["words"].encode(text, 7) for text in TEXTS]
    monkeypatch.setenv("TWOFOLD_CACHE", "~nobody-by-this-name/x")
    for _ in range(2):
        assert equal(encoded.encoded(counting, TEXTS, 7), expected)
    assert counting.texts == 2 * len(TEXTS)


def test_files_that_nobody_uses_go(folder, monkeypatch):
    monkeypatch.setattr(encoded, "KEPT", 3)
    counting = Counting(TOKENIZERS["words"])
    for n, text in enumerate("abcabdabea"):  # "a" and "b" are used again and again
        encoded.encoded(counting, [text], 7)
        for file in folder.iterdir():
            used = file.stat().st_mtime - 10
            os.utime(file, (used, used))
        assert len(list(folder.iterdir())) == min(n + 1, 3)
    assert counting.texts == 5


@pytest.mark.parametrize(("words", "positions"), [(1, 8), (8, 8), (9, 16), (300, 256)])
def test_a_new_codec_reads_the_longest_text_or_what_may_be_read(words, positions):
    texts = ["a film is", " ".join(["film"] * words)]
    dataset = replace(toy(), train_x=texts)
    for name, kind in (("words", WordTokenizer), ("bpe", BPETokenizer)):
        made = codec.new(dataset, name, 2)
        assert type(made.tokenizer) is kind and made.unknown == 1
        if kind is WordTokenizer:  # a piece is a word or less
            assert made.sizes()["max_length"] == made.max_length == positions
            assert len(made.encode(texts)[1]) == min(words, 256)
        assert made.sizes()["input_size"] == made.tokenizer.vocabulary_size


def test_a_new_codec_of_images_cuts_them():
    images = np.random.default_rng(0).random((5, 4, 6))
    made = codec.new(replace(toy(), kind="images", train_x=images), "words", 2)
    assert made.sizes() == {"input": "patches", "input_size": 4, "max_length": 6}
    expected = patches(images.astype(np.float32), 2)
    for found in (made.encode(images), made.encode_set(list(images))):
        assert len(found) == 5 and found[0].dtype == np.float32
        assert np.array_equal(found, expected)
    assert codec.stored(made) == {}


@pytest.mark.parametrize("kind", codec.TOKENIZERS)
def test_a_new_run_has_tokenised_what_it_learns_from(kind, tmp_path, monkeypatch):
    """The ids that show the longest text are those that training reads."""
    run = begin(tmp_path / "run", toy(), tokenizer=kind)
    expected = run.codec.encode(toy().train_x)
    monkeypatch.setattr(type(run.codec.tokenizer), "encode", lambda *_: 1 // 0)
    fit, held = loop.prepare(run, toy())
    found = [x.tolist() for x in (*fit.inputs, *held.inputs)]
    assert sorted(found) == sorted(x.tolist() for x in expected)
