"""A judge in a process of its own: a function that hangs or crashes ends that, and is named."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from twofold.core.verify import foreign
from twofold.core.verify.foreign import Verdict

LIMIT = 60.0  # seconds, for one case
IMPORTING = 300.0  # seconds, until the first case


def judge(
    function: str,
    operator: str,
    examples: int,
    precisions: Sequence[str] | None = None,
    limit: float = LIMIT,
    claimed: int = foreign.CLAIMED,
) -> Verdict:
    """Judge "module:function" as `foreign.judge` does; whatever happens is in the verdict.

    A case that takes longer than `limit` seconds, or ends the process, is the failure; what was
    found before it is lost.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
    ours, theirs = context.Pipe(duplex=False)
    arguments = (theirs, function, operator, examples, precisions, claimed)
    child = context.Process(target=_child, args=arguments, daemon=True)
    child.start()
    theirs.close()
    try:
        return _listen(ours, child, limit)
    finally:
        child.kill()
        child.join()


def _child(
    pipe: Connection,
    function: str,
    operator: str,
    examples: int,
    precisions: Sequence[str] | None,
    claimed: int,
) -> None:
    try:
        verdict = foreign.judge(function, operator, examples, precisions, pipe.send, claimed)
    except (ValueError, TypeError) as refused:
        verdict = Verdict(failures=[str(refused)])
    except Exception:  # the judge's own, which nobody would see here
        verdict = Verdict(failures=[f"the judge failed:\n{traceback.format_exc()}"])
    pipe.send(verdict)


def _listen(pipe: Connection, child: Any, limit: float) -> Verdict:
    """Wait for the verdict, as long as cases keep coming."""
    line = "before the first case"
    while True:
        wait = limit if line.startswith("foreign.") else IMPORTING
        if not pipe.poll(wait):
            return Verdict(failures=[f"it does not end within {wait:g} s\n  {line}"])
        try:
            said = pipe.recv()
        except EOFError:
            child.join()
            number = -(child.exitcode or 0)
            how = f"by {signal.Signals(number).name}" if number > 0 else "without a word"
            return Verdict(failures=[f"it ended the process {how}\n  {line}"])
        if isinstance(said, Verdict):
            return said
        line = said
