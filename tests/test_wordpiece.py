"""WordPiece: the ids are those of transformers' own tokenizer, for any text and any pair."""

import json

import pytest
import tokenizers as hf
import transformers
from bert_models import WORDS
from hypothesis import given
from hypothesis import strategies as st

from twofold.core.data.errors import DataError
from twofold.core.data.pretrained import pretrained_folder
from twofold.core.data.tokenizers import load_tokenizer
from twofold.core.data.wordpiece import SPECIAL, WordPieceTokenizer, longest_of

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


@given(TEXTS, TEXTS.filter(bool), st.integers(3, 20))  # an empty second is no text to them
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


def test_pairs_of_all_lengths_are_cut_as_transformers_cuts_them(both):
    """First the longer one, then both to halves; the second gets the odd token."""
    ours, theirs = both
    for first in range(9):
        for second in range(1, 9):
            pair = "film " * first, "plot " * second
            for longest in range(3, 12):
                expected = theirs(*pair, truncation="longest_first", max_length=longest)
                found = ours.encode_pair(*pair, longest).T.tolist()
                assert found == [expected["input_ids"], expected["token_type_ids"]]


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


def test_a_files_own_cutting_and_padding_are_left_out(both):
    """Sentence transformers save files with both; the longest text is set elsewhere."""
    ours, _ = both
    theirs = hf.Tokenizer.from_str(json.dumps(json.loads(ours.to_json())["tokenizer"]))
    theirs.enable_truncation(4)
    theirs.enable_padding(length=9)
    made = WordPieceTokenizer(theirs)
    for text in ("film", "film " * 20):
        assert made.encode(text, 16).tolist() == ours.encode(text, 16).tolist()
    assert len(made.encode("film " * 20, 16)) == 16


@pytest.mark.parametrize("lower_case", [True, False])
@pytest.mark.parametrize("alone", [True, False])  # the vocabulary, without tokenizer.json
def test_case_matters_in_what_is_written_as_it_did(tmp_path, lower_case, alone):
    tokens = [*SPECIAL, *WORDS, "Film"]
    made = WordPieceTokenizer.of_vocabulary(tokens, lower_case=lower_case)
    for name, text in made.files(9).items():
        if not (alone and name == "tokenizer.json"):
            (tmp_path / name).write_text(text)
    expected = [tokens.index(t) for t in ("[CLS]", "film" if lower_case else "Film", "[SEP]")]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert WordPieceTokenizer.read(tmp_path).encode("Film", 9).tolist() == expected
    assert theirs("Film")["input_ids"] == expected and theirs.model_max_length == 9
    assert longest_of(tmp_path, 99) == 9 and longest_of(tmp_path, 5) == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{", "is no JSON ("),
        ("[]", "is no JSON object"),
        ('{"model_max_length": "9"}', "model_max_length is '9'; it must be a number from 1 on"),
        ('{"model_max_length": 0}', "model_max_length is 0; it must be a number from 1 on"),
        ('{"model_max_length": NaN}', "model_max_length is nan; it must be a number from 1 on"),
    ],
)
def test_settings_that_say_nothing_are_refused(tmp_path, settings, words):
    path = tmp_path / "tokenizer_config.json"
    assert longest_of(tmp_path, 7) == 7
    path.write_text(settings)
    with pytest.raises(DataError) as refusal:
        longest_of(tmp_path, 7)
    assert str(refusal.value).startswith(f"{path}: {words}")
    path.write_text('{"model_max_length": 1}')
    assert longest_of(tmp_path, 7) == 1


def test_a_text_of_millions_of_characters_costs_no_more_than_it_shows(both):
    ours, _ = both
    assert len(ours.encode("film " * 2_000_000, 16)) == 16
    assert ours.encode("\ud800 film", 16).tolist() == ours.encode("? film", 16).tolist()
    with pytest.raises(ValueError, match="max_length is 1; it must be at least 2"):
        ours.encode("film", 1)
