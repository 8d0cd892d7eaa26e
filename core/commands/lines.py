"""Texts that a command is given, as arguments or as lines that come one after the other."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from twofold.core.commands.common import errors

CHUNK = 1 << 16  # bytes at a time: enough of one length for full batches, few enough to show soon


def texts_given(arguments: Sequence[str] | None) -> Iterator[list[str]]:
    """Yield the texts in lots: the arguments, or lines of standard input as they arrive.

    Blank lines do not count. At the end, standard error is told how fast lines went.

    Raises:
        ValueError: there was no text at all.
    """
    if arguments:
        yield list(arguments)
        return
    count, began = 0, time.perf_counter()
    begun: list[bytes] = []  # parts of a line that has not ended
    source: Any = None if sys.stdin is None else sys.stdin.buffer
    ended = source is None  # who starts us may have closed it
    while not ended:
        chunk = source.read1(CHUNK)  # whatever is there, waiting only for the first byte
        ended = not chunk
        first, *lines = chunk.split(b"\n")
        begun.append(first)
        if lines or ended:
            lines.insert(0, b"".join(begun))
            begun = [] if ended else [lines.pop()]
        if count == 0 and lines:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        texts = [line.decode("utf-8", errors="replace").rstrip("\r") for line in lines]
        if lot := [text for text in texts if text.strip()]:
            count += len(lot)
            yield lot
    if count == 0:
        raise ValueError("no text was given, as an argument or on standard input")
    seconds = time.perf_counter() - began
    errors.print(
        f"{count} lines in {seconds:.1f} s, {count / seconds:.0f} a second", highlight=False
    )
