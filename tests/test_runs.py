"""What may happen to a run: plots that fail, foreign files, lost processes."""

import json
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_training import begin, parameters, same_bits, toy, train

from twofold.core.commands import common, training
from twofold.core.data.datasets import DataError
from twofold.core.data.files import read_labelled
from twofold.core.model.classifier import Classifier
from twofold.core.ops import load
from twofold.core.training import checkpoints, loop, plot
from twofold.core.training.processes import ALONE, Lost, Processes
from twofold.core.training.recipe import Recipe, learning_rate
from twofold.core.training.run import METRICS_FILE, RESULT_FILE, SETTINGS_FILE, Run, RunError
from twofold.core.training.settings import located
from twofold.core.training.trainer import Trainer


def test_a_run_is_finished_whatever_becomes_of_its_picture(tmp_path, monkeypatch, capsys):
    run = begin(tmp_path / "run", toy(), epochs=1)
    monkeypatch.setattr(training, "plot", lambda *_: 1 / 0)
    result = training.finish(run, toy(), ALONE)
    training._draw(run, result)
    assert run.finished and run.result() == json.loads(json.dumps(result))
    assert "no picture: division by zero" in capsys.readouterr().err


@pytest.mark.parametrize("refit", [False, True])
def test_a_result_says_what_was_learned_from_what(tmp_path, refit):
    whole = toy()
    dataset = replace(whole, test_x=whole.test_x[:20], test_y=whole.test_y[:20])
    run = begin(tmp_path / "run", dataset, epochs=2, seed=5, refit=refit)
    result, ops = training.finish(run, dataset, ALONE), load("reference")
    assert np.array_equal(
        run.first_model(ops).flat, Classifier(run.settings.model, ops, seed=5).flat
    )
    model = run.load_model(ops)
    judged = [row["validation_accuracy"] for row in run.metrics() if row["phase"] == "fit"]
    taken = 14 + 16 * refit  # of 54 and of 60, by 8, twice
    assert result.items() >= {
        "data": "toy", "side": "reference", "seed": 5, "refit": refit, "init": None,
        "train_examples": 60, "test_examples": 20, "validation_accuracy": judged[-1],
        "test_accuracy": loop.accuracy(model, run.codec.encode(dataset.test_x), dataset.test_y),
        "parameters": sum(x.size for x in model.params.values()),
    }.items()  # fmt: skip
    assert abs(result["steps_per_second"] * result["seconds"] - taken) < 0.3 * taken


ROWS = [
    {"phase": p, "step": n, "loss": 1.0, "validation_accuracy": 0.5}
    for p in ("fit", "refit") for n in (1, 2)
]  # fmt: skip
RESULT = {
    "data": "a$_$b.csv", "parameters": 3, "seed": 0, "test_accuracy": 0.5, "refit": True,
    "baselines": {"majority": 0.5},
}  # fmt: skip


def test_a_name_with_a_dollar_has_a_picture(tmp_path):
    plot.plot(tmp_path / "plot.png", ROWS, RESULT)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_half_a_picture_does_not_stay(tmp_path, monkeypatch):
    savefig = Figure.savefig

    def killed(self, where, **how):
        savefig(self, where, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", killed)
    with pytest.raises(KeyboardInterrupt):
        plot.plot(tmp_path / "plot.png", ROWS, RESULT)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_known_yet_is_not_shown():
    shown = training._Shown(live=False)
    event = loop.Event("fit", 1, 1, 9, float("nan"), None, 1.0)
    shown(event)
    assert shown.loss is None
    shown(event._replace(loss=2.0))
    assert shown.loss == 2.0


def test_a_line_says_how_an_epoch_went_where_there_is_no_terminal(capsys):
    shown = training._Shown(live=False)
    for n, (phase, step, accuracy) in enumerate(
        [("fit", 9, None), ("fit", 9, 0.5), ("refit", 8, None), ("refit", 9, None)]
    ):
        shown(loop.Event(phase, 1, step, 9, 2.0 if n == 0 else 1.0, accuracy, 65.2))
    assert capsys.readouterr().out.splitlines() == [
        "fit epoch 1, step 9/9: loss 1.9500  validation 0.5000  1:05 left",
        f"refit epoch 1, step 9/9: loss {1 + 0.95**3:.4f}  validation 0.5000  1:05 left",
    ]


def test_what_else_lies_among_checkpoints_stays_and_is_no_checkpoint(tmp_path):
    for step in range(1, 6):
        checkpoints.save(tmp_path / f"0-{step:08d}", {"x": np.full(1, step)}, {"step": step})
    copy = tmp_path / "keep"
    copy.mkdir()
    for name in os.listdir(tmp_path / "0-00000001"):
        (copy / name).write_bytes((tmp_path / "0-00000001" / name).read_bytes())
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints.prune(tmp_path)
    found, _ = checkpoints.newest(tmp_path)
    assert found.tensors["x"] == 5 and copy.is_dir() and (tmp_path / "notes.txt").exists()
    assert len(checkpoints.names(tmp_path)) == checkpoints.KEPT


def test_a_checkpoint_may_be_refused_more_than_once(tmp_path):
    """Each time, training starts over and gets as far again."""
    path = tmp_path / "0-00000003"
    for content in (b"cut", b"short"):
        checkpoints.save(path, {"x": np.zeros(1)}, {"step": 3})
        (path / checkpoints.TENSORS).write_bytes(content)
        found, refused = checkpoints.newest(tmp_path)
        assert found is None and len(refused) == 1
        (aside,) = tmp_path.iterdir()
        assert aside.name == path.name + checkpoints.DAMAGED
        assert (aside / checkpoints.TENSORS).read_bytes() == content


def test_checkpoints_are_known_by_their_steps_however_many(tmp_path):
    for name in ("1-00000003", "0-100000000", "0-99999999"):
        checkpoints.save(tmp_path / name, {}, {})
    ages = ["0-99999999", "0-100000000", "1-00000003"]
    assert [path.name for path in checkpoints.names(tmp_path)] == ages


@pytest.mark.parametrize("where", ["accuracy", "agreed"])
def test_an_evaluation_in_which_a_process_was_lost_is_caught_up(tmp_path, monkeypatch, where):
    how = {"epochs": 4, "patience": 3, "checkpoint_steps": 1000, "refit": False, "lr": 3e-2}
    whole = begin(tmp_path / "whole", toy(), **how)
    _, expected = train(whole)
    run = begin(tmp_path / "lost", toy(), **how)
    judged = []

    def lost(*arguments):
        judged.append(None)
        if len(judged) == 3:
            raise Lost("process 1 is lost")
        return method(*arguments)

    owner = loop if where == "accuracy" else loop._Loop
    name = "accuracy" if where == "accuracy" else "_agree"
    method = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lost)
        with pytest.raises(Lost):
            train(run)
    found, _ = checkpoints.newest(run.checkpoints)
    epochs = {row["step"] for row in expected.rows if row["validation_accuracy"] is not None}
    assert found.state["step"] in epochs  # that of the last step, not of an earlier one
    assert found.state["unjudged"] == (where == "accuracy")
    _, state = train(Run.open(run.folder))
    assert same_bits(parameters(whole), parameters(run))
    assert [row["validation_accuracy"] for row in state.rows] == [
        row["validation_accuracy"] for row in expected.rows
    ]


def test_a_step_in_which_a_process_was_lost_is_not_counted(tmp_path, monkeypatch):
    how = {"checkpoint_steps": 1000, "refit": False}
    whole, run = (begin(tmp_path / name, toy(), **how) for name in ("whole", "lost"))
    _, expected = train(whole)
    learn = Trainer.learn

    def lost(trainer, batch, step, *rest):
        if step == 13:
            raise Lost("process 1 is lost")
        learn(trainer, batch, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(Lost):
        patch.setattr(Trainer, "learn", lost)
        train(run)
    found, _ = checkpoints.newest(run.checkpoints)
    assert found.state["step"] == found.state["done"] == len(found.state["losses"]) + 10 == 12
    _, state = train(Run.open(run.folder))
    assert same_bits(parameters(whole), parameters(run))
    assert state.step == state.done == expected.done == 3 * 7  # of 54, by 8


def test_the_second_fit_has_the_epochs_that_the_first_found_best(tmp_path):
    """Whether or not it was interrupted; it makes the final model, and the metrics include it."""
    how = {"epochs": 9, "patience": 2, "lr": 3e-2, "warmup": 0.2, "checkpoint_steps": 3}
    whole, told = begin(tmp_path / "whole", toy(), **how), []
    _, state = train(whole, told.append)
    refit = [event for event in told if event.phase == "refit"]
    assert 0 < state.best_epoch < 9  # else this shows nothing
    taken = {(event.phase, event.step) for event in told}
    assert state.done == len(taken) and told[-1].seconds_left == 0.0
    assert all(event.seconds_left > 0.0 for event in told[:-1])
    assert [e.step for e in refit] == [n + 1 for n in range(8 * state.best_epoch)]  # of 60, by 8
    last = checkpoints.load(checkpoints.names(whole.checkpoints)[-1]).tensors
    model = whole.load_model(load("reference"))
    assert np.array_equal(model.flat, last["average"]) and "best" not in last

    broken = begin(tmp_path / "broken", toy(), **how)
    with pytest.raises(ZeroDivisionError):
        train(broken, lambda event: 1 // (event.phase == "fit" or event.step < 5))
    train(Run.open(broken.folder))
    assert same_bits(parameters(whole), parameters(broken))

    recipe, rows = whole.settings.recipe, [r for r in state.rows if r["phase"] == "refit"]
    assert [r["step"] for r in rows] == sorted(
        {*range(8, refit[-1].step + 1, 8), *range(10, refit[-1].step + 1, 10)}
    )
    before = 0
    for row in rows:
        losses = [e.loss for e in refit[before : row["step"]]]
        before = row["step"]
        assert row["loss"] == math.fsum(losses) / len(losses)
        assert row["lr"] == learning_rate(recipe, row["step"], refit[-1].steps)
        assert row["epoch"] == (row["step"] + 7) // 8 == refit[row["step"] - 1].epoch


def test_a_run_that_stops_early_is_kept_as_it_is_then(tmp_path):
    """With the time that it took; resuming it repeats no step."""
    how = {"epochs": 40, "patience": 1, "refit": False, "lr": 3e-2, "checkpoint_steps": 1000}
    run = begin(tmp_path / "run", toy(), **how)
    _, state = train(run)
    assert state.stopped and state.step < 40 * 7  # of 54, by 8
    assert state.seconds >= state.stepping
    found, _ = checkpoints.newest(run.checkpoints)
    assert found.state["step"] == state.step and found.state["stopped"]
    before, told = parameters(run), []
    train(Run.open(run.folder), told.append)
    assert not told and same_bits(before, parameters(run))


@pytest.mark.parametrize("graded", [False, True])
def test_both_parts_keep_labels_and_graded_targets_with_their_texts(tmp_path, graded):
    dataset = toy()
    soft = np.random.default_rng(0).random((60, 2)).astype(np.float32) if graded else None
    run = begin(tmp_path / "run", dataset)
    fit, held = loop.prepare(run, replace(dataset, train_targets=soft))
    assert len(held) == 6 and len(fit) == 54 and (held.soft is None) == (not graded)

    def together(inputs, labels, soft):
        rows = np.zeros((len(inputs), 2)) if soft is None else soft
        return [(x.tolist(), int(y), *row) for x, y, row in zip(inputs, labels, rows, strict=True)]

    found = [*together(fit.inputs, fit.labels, fit.soft)]
    found += together(held.inputs, held.labels, held.soft)
    inputs = run.codec.encode(dataset.train_x)
    assert sorted(found) == sorted(together(inputs, dataset.train_y, soft))


def test_metrics_are_whole_at_the_end(tmp_path, monkeypatch):
    run = begin(tmp_path / "run", toy(), epochs=1)

    def killed(self, model):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "write_model", killed)
        train(run)
    (run.folder / METRICS_FILE).write_text("what was written before the last checkpoint\n")
    _, state = train(Run.open(run.folder))
    assert len((run.folder / METRICS_FILE).read_text().splitlines()) == 1 + len(state.rows)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("labels", ["bad"], "labels is .'bad',.; it must be 2 names, no two alike"),
        ("labels", ["bad", "bad"], "it must be 2 names, no two alike"),
        ("labels", [1, 2], "it must be 2 names, no two alike"),
        ("labels", "ab", "labels is a str, not a list"),
        ("text_column", 5, "text_column is 5; it must be a name"),
    ],
)
def test_settings_that_were_changed_are_refused(tmp_path, field, value, words):
    run = begin(tmp_path / "run", toy())
    path = run.folder / SETTINGS_FILE
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {field: value}))
    with pytest.raises(RunError, match=words):
        Run.open(run.folder)


def test_a_tokenizer_of_more_words_than_the_model_is_refused(tmp_path):
    run = begin(tmp_path / "run", toy())
    path = run.folder / SETTINGS_FILE
    settings = json.loads(path.read_text())
    settings["model"]["input_size"] -= 1
    path.write_text(json.dumps(settings))
    with pytest.raises(RunError, match="the tokenizer's vocabulary is .*; it must be at most"):
        Run.open(run.folder)


def test_a_model_of_other_sizes_is_refused(tmp_path):
    run = begin(tmp_path / "run", toy(), epochs=1, refit=False)
    train(run)
    for other in ({"d_ff": 12}, {"num_layers": 2}):
        settings = replace(run.settings, model=replace(run.settings.model, **other))
        with pytest.raises(RunError, match="model holds another model than run.json says$"):
            replace(run, settings=settings).load_model(load("reference"))


def test_a_result_that_lacks_something_is_refused(tmp_path):
    run = begin(tmp_path / "run", toy())
    for content in ("{}", "[]", "{"):
        (run.folder / RESULT_FILE).write_text(content)
        with pytest.raises(RunError, match="is no result: .*; without it, it is made anew"):
            run.result()


def test_more_parts_than_examples_are_refused():
    with pytest.raises(ValueError, match="^parts is 9; it must be at most batch_size, 8"):
        Recipe(parts=9, batch_size=8)


LEAST = dict.fromkeys(("epochs", "batch_size", "parts", "checkpoint_steps"), (0, "at least 1"))
LEAST |= dict.fromkeys(("lr", "weight_decay", "max_norm", "patience", "frozen"), (-1, "at least 0"))
SHARES = ("warmup", "momentum", "label_smoothing", "word_dropout", "average")


@pytest.mark.parametrize(
    ("name", "was", "must"),
    [
        *((name, *rest) for name, rest in LEAST.items()),
        *((name, was, "at least 0 and below 1") for name in SHARES for was in (-0.1, 1.0)),
        *(("layer_decay", was, "in (0, 1]") for was in (0.0, 1.1)),
        ("seed", 2**63, "at least 0 and below 2**63"),
        ("schedule", "'x'", "one of 'linear', "),
        ("precision", "'x'", "one of 'float32', "),
    ],
)
def test_every_field_of_a_recipe_has_its_range(name, was, must):
    given = was.strip("'") if isinstance(was, str) else was
    with pytest.raises(ValueError) as refusal:
        Recipe(**{name: given})
    assert str(refusal.value).startswith(f"{name} is {was}; it must be {must}")
    with pytest.raises(ValueError, match="^a field of the recipe is 'steps'; it must be one of"):
        Recipe.from_json({"steps": 3})


def test_a_file_is_found_from_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located("movie") == "movie"
    assert located("reviews.csv") == str(tmp_path / "reviews.csv")


@pytest.mark.parametrize(
    "text", [r"a \[/foo]", r"\[red]film", ":heart: [b]x[/b] :100:", "[/]", r"a \\ b"]
)
def test_texts_are_shown_as_they_are(capsys, text):
    common.console.print(common.escaped(text), highlight=False, soft_wrap=True)
    assert capsys.readouterr().out == f"{text}\n"


def test_half_of_a_surrogate_pair_is_no_label(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "label": "b"}\n{"text": "a", "label": "\\ud800"}\n')
    with pytest.raises(DataError, match="line 2.*has half of a surrogate pair"):
        read_labelled(path)


def test_a_line_of_white_space_says_nothing(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\na,b\n   \nc,d\n")
    assert read_labelled(path) == (["a", "c"], ["b", "d"])


@pytest.mark.parametrize(
    ("device", "size", "given", "parts"),
    [
        ("cpu", 1, {}, 2),
        ("cpu", 1, {"batch_size": 1}, 1),
        ("cpu", 4, {}, 4),
        ("cuda", 1, {}, 1),
        ("cuda", 4, {}, 4),
        ("cuda", 1, {"parts": 2}, 2),
    ],
)
def test_a_gpu_takes_a_batch_whole(monkeypatch, device, size, given, parts):
    monkeypatch.setattr(training, "choose_side", lambda name: SimpleNamespace(device=device))
    processes = Processes()
    processes.size = size
    assert training.recipe_of(given, processes, "auto").parts == parts
