"""The step that a CUDA graph captures: its dealings with the host, and its replay.

With CUDA, graphs are replayed; elsewhere, recorded launches are repeated.
"""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_precision import CONFIGS, batch
from test_training import begin, parameters, same_bits, toy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import JITFunction
from triton.runtime.interpreter import GridExecutor

from twofold.core import captured, ops
from twofold.core.model.classifier import Classifier
from twofold.core.training import graphs, inference, loop, resident
from twofold.core.training.batches import Batch
from twofold.core.training.recipe import Recipe
from twofold.core.training.trainer import Diverged, Trainer

CONFIGS = CONFIGS | {
    "rotary": dataclasses.replace(CONFIGS["tokens"], positions="rotary", norm="post"),
}
RECIPES = {
    "adamw": Recipe(average=0.9, seed=5, lr=1e-2, weight_decay=0.1),
    "one part in bfloat16": Recipe(average=0.9, parts=1, precision="bfloat16", lr=1e-2),
    "sgd": Recipe(optimizer="sgd", average=0.0, lr=1e-2, layer_decay=0.5),
    "adagrad, frozen": Recipe(optimizer="adagrad", average=0.9, lr=1e-2, frozen=1, max_norm=0.0),
}


def tensors(x):
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor)]


class NothingOfTheHost(TorchDispatchMode):
    """Refuses operations with tensors on the host: all others are on the device `meta`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for x in tensors((args, kwargs, found)):
            assert x.is_meta, f"{function} has a tensor of the host"
        return found


captured_now = []


def forbidding(function):
    def run():
        captured_now.append(function)
        try:
            with NothingOfTheHost():
                function()
        finally:
            captured_now.pop()

    return run


def deviceless():
    """Return the Triton side on a device that has shapes but no numbers to wait for."""

    def to_numpy(x):
        assert not captured_now, "a number is read by the host"
        return np.ones(tuple(x.shape), np.float32)

    def read(x):
        return lambda: to_numpy(x)

    side = ops._triton("meta")
    return dataclasses.replace(side, captured=forbidding, read=read, to_numpy=to_numpy)


@pytest.fixture
def nothing_is_launched(monkeypatch, triton):
    monkeypatch.setattr(GridExecutor, "__call__", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **kwargs: None)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_captured_step_has_nothing_to_do_with_the_host(nothing_is_launched, name, recipe):
    """It reads no number, since `meta` has none, and gives none to the device."""
    config = CONFIGS[name]
    trainer = Trainer(Classifier(config, deviceless()), RECIPES[recipe])
    for step in (1, 2):
        trainer.step(*batch(config, graded=name == "rotary"), step, 1e-2)
    assert len(trainer.losses) == 2


@pytest.mark.parametrize(
    "fault",
    [
        lambda side: side.asarray(np.array(0.5)),
        lambda side: float(side.zeros((1,))[0]),
        lambda side: side.to_numpy(side.zeros((1,))),
    ],
)
def test_what_has_to_do_with_the_host_is_noticed(nothing_is_launched, fault):
    side = deviceless()
    trainer = Trainer(Classifier(CONFIGS["tokens"], side), RECIPES["adamw"])
    whole = trainer.round
    trainer.round = lambda: (whole(), fault(side))
    with pytest.raises((AssertionError, RuntimeError), match="host|meta|Meta"):
        trainer.step(*batch(CONFIGS["tokens"]), 1, 1e-2)


class Recorded(TorchDispatchMode):
    """A function without arguments, replayed from its third call on like a CUDA graph.

    Recorded launches are repeated with the same arguments and tensors in the same memory, and so
    are torch's operations. New tensors take the memory of the recorded ones.
    """

    def __init__(self, function):
        super().__init__()
        self.function, self.calls, self.log = function, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.log.append((function, args, kwargs or {}, found))
        return found

    def __call__(self):
        self.calls += 1
        if self.calls == 1:
            self.function()
        elif self.calls == 2:
            launch = GridExecutor.__call__

            def launched(executor, *args, **kwargs):
                self.log.append((launch, (executor, *args), kwargs, None))
                with torch.utils._python_dispatch._disable_current_modes():
                    launch(executor, *args, **kwargs)

            with pytest.MonkeyPatch.context() as patch, self:
                patch.setattr(GridExecutor, "__call__", launched)
                self.function()
        else:
            for function, args, kwargs, before in self.log:
                lying = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
                after = function(*args, **kwargs)
                for x, y in zip(tensors(before), tensors(after), strict=True):
                    if x.untyped_storage().data_ptr() not in lying:
                        x.copy_(y)


class Graph(captured.Captured):
    """A CUDA graph that counts its calls."""

    calls = 0

    def __call__(self):
        self.calls += 1
        super().__call__()


def replaying(side):
    """Return a side whose functions are replayed, those functions, and a side that calls them."""
    made = []

    def recorded(function):
        made.append((Graph if side.device == "cuda" else Recorded)(function))
        return made[-1]

    called = dataclasses.replace(side, captured=lambda function: function)
    return dataclasses.replace(side, captured=recorded), made, called


def steps(side, config, recipe, count=5):
    """Return a trainer's results on batches of one shape that differ in everything else."""
    trainer, losses = Trainer(Classifier(config, side, seed=1), recipe), []
    inputs, targets = batch(config)
    longest = max(len(x) for x in inputs)
    for step in range(1, count + 1):
        rng = np.random.default_rng(step)
        cut = [x[: rng.integers(1, longest + 1)] if len(x) < longest else x for x in inputs]
        cut = [rng.permutation(x) for x in cut]
        trainer.step(cut, rng.permutation(targets), step, recipe.lr / step)
        losses.append(trainer.loss)
    return {name: x.tobytes() for name, x in trainer.tensors().items()}, losses


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("tokens", "adamw"), ("patches", "sgd"), ("BERT", "one part in bfloat16"),
     ("rotary", "adagrad, frozen")],
)  # fmt: skip
def test_a_replayed_step_has_the_bits_of_one_that_is_run(triton, name, recipe):
    replayed, made, called = replaying(triton)
    found = steps(replayed, CONFIGS[name], RECIPES[recipe])
    assert found == steps(called, CONFIGS[name], RECIPES[recipe])
    assert len(set(found[1])) == 5 and max(r.calls for r in made) == 5


@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_diverged_changed_nothing_nor_did_one_after_it(triton, late):
    config, recipe = CONFIGS["patches"], RECIPES["adamw"]
    trainer = Trainer(Classifier(config, triton, seed=1), recipe)
    trainer.resident.late = late
    inputs, targets = batch(config)
    good = trainer.prepare(inputs, targets)
    bad = trainer.prepare([np.full_like(inputs[0], np.nan), *inputs[1:]], targets)
    trainer.learn(good, 1, 1e-2)
    before = trainer.tensors()
    with pytest.raises(Diverged, match="step 2: the loss is nan"):
        trainer.learn(bad, 2, 1e-2)
        assert late
        trainer.learn(good, 3, 1e-2)
    after = trainer.tensors()
    assert all(x.tobytes() == before[name].tobytes() for name, x in after.items())
    assert trainer.losses == [trainer.losses[0]] and np.isfinite(trainer.losses[0])
    trainer.learn(good, 2, 1e-2)  # if the caller goes on, so can it
    assert trainer.tensors()["params"].tobytes() != before["params"].tobytes()


def test_a_part_that_diverged_is_forgotten_by_a_step_without_it(triton):
    config, recipe = CONFIGS["patches"], dataclasses.replace(RECIPES["adamw"], parts=2)
    trainer = Trainer(Classifier(config, triton, seed=1), recipe)
    inputs, targets = batch(config)
    with pytest.raises(Diverged, match="step 1"):
        trainer.step([inputs[0], np.full_like(inputs[1], np.nan)], targets[:2], 1, 1e-2)
    trainer.step(inputs[:1], targets[:1], 1, 1e-2)
    assert len(trainer.losses) == 1


class Written(TorchDispatchMode):
    """Lists torch's operations that write to a tensor's memory."""

    def __init__(self, x):
        super().__init__()
        self.storage, self.seen = x.untyped_storage().data_ptr(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        changed = function.__name__.split(".")[0].endswith("_")
        if changed and args[0].untyped_storage().data_ptr() == self.storage:
            self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_kernels_write_gradients_where_the_optimizer_reads_them(
    nothing_is_launched, triton, name, precision
):
    """Apart from kernels, nothing in the step writes a gradient."""
    config, recipe = CONFIGS[name], Recipe(parts=1, precision=precision)
    trainer = Trainer(Classifier(config, triton, seed=1), recipe)
    with contextlib.suppress(Diverged), Written(trainer.grads[0]) as written:
        trainer.step(*batch(config), 1, 1e-2)
    assert written.seen == []


def test_what_is_late_is_known_when_it_is_asked_for(triton):
    config = CONFIGS["tokens"]
    inputs, targets = batch(config)
    found = {}
    for late in (False, True):
        trainer = Trainer(Classifier(config, triton, seed=1), RECIPES["adamw"])
        trainer.resident.late, known = late, []
        for step in (1, 2, 3):
            trainer.learn(trainer.prepare(inputs, targets), step, 1e-2)
            known.append(len(trainer.losses))
        assert known == ([0, 1, 2] if late else [1, 2, 3])
        found[late] = {name: x.tobytes() for name, x in trainer.tensors().items()}, trainer.losses
        assert len(trainer.losses) == 3
    assert found[True] == found[False]


def test_a_late_result_that_is_not_finite_is_never_kept(triton):
    config = CONFIGS["patches"]
    trainer = Trainer(Classifier(config, triton, seed=1), RECIPES["adamw"])
    trainer.resident.late = True
    inputs, targets = batch(config)
    trainer.learn(trainer.prepare([x * np.float32(np.inf) for x in inputs], targets), 1, 1e-2)
    with pytest.raises(Diverged, match="step 1"):
        trainer.tensors()


def test_a_run_whose_losses_come_late_leaves_what_one_that_waits_does(
    triton, tmp_path, monkeypatch
):
    """The same parameters and metrics: a side that claims to be a GPU's is read late."""
    monkeypatch.setattr(loop, "ROW_STEPS", 3)
    results = []
    for device in ("cpu", "cuda"):
        side = dataclasses.replace(triton, device=device)
        run = begin(tmp_path / device, toy(32), epochs=1, batch_size=2, refit=False, parts=1)
        _, state = loop.train(run, toy(32), side, lambda event: None)
        names = ("step", "loss", "grad_norm", "validation_accuracy")
        results.append((parameters(run), [[row[n] for n in names] for row in state.rows]))
    assert same_bits(results[0][0], results[1][0]) and results[0][1] == results[1][1]


@pytest.mark.parametrize("name", CONFIGS)
def test_replayed_predictions_are_those_of_the_batches_as_they_are(triton, monkeypatch, name):
    """They are those of the padded batches bit for bit, and near those of unpadded batches.

    Near means within ten times NumPy's float32 distance from float64.
    """
    replaying_side, made, called = replaying(triton)
    config = dataclasses.replace(CONFIGS[name], max_length=40)
    exact = Classifier(config, ops.load("reference"), seed=1, dtype="float64")
    numpy = Classifier(config, ops.load("reference"), exact.flat.astype(np.float32))
    flat = triton.asarray(numpy.flat)
    padded, replayed = (
        Classifier(config, dataclasses.replace(side, device="cuda"), flat)
        for side in (called, replaying_side)
    )
    monkeypatch.setitem(inference.ELEMENTS, "triton", 80 * config.d_ff)
    for longest in (14, 15, 16):
        inputs, _ = batch(dataclasses.replace(config, max_length=longest), examples=9)
        wide = inputs if config.input == "tokens" else [x.astype(np.float64) for x in inputs]
        for function in (inference.predict, inference.embed):
            found = function(replayed, inputs)
            assert found.tobytes() == function(padded, inputs).tobytes()
            truth = function(exact, wide)
            off = np.abs(function(numpy, inputs) - truth).max()
            assert np.abs(found - truth).max() <= 10 * off
    assert max(r.calls for r in made) > 2  # some were replayed
    flat *= 0.5  # a model learns on in the same memory
    assert inference.embed(replayed, inputs).tobytes() == inference.embed(padded, inputs).tobytes()


def test_a_batch_does_not_overwrite_the_answers_of_the_one_before(triton, monkeypatch):
    """Of successive batches of one shape, each begins before the previous one is read."""
    replaying_side, _, called = replaying(triton)
    config = CONFIGS["patches"]
    flat = Classifier(config, triton, seed=1).flat
    replayed, alone = (
        Classifier(config, dataclasses.replace(side, device="cuda"), flat)
        for side in (replaying_side, called)
    )
    inputs, _ = batch(config, examples=6)
    inputs = [np.resize(x, inputs[0].shape) * (1 + i) for i, x in enumerate(inputs)]
    each = [np.array([i, i + 1]) for i in (0, 2, 4)]
    found = inference.predict(replayed, inputs, each)
    for rows in each:
        expected = inference.predict(alone, [inputs[i] for i in rows])
        assert found[rows].tobytes() == expected.tobytes()


def test_a_wish_to_stop_is_heard(triton):
    config = CONFIGS["patches"]
    trainer = Trainer(Classifier(config, triton, seed=1), Recipe(parts=1, lr=1e-2))
    inputs, targets = batch(config)
    for step, stop in enumerate((False, True, False), 1):
        trainer.step(inputs, targets, step, 1e-2, stop)
        assert trainer.stop is stop


@given(st.integers(1, 3000), st.integers(1, 64))
def test_shapes_are_few_and_hardly_larger(examples, length):
    batches = Batch(np.zeros((examples, length)), np.ones(examples, np.int64))
    inputs, lengths = graphs.padded(batches, 64)
    (B, L), some = inputs.shape, lengths > 0
    assert examples <= B <= examples * 9 / 8 + 1 and length <= L <= min(length + 15, 64)
    assert some[:examples].all() and not some[examples:].any() and L % 16 == 0
    assert np.array_equal(graphs.padded(Batch(inputs, lengths), 64).inputs, inputs)


def test_shapes_beyond_those_that_are_captured_leave_nothing(triton, monkeypatch):
    monkeypatch.setattr(resident, "MOST", 1)
    config = CONFIGS["patches"]
    trainer = Trainer(Classifier(config, triton, seed=1), Recipe(parts=1, lr=1e-2))
    inputs, targets = batch(config)
    for step, examples in enumerate((2, 3, 1, 2), 1):
        trainer.step(inputs[:examples], targets[:examples], step, 1e-2)
    assert len(trainer.losses) == 4 and len(trainer.resident._steps) == 1
