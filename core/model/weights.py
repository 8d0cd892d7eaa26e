"""Weight files: safetensors are read and checked against what they must contain; pickles refused.

A pickle is a program: loading one from somebody else means running it. A safetensors file is a
header of names, dtypes, shapes and offsets, followed by the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as save_tensors

from twofold.core.model import bert
from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig

Array = np.ndarray[Any, np.dtype[Any]]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # a zip file, as torch.save writes, or a pickle itself
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
DRAWN = (*bert.POOLER, *bert.HEAD)  # what may be missing and is then drawn


class WeightsError(ValueError):
    """A folder or a file that holds no usable BERT; the message names file, tensor and fault."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        WeightsError: the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise WeightsError(f"{path}: cannot be read ({fault.strerror})") from fault
    except ValueError as fault:
        raise WeightsError(f"{path}: is no JSON ({fault})") from fault
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: holds a {type(found).__name__}; it must be an object")
    return found


def read_config(folder: Path, **changed: Any) -> tuple[ClassifierConfig, tuple[str, ...]]:
    """Return a BERT's config, with some fields changed, and the names of its classes.

    Raises:
        WeightsError: naming the file, the field, what it was and what it must be.
    """
    path = folder / CONFIG_FILE
    theirs = read_json(path)
    try:
        return bert.config_of(theirs, **changed), bert.labels_of(theirs)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Array]:
    """Return the tensors of a safetensors file by name; bfloat16 as float32.

    Raises:
        WeightsError: the file is not there, is damaged, or is something else.
    """
    try:
        blob = path.read_bytes()
    except OSError as fault:
        for name in PICKLES:
            if (path.parent / name).exists():
                _refuse_pickle(path.parent / name)
        raise WeightsError(f"{path}: cannot be read ({fault.strerror})") from fault
    try:
        found = deserialize(blob)  # type: ignore[no-untyped-call]
    except SafetensorError as fault:
        if blob.startswith(PICKLE_STARTS):  # a sound header's length may too, but would have loaded
            _refuse_pickle(path)
        raise WeightsError(f"{path}: is damaged, or no safetensors file ({fault})") from fault
    return {name: _array(path, name, x) for name, x in found}


def _refuse_pickle(path: Path) -> NoReturn:
    raise WeightsError(
        f"{path}: is a pickle, which may run any program when it is loaded; write the model as "
        "safetensors where it comes from: model.save_pretrained(folder, safe_serialization=True)"
    )


def _array(path: Path, name: str, x: Mapping[str, Any]) -> Array:
    shape, data, dtype = x["shape"], x["data"], x["dtype"]
    if dtype == "BF16":  # the upper half of a float32
        halves = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        return halves.view(np.float32).reshape(shape)
    if dtype in DTYPES:
        return np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    if bert.plain_name(name) is None:  # indices
        return np.empty(0)
    raise WeightsError(f"{path}: {name} has dtype {dtype}; it must be BF16, {', '.join(DTYPES)}")


def classes_of(labels: Sequence[str], own: Sequence[str]) -> list[int] | None:
    """Return which of a file's own classes each label names; None if the labels differ."""
    if tuple(labels) == tuple(own):
        return list(range(len(own)))
    return [own.index(label) for label in labels] if sorted(labels) == sorted(own) else None


def read_into(model: Classifier, path: Path, classes: Sequence[int] | None) -> list[str]:
    """Fill a BERT's parameters from a file, which may lack the pooler and the head.

    Args:
        model: with the config of the file's model; a pooler and a head that are not in the file
            stay as they were drawn.
        path: of the safetensors file.
        classes: for each of the model's classes, which of the file's it is; None if the classes
            differ, and the file's head is ignored. It is also ignored for any pooling but BERT's.

    Returns:
        BERT's names of the tensors that were missing or ignored.

    Raises:
        WeightsError: naming the file and the tensor that is missing, unknown or wrongly shaped.
    """
    tensors = read_tensors(path)
    by_name: dict[str, str] = {}
    for full in tensors:
        name = bert.plain_name(full)
        if name is not None and name in by_name:
            raise WeightsError(f"{path}: both {by_name[name]} and {full} are there")
        if name is not None:
            by_name[name] = full
    layers = model.config.num_layers
    wanted = [p for p in bert.places(layers) if p.ours in model.params]
    known = {place.theirs for place in bert.places(layers)}
    for name, full in by_name.items():
        if name not in known:
            raise WeightsError(f"{path}: {full} is no tensor of a BERT of {layers} layers")
    head = classes is not None and bert.is_bert(model.config)
    missing = []
    for place in wanted:
        view, there = place.of(model.params), by_name.get(place.theirs)
        if there is None or (place.theirs in bert.HEAD and not head):
            if place.theirs not in DRAWN:
                raise WeightsError(
                    f"{path}: {place.theirs} is missing; a BERT of {layers} layers has it"
                )
            missing.append(place.theirs)
            continue
        found, shape = tensors[there], tuple(view.shape)
        if found.shape != shape:
            raise WeightsError(f"{path}: {there} has shape {found.shape}; it must be {shape}")
        if place.theirs in bert.HEAD:
            found = found[classes]
        view[...] = model.ops.asarray(found)
    return missing


def files(model: Classifier, labels: tuple[str, ...]) -> dict[str, bytes]:
    """Return the files that `transformers.BertForSequenceClassification` reads, by name.

    Args:
        model: with BERT's own pooler and head.
        labels: names of the classes.

    Raises:
        ValueError: naming the choice that is not BERT's.
    """
    config = bert.config_for(model.config, labels)
    tensors = {}
    for place in bert.places(model.config.num_layers):
        prefix = "" if place.theirs in bert.HEAD else bert.PREFIX
        array = model.ops.to_numpy(place.of(model.params))
        tensors[prefix + place.theirs] = np.ascontiguousarray(array)
    return {
        WEIGHTS_FILE: save_tensors(tensors, {"format": "pt"}),
        CONFIG_FILE: (json.dumps(config, indent=1) + "\n").encode(),
    }
