"""Texts given to a command, as arguments or as lines of standard input."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from twofold.core.commands.common import tell

Texts = Annotated[
    list[str] | None,
    typer.Argument(help="texts; if none are given, the non-blank lines of standard input"),
]
CHUNK = 1 << 16  # bytes at a time: enough similar lengths for full batches, few enough to show soon


def texts_given(arguments: Sequence[str] | None) -> Iterator[list[str]]:
    """Yield the texts in lots: the arguments, or lines of standard input as they arrive.

    Blank lines are skipped. At the end, the rate of lines is printed to standard error.

    Raises:
        ValueError: there was no text at all, or one is not UTF-8; those before it were yielded.
    """
    if arguments:
        for text in arguments:
            if any("\ud800" <= c <= "\udfff" for c in text):  # Python's form of other bytes
                raise ValueError(f"the text {text!r} is not UTF-8; it must be")
        yield list(arguments)
        return
    count, seen, began = 0, 0, time.perf_counter()  # texts; lines, blank ones included
    begun: list[bytes] = []  # parts of a line that has not ended
    source: Any = None if sys.stdin is None else sys.stdin.buffer
    ended = source is None  # the parent process may have closed it
    while not ended:
        chunk = source.read1(CHUNK)  # whatever there is, waiting only for the first byte
        ended = not chunk
        first, *lines = chunk.split(b"\n")
        begun.append(first)
        if lines or ended:
            lines.insert(0, b"".join(begun))
            begun = [] if ended else [lines.pop()]
        if seen == 0 and lines:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        texts, fault = _decoded(lines)
        if lot := [text for text in texts if text.strip()]:
            count += len(lot)
            yield lot
        seen += len(texts)
        if fault is not None:
            found = f"byte {fault.start + 1}, 0x{fault.object[fault.start]:02x}, is not UTF-8"
            raise ValueError(f"standard input, line {seen + 1}: {found}; it must be UTF-8")
    if count == 0:
        raise ValueError("no text was given, as an argument or on standard input")
    seconds = time.perf_counter() - began
    tell(f"{count} lines in {seconds:.1f} s, {count / seconds:.0f} a second")


def _decoded(lines: Sequence[bytes]) -> tuple[list[str], UnicodeDecodeError | None]:
    """Return the lines before the first that is not UTF-8, and that one's error."""
    texts: list[str] = []
    for line in lines:
        try:
            texts.append(line.decode("utf-8").rstrip("\r"))
        except UnicodeDecodeError as fault:
            return texts, fault
    return texts, None
