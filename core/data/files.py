"""Labelled texts from a CSV, TSV or JSONL file. Work in progress."""

from __future__ import annotations

from pathlib import Path


def read_labelled(
    path: str | Path, text_column: str | None = None, label_column: str | None = None
) -> tuple[list[str], list[str]]:
    """Return the texts and the labels of a file's rows."""
    raise NotImplementedError
