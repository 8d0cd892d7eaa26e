"""Training: runs, checkpoints; however a run was interrupted, it ends with the same bits."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from twofold.core import ops
from twofold.core.data.datasets import Dataset
from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.model.seeds import dropout_seeds
from twofold.core.training import checkpoints, codec, loop
from twofold.core.training.checkpoints import CheckpointError
from twofold.core.training.feed import Feed
from twofold.core.training.recipe import Recipe
from twofold.core.training.run import Run, RunError
from twofold.core.training.settings import Settings, fingerprint
from twofold.core.training.trainer import Diverged, Trainer
from twofold.reference import softmax

WORDS = ("good bad fine poor plot film actor story and the of it was is not quite very").split()
SMALL = {"d_model": 16, "num_heads": 2, "d_ff": 24}


def toy(examples: int = 120) -> Dataset:
    """Return texts whose class is that of their first good or bad word."""
    rng = np.random.default_rng(5)
    texts, y = [], []
    for _ in range(examples):
        chosen = list(rng.choice(WORDS[4:], rng.integers(2, 9)))
        label = int(rng.integers(2))
        chosen.insert(int(rng.integers(len(chosen))), WORDS[rng.integers(2) * 2 + 1 - label])
        texts.append(" ".join(chosen))
        y.append(label)
    y = np.array(y, np.int64)
    half = examples // 2
    return Dataset(
        "toy", "text", ("bad", "good"), texts[:half], y[:half], texts[half:], y[half:], None, "made"
    )


def begin(folder: Path, dataset: Dataset, tokenizer: str = "words", **recipe) -> Run:
    made = codec.new(dataset, tokenizer, 2)
    settings = Settings(
        data="toy",
        data_sha256=fingerprint(dataset),
        labels=dataset.labels,
        model=ClassifierConfig(**made.sizes(), num_classes=2, **SMALL),
        recipe=Recipe(**({"epochs": 3, "batch_size": 8, "checkpoint_steps": 5} | recipe)),
    )
    return Run.create(folder, settings, made)


def train(run: Run, observe=lambda event: None):
    return loop.train(run, toy(), ops.load("reference"), observe)


def parameters(run: Run) -> dict[str, np.ndarray]:
    return checkpoints.load(run.model_folder).tensors


def same_bits(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(
        x.tobytes() == second[name].tobytes() for name, x in first.items()
    )


def test_preparing_ahead_changes_no_bit(tmp_path, monkeypatch):
    results = []
    for name in ("ahead", "in line"):
        run = begin(tmp_path / name, toy())
        _, state = train(run)
        results.append((parameters(run), [(row["step"], row["loss"]) for row in state.rows]))
        monkeypatch.setattr(loop, "ahead", lambda make, numbers: (make(n) for n in numbers))
    assert same_bits(results[0][0], results[1][0]) and results[0][1] == results[1][1]


def test_waiting_for_batches_is_measured_over_the_whole_run(tmp_path, monkeypatch):
    run = begin(tmp_path / "run", toy(), checkpoint_steps=4)
    batch, pause = Feed.batch, 0.03

    def slow(feed, step):
        time.sleep(pause if step in (1, 5) else 0)  # nothing is done ahead of the first step
        return batch(feed, step)

    monkeypatch.setattr(Feed, "batch", slow)
    with pytest.raises(ZeroDivisionError):
        train(run, lambda event: 1 // (event.step != 5))
    _, state = train(Run.open(run.folder))  # from step 4 on, and then the second fit
    assert 3 * pause <= state.waiting <= state.stepping <= state.seconds
    assert state.waiting_share == state.waiting / state.stepping


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"lr": -1.0}, ValueError, "lr is -1.0; it must be at least 0"),
        ({"lr": float("nan")}, ValueError, "lr is nan; it must be finite"),
        ({"epochs": 0}, ValueError, "epochs is 0; it must be at least 1"),
        ({"epochs": 1.5}, TypeError, "epochs is a float; it must be of type int"),
        ({"optimizer": "lion"}, ValueError, "optimizer is 'lion'; it must be one of 'adamw'"),
        ({"seed": -1}, ValueError, "seed is -1; it must be at least 0"),
        ({"average": 1.0}, ValueError, "average is 1.0; it must be at least 0 and below 1"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_impossible_recipes_are_refused(fields, error, words):
    with pytest.raises(error) as refusal:
        Recipe(**fields)
    assert str(refusal.value).startswith(words)


@pytest.mark.parametrize("graded", [False, True])
def test_steps_are_those_written_out(reference, graded):
    """Parts and their masks, the mean, clipping, rates and decay of each parameter, the average.

    The parts' gradients are the model's; the rest is written out again here, in float64.
    """
    config = ClassifierConfig(input_size=9, num_classes=3, max_length=6, num_layers=2, **SMALL)
    recipe = Recipe(
        **{"seed": 4, "parts": 3, "max_norm": 0.3, "label_smoothing": 0.2, "average": 0.3},
        **{"layer_decay": 0.7, "frozen": 1, "weight_decay": 0.05},
    )
    model, twin = (Classifier(config, reference, seed=2, dtype="float64") for _ in range(2))
    model.flat *= 1.5  # norms' weights are not 1, so that clipping and decay matter
    twin.flat[:] = average = model.flat.copy()
    rng, trainer = np.random.default_rng(0), Trainer(model, recipe)
    m = v = np.zeros_like(average)
    layout, parts = twin.layout, {n: twin.part(n) for n in twin.params}
    for step, count in enumerate((7, 5, 2, 7), 1):
        inputs = [rng.integers(0, 9, rng.integers(1, 7)) for _ in range(count)]
        targets = rng.integers(0, 3, count)
        wanted = np.eye(3)[targets]
        if graded:
            targets = wanted = rng.dirichlet(np.ones(3), count)
        total, loss = np.zeros_like(average), 0.0
        for part in range(min(3, count)):
            mine = inputs[part::3]
            padded = np.zeros((len(mine), max(map(len, mine))), int)
            for row, x in zip(padded, mine, strict=True):
                row[: len(x)] = x
            seeds = dropout_seeds(4, step, part, config.sites)
            logits, cache = twin.forward(padded, np.array([len(x) for x in mine]), seeds)
            p, even = softmax.forward(logits)[0], 0.8 * wanted[part::3] + 0.2 / 3
            loss -= (even * np.log(p)).sum() / count
            grads = np.zeros_like(average)
            twin.backward((p - even) / count, cache, layout.views(grads))
            total += grads
        learned, rates = np.zeros_like(average), np.zeros_like(average)
        for name, view in layout.views(learned).items():
            if parts[name] >= 1:
                view[...] = layout.views(total)[name]
                layout.views(rates)[name][...] = 0.01 * 0.7 ** (3 - parts[name])
        norm = np.sqrt((learned**2).sum())
        learned *= min(1.0, 0.3 / norm)
        m, v = 0.9 * m + 0.1 * learned, 0.999 * v + 0.001 * learned**2
        matrices = np.arange(layout.numel) < layout.decay_numel
        twin.flat *= 1 - rates * 0.05 * matrices
        twin.flat -= rates * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        decay = min(0.3, step / (step + 9))
        average = decay * average + (1 - decay) * twin.flat
        trainer.step(inputs, targets, step, 0.01)
        assert norm > 0.3 and abs(trainer.grad_norm - norm) < 1e-11 * norm
        assert abs(trainer.loss - loss) < 1e-11 * loss and trainer.losses[-1] == trainer.loss
        for found, expected in ((model.flat, twin.flat), (trainer.average.flat, average)):
            assert np.abs(found - expected).max() < 1e-11, step


def test_a_small_model_learns(tmp_path):
    run = begin(tmp_path / "run", toy(), epochs=30, lr=1e-2, word_dropout=0.0)
    model, state = train(run)
    found = loop.accuracy(model, run.codec.encode(toy().test_x), toy().test_y)
    assert found > 0.9
    losses = [row["loss"] for row in state.rows if row["phase"] == "refit"]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "adagrad"])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, optimizer):
    whole = begin(tmp_path / "whole", toy(), optimizer=optimizer)
    train(whole)
    broken = begin(tmp_path / "broken", toy(), optimizer=optimizer)

    class Killed(Exception):
        pass

    for fatal in (3, 11, 17, 24, 31):  # only of steps counted by this process
        taken = 0

        def observe(event, fatal=fatal):
            nonlocal taken
            taken += 1
            if taken == fatal:
                raise Killed

        try:
            train(Run.open(broken.folder), observe)
        except Killed:
            pass
        else:
            break
    train(Run.open(broken.folder))
    assert same_bits(parameters(whole), parameters(broken))


def test_early_stopping_returns_to_the_best_epoch_also_when_interrupted(tmp_path):
    how = {"epochs": 12, "patience": 2, "refit": False, "lr": 3e-2, "checkpoint_steps": 3}
    whole = begin(tmp_path / "whole", toy(), **how)
    _, state = train(whole)
    accuracies = [
        row["validation_accuracy"] for row in state.rows if row["validation_accuracy"] is not None
    ]
    assert len(accuracies) == min(12, state.best_epoch + 2)
    assert state.validation_accuracy == max(accuracies)
    assert state.best_epoch == 1 + accuracies.index(max(accuracies))  # the first of equals
    broken = begin(tmp_path / "broken", toy(), **how)
    with pytest.raises(ZeroDivisionError):
        train(broken, lambda event: 1 // (event.step < 20 or 0))
    train(Run.open(broken.folder))
    assert same_bits(parameters(whole), parameters(broken))


SCRIPT = """
import sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from test_training import Run, train
train(Run.open(Path(sys.argv[2])), lambda event: print(event.step, flush=True))
"""


def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
    """SIGKILL at any moment: in a step, in a checkpoint, between the two fits."""
    how = {"epochs": 4, "checkpoint_steps": 1}
    whole = begin(tmp_path / "whole", toy(), **how)
    train(whole)
    killed = begin(tmp_path / "killed", toy(), **how)
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(killed.folder)]
    rng = np.random.default_rng(0)
    deaths = 0
    for _ in range(6):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)
        process.stdout.readline()  # the first step is taken
        time.sleep(float(rng.uniform(0.0, 0.05)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        deaths += process.returncode == -signal.SIGKILL
    assert deaths > 0
    train(Run.open(killed.folder))
    assert same_bits(parameters(whole), parameters(killed))


def test_an_interrupt_leaves_a_checkpoint_of_the_last_step(tmp_path):
    run = begin(tmp_path / "run", toy(), checkpoint_steps=1000)

    def observe(event):
        if event.step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(loop.Interrupted, match="stopped at step 4 of fit"):
        train(run, observe)
    found, refused = checkpoints.newest(run.checkpoints)
    assert found.state["step"] == 4 and not refused


@pytest.mark.parametrize("name", [checkpoints.TENSORS, checkpoints.STATE])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "empty"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_loads(tmp_path, name, damage):
    run = begin(tmp_path / "run", toy())
    train(run)
    before, latest = checkpoints.names(run.checkpoints)
    path = latest / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        # In the state, not in a number's last digit, which may mean nothing.
        at = content.index(b"phase") if name == checkpoints.STATE else len(content) // 2
        flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        path.write_bytes({"cut": content[:-7], "changed": flipped, "empty": b""}[damage])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoints.load(latest)
    found, refused = checkpoints.newest(run.checkpoints)
    assert found.state == checkpoints.load(before).state
    assert len(refused) == 1 and name in refused[0]
    assert f"the checkpoint is now {latest.name}.damaged" in refused[0]
    assert checkpoints.names(run.checkpoints) == [before]


@pytest.mark.parametrize("sound", [0, 1])
def test_what_was_passed_over_takes_no_new_checkpoints_place(tmp_path, sound):
    run, told = begin(tmp_path / "run", toy(), refit=False, checkpoint_steps=1000), []
    train(run)
    expected, before = parameters(run), checkpoints.names(run.checkpoints)
    for path in before[sound:]:
        (path / checkpoints.TENSORS).write_bytes(b"damaged")

    def observe(event):
        if event.step in (3, 16):
            signal.raise_signal(signal.SIGINT)

    def go_on():
        loop.train(Run.open(run.folder), toy(), ops.load("reference"), observe, told.append)

    for step in (3, 16):
        with pytest.raises(loop.Interrupted, match=f"stopped at step {step} of fit"):
            go_on()
        assert checkpoints.names(run.checkpoints)[-1].name == f"0-{step:08d}"
    go_on()
    assert same_bits(expected, parameters(run)) and len(told) == 2 - sound
    assert told[-1].endswith("; none is sound: training begins anew") == (sound == 0)


def test_a_checkpoint_is_whole_wherever_writing_it_again_ends(tmp_path, monkeypatch):
    """Interrupted after each step of replacing one folder by the other."""
    folder = tmp_path / "1-00000001"
    for steps in range(3):
        checkpoints.save(folder, {"x": np.zeros(1)}, {"step": 1})
        left, rename = iter(range(steps)), os.rename

        def killed(source, target, left=left, rename=rename):
            if next(left, None) is None:
                raise KeyboardInterrupt
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", killed)
            with contextlib.suppress(KeyboardInterrupt):
                checkpoints.save(folder, {"x": np.ones(1)}, {"step": 1})
        found, refused = checkpoints.newest(tmp_path)
        assert found.tensors["x"] == (steps == 2) and not refused
        checkpoints.prune(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tmp_path):
    run = begin(tmp_path / "run", toy(), lr=1e30, max_norm=0.0, checkpoint_steps=1)
    with pytest.raises(Diverged, match=r"step \d+: the loss is .*; both must be finite"):
        train(run)
    found, refused = checkpoints.newest(run.checkpoints)
    assert found is not None and not refused


def test_a_model_that_makes_no_numbers_any_more_has_diverged(tmp_path):
    """Its judgement shows it, before there is a next loss."""
    run = begin(tmp_path / "run", toy(), lr=1e38, batch_size=200, parts=1, epochs=1)
    with pytest.raises(Diverged, match="^step 1: a logit is not finite; it must be a number$"):
        train(run)


def test_a_run_is_not_overwritten_and_other_folders_are_refused(tmp_path):
    run = begin(tmp_path / "run", toy())
    with pytest.raises(RunError, match="which holds run.json, tokenizer.json; it must be"):
        begin(tmp_path / "run", toy())
    with pytest.raises(RunError, match="is no run"):
        Run.open(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is not finished"):
        run.load_model(ops.load("reference"))
    settings = json.loads((run.folder / "run.json").read_text())
    for broken in ({**settings, "more": 1}, {**settings, "model": {}}, []):
        (run.folder / "run.json").write_text(json.dumps(broken))
        with pytest.raises(RunError, match="holds no settings of a run"):
            Run.open(run.folder)


def test_a_model_with_more_averaging_lags_behind(tmp_path):
    """Without averaging, the model is the last step's parameters; with it, it is not."""
    ends = {}
    for average in (0.0, 0.9):
        run = begin(tmp_path / str(average), toy(), average=average, refit=False)
        train(run)
        last = checkpoints.load(checkpoints.names(run.checkpoints)[-1]).tensors["params"]
        ends[average] = dataclasses.replace(run), last, parameters(run)
    assert np.array_equal(ends[0.0][1], ends[0.9][1])  # averaging does not affect learning
    name = "head.weight"
    assert not np.array_equal(ends[0.0][2][name], ends[0.9][2][name])
