"""WordPiece: the ids of transformers' own tokenizer, for any text and any pair."""

import json

import pytest
import transformers
from bert_models import WORDS
from hypothesis import given
from hypothesis import strategies as st

from twofold.core.data.pretrained import pretrained_folder
from twofold.core.data.tokenizers import load_tokenizer
from twofold.core.data.wordpiece import SPECIAL, WordPieceTokenizer

SAMPLES = ("Film", "awfully", "naïve", "電影", "[SEP]", "don't", "x" * 120, "\t")
TEXTS = st.text(max_size=40) | st.lists(st.sampled_from(SAMPLES)).map(" ".join)


@pytest.fixture(scope="module")
def both():
    folder = pretrained_folder("minilm")
    return WordPieceTokenizer.read(folder), transformers.AutoTokenizer.from_pretrained(folder)


@given(TEXTS, st.integers(2, 20))
def test_a_text_has_the_ids_of_transformers(both, text, longest):
    ours, theirs = both
    found = ours.encode(text, longest)
    assert found.tolist() == theirs(text, truncation=True, max_length=longest)["input_ids"]


@given(TEXTS, TEXTS.filter(bool), st.integers(3, 20))  # an empty second is none to them
def test_a_pair_has_the_ids_and_types_of_transformers(both, first, second, longest):
    ours, theirs = both
    found = ours.encode_pair(first, second, longest)
    expected = theirs(first, second, truncation="longest_first", max_length=longest)
    assert found[:, 0].tolist() == expected["input_ids"]
    assert found[:, 1].tolist() == expected["token_type_ids"]


@given(TEXTS)
def test_a_vocabulary_alone_makes_the_same_tokenizer(both, text):
    ours, _ = both
    tokens = ours.files(64)["vocab.txt"].splitlines()
    made = WordPieceTokenizer.of_vocabulary(tokens)
    assert made.encode(text, 64).tolist() == ours.encode(text, 64).tolist()


def test_it_survives_json(both):
    ours, _ = both
    again = load_tokenizer(ours.to_json())
    assert isinstance(again, WordPieceTokenizer)
    assert again.encode("A film.", 9).tolist() == ours.encode("A film.", 9).tolist()
    assert again.vocabulary_size == 30522


def test_case_matters_where_the_settings_say_so(tmp_path):
    tokens = [*SPECIAL, *WORDS, "Film"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    lower = WordPieceTokenizer.read(tmp_path).encode("Film", 5)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    kept = WordPieceTokenizer.read(tmp_path).encode("Film", 5)
    assert [tokens[i] for i in (lower[1], kept[1])] == ["film", "Film"]


def test_a_text_of_millions_of_characters_costs_no_more_than_it_shows(both):
    ours, _ = both
    assert len(ours.encode("film " * 2_000_000, 16)) == 16
    assert ours.encode("\ud800 film", 16).tolist() == ours.encode("? film", 16).tolist()
    with pytest.raises(ValueError, match="max_length is 1; it must be at least 2"):
        ours.encode("film", 1)
