"""The command line as its users meet it: files in, runs out, errors without stack traces."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from outside import twofold
from typer.testing import CliRunner

from twofold.core.cli import app
from twofold.core.commands import evaluate, training
from twofold.core.commands.lines import texts_given
from twofold.core.training.run import Run
from twofold.core.verify import lockstep as locksteps

TINY = ["--d-model", "16", "--heads", "2", "--d-ff", "24", "--epochs", "4", "--side", "reference"]
RESULT = {"test_accuracy", "validation_accuracy", "seconds", "seed"}
RESULT |= {"steps_per_second", "waiting_share"}


def call(*arguments, status=0, text=None):
    found = CliRunner().invoke(app, [str(a) for a in arguments], input=text)
    assert found.exit_code == status, found.output
    assert "Traceback" not in found.output
    return " ".join(found.output.split())


def table(path, separator=",", seed=0):
    rng = np.random.default_rng(seed)
    rows = [separator.join(("text", "label"))]
    for i in range(80):
        word, label = (("lovely", "yes"), ("awful", "no"))[i % 2]
        filler = " ".join(rng.choice(["film", "plot", "cast", "score"], 4))
        rows.append(f"{filler} {word} {i}{separator}{label}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a finished run on a file, and its result."""
    folder = tmp_path_factory.mktemp("cli")
    file = table(folder / "reviews.csv")
    output = folder / "result.json"
    call("train", "--data", file, "--out", folder / "run", "--json", output, *TINY)
    return folder / "run", json.loads(output.read_text())


def test_train_leaves_a_run_behind(run):
    folder, result = run
    assert result.keys() >= RESULT
    assert {"majority", "bag_of_words"} <= result["baselines"].keys()
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "run.json",
        "tokenizer.json",
        "metrics.csv",
        "model",
        "plot.png",
        "result.json",
    }
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    assert header == "phase,epoch,step,lr,loss,grad_norm,validation_accuracy,seconds" and rows
    assert json.loads((folder / "result.json").read_text()) == result


def test_evaluate_finds_what_training_found(run, tmp_path):
    folder, result = run
    said = call("evaluate", folder, "--json", tmp_path / "e.json", "--side", "reference")
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["test_accuracy"] == result["test_accuracy"]
    assert set(found["recall"]) == {"yes", "no"} and "recall" in said


def test_evaluate_says_what_follows_from_the_probabilities(run, tmp_path, monkeypatch):
    """A class that is missing from the test part has no recall."""
    folder, _ = run
    opened, dataset = training.reopened(folder)
    y = np.array([0, 0, 0, 1, 1])
    p = np.array([[0.5, 0.3, 0.2], [0.25, 0.7, 0.05], [0.6, 0.2, 0.2], [0.0, 1.0, 0.0], [1, 0, 0]])
    labels = ("a", "b", "c")
    dataset = dataclasses.replace(dataset, test_x=["film"] * 5, test_y=y, labels=labels)
    opened = dataclasses.replace(opened, settings=SimpleNamespace(data="d", labels=labels))
    monkeypatch.setattr(Run, "load_model", lambda *_: None)
    monkeypatch.setattr(evaluate, "reopened", lambda _: (opened, dataset))
    monkeypatch.setattr(evaluate, "predict", lambda *_: p.astype(np.float32))
    said = call("evaluate", folder, "--json", tmp_path / "e.json", "--side", "reference")
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["recall"] == {"a": 2 / 3, "b": 1 / 2}
    assert (found["test_accuracy"], found["test_examples"], found["data"]) == (3 / 5, 5, "d")
    loss = -np.log([0.5, 0.25, 0.6, 1.0, 1e-30]).mean()  # for 0, that
    assert found["test_loss"] == pytest.approx(loss, rel=1e-6)
    assert f"test accuracy 0.6000, loss {loss:.4f} nats, 5 examples" in said


def test_predict_takes_arguments_and_lines(run, tmp_path):
    folder, _ = run
    texts = ["film lovely plot", "awful [cast]"]
    how = ["--json", tmp_path / "a.json", "--side", "reference"]
    said = call("predict", folder, *texts, *how)
    lines = "\n".join(texts) + "\n\n"
    call("predict", folder, "--json", tmp_path / "b.json", "--side", "reference", text=lines)
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in "ab")
    assert first == second
    for text, prediction in zip(texts, first["predictions"], strict=True):
        assert prediction["text"] == text
        probabilities = prediction["probabilities"]
        assert max(probabilities, key=probabilities.get) == prediction["label"]
        assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-6)
        assert f"{prediction['label']} {max(probabilities.values()):.3f} {text}" in said
    call("predict", folder, "--json", tmp_path / "c.json", text="\n", status=2)
    assert not (tmp_path / "c.json").exists()


def test_resuming_a_finished_run_trains_no_more(run, tmp_path):
    folder, result = run
    call("train", "--resume", folder, "--json", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == result


def test_the_same_seed_gives_the_same_model(run, tmp_path):
    folder, _ = run
    call("train", "--data", folder.parent / "reviews.csv", "--out", tmp_path / "run", *TINY)
    first, second = (
        (path / "model" / "tensors.safetensors").read_bytes() for path in (folder, tmp_path / "run")
    )
    assert first == second


def test_other_data_than_the_run_was_begun_with_is_refused(run, tmp_path):
    file = table(tmp_path / "reviews.csv")
    interrupted = tmp_path / "run"
    call("train", "--data", file, "--out", interrupted, *TINY)
    (interrupted / "result.json").unlink()
    file.write_text(file.read_text().replace("lovely", "pretty"))
    said = call("train", "--resume", interrupted, status=2)
    assert "is not the data that" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--data", "nowhere.csv"], "nowhere.csv: there is no such file"),
        (["train", "--epochs", "0"], "--epochs is 0; it must be at least 1"),
        (["train", "--optimizer", "x"], "--optimizer is 'x'; it must be one of"),
        (["train", "--heads", "3"], "--heads is 3; it must be a divisor of --d-model, 128"),
        (["train", "--tokenizer", "x"], "--tokenizer is 'x'; it must be words or bpe"),
        (["train", "--resume", "nowhere"], "nowhere is no run"),
        (["evaluate", "nowhere"], "nowhere is no run"),
        (["predict", "nowhere", "text"], "nowhere is no run"),
        (["verify", "attentoin"], "operator is 'attentoin'; it must be one of attention"),
        (["verify", "properties", "--at", "x=1"], "--at is a field of one operator's case"),
        (["verify", "properties", "rotary", "--at", "x=1"], "--at is 'x=1'; it must be name=value"),
        (
            ["verify", "properties", "rotary", "--at", "batch=two"],
            "--at is 'batch=two'; the value must be of type int and at least 0",
        ),
        (
            ["verify", "properties", "rotary", "--at", "batch=-1"],
            "--at is 'batch=-1'; the value must be of type int and at least 0",
        ),
        (["verify", "--side", "x"], "--side is 'x'; it must be auto"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input_is_refused_without_a_stack_trace(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in call(*arguments, status=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"text,label\na,x\nb,x\n", "'x'"),
        (b"text,class\na,x\nb,y\n", "label"),
        (b"text,label\na,x\n\xff\xfe,y\n", "line 3"),
        (b"text,label\na,x\nb\x00,y\n", "line 3"),
        (b"text,text,label\na,b,x\n", "text"),
    ],
    ids=["empty", "one class", "no label column", "not UTF-8", "NUL", "duplicate header"],
)
def test_bad_files_are_refused_with_their_name(content, words, tmp_path):
    file = tmp_path / "data.csv"
    file.write_bytes(content)
    said = call("train", "--data", file, "--out", tmp_path / "run", *TINY, status=2)
    assert "data.csv" in said and words in said
    assert not (tmp_path / "run").exists()


def test_verify_tightness_says_how_much_of_a_bound_is_used(tmp_path, monkeypatch):
    from twofold.core.verify import tightness

    monkeypatch.setitem(tightness.SHAPES, "dropout", ({"rows": 5, "columns": 13},))
    how = ["dropout", "--side", "reference", "--json", tmp_path / "t.json"]
    said = call("verify", "tightness", *how)
    assert "0 outside the deterministic bound, 0 outside the probabilistic one" in said
    found = json.loads((tmp_path / "t.json").read_text())["tightness"]
    assert found["holds"] and {row["output"] for row in found["rows"]} == {"out", "dx"}
    assert found["side"] == "reference on cpu" and "numpy" in found["versions"]
    from twofold.reference import dropout

    right = dropout.forward

    def wrong(*arguments):
        out, cache = right(*arguments)
        return 1.1 * out, cache

    monkeypatch.setattr(dropout, "forward", wrong)
    assert "FAIL" in call("verify", "tightness", *how, status=1)


def test_verify_prints_a_table_and_fails_where_a_side_is_wrong(tmp_path, monkeypatch):
    how = ["--side", "reference", "--examples", "3", "--json", tmp_path / "v.json"]
    said = call("verify", "rotary", *how)
    assert "rotary forward" in said and "worst/bound" in said
    found = json.loads((tmp_path / "v.json").read_text())["operators"]
    passes = {row["pass_"] for row in found["rows"]}
    assert found["holds"] and passes == {"forward", "backward", "property"}
    from twofold.reference import rotary

    right = rotary.turn
    monkeypatch.setattr(rotary, "turn", lambda x, *how: right(x, *how) * 1.001)
    said = call("verify", "rotary", *how, status=1)
    assert "FAIL" in said and "it must be" in said
    assert not json.loads((tmp_path / "v.json").read_text())["operators"]["holds"]


def test_train_goes_through_the_kernels_where_asked(triton, tmp_path):
    how = [*TINY[:-4], "--side", "triton", "--epochs", "1", "--batch-size", "64", "--no-refit"]
    file = table(tmp_path / "reviews.csv")
    call("train", "--data", file, "--out", tmp_path / "run", "--json", tmp_path / "r.json", *how)
    assert json.loads((tmp_path / "r.json").read_text())["side"] == "triton"


def test_lockstep_holds_on_the_kernels(triton):
    found = locksteps.lockstep(triton, steps=3)
    worst = max(found, key=lambda d: d.share)
    assert worst.share <= 1.0, worst


class Wrong:
    """The reference with a layer norm whose gradient is a thousandth too large."""

    def __init__(self, side):
        self.side = side

    def __getattr__(self, name):
        return self if name == "layer_norm" else getattr(self.side, name)

    def forward(self, *args, **how):
        return self.side.layer_norm.forward(*args, **how)

    def backward(self, *args, **how):
        gradients = self.side.layer_norm.backward(*args, **how)
        return gradients._replace(dx=gradients.dx * np.float32(1.001))


def test_lockstep_sees_a_wrong_backward(reference):
    for side, holds in ((reference, True), (Wrong(reference), False)):
        worst = max(locksteps.lockstep(side, steps=3), key=lambda d: d.share)
        assert (worst.share <= 1.0) == holds, worst


def test_reading_and_training_need_neither_torch_nor_triton(tmp_path):
    """In a process where they cannot be imported."""
    file = table(tmp_path / "reviews.csv")
    command = ["train", "--data", file, "--out", tmp_path / "run", *TINY[:-2]]
    done = twofold(*command, without=("torch", "triton", "hypothesis", "ml_dtypes"))
    assert done.returncode == 0, done.stderr
    assert "Transformer" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("verify", "rotary"),
        ("verify", "a:f"),
        ("verify", "mutants"),
        ("verify", "peers"),
        ("bench",),
    ],
    ids=" ".join,
)
def test_who_judges_and_races_without_what_kernels_need_is_told_how_to_get_it(command):
    done = twofold(*command, without=("torch", "triton", "hypothesis", "ml_dtypes"))
    assert done.returncode == 2
    assert " is not installed; this needs it: pip install 'twofold[triton]'" in done.stderr


def test_properties_are_checked_and_named_where_a_side_is_wrong(tmp_path, monkeypatch):
    how = ["--side", "reference", "--json", tmp_path / "p.json"]
    said = call("verify", "properties", "rotary", "--at", "length=5", "--at", "batched=True", *how)
    assert "relative position" in said and "holds" in said
    from twofold.reference import rotary

    right = rotary.turn
    monkeypatch.setattr(rotary, "turn", lambda x, *how: right(x, *how) * 1.001)
    said = call("verify", "properties", "rotary", "--examples", "1", *how, status=1)
    assert "fails" in said and "FAIL rotary property 'norms'" in said
    found = json.loads((tmp_path / "p.json").read_text())["properties"]
    assert not found["holds"] and {row["property"] for row in found["rows"]} >= {"norms"}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_are_the_same_however_they_come(monkeypatch, size):
    """In pieces of any size, with byte-order marks before them and two kinds of line ends."""
    given = "\ufefffirst film\r\n\n   \nzweiter, größer\nthe last one has no end".encode()

    class Pipe:
        def __init__(self, rest):
            self.rest = rest

        def read1(self, most):
            piece, self.rest = self.rest[:size], self.rest[size:]
            return piece

    def found(given):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Pipe(given)))
        return [text for lot in texts_given(None) for text in lot]

    assert found(given) == ["first film", "zweiter, größer", "the last one has no end"]
    # It is a mark only at the very beginning; elsewhere it belongs to a text.
    assert found("\n\ufeffone\n".encode()) == ["\ufeffone"]
