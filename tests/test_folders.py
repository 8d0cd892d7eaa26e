"""A run's folder: foreign files in it are neither touched nor taken for the run's."""

import shutil
from pathlib import Path

import pytest
from test_cli import TINY, call, table
from test_training import begin, toy

from twofold.core import whole
from twofold.core.commands import training
from twofold.core.training import checkpoints
from twofold.core.training.run import RunError

USERS = (".config.old", ".bashrc.old", ".notes.part", ".model.old", ".thesis.12.old")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Return a file of texts."""
    return table(tmp_path_factory.mktemp("folders") / "reviews.csv")


def content(folder):
    """Return the files in a folder, and what is in them."""
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    "name", ["model/mine.bin", "result.json", "tokenizer.json", "huggingface/README.md", USERS[0]]
)
def test_a_folder_in_which_anything_is_becomes_no_run(file, tmp_path, name):
    out = tmp_path / "mine"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    before = content(out)
    held = name.split("/")[0]
    # The data are not even looked for.
    for data in (file, tmp_path / "nowhere.csv"):
        said = call("train", "--data", data, "--out", out, *TINY, status=2)
        must = "it must be empty, or not there yet"
        assert said == f"error: --out is '{out}', which holds {held}; {must}"
    with pytest.raises(RunError, match="^the run's folder is '.*mine', which holds "):
        begin(out, toy())
    assert content(out) == before


def test_where_we_are_becomes_no_run_though_it_is_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for here in (Path("."), tmp_path):
        with pytest.raises(RunError, match="where we are; it must be a folder of its own$"):
            begin(here, toy())
    assert not content(tmp_path)


def test_an_empty_folder_becomes_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    assert begin(tmp_path / "run", toy()).folder.is_dir()


@pytest.mark.parametrize("name", ["run.json", "tokenizer.json"])
def test_a_run_whose_beginning_failed_can_be_begun_again(tmp_path, monkeypatch, name):
    out, write = tmp_path / "run", whole.write_synced

    def full(path, content):
        write(path, content)
        if name in path.name:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(whole, "write_synced", full)
        begin(out, toy())
    assert not content(out)

    def killed(path, written):
        write(path, written)
        if name in path.name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(whole, "write_synced", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans nothing up
        begin(out, toy())
    assert content(out)
    (out / f".{name}.77.part").write_text("another process's half")
    assert {path.name for path in begin(out, toy()).folder.iterdir()} == {
        "run.json", "tokenizer.json"
    }  # fmt: skip


def test_a_run_is_unmade_only_where_nothing_was_done_yet(tmp_path):
    """And other files beside it stay."""
    begun, noted, trained = (begin(tmp_path / name, toy()) for name in ("a", "b", "c"))
    (noted.folder / "notes.txt").write_text("mine")
    checkpoints.save(trained.checkpoints / "0-00000000", {}, {})
    before = content(trained.folder)
    assert begun.discard() and not begun.folder.exists()
    assert noted.discard() and [path.name for path in noted.folder.iterdir()] == ["notes.txt"]
    assert not trained.discard() and content(trained.folder) == before


def test_a_run_that_is_gone_on_with_is_not_unmade(file, tmp_path, monkeypatch):
    """If there is no room for it; a new one is."""
    out = tmp_path / "run"
    call("train", "--data", file, "--out", out, *TINY, "--epochs", "1")
    for name in ("checkpoints", "model"):
        shutil.rmtree(out / name)

    def large(*_):
        raise MemoryError

    monkeypatch.setattr(training, "finish", large)
    before = content(out)
    said = call("train", "--resume", out, status=2)
    assert f"out of memory; {training.SMALLER}. Checkpoints are in {out / 'checkpoints'}" in said
    assert content(out) == before
    call("train", "--data", file, "--out", tmp_path / "new", *TINY, status=2)
    assert not (tmp_path / "new").exists()


def test_what_another_run_left_is_not_taken_for_a_new_ones(file, tmp_path):
    out = tmp_path / "run"
    call("train", "--data", file, "--out", out, *TINY)
    said = call("train", "--data", file, "--out", out, *TINY, status=2)
    assert f"yet; --resume {out} goes on with the run in it" in said
    (out / "run.json").unlink()
    other = table(tmp_path / "other.csv", seed=1)
    how = ["--data", other, "--out", out, *TINY, "--json", tmp_path / "r.json"]
    for name in ("model", "result.json"):
        said = call("train", *how, status=2)
        assert f"--out is '{out}', which holds checkpoints, metrics.csv, " in said
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not (tmp_path / "r.json").exists()


def test_only_what_a_run_wrote_itself_is_swept(tmp_path):
    run = begin(tmp_path / "run", toy())
    checkpoints.save(run.checkpoints / "0-00000001", {}, {})
    for folder in (run.folder, run.checkpoints):
        for name in USERS:
            (folder / name).write_text("mine")
    files = ("run.json", "tokenizer.json", "result.json", "metrics.csv", "plot.png")
    ours = [run.folder / f".{name}.77.part" for name in (*files, "model", "huggingface")]
    ours += [run.folder / ".model.77.old", run.checkpoints / ".0-00000002.77.part"]
    for path in ours:
        path.mkdir()
    run.sweep()
    whole.put_back(run.checkpoints, checkpoints.NAME.fullmatch)
    checkpoints.prune(run.checkpoints)
    assert not [path for path in ours if path.exists()]
    for folder in (run.folder, run.checkpoints):
        assert {path.name for path in folder.iterdir()} >= {*USERS}
