"""What a model reads: ids of words and pieces, patches of images."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twofold.core.data.errors import DataError
from twofold.core.data.patches import patches
from twofold.core.data.tokenizers import (
    LONGEST_PIECE,
    UNKNOWN,
    BPETokenizer,
    WordTokenizer,
    load_tokenizer,
    words,
)

# Tokenizers

TEXTS = [
    "It isn't a film; it's THE film.",
    "A film, a film!",
    "isn't it — a naïve filmmaker's one?",
]
TOKENIZERS = (WordTokenizer.train(TEXTS), BPETokenizer.train(TEXTS, 60))


def test_words_keep_apostrophes_and_punctuation() -> None:
    assert list(words("It ISN'T 'so', naïve_1…\n42%")) == [
        *("it", "isn't", "'", "so", "'", ",", "naïve_1", "…", "42", "%")
    ]


def test_word_ids_go_by_count_then_by_spelling() -> None:
    tokenizer = WordTokenizer.train(TEXTS)
    assert tokenizer.vocabulary == ("a", "film", "isn't", "it")
    assert tokenizer.vocabulary_size == 6
    assert tokenizer.encode("It is a FILM", 9).tolist() == [5, UNKNOWN, 2, 3]
    assert WordTokenizer.train(TEXTS, min_count=1).vocabulary_size == 17
    assert WordTokenizer.train([]).vocabulary_size == 2


def test_pieces_make_up_words() -> None:
    tokenizer = BPETokenizer.train(TEXTS, 60)
    assert 30 < tokenizer.vocabulary_size <= 60
    assert len(tokenizer.encode("film", 9)) == 1
    assert 1 < len(tokenizer.encode("filmisn", 9)) < 7
    assert UNKNOWN in tokenizer.encode("film ☃", 9)
    assert BPETokenizer.train(TEXTS * 100).to_json() == BPETokenizer.train(TEXTS * 100).to_json()


def test_pieces_are_as_many_as_often_seen_and_as_long_as_they_may_be() -> None:
    assert BPETokenizer.train(TEXTS * 9, 40).vocabulary_size == 40
    tokenizer = BPETokenizer.train(["qz qz vw"], 99)  # which follow a mark
    assert [len(tokenizer.encode(word, 9)) for word in ("qz", "vw")] == [1, 3]
    long = "x" * LONGEST_PIECE
    tokenizer = BPETokenizer.train([f"{long}x {long}x"], 99)
    assert len(tokenizer.encode(f"{long}x", 9)) > 1
    assert max(map(len, tokenizer._tokenizer.get_vocab())) <= LONGEST_PIECE


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["words", "bpe"])
@given(
    text=st.one_of(st.text(max_size=200), st.lists(st.sampled_from(" ".join(TEXTS).split()))),
    max_length=st.integers(1, 20),
)
def test_encoding(
    tokenizer: WordTokenizer | BPETokenizer, text: str | list[str], max_length: int
) -> None:
    text = text if isinstance(text, str) else " ".join(text)
    ids = tokenizer.encode(text, max_length)
    assert ids.dtype == np.int64
    assert 1 <= len(ids) <= max_length
    assert ids.min() >= UNKNOWN  # padding is never in a text
    assert ids.max() < tokenizer.vocabulary_size
    if not list(words(text)):
        assert ids.tolist() == [UNKNOWN]


@given(st.text(max_size=200), st.integers(1, 20), st.integers(1, 20))
def test_words_come_back_from_ids(text: str, short: int, long: int) -> None:
    assume(short <= long)
    tokenizer = WordTokenizer.train([text], min_count=1)
    ids = tokenizer.encode(text, long)
    np.testing.assert_array_equal(tokenizer.encode(text, short), ids[:short])
    expected = list(words(text))[:long]
    assert [tokenizer.vocabulary[i - 2] for i in ids if i != UNKNOWN] == expected


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["words", "bpe"])
def test_a_tokenizer_is_saved_and_loaded(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    for loaded in (load_tokenizer(path), load_tokenizer(tokenizer.to_json())):
        assert type(loaded) is type(tokenizer)
        assert loaded.to_json() == tokenizer.to_json()
        for text in (*TEXTS, "", "☃", "\ud800", "[PAD] [UNK]", "filmfilm " * 50):
            np.testing.assert_array_equal(loaded.encode(text, 30), tokenizer.encode(text, 30))


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["words", "bpe"])
def test_a_word_of_ten_megabytes_is_encoded(tokenizer) -> None:
    assert len(tokenizer.encode("film" * 2_500_000, 8)) <= 8


def test_what_no_tokenizer_wrote_is_refused(tmp_path: Path) -> None:
    words_of = '{"kind": "words", "vocabulary": %s}'
    for saved in ("{", "{}", words_of % '"a"', words_of % '["a", 1]', '{"kind": "bpe"}'):
        with pytest.raises(DataError, match="JSON: is not what a tokenizer wrote"):
            load_tokenizer(saved)
    with pytest.raises(DataError, match="the kind is 'letters'; it must be 'words', 'bpe' or"):
        load_tokenizer('{"kind": "letters"}')
    with pytest.raises(DataError, match=r"none.json: cannot be read \(No such file"):
        load_tokenizer(tmp_path / "none.json")
    for train, name in (
        (lambda: WordTokenizer.train([], min_count=0), "min_count is 0"),
        (lambda: BPETokenizer.train([], pieces=2), "pieces is 2; it must be above 2"),
        (lambda: TOKENIZERS[0].encode("a", 0), "max_length is 0"),
        (lambda: TOKENIZERS[1].encode("a", 0), "max_length is 0"),
    ):
        with pytest.raises(ValueError, match=name):
            train()


# Patches


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_patches_are_squares_row_by_row(n: int, down: int, right: int, size: int) -> None:
    images = np.arange(n * down * size * right * size, dtype=np.float32)
    images = images.reshape(n, down * size, right * size)
    cut = patches(images, size)
    assert cut.shape == (n, down * right, size * size) and cut.dtype == np.float32
    for i in range(down * right):
        top, left = i // right * size, i % right * size
        square = images[:, top : top + size, left : left + size]
        np.testing.assert_array_equal(cut[:, i], square.reshape(n, -1))


@pytest.mark.parametrize("size", [0, 3, 16])
def test_patches_must_divide_the_image(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}; it must be a divisor of both 8 and 12"):
        patches(np.zeros((2, 8, 12)), size)
