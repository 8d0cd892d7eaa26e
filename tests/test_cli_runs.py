"""What can happen to a run's folder from outside: other options, data, processes, a full disk."""

import datetime
import json
import resource
import shutil
import types

import numpy as np
import pytest
from outside import twofold
from test_cli import TINY, call, table

from twofold.core.commands import lines, training
from twofold.core.commands.train import _check_kind
from twofold.core.data.datasets import Dataset
from twofold.core.training import checkpoints
from twofold.core.training.run import Run, RunError, held


def finished(tmp_path_factory):
    """Return the folder of a finished run on a file."""
    folder = tmp_path_factory.mktemp("runs")
    file = table(folder / "reviews.csv")
    call("train", "--data", file, "--out", folder / "run", *TINY)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory)


@pytest.fixture
def unfinished(run, tmp_path):
    """Return the same run, stopped at its last checkpoint."""
    folder = tmp_path / "unfinished"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "model")
    (folder / "result.json").unlink()
    return folder


def parameters(folder):
    return (folder / "model" / "tensors.safetensors").read_bytes()


@pytest.mark.parametrize(
    "option", [["--epochs", "9"], ["--data", "movie"], ["--side", "triton"], ["--quick"]]
)
@pytest.mark.parametrize("command", ["train", "finetune"])
def test_options_beside_resume_are_refused_and_not_passed_over(unfinished, command, option):
    was = option[1] if option[1:] else True
    said = call(command, "--resume", unfinished, *option, status=2)
    assert f"{option[0]} is {str(was)!r}; with --resume it must be left out" in said
    assert not (unfinished / "model").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--patch", "3"], "--patch is 3; it must be left out where data is text"),
        (["--json", "FOLDER"], "it must be a file that can be written (Is a directory)"),
        (["--json", "FILE/r.json"], "it must be a file that can be written (File exists)"),
    ],
)
def test_options_are_refused_before_a_run_is_begun(run, tmp_path, options, words):
    places = {"FOLDER": str(tmp_path), "FILE/r.json": str(run / "run.json" / "r.json")}
    options = [places.get(x, x) for x in options]
    file, out = run.parent / "reviews.csv", tmp_path / "run"
    said = call("train", "--data", file, "--out", out, *TINY, *options, status=2)
    assert options[0] in said and words in said
    assert not out.exists()


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "RUN", "a"], ["evaluate", "RUN"], ["embed", "a"], ["bench", "rotary"],
        ["verify", "operators"], ["verify", "properties"], ["verify", "tightness"],
        ["verify", "compile"], ["verify", "mutants"], ["verify", "lockstep"], ["verify", "peers"],
        ["verify", "json:dumps"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_result_that_cannot_be_written_is_refused_before_the_work(run, tmp_path, command):
    command = [str(run) if x == "RUN" else x for x in command]
    said = call(*command, "--json", tmp_path, status=2)
    assert said == (
        f"error: --json is '{tmp_path}'; it must be a file that can be written (Is a directory)"
    )


def test_options_for_texts_are_refused_for_images():
    y = np.array([0, 1])
    images = Dataset("i", "images", ("a", "b"), np.zeros((2, 4, 6)), y, None, y, None, "made")
    for given, patch, words in (
        ({"tokenizer": "bpe"}, 2, "^tokenizer is 'bpe'; it must be left out where data is ima"),
        ({"word_dropout": 0.1}, 2, "^word_dropout is 0.1; it must be left out"),
        ({"patch": 4}, 4, "^patch is 4; it must be a divisor of both 4 and 6"),
        ({"patch": 3}, 3, "^patch is 3; it must be a divisor of both 4 and 6"),
        ({"patch": 0}, 0, "^patch is 0; it must be a divisor of both 4 and 6"),
    ):
        with pytest.raises(ValueError, match=words):
            _check_kind(images, given, patch)
    _check_kind(images, {"patch": 2}, 2)


def test_columns_are_refused_where_data_is_no_file(tmp_path):
    for role in ("text", "label"):
        how = ["--data", "movie", f"--{role}-column", "x", "--out", tmp_path / "run"]
        said = call("train", *how, status=2)
        assert f"--{role}-column is 'x'; it must be left out: movie is no file" in said


def test_a_folder_that_cannot_be_made_is_refused_by_name(run):
    file = run.parent / "reviews.csv"
    said = call("train", "--data", file, "--out", file, *TINY, status=2)
    assert f"--out is '{file}', a file; it must be a folder's name" in said
    said = call("train", "--data", file, "--out", file / "run", *TINY, status=2)
    assert f"the run's folder is '{file / 'run'}'; it must be one that can be made (Not a d" in said


def test_other_data_than_the_run_was_begun_with_is_not_evaluated(run, tmp_path):
    file = table(tmp_path / "reviews.csv")
    call("train", "--data", file, "--out", tmp_path / "run", *TINY)
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join((head, *reversed(rows))) + "\n")  # other examples are held out now
    said = call("evaluate", tmp_path / "run", status=2)
    assert f"is not the data that {tmp_path / 'run'} was begun with" in said


def test_a_run_goes_on_with_the_settings_that_it_was_begun_with(unfinished):
    path = unfinished / "run.json"
    settings, latest = (
        json.loads(path.read_text()),
        checkpoints.names(unfinished / "checkpoints")[1],
    )
    for part, name, value in (("recipe", "seed", 7), ("model", "dropout", 0.125)):
        changed = {**settings, part: {**settings[part], name: value}}
        path.write_text(json.dumps(changed))
        was = f"run.json: {name} is {value}; it must be {settings[part][name]}, with which {latest}"
        assert was in call("train", "--resume", unfinished, status=2)
    settings["recipe"]["checkpoint_steps"] = 1  # which changes no bit
    path.write_text(json.dumps(settings))
    call("train", "--resume", unfinished)


def test_a_checkpoint_of_another_version_is_refused_by_name(unfinished):
    latest = checkpoints.names(unfinished / "checkpoints")[1]
    tensors, state = checkpoints.load(latest)
    checkpoints.save(latest, tensors, state | {"newer": 1})
    said = call("train", "--resume", unfinished, status=2)
    assert f"{latest} holds 'newer'; it must be of this version of twofold, or older" in said


def test_a_checkpoint_of_another_size_is_refused_by_name(unfinished):
    for path in checkpoints.names(unfinished / "checkpoints"):
        tensors, state = checkpoints.load(path)
        del state["choices"]  # as in versions without any
        checkpoints.save(path, tensors, state)
    settings = json.loads((unfinished / "run.json").read_text())
    settings["model"]["d_model"] //= 2  # with fewer parameters: there are enough to read
    (unfinished / "run.json").write_text(json.dumps(settings))
    said = call("train", "--resume", unfinished, status=2)
    assert "the checkpoint's params.shape is (" in said
    settings["model"]["d_model"] *= 2
    settings["recipe"]["optimizer"] = "sgd"
    (unfinished / "run.json").write_text(json.dumps(settings))
    said = call("train", "--resume", unfinished, status=2)
    assert "the checkpoint's momentum is a NoneType" in said


def test_a_run_learns_where_no_class_has_enough_examples_for_validation(tmp_path):
    rows = [f"word{i} film,c{i // 2}" for i in range(40)]
    file, out = tmp_path / "few.csv", tmp_path / "run"
    file.write_text("\n".join(("text,label", *rows)) + "\n")
    said = call("train", "--data", file, "--out", out, *TINY, "--patience", "1")
    assert "validation —" in said
    assert json.loads((out / "result.json").read_text())["validation_accuracy"] is None


def test_names_of_files_are_no_markup(tmp_path):
    file, out = table(tmp_path / "reviews.csv"), tmp_path / "[red]run[bold]"
    file = file.rename(tmp_path / "[b]a.csv")
    said = call("train", "--data", file, "--out", out, *TINY)
    assert f"{file}, 80 examples" in said and f"run in {out}" in said
    assert f"{out / 'plot.png'}" in said
    (out / "result.json").unlink()
    with held(out):
        assert f"{out} is being written" in call("train", "--resume", out, status=2)


def test_a_file_of_vectors_that_cannot_be_written_is_refused_by_name(tmp_path):
    (tmp_path / "full.npy").symlink_to("/dev/full")
    said = call("embed", "a", "--out", tmp_path / "full.npy", status=2)
    assert f"--out is '{tmp_path / 'full.npy'}'; it must be a file that can be written" in said
    assert "(No space left on device)" in said


def test_no_standard_input_is_no_text(run, monkeypatch):
    monkeypatch.setattr(lines.sys, "stdin", None)
    with pytest.raises(ValueError, match="^no text was given, as an argument or on standard inp"):
        list(lines.texts_given(None))


def test_a_divergence_that_the_test_part_shows_is_one(tmp_path):
    file = tmp_path / "few.csv"
    file.write_text("text,label\na b,x\nc d,x\ne f,y\ng h,y\n")  # without validation
    how = ["--data", file, "--out", tmp_path / "run", *TINY, "--epochs", 1, "--lr", 1e38]
    said = call("train", *how, "--parts", 1, status=1)
    assert "error: step 1: a logit is not finite" in said and "a smaller --lr is the" in said


def test_a_picture_that_is_not_there_is_drawn_or_not_named(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    picture = tmp_path / "run" / "plot.png"
    drawn = picture.read_bytes()
    picture.unlink()
    assert str(picture) in call("train", "--resume", tmp_path / "run")
    assert picture.read_bytes() == drawn
    picture.unlink()
    (tmp_path / "run" / "metrics.csv").unlink()
    said = call("train", "--resume", tmp_path / "run")
    assert "no picture: [Errno 2]" in said
    assert f"parameters; {picture}" not in said


def test_a_changed_result_is_refused_by_name(run, unfinished):
    shutil.copytree(run / "model", unfinished / "model")
    (unfinished / "result.json").write_text('{"test_acc')
    said = call("train", "--resume", unfinished, status=2)
    assert "result.json is no result: Unterminated string" in said


def test_two_processes_do_not_write_to_one_folder(unfinished, monkeypatch):
    said = []

    def while_training(*_):
        said.append(call("train", "--resume", unfinished, status=2))
        raise training.Interrupted("stopped")

    monkeypatch.setattr(training, "train", while_training)
    call("train", "--resume", unfinished, status=130)
    monkeypatch.undo()
    assert f"{unfinished} is being written by another process; wait for it" in said[0]
    with held(unfinished), pytest.raises(RunError, match="is being written by another process"):
        Run.create(unfinished, *((opened := Run.open(unfinished)).settings, opened.codec))
    call("train", "--resume", unfinished)  # nobody holds the lock now


def test_a_full_disk_leaves_what_was_there_and_says_where(run, tmp_path):
    """A process may write no file longer than a checkpoint of the first parameters."""
    folder, file = tmp_path / "run", run.parent / "reviews.csv"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    how = ["--data", file, "--out", folder, *TINY]
    done = twofold("train", *how, preexec_fn=limited)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2, done.stderr
    assert "File too large" in said and "tensors.safetensors'. Checkpoints are in" in said
    assert f"go on with: twofold train --resume {folder}" in said
    assert not list((folder / "checkpoints").iterdir())  # no half-written file takes up room
    call("train", "--resume", folder)
    assert parameters(folder) == parameters(run)


@pytest.mark.parametrize("lost", ["model", "model/state.json", "half of the tensors"])
def test_a_model_that_was_lost_is_made_anew(run, tmp_path, lost):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    if lost == "model":
        shutil.rmtree(folder / lost)
    elif lost == "model/state.json":
        (folder / lost).unlink()
    else:
        (folder / "model" / "tensors.safetensors").write_bytes(parameters(run)[:500])
    said = call("predict", folder, "a", status=2)
    assert f"it is made anew of the last checkpoint by: twofold train --resume {folder}" in said
    call("train", "--resume", folder)
    assert parameters(folder) == parameters(run)
    call("predict", folder, "a")


def test_a_lost_vocabulary_is_named(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_text("{")
    said = call("predict", tmp_path / "run", "a", status=2)
    assert f"{tmp_path / 'run'} has no vocabulary that fits it: " in said
    (tmp_path / "run" / "tokenizer.json").unlink()
    assert "tokenizer.json: cannot be read (No such file" in call(
        "predict", tmp_path / "run", "a", status=2
    )


def test_another_vocabulary_than_the_run_was_begun_with_is_refused(run, tmp_path):
    shutil.copytree(run, folder := tmp_path / "run")
    path, settings = folder / "tokenizer.json", json.loads((run / "run.json").read_text())
    words = path.read_text()
    path.write_text(words.replace("lovely", "pretty"))
    assert words != path.read_text()
    for command in (["train", "--resume", folder], ["predict", folder, "a"], ["evaluate", folder]):
        said = call(*command, status=2)
        assert f"{folder} has no vocabulary that fits it: the sha256 of tokenizer.json is" in said
    del settings["tokenizer_sha256"]  # as before there was one
    (folder / "run.json").write_text(json.dumps(settings))
    call("predict", folder, "a")


def test_folders_that_nobody_named_are_apart(tmp_path, monkeypatch):
    """For runs that begin in the same second."""
    now = datetime.datetime(2026, 1, 2, 3, 4, 5)
    at_once = types.SimpleNamespace(datetime=types.SimpleNamespace(now=lambda: now))
    monkeypatch.setattr(training, "datetime", at_once)
    monkeypatch.chdir(tmp_path)
    made = [str(training.new_folder("data/x.csv")) for _ in range(3)]
    first = "runs/x-2026-01-02-030405"
    assert made == [first, f"{first}-2", f"{first}-3"]


def test_a_model_without_room_leaves_no_run(run, tmp_path):
    how = ["--data", run.parent / "reviews.csv", "--out", tmp_path / "run", *TINY]
    said = call("train", *how, "--d-model", 1000000, status=2)
    assert "Unable to allocate" in said and "smaller --d-model, --d-ff" in said
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_no_room_any_more_stays(unfinished, monkeypatch):
    """Even if it has no checkpoint yet to resume from."""

    def full(*_):
        raise MemoryError

    shutil.rmtree(unfinished / "checkpoints")
    before = sorted(path.name for path in unfinished.iterdir())
    monkeypatch.setattr(training, "finish", full)
    said = call("train", "--resume", unfinished, status=2)
    assert said.startswith("error: out of memory; smaller --d-model")
    assert said.endswith(f"Checkpoints are in {unfinished / 'checkpoints'}")
    assert sorted(path.name for path in unfinished.iterdir()) == before


def test_labels_by_other_names_are_other_data(tmp_path):
    file, folder = table(tmp_path / "reviews.csv"), tmp_path / "run"
    call("train", "--data", file, "--out", folder, *TINY)
    file.write_text(file.read_text().replace(",yes\n", ",zes\n"))
    for command in (["evaluate", folder], ["train", "--resume", folder]):
        said = call(*command, status=2)
        assert f"is not the data that {folder} was begun with: its labels are now no, zes" in said


def test_one_example_at_a_time_has_one_part(run, tmp_path):
    how = ["--data", run.parent / "reviews.csv", "--out", tmp_path / "run", *TINY]
    call("train", *how, "--batch-size", 1, "--epochs", 1)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["parts"] == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train", "--data", ""], "'': there is no such file; it must be one of"),
        (["train", "--data", "FOLDER"], "is a folder; it must be one of"),
        (["train", "--data", "FILE", "--out", "."], "is '.', where we are; it must be a folder of"),
        (["train", "--data", "FILE", "--label-column", "x"], "is the label (--label-column)"),
        (["train", "--data", "FILE", "--d-model", "6", "--heads", "2"], "--d-model / --heads is 3"),
        (["train", "--tokenizer", "x"], "error: --tokenizer is 'x'; it must be words or bpe"),
        (["finetune", "--init", ""], "'': there is no such folder"),
        (["finetune", "--init", "FILE"], "is a file; it must be a folder, or 'minilm'"),
        (["finetune", "--dropout", "2"], "error: --dropout is 2.0; it must be at least 0 and belo"),
        (["finetune", "--pooling", "first"], "--pooling is 'first'; it must be one of 'mean', 'ma"),
        (["bench", "rotary", "--plots", "FILE"], "--plots is 'FILE'; it must be a folder that can"),
        (["verify", "nowhere:f"], "not judged: nowhere:f as attention"),
        (["verify", "json:dumps"], "the function takes (obj, *, skipkeys"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_by_the_options_name(run, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    places = {"FOLDER": str(tmp_path), "FILE": str(run.parent / "reviews.csv")}
    said = call(*(places.get(x, x) for x in command), status=2)
    assert words.replace("FILE", places["FILE"]) in said
    assert not list(tmp_path.iterdir())


def test_names_of_users_are_not_taken_for_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data in ("batch_size/nofile.csv", "my batch_size.csv", "data batch_size x.csv"):
        assert f"{data}: there is no such file" in call("train", "--data", data, status=2)
    (tmp_path / "a.csv").write_text("text,the batch_size,d_model\na,x,1\nb,y,2\n")
    said = call("train", "--data", "a.csv", status=2)
    assert "the label (--label-column): 'text', 'the batch_size', 'd_model'" in said
