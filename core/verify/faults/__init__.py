"""Faults that have shipped elsewhere: semantic mutants, beside the syntactic ones of `mutation`.

An entry says what the fault is, where something like it shipped, and how it changes a file of this
project. The text it replaces must occur there exactly once, so that an entry goes stale when the
code changes and is then reported. The catalogue is in the files beside this one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from twofold.core.verify.faults import around_attention, attention, decoding, inputs, layers, norms
from twofold.core.verify.faults.entry import Fault
from twofold.core.verify.mutation import Mutant

__all__ = ["CATALOGUE", "Fault", "mutants", "stale"]

CATALOGUE: tuple[Fault, ...] = (
    *attention.FAULTS,
    *around_attention.FAULTS,
    *decoding.FAULTS,
    *inputs.FAULTS,
    *layers.FAULTS,
    *norms.FAULTS,
)
KIND = "catalogue"


def mutants(operator: str, top: Path, folder: str) -> list[Mutant]:
    """Return the catalogue's mutants of an operator's files in `folder`, below `top`."""
    mine = [f for f in CATALOGUE if f.operator == operator and f.file.startswith(f"{folder}/")]
    return [mutant for f in mine if (mutant := _applied(f, (top / f.file).read_text()))]


def stale(top: Path, faults: Iterable[Fault] = CATALOGUE) -> list[Fault]:
    """Return the entries that do not fit the files below `top`."""
    return [f for f in faults if not _applied(f, (top / f.file).read_text())]


def _applied(fault: Fault, source: str) -> Mutant | None:
    """Return the mutant that a fault makes of a file's text, None where it does not fit."""
    changed = source
    for old, new in fault.swaps:
        if changed.count(old) != 1:
            return None
        changed = changed.replace(old, new)
    line = source[: source.index(fault.swaps[0][0])].count("\n") + 1
    text = source.splitlines()[line - 1].strip()
    what = f"{fault.name} ({fault.shipped})" if fault.shipped else fault.name
    return Mutant(fault.file, _function(source, line), line, text, KIND, what, changed)


def _function(source: str, line: int) -> str:
    """Return the function that a line stands in, "" outside all."""
    spans = {
        f.name: (f.lineno, f.end_lineno or 0)
        for f in ast.parse(source).body
        if isinstance(f, ast.FunctionDef)
    }
    return next((name for name, (a, b) in spans.items() if a <= line <= b), "")
