"""Which lines of a side's files ran, so that a fault is judged only by what reaches it."""

from __future__ import annotations

import ast
import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

Line = tuple[str, int]  # a file's path from the top of the repository, and a line of it

_parsed = functools.cache(ast.parse)  # a file has many faults
_kernels: set[tuple[str, int]] = set()  # lines of kernels that were interpreted, by full path


def kernel_line() -> None:
    """Note that a line runs: every statement of a kernel begins with this when interpreted."""
    frame = sys._getframe(1)
    _kernels.add((frame.f_code.co_filename, frame.f_lineno))


@contextlib.contextmanager
def lines(folder: Path, kernels: bool) -> Iterator[set[Line]]:
    """Collect the lines that run in the files of a folder: ("kernels/rotary.py", 12).

    Args:
        folder: holds the files.
        kernels: watch interpreted kernels only; otherwise every function, which is too slow for
            the interpreter.
    """
    found: set[Line] = set()
    top = f"{folder}/"

    def note(path: str, line: int) -> None:
        if path.startswith(top):
            found.add((f"{folder.name}/{path[len(top) :]}", line))

    def called(frame: FrameType, event: str, argument: Any) -> Any:
        def ran(frame: FrameType, event: str, argument: Any) -> Any:
            note(frame.f_code.co_filename, frame.f_lineno)
            return ran

        return ran(frame, event, argument) if frame.f_code.co_filename.startswith(top) else None

    before = sys.gettrace()
    _kernels.clear()
    if not kernels:
        sys.settrace(called)
    try:
        yield found
    finally:
        sys.settrace(before)
        for path, line in _kernels if kernels else ():
            note(path, line)


def statement(source: str, line: int) -> range:
    """Return the lines of the innermost statement at a line, or of its head if it has a body."""
    found = range(line, line + 1)
    for node in ast.walk(_parsed(source)):  # outer ones come first
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or line
            if node.lineno <= line <= last:
                found = range(node.lineno, last + 1)
    return found
