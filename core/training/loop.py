"""The loop: a fit that holds out a validation set, then one on all training examples.

Everything a step does is a function of the settings and the step number, and a checkpoint holds the
rest, so a run that was interrupted in any way ends with the same bits as without the interruption.
While a step runs, the next batch is prepared; the time spent waiting for it is measured. Several
processes take the same steps side by side; the first one writes the run's files.
"""

from __future__ import annotations

import contextlib
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from twofold.core.data.datasets import Dataset
from twofold.core.data.splits import stratified_split
from twofold.core.model.classifier import Classifier
from twofold.core.ops import Side
from twofold.core.training import checkpoints
from twofold.core.training.batches import Array, Examples, Prepared, steps_per_epoch
from twofold.core.training.feed import Feed, ahead
from twofold.core.training.inference import NotFinite, accuracy
from twofold.core.training.processes import ALONE, Lost, Processes
from twofold.core.training.recipe import Recipe, learning_rate
from twofold.core.training.run import Run, RunError
from twofold.core.training.stopping import stoppable
from twofold.core.training.trainer import Diverged, Trainer

VALIDATION_SHARE, VALIDATION_SEED = 0.1, 0
CHOICES = "choices"  # key in a checkpoint, beside the state: the choices the run was begun with
ROW_STEPS = 10  # steps that a row of the metrics covers


class Interrupted(Exception):
    """The run was asked to stop, and wrote a checkpoint first."""


class Event(NamedTuple):
    """What an observer is told after every step and, with an accuracy, after every epoch."""

    phase: str
    epoch: int
    step: int
    steps: int
    loss: float
    validation_accuracy: float | None
    seconds_left: float


Observer = Callable[[Event], None]


@dataclass(frozen=True)
class Phase:
    """One fit: its training examples, and those it is evaluated on after each epoch, if any."""

    name: str
    train: Examples
    held: Examples | None
    epochs: int

    def steps(self, recipe: Recipe) -> int:
        """Return the number of steps."""
        return self.epochs * steps_per_epoch(len(self.train), recipe.batch_size)


@dataclass
class State:
    """The state of a run, besides its tensors."""

    phase: int = 0
    step: int = 0  # of the phase
    done: int = 0  # steps of all phases
    epochs: int | None = None  # the first fit's best epoch, for the refit
    validation_accuracy: float | None = None
    best_accuracy: float = -1.0
    best_epoch: int = 0
    stopped: bool = False  # early
    unjudged: bool = False  # an epoch has taken its last step and is not yet validated
    seconds: float = 0.0
    stepping: float = 0.0  # seconds spent in steps
    waiting: float = 0.0  # of these, seconds spent waiting for batches
    losses: list[float] = field(default_factory=list)  # for the next row of the metrics
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def waiting_share(self) -> float:
        """Share of the steps' time spent waiting for their batches."""
        return self.waiting / self.stepping if self.stepping > 0.0 else 0.0


def train(
    run: Run,
    dataset: Dataset,
    ops: Side,
    observe: Observer,
    passed_over: Callable[[str], None] = lambda why: None,
    processes: Processes = ALONE,
) -> tuple[Classifier, State]:
    """Train to the end, from the latest checkpoint if there is one, and save the model.

    Args:
        run: where everything is kept.
        dataset: the data set that the run's settings name.
        ops: the side.
        observe: called with the progress.
        passed_over: called with the reason for each checkpoint that was refused.
        processes: that share the work.

    Returns:
        the model and the final state.

    Raises:
        Diverged: the loss is no longer finite; the last checkpoint is still good.
        Interrupted: by SIGINT, SIGTERM or SIGHUP, after a checkpoint; in all processes at the same
            step.
        Lost: another process died; there is a checkpoint of the last step if the first process
            lives.
        Apart: the processes' parameters differ.
    """
    with threadpool_limits(1, "blas"), np.errstate(all="ignore"), stoppable() as stop:
        return _Loop(run, dataset, ops, observe, passed_over, stop, processes).train()


def prepare(run: Run, dataset: Dataset) -> tuple[Examples, Examples]:
    """Return the encoded training examples in two parts: to fit, and held out for validation."""
    inputs = run.codec.encode_set(dataset.train_x)
    fit, held = stratified_split(dataset.train_y, VALIDATION_SHARE, VALIDATION_SEED)

    def part(chosen: Array) -> Examples:
        soft = dataset.train_targets
        return Examples(
            [inputs[i] for i in chosen],
            dataset.train_y[chosen],
            None if soft is None else soft[chosen],
        )

    return part(fit), part(held)


def held_out_accuracy(
    model: Classifier, inputs: Sequence[Array], labels: Array, state: State, processes: Processes
) -> float:
    """Return the model's accuracy on held-out examples.

    Raises:
        Diverged: a logit is not finite, as the next loss would not be.
    """
    try:
        return accuracy(model, inputs, labels, processes)
    except NotFinite as fault:
        raise Diverged(f"step {state.step}: {fault}") from fault


class _Loop:
    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        ops: Side,
        observe: Observer,
        passed_over: Callable[[str], None],
        stop: threading.Event,
        processes: Processes,
    ) -> None:
        self.run, self.ops, self.observe, self.stop = run, ops, observe, stop
        self.recipe, self.processes = run.settings.recipe, processes
        self.fit, self.held = prepare(run, dataset)
        self.state, self.best = State(), None
        self.trainer = self._trainer()
        found = self._latest(passed_over)
        if found is not None:
            self.state = self._state(found)
            tensors = dict(found.tensors)
            self.best = tensors.pop("best", None)
            self.trainer.restore(tensors)
        self._agree("parameters or checkpoints to begin with")
        self.began = time.perf_counter() - self.state.seconds
        self.here, self.done_here = time.perf_counter(), 0

    def train(self) -> tuple[Classifier, State]:
        if self.state.phase == 0:
            held = self.held if len(self.held) else None  # empty if each class has one example
            self._phase(Phase("fit", self.fit, held, self.recipe.epochs))
            self.state.epochs = self.state.best_epoch if self.best is not None else None
            if self.recipe.refit:
                self.state.phase, self.state.step, self.state.stopped = 1, 0, False
                self.best = None
                # Free its GPU memory first: the trainer and its graphs refer to each other.
                del self.trainer
                gc.collect()
                self.trainer = self._trainer()
        if self.state.phase == 1:
            epochs = self.state.epochs or self.recipe.epochs
            self._phase(Phase("refit", self.fit + self.held, None, epochs))
        if self.processes.first:
            self.run.write_metrics(self.state.rows)
        model = self.trainer.average
        if self.best is not None:
            model = Classifier(model.config, self.ops, self.ops.asarray(self.best))
        if self.processes.first:
            self.run.write_model(model)
        return model, self.state

    def _latest(self, passed_over: Callable[[str], None]) -> checkpoints.Checkpoint | None:
        """Return the checkpoint to resume from, which the first process finds and names."""
        found, name, folder = None, "", self.run.checkpoints
        if self.processes.first:
            self.run.sweep()
            found, refused = checkpoints.newest(folder)
            if refused and found is None:
                refused[-1] += "; none is sound: training begins anew"
            for why in refused:
                passed_over(why)
            name = "" if found is None else _name(found.state)
        name = self.processes.told(name)
        if name and not self.processes.first:
            found = checkpoints.load(folder / name)
        return found

    def _state(self, found: checkpoints.Checkpoint) -> State:
        """Return a checkpoint's state, if this run made it with the choices it has now."""
        held, path = dict(found.state), self.run.checkpoints / _name(found.state)
        self.run.check_choices(held.pop(CHOICES, {}), path)
        for name in sorted(held.keys() - asdict(self.state).keys()):
            raise RunError(
                f"{path} holds {name!r}; it must be of this version of twofold, or older"
            )
        return State(**held)

    def _agree(self, what: str) -> None:
        """Check that all processes have the same state and parameters, including frozen ones."""
        if self.processes.size > 1:
            clocks = {"rows": [], "seconds": 0, "stepping": 0, "waiting": 0}  # each has its own
            state = asdict(self.state) | clocks
            tensors = self.trainer.tensors() | {"all": self.ops.to_numpy(self.trainer.model.flat)}
            self.processes.agreed(what, checkpoints.digest(tensors, state))

    def _trainer(self) -> Trainer:
        return Trainer(self.run.first_model(self.ops), self.recipe, self.processes)

    def _phase(self, phase: Phase) -> None:
        """Take the remaining steps of a phase."""
        state, recipe = self.state, self.recipe
        steps = phase.steps(recipe)
        unknown = self.run.codec.unknown if self.run.settings.model.input == "tokens" else None
        feed = Feed(phase.train, recipe, unknown)

        def make(step: int) -> Prepared:
            return self.trainer.prepare(*feed.batch(step))

        if state.step == 0:
            self._checkpoint()
        numbers = range(state.step + 1, steps + 1)
        with self._kept(), contextlib.closing(ahead(make, numbers)) as batches:
            if state.unjudged:
                self._end_of_epoch(phase, state.step // feed.per_epoch, steps)
            while state.step < steps and not state.stopped:
                began = time.perf_counter()
                batch = next(batches)
                state.waiting += time.perf_counter() - began
                self._step(phase, batch, steps)
                state.stepping += time.perf_counter() - began
                if state.step % feed.per_epoch == 0:
                    self._end_of_epoch(phase, state.step // feed.per_epoch, steps)
                ended = state.stopped or state.step == steps
                if ended or state.step % recipe.checkpoint_steps == 0:
                    self._checkpoint()
                if self._asked_to_stop():
                    self._checkpoint()
                    self.processes.wait()  # nobody leaves before it is written
                    raise Interrupted(f"stopped at step {state.step} of {phase.name}")

    def _asked_to_stop(self) -> bool:
        """Whether this process was asked to stop; of several, whether any was before the step."""
        return self.stop.is_set() if self.processes.size == 1 else self.trainer.stop

    def _step(self, phase: Phase, batch: Prepared, steps: int) -> None:
        state = self.state
        state.step += 1
        state.done += 1
        lr = learning_rate(self.recipe, state.step, steps)
        try:
            self.trainer.learn(batch, state.step, lr, self.stop.is_set())
        except Lost:
            state.step -= 1
            state.done -= 1
            raise
        self._take_losses()
        self.done_here += 1
        if state.step % ROW_STEPS == 0:
            self._row(phase, steps, None)
        self._tell(phase, steps, None)

    def _take_losses(self) -> None:
        """Move the losses known so far from the trainer to the state."""
        self.state.losses += self.trainer.losses
        self.trainer.losses.clear()

    def _settle(self) -> None:
        """Wait for the last step's result, before it is reported or saved."""
        self.trainer.settle()
        self._take_losses()

    def _end_of_epoch(self, phase: Phase, epoch: int, steps: int) -> None:
        self._settle()
        state, found = self.state, None
        if phase.held is not None:
            held, state.unjudged = phase.held, True
            found = held_out_accuracy(
                self.trainer.average, held.inputs, held.labels, state, self.processes
            )
            state.unjudged = False
            state.validation_accuracy = found
            if self.recipe.patience > 0:
                if found > state.best_accuracy:
                    state.best_accuracy, state.best_epoch = found, epoch
                    self.best = np.array(self.ops.to_numpy(self.trainer.average.flat))
                elif epoch - state.best_epoch >= self.recipe.patience:
                    state.stopped = True
                state.validation_accuracy = state.best_accuracy
        self._row(phase, steps, found)
        if found is not None:
            self._tell(phase, steps, found)
        self._agree("parameters after an epoch")

    def _row(self, phase: Phase, steps: int, accuracy: float | None) -> None:
        """Add a row to the metrics for the steps since the last row."""
        self._settle()
        state = self.state
        if not state.losses and accuracy is None:
            return
        per_epoch = steps_per_epoch(len(phase.train), self.recipe.batch_size)
        loss = math.fsum(state.losses) / len(state.losses) if state.losses else self.trainer.loss
        state.rows.append(
            {
                "phase": phase.name,
                "epoch": -(-state.step // per_epoch),
                "step": state.step,
                "lr": learning_rate(self.recipe, state.step, steps),
                "loss": loss,
                "grad_norm": self.trainer.grad_norm,
                "validation_accuracy": accuracy,
                "seconds": round(time.perf_counter() - self.began, 3),
            }
        )
        state.losses.clear()

    def _tell(self, phase: Phase, steps: int, accuracy: float | None) -> None:
        """Tell the observer the progress, with the time left in this phase and those to come."""
        left = steps - self.state.step
        if phase.name == "fit" and self.recipe.refit:
            both = len(self.fit) + len(self.held)
            left += phase.epochs * steps_per_epoch(both, self.recipe.batch_size)
        pace = (time.perf_counter() - self.here) / max(self.done_here, 1)
        epoch = -(-self.state.step * phase.epochs // steps)
        self.observe(
            Event(
                phase.name, epoch, self.state.step, steps, self.trainer.loss, accuracy, left * pace
            )
        )

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """If a process is lost, write a checkpoint of the last step, unless there is one."""
        try:
            yield
        except Lost:
            if not (self.run.checkpoints / _name(asdict(self.state))).exists():
                self._checkpoint()
            raise

    def _checkpoint(self) -> None:
        self._settle()
        if not self.processes.first:
            return
        self.state.seconds = time.perf_counter() - self.began
        tensors = self.trainer.tensors()
        if self.best is not None:
            tensors["best"] = self.best
        state = asdict(self.state)
        kept = state | {CHOICES: self.run.choices()}
        checkpoints.save(self.run.checkpoints / _name(state), tensors, kept)
        checkpoints.prune(self.run.checkpoints)
        self.run.write_metrics(self.state.rows)


def _name(state: Mapping[str, Any]) -> str:
    """Return the name of a state's checkpoint, by which `checkpoints` orders them."""
    return f"{state['phase']}-{state['step']:08d}"
