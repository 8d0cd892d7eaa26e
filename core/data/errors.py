"""The one error that faulty data raises."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn


class DataError(ValueError):
    """Data cannot be fetched or read; the message names file, line, fault and remedy."""


def refuse(path: str | Path, line: int | None, was: str, must: str) -> NoReturn:
    """Raise `DataError`, saying where (lines count from 1), what was found, and what must be.

    ``refuse("a.csv", 3, "the label is empty", "every row needs a label")`` says
    ``a.csv, line 3: the label is empty; every row needs a label``.
    """
    where = f"{path}, line {line}" if line is not None else str(path)
    raise DataError(f"{where}: {was}; {must}") from None
