"""A run's folder: settings, vocabulary, checkpoints, metrics, the model, the result, a plot.

run.json          the settings
tokenizer.json    the vocabulary, for texts
checkpoints/      the last two
metrics.csv       loss and accuracy along the way
model/            the parameters that training ended with
huggingface/      the same for `transformers`, if the model is a BERT
result.json       baselines, test accuracy, times
plot.png          loss and accuracy, plotted
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from twofold.core import pretrained, whole
from twofold.core.data.datasets import Dataset
from twofold.core.data.fetch import sha256_of
from twofold.core.data.pretrained import HUGGINGFACE, pretrained_folder
from twofold.core.data.wordpiece import WordPieceTokenizer
from twofold.core.model import bert, weights
from twofold.core.model.classifier import Classifier
from twofold.core.ops import Side
from twofold.core.training import checkpoints
from twofold.core.training import codec as codecs
from twofold.core.training.codec import Codec, TextCodec
from twofold.core.training.settings import Settings, fingerprint, there_or_here

SETTINGS_FILE, RESULT_FILE, METRICS_FILE, PLOT_FILE = (
    "run.json",
    "result.json",
    "metrics.csv",
    "plot.png",
)
BEGUN = (SETTINGS_FILE, *codecs.FILES)  # files in a new run's folder
COLUMNS = ("phase", "epoch", "step", "lr", "loss", "grad_norm", "validation_accuracy", "seconds")

# Keys that a result must have.
RESULT = {
    "baselines", "parameters", "seconds", "steps_per_second", "test_accuracy",
    "validation_accuracy",
}  # fmt: skip


class RunError(ValueError):
    """A folder is not a run's, or cannot be used as asked."""


@dataclass(frozen=True)
class Run:
    """A run: its folder, the settings in it, and the codec they name."""

    folder: Path
    settings: Settings
    codec: Codec

    @classmethod
    def create(cls, folder: Path, settings: Settings, codec: Codec) -> Run:
        """Write a new run's folder.

        Raises:
            RunError: the folder is not empty, is the current one, or cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            must = f"it must be one that can be made ({fault.strerror})"
            raise RunError(f"the run's folder is {str(folder)!r}; {must}") from fault
        with held(folder):
            check_vacant("the run's folder", folder)
            whole.sweep(folder, BEGUN.__contains__)
            files = codecs.stored(codec)
            vocabulary = files.get(codecs.TOKENIZER_FILE)
            if vocabulary is not None:
                settings = replace(settings, tokenizer_sha256=sha256(vocabulary).hexdigest())
            files[SETTINGS_FILE] = json.dumps(settings.to_json(), indent=1).encode()
            whole.write_files(folder, files)
        return cls(folder, settings, codec)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read a run's folder.

        Raises:
            RunError: it is not a run's folder, or cannot be read; the message says why.
        """
        path = folder / SETTINGS_FILE
        try:
            settings = Settings.from_json(json.loads(path.read_text()))
        except OSError as missing:
            raise RunError(
                f"{folder} is no run: {missing.strerror}: {missing.filename}"
            ) from missing
        except (ValueError, TypeError) as broken:
            raise RunError(f"{path} holds no settings of a run: {broken}") from broken
        try:
            return cls(folder, settings, codecs.restore(settings, folder))
        except (ValueError, TypeError) as broken:
            raise RunError(f"{folder} has no vocabulary that fits it: {broken}") from broken

    def discard(self) -> bool:
        """Delete a new run's folder if training has not begun in it; return whether it was new."""
        if self.checkpoints.exists():
            return False
        for name in BEGUN:
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # it holds other files
            self.folder.rmdir()
        return True

    def sweep(self) -> None:
        """Delete what interrupted writes of this run left behind; nobody may be writing there."""
        files = (*BEGUN, RESULT_FILE, METRICS_FILE, PLOT_FILE)
        folders = (self.model_folder.name, self.huggingface.name)
        whole.sweep(self.folder, {*files, *folders}.__contains__)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def model_folder(self) -> Path:
        """The folder of the finished model."""
        return self.folder / "model"

    @property
    def plot(self) -> Path:
        """The plot of the run."""
        return self.folder / PLOT_FILE

    @property
    def huggingface(self) -> Path:
        """The folder that `transformers.BertForSequenceClassification` reads."""
        return self.folder / HUGGINGFACE

    @property
    def finished(self) -> bool:
        """Whether training has ended: its model is intact, and there is a result."""
        try:
            checkpoints.load(self.model_folder)
        except checkpoints.CheckpointError:
            return False
        return (self.folder / RESULT_FILE).exists()

    def check_data(self, dataset: Dataset) -> None:
        """Raise `RunError` unless data and labels are those that the run was begun with."""
        same = fingerprint(dataset) == self.settings.data_sha256
        if not same or dataset.labels != self.settings.labels:
            was = f"{self.settings.data} is not the data that {self.folder} was begun with"
            named = f": its labels are now {', '.join(dataset.labels[:9])}" if same else ""
            raise RunError(was + named)

    def choices(self) -> dict[str, Any]:
        """Return the settings that steps depend on, by name, as JSON stores them."""
        settings = self.settings.to_json()
        found: dict[str, Any] = json.loads(json.dumps(settings["model"] | settings["recipe"]))
        del found["checkpoint_steps"]
        return found

    def check_choices(self, begun: Mapping[str, Any], path: Path) -> None:
        """Raise `RunError` if settings differ from those that a checkpoint was made with."""
        ours, file = self.choices(), self.folder / SETTINGS_FILE
        for name in sorted(ours.keys() & begun.keys()):
            if ours[name] != begun[name]:
                must = f"it must be {begun[name]!r}, with which {path} was made"
                raise RunError(f"{file}: {name} is {ours[name]!r}; {must}")

    def first_model(self, ops: Side) -> Classifier:
        """Return the model that training begins with: drawn from the seed, or a pretrained one.

        Raises:
            RunError: the pretrained weights are not those that the run was begun with.
        """
        settings = self.settings
        model = Classifier(settings.model, ops, seed=settings.recipe.seed)
        if settings.init is not None:
            folder = pretrained_folder(there_or_here(settings.init))
            path = folder / weights.WEIGHTS_FILE
            if path.exists() and sha256_of(path) != settings.init_sha256:
                raise RunError(f"{path} are not the weights that {self.folder} was begun with")
            _, labels = weights.read_config(folder)
            weights.read_into(model, path, weights.classes_of(settings.labels, labels))
        return model

    def write_model(self, model: Classifier) -> None:
        """Save the parameters, one tensor each, by name; a BERT also in Hugging Face's format."""
        tensors = {n: model.ops.to_numpy(x) for n, x in model.params.items()}
        checkpoints.save(self.model_folder, tensors, {"config": model.config.to_json()})
        if isinstance(self.codec, TextCodec) and bert.is_bert(model.config):
            tokenizer = self.codec.tokenizer
            if isinstance(tokenizer, WordPieceTokenizer):
                pretrained.save(
                    self.huggingface, model, tokenizer, self.settings.labels,
                    longest=self.settings.longest,
                )  # fmt: skip

    def load_model(self, ops: Side) -> Classifier:
        """Return the finished model.

        Raises:
            RunError: training is not finished, or the model was lost, cut short or changed.
        """
        again = f"twofold train --resume {shlex.quote(str(self.folder))}"
        try:
            tensors = checkpoints.load(self.model_folder).tensors
        except checkpoints.CheckpointError as broken:
            if not (self.folder / RESULT_FILE).exists():
                raise RunError(f"{self.folder} is not finished; go on with: {again}") from broken
            made = f"it is made anew of the last checkpoint by: {again}"
            raise RunError(f"{broken}; {made}") from broken
        model = Classifier(self.settings.model, ops)
        if {n: x.shape for n, x in tensors.items()} != model.layout.shapes:
            raise RunError(f"{self.model_folder} holds another model than {SETTINGS_FILE} says")
        for name, view in model.params.items():
            view[...] = ops.asarray(tensors[name])
        return model

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the metrics, row by row."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        whole.write_text(self.folder / METRICS_FILE, text.getvalue())

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of the metrics; empty values are None."""
        with (self.folder / METRICS_FILE).open(newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
        return [
            {name: x if name == "phase" else float(x) if x else None for name, x in row.items()}
            for row in rows
        ]

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the run's result, which marks it as finished."""
        whole.write_text(self.folder / RESULT_FILE, json.dumps(result, indent=1) + "\n")

    def result(self) -> dict[str, Any]:
        """Return the run's result.

        Raises:
            RunError: the file was damaged or changed.
        """
        path = self.folder / RESULT_FILE
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            if missing := RESULT - found.keys():
                raise ValueError(f"{min(missing)} is missing")
        except (ValueError, AttributeError, TypeError) as broken:
            raise RunError(
                f"{path} is no result: {broken}; without it, it is made anew"
            ) from broken
        return found


def check_vacant(named: str, folder: Path) -> None:
    """Refuse a new run's folder that is not empty.

    Its content could be overwritten, or taken for the run's own. What the interrupted beginning of
    a run left behind does not count.

    Args:
        named: what the folder is for, in words.
        folder: need not exist yet.

    Raises:
        RunError: it is not empty, not a folder, or the current one.
    """
    was = f"{named} is {str(folder)!r}"
    if folder.resolve() == Path.cwd():
        raise RunError(f"{was}, where we are; it must be a folder of its own")
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{was}, a file; it must be a folder's name")
    names = sorted(os.listdir(folder)) if folder.exists() else []
    found = [name for name in names if whole.left_of(name, BEGUN.__contains__) is None]
    if found:
        listed = ", ".join(found[:3]) + (", …" if found[3:] else "")
        again = f"; --resume {shlex.quote(str(folder))} goes on with the run in it"
        must = f"it must be empty, or not there yet{again if SETTINGS_FILE in found else ''}"
        raise RunError(f"{was}, which holds {listed}; {must}")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a run's folder against other processes; a process that dies releases the lock.

    Raises:
        RunError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # the file system may have no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                must = "wait for it, or name another folder"
                raise RunError(f"{folder} is being written by another process; {must}") from None
        yield
    finally:
        os.close(handle)
