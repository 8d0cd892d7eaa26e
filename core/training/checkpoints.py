"""Checkpoints: safetensors and JSON in a folder that appears complete or not at all.

A checkpoint is a folder with `tensors.safetensors` and `state.json`, written so that whenever the
process is killed, whatever has a checkpoint's name is complete (`whole`). `state.json` carries the
checksum of both files, so a checkpoint that was cut short or changed afterwards is refused, and the
one before it is still there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from twofold.core import whole

Array = np.ndarray[Any, np.dtype[Any]]

TENSORS, STATE = "tensors.safetensors", "state.json"
KEPT = 2  # latest checkpoints of a run
DAMAGED = ".damaged"  # appended to the name of a refused checkpoint

NAME = re.compile(r"\d+-\d{8,}")  # a checkpoint's: phase and step; all else is left alone


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why."""


class Checkpoint(NamedTuple):
    """A checkpoint's content: arrays by name, and plain data."""

    tensors: dict[str, Array]
    state: dict[str, Any]


def save(folder: Path, tensors: Mapping[str, Array], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; afterwards `folder` is complete, or is as it was before.

    Args:
        folder: where to write; a checkpoint already there is replaced.
        tensors: arrays by name.
        state: anything `json` takes.
    """
    blob, signed = _signed(tensors, state)
    whole.write_folder(folder, {TENSORS: blob, STATE: json.dumps(signed, indent=1).encode()})


def digest(tensors: Mapping[str, Array], state: Mapping[str, Any]) -> str:
    """Return the checksum of a checkpoint with this content."""
    found: str = _signed(tensors, state)[1]["sha256"]
    return found


def _signed(tensors: Mapping[str, Array], state: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    blob = save_tensors({name: np.ascontiguousarray(x) for name, x in tensors.items()})
    signed = {"state": dict(state), "tensors_sha256": _sha256(blob)}
    signed["sha256"] = _sha256(_canonical(signed))
    return blob, signed


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: it is missing, was cut short, or was changed since it was written.
    """
    try:
        blob, text = (folder / TENSORS).read_bytes(), (folder / STATE).read_bytes()
    except OSError as missing:
        raise CheckpointError(
            f"{folder} is not a whole checkpoint: {missing.strerror}: {missing.filename}"
        ) from missing
    try:
        signed = json.loads(text)
        claimed = signed.pop("sha256")
        state, tensors_sha256 = signed["state"], signed["tensors_sha256"]
    except (ValueError, KeyError, AttributeError, TypeError) as broken:
        raise CheckpointError(
            f"{folder / STATE} is not a checkpoint's state: {broken!r}"
        ) from broken
    if _sha256(_canonical(signed)) != claimed:
        raise CheckpointError(
            f"{folder / STATE} was changed after it was written: its sha256 differs"
        )
    if _sha256(blob) != tensors_sha256:
        raise CheckpointError(
            f"{folder / TENSORS} was cut short or changed after it was written: its sha256 differs"
        )
    try:
        return Checkpoint(load_tensors(blob), state)
    except SafetensorError as broken:
        raise CheckpointError(f"{folder / TENSORS} holds no tensors: {broken}") from broken


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the latest sound checkpoint in a folder, and why any later ones were refused.

    `DAMAGED` is appended to the names of the refused ones: the next checkpoint written may be of an
    earlier step, and `prune` would otherwise delete it instead of them. Nobody may be writing
    there.
    """
    whole.put_back(folder, NAME.fullmatch)
    refused: list[str] = []
    for path in reversed(names(folder)):
        try:
            return load(path), refused
        except CheckpointError as error:
            aside = path.with_name(path.name + DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
            refused.append(f"{error}; the checkpoint is now {aside.name}")
    return None, refused


def names(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first: by phase, then by step."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: [int(number) for number in p.name.split("-")])


def prune(folder: Path) -> None:
    """Delete all but the latest `KEPT` checkpoints, and what interrupted writes left behind."""
    for path in names(folder)[:-KEPT]:
        shutil.rmtree(path)
    whole.sweep(folder, NAME.fullmatch)


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
