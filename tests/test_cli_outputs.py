"""What the commands print and write when nothing can be printed or they end too early."""

import dataclasses
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_cli import TINY, call, table
from test_cli_runs import finished, parameters
from typer.testing import CliRunner

from twofold.core import pretrained
from twofold.core.cli import app
from twofold.core.commands import common, embed, predict, training
from twofold.core.training import loop
from twofold.core.verify.foreign import Verdict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory)


def test_training_goes_on_where_nothing_can_be_printed_any_more(run, tmp_path, monkeypatch):
    for fault in (OSError(28, "No space left on device"), SystemExit(1)):  # as rich: a broken pipe

        def broken(*_, fault=fault, **__):
            raise fault

        folder = tmp_path / type(fault).__name__
        monkeypatch.setattr(training.console, "print", broken)
        shown = CliRunner().invoke(
            app, ["train", "--data", f"{run.parent / 'reviews.csv'}", "--out", f"{folder}", *TINY]
        )
        monkeypatch.undo()
        assert shown.exit_code != 0  # the table at the end
        assert parameters(folder) == parameters(run) and (folder / "result.json").exists()


def test_texts_are_printed_as_they_are_but_for_what_steers_a_terminal(run):
    given = "C:\\films\\\n[b]a\tb[/b]\nnice\rfoo\n\x1b[31mred\n"
    lines = CliRunner().invoke(app, ["predict", str(run)], input=given).stdout.splitlines()
    texts = ["C:\\films\\", "[b]a\tb[/b]", "nice\\rfoo", "\\x1b[31mred"]
    assert [line.split("  ", 2)[2] for line in lines] == texts


def test_work_goes_on_where_no_error_can_be_printed(run, tmp_path, monkeypatch):
    """As with 2>/dev/full: a checkpoint is skipped, a signal comes, lines are counted."""

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    shutil.copytree(run, folder := tmp_path / "run")
    shutil.rmtree(folder / "model")
    (folder / "checkpoints" / "1-00000004" / "state.json").write_text("{")
    monkeypatch.setattr(common.errors, "print", broken)
    step = loop._Loop._step

    def stopped(self, *how):
        step(self, *how)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_step", stopped)
        call("train", "--resume", folder, status=130)
    call("train", "--resume", folder)
    assert parameters(folder) == parameters(run)
    call("predict", folder, "--json", tmp_path / "r.json", text="one\n")
    assert (tmp_path / "r.json").exists()
    call("predict", tmp_path, "--json", tmp_path / "r.json", status=2)


def started(*command, **how):
    """Start a command in its own process."""
    whole = [sys.executable, "-m", "twofold.core", *map(str, command)]
    pipe = subprocess.PIPE
    how = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "env": os.environ} | how
    return subprocess.Popen(whole, **how)


def test_an_output_that_is_not_utf_8_says_what_it_can(tmp_path):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    file, out = table(tmp_path / "reviews.csv"), tmp_path / "Läufe"
    file.write_text("text,label\na,x\nb,x\nc,y\nd,y\n")  # without validation, which is a dash
    how = ["--data", file, "--out", out, *TINY, "--json", tmp_path / "r.json"]
    for command, text, words in (
        (["train", *how], "", "run in {0}/L\\xe4ufe\n"),
        (["predict", out], "café\nthe\n", "  caf\\xe9\n"),
        (["train", "--help"], "", "Usage"),
    ):
        said, fault = started(*command, env=env).communicate(text.encode())
        assert words.format(tmp_path) in said.decode("ascii"), fault
        assert b"error" not in fault and b"Traceback" not in fault
    assert said.endswith(b"the\n") or b"Usage" in said
    assert (tmp_path / "r.json").exists()


@pytest.mark.parametrize("command", [["train", "--resume", "RUN"], ["evaluate", "RUN"]])
def test_a_result_is_written_where_nothing_can_be_printed(run, tmp_path, monkeypatch, command):
    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(common.console, "print", broken)
    out, command = tmp_path / "r.json", [str(run) if x == "RUN" else x for x in command]
    assert CliRunner().invoke(app, [*command, "--json", str(out)]).exit_code == 2
    assert "test_accuracy" in json.loads(out.read_text())


def test_a_result_takes_another_ones_place_whole_or_not_at_all(tmp_path, monkeypatch):
    path, link = tmp_path / "r.json", tmp_path / "link"
    path.write_text("before")
    path.chmod(0o640)
    link.symlink_to(path)
    as_it_was = path.stat().st_ino

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ValueError, match=r"--json is '.*r.json'; it must be .*\(No space left"):
            common.write_json(path, {})
    assert path.read_text() == "before" and {*tmp_path.iterdir()} == {path, link}
    common.write_json(link, {})  # as /dev/stdout, which others write to
    assert path.read_text() == "{}\n" and path.stat().st_ino == as_it_was
    common.write_json(path, {"a": 1})
    assert json.loads(link.read_text()) == {"a": 1} and path.stat().st_mode & 0o777 == 0o640


def test_vectors_before_a_line_that_is_refused_are_written(tmp_path):
    out, result = tmp_path / "v.npy", tmp_path / "v.json"
    how = ["embed", "--out", str(out), "--json", str(result)]
    found = CliRunner().invoke(app, how, input=b"one\n\ntwo\ncaf\xe9\n")
    assert found.exit_code == 2 and "standard input, line 4: byte 4" in found.output
    assert np.load(out).shape == (2, 384)
    assert [row["text"] for row in json.loads(result.read_text())["embeddings"]] == ["one", "two"]


def test_vectors_are_lists_of_numbers_only_where_these_are_asked_for(tmp_path):
    class Vectors(np.ndarray):
        def tolist(self):
            raise AssertionError("nobody asked for them")

    vectors, out = np.ones((2, 3)).view(Vectors), tmp_path / "v.npy"
    embed._write("minilm", out, None, ["a", "b"], vectors)
    assert np.array_equal(np.load(out), vectors)
    with pytest.raises(AssertionError, match="nobody asked"):
        embed._write("minilm", out, tmp_path / "v.json", ["a", "b"], vectors)


def test_a_file_of_vectors_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "load", None)  # which would be asked for the model
    (tmp_path / "v.npy").mkdir()
    said = call("embed", "a", "--out", tmp_path / "v.npy", status=2)
    assert "v.npy'; it must be a file that can be written (Is a directory)" in said
    said = call("embed", "a", "--out", tmp_path / "v.txt", status=2)
    assert "v.txt'; it must end with .npy" in said


def test_what_predicts_is_of_the_side_that_was_asked_for(run, tmp_path, reference, monkeypatch):
    """For a run, and for a BERT's folder, which reads as much of a text as it was made for."""
    side = dataclasses.replace(reference)
    assert predict._opened(run, side)[0].ops is side
    bert = pretrained.load("minilm", labels=["no", "yes"])
    pretrained.save(tmp_path, bert.model, bert.tokenizer, bert.labels)
    model, codec, labels = predict._opened(tmp_path, side)
    assert model.ops is side and (codec.max_length, labels) == (bert.longest, ("no", "yes"))
    images = SimpleNamespace(settings=SimpleNamespace(model=SimpleNamespace(input="patches")))
    monkeypatch.setattr(predict.Run, "open", lambda _: images)
    assert f"{run} was trained on images; predict takes texts" in call(
        "predict", run, "a", status=2
    )


def test_labels_do_not_steer_a_terminal(tmp_path):
    file = table(tmp_path / "reviews.csv")
    file.write_text(file.read_text().replace(",yes\n", ",\x1b[31myes\n"))
    call("train", "--data", file, "--out", tmp_path / "run", *TINY, "--epochs", "1")
    assert "\\x1b[31myes" in call("evaluate", tmp_path / "run")


def test_a_line_that_is_not_utf_8_is_refused_after_those_before_it(run, tmp_path):
    out = tmp_path / "p.json"
    found = CliRunner().invoke(
        app, ["predict", str(run), "--json", str(out)], input=b"good\n\ncaf\xe9 great\nbad\n"
    )
    assert found.exit_code == 2
    assert "standard input, line 3: byte 4, 0xe9, is not UTF-8; it must be" in found.output
    assert [p["text"] for p in json.loads(out.read_text())["predictions"]] == ["good"]
    said = call("predict", run, "caf\udce9 great", status=2)
    assert "the text 'caf\\udce9 great' is not UTF-8" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_was_answered_before_an_interruption_is_written(
    run, tmp_path, monkeypatch, request, number
):
    def interrupted(_):
        yield ["one"]
        signal.raise_signal(number)

    # SIGINT is ignored if the parent process ignores it, SIGHUP under nohup.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    request.addfinalizer(lambda: signal.signal(number, before))
    before_it = signal.getsignal(number)
    for command, module in (("predict", predict), ("embed", embed)):
        out = tmp_path / f"{command}.json"
        monkeypatch.setattr(module, "texts_given", interrupted)
        where = [str(run)] if command == "predict" else []
        found = CliRunner().invoke(app, [command, *where, "--json", str(out)])
        assert found.exit_code == 130
        (written,) = (json.loads(out.read_text())[n] for n in ("predictions", "embeddings")
                      if n in json.loads(out.read_text()))  # fmt: skip
        assert [one["text"] for one in written] == ["one"]
    assert signal.getsignal(number) == before_it


@pytest.mark.parametrize(
    "what, asker, asked",
    [
        (("operators", "softmax", "dropout"), "report.verify", ["dropout"]),
        (("properties", "rotary", "--examples", "1"), "contract.check_properties", None),
        (("peers", "torch relu", "torch silu"), "peers.judging._verdict", ["torch silu"]),
    ],
    ids=lambda x: x[0] if isinstance(x, tuple) else "",
)
def test_what_was_judged_before_it_is_cut_off_is_written(what, asker, asked, tmp_path, monkeypatch):
    """And the functions not yet judged are named; at the end there are none."""
    command, *names = what
    written = tmp_path / "found.json"
    name = f"twofold.core.verify.{asker}"
    function, given = pkgutil.resolve_name(name), []
    if command == "peers":  # whose processes take their time
        function = lambda *_: Verdict()  # noqa: E731

    def cut_off(*arguments, **how):
        given.append(arguments)
        if len(given) == 2:
            raise KeyboardInterrupt
        return function(*arguments, **how)

    def left():
        found = json.loads(written.read_text())
        return (found if command == "peers" else found[command]).get("left")

    how = ["--json", str(written)]
    how += ["--side", "reference"] if command != "peers" else ["--examples", "1"]
    how += ["--jobs", "1"] if command != "properties" else []
    how += ["--examples", "0"] if command == "operators" else []
    monkeypatch.setattr(name, cut_off)
    assert CliRunner().invoke(app, ["verify", command, *names, *how]).exit_code != 0
    assert left() == asked if asked else all(x.startswith("rotary: ") for x in left())
    monkeypatch.setattr(name, function)
    call("verify", command, *names, *how)
    assert left() is None
