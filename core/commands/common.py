"""What the commands share: the console, errors without stack traces, sides, JSON results."""

from __future__ import annotations

import errno
import json
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from twofold.core import ops
from twofold.core.signals import interruptible
from twofold.core.whole import replace_files

console = Console(emoji=False)
if not console.is_terminal:
    console = Console(emoji=False, width=160)  # a file has no width of its own
errors = Console(emoji=False, stderr=True)

REFUSED, FAILED, INTERRUPTED = 2, 1, 130  # exit statuses
# Packages that only the kernels and their verification need.
OF_KERNELS = ("torch", "triton", "hypothesis", "ml_dtypes")
# Errors that a command reports of its input, such as one that is too large.
WRONG = (ValueError, TypeError, OSError, ImportError, MemoryError)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print what was wrong with the input, without a stack trace, and exit with status 2."""
    try:
        yield
    except WRONG as error:
        raise refused(error) from error


def refused(error: Exception) -> typer.Exit:
    """Print what was wrong and return the exit to raise."""
    words = str(error) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name in OF_KERNELS:
        words = f"{error.name} is not installed; this needs it: pip install 'twofold[triton]'"
    tell(f"[red]error:[/red] {escaped(words)}")
    return typer.Exit(REFUSED)


def tell(markup: str) -> None:
    """Print a line to standard error if possible: no work ends because that is full."""
    with unprinted():
        errors.print(markup, highlight=False, soft_wrap=True)


@contextmanager
def unprinted() -> Iterator[None]:
    """Go on even if nothing can be printed: the reader is gone, or a disk is full."""
    with suppress(OSError, SystemExit):  # rich exits if a pipe is broken
        yield


def escaped(text: str) -> str:
    """Return text in which rich sees no markup."""
    return escape(text)


def visible(text: str) -> str:
    """Return text with control characters, except tabs, written as in Python."""
    return "".join(
        repr(c)[1:-1] if unicodedata.category(c) == "Cc" and c != "\t" else c for c in text
    )


def say(line: str) -> None:
    """Print a line that holds a user's text, without markup or wrapping, and flush it."""
    try:
        console.file.write(f"{visible(line)}\n")
        console.file.flush()
    except BrokenPipeError:
        console.on_broken_pipe()


def choose_side(name: str) -> ops.Side:
    """Return a side by name; "auto" takes the kernels if CUDA is available."""
    if name == "auto":
        name = "triton" if ops.cuda_available() else "reference"
    if name not in ops.SIDES:
        raise ValueError(f"--side is {name!r}; it must be auto, {' or '.join(ops.SIDES)}")
    return ops.load(name)


@contextmanager
def interpreted_strictly(side: ops.Side) -> Iterator[None]:
    """Use the strict interpreter if a side's kernels are interpreted.

    Triton's plain interpreter is slower, and its bfloat16 is wrong.
    """
    if side.name != "triton" or side.device != "cpu":
        yield
        return
    from twofold.core.verify.strict import strict_interpreter

    with strict_interpreter():
        yield


def check_file(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written, before the work for it; make its folder.

    Raises:
        ValueError: naming the option.
    """
    if path is None:
        return
    with _named(option, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_folder(option: str, path: Path | None) -> None:
    """Make a folder and refuse one that cannot be written to, before the work for it.

    Raises:
        ValueError: naming the option.
    """
    if path is None:
        return
    with _named(option, path, "a folder that can be written to"):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _writable(path: Path | None) -> Path | None:
    with plain_errors():
        check_file("--json", path)
    return path


# Option of every command with a machine-readable result; a bad path is refused before the work.
Json = Annotated[
    Path | None, typer.Option(help="write the result to this file", callback=_writable)
]


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write a machine-readable result, if a path was given."""
    if path is not None:
        write_file("--json", path, (json.dumps(result, indent=1) + "\n").encode())


@contextmanager
def kept(write: Callable[[], None]) -> Iterator[None]:
    """Call `write` at the end of a block in which results grow, even if it ends early.

    SIGTERM and SIGHUP end the block as SIGINT does.
    """
    with interruptible():
        try:
            yield
        finally:
            write()


def write_file(option: str, path: Path, content: bytes) -> None:
    """Write a file that an option names, so that it is complete or as it was before.

    A link (such as /dev/stdout), a pipe, a device, and a file in a folder that cannot be written to
    are written directly.

    Raises:
        ValueError: naming the option.
    """
    check_file(option, path)
    regular = not path.is_symlink() and (path.is_file() or not path.exists())
    with _named(option, path):
        if not regular or not os.access(path.parent, os.W_OK):
            path.write_bytes(content)
            return
        replace_files({path: content})


@contextmanager
def _named(option: str, path: Path, what: str = "a file that can be written") -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        must = f"it must be {what} ({fault.strerror})"
        raise ValueError(f"{option} is {str(path)!r}; {must}") from fault
