"""A judge in a process of its own: a function that hangs or crashes ends only that process."""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection

from twofold.core.verify import foreign
from twofold.core.verify.alone import LIMIT, STARTING, Alone, Ended
from twofold.core.verify.foreign import Failure, Verdict
from twofold.core.verify.foreign.imports import load
from twofold.core.verify.peers import interpreted

OURS = "between what is its own"  # during imports and preparations


def judge(
    function: str,
    operator: str,
    examples: int,
    precisions: Sequence[str] | None = None,
    limit: float = LIMIT,
    claimed: int = foreign.CLAIMED,
    seconds: float = math.inf,
) -> Verdict:
    """Judge "module:function" as `foreign.judge` does; the verdict says whatever happens.

    An import or a case that takes longer than `limit` seconds, or ends the process, is the last
    failure; earlier findings are kept, except for tables and notes.
    """
    child = Alone(_child, function, operator, examples, precisions, claimed, seconds)
    try:
        return _listen(child, limit, function)
    finally:
        child.end()


def check_import(function: str, limit: float = LIMIT) -> None:
    """Import "module:function" in a separate process, before it is imported in this one.

    Raises:
        ValueError: the import fails, takes longer than `limit` seconds, or ends the process.
    """
    child = Alone(_import, function)
    try:
        said = _listen(child, limit, function)
    finally:
        child.end()
    if said.failures:
        raise ValueError(said.failures[0].replace("\n  ", ": "))


def _import(pipe: Connection, function: str) -> None:
    interpreted.prepare()
    pipe.send(_importing(function))
    try:
        load(function)
    except ValueError as refused:
        pipe.send(Verdict(failures=[str(refused)]))
    else:
        pipe.send(Verdict())


def _child(
    pipe: Connection,
    function: str,
    operator: str,
    examples: int,
    precisions: Sequence[str] | None,
    claimed: int,
    seconds: float,
) -> None:
    interpreted.prepare()  # imports our own modules
    try:
        pipe.send(_importing(function))
        load(function)
        pipe.send(OURS)
        verdict = foreign.judge(
            function, operator, examples, precisions, pipe.send, claimed, seconds
        )
    except (ValueError, TypeError) as refused:
        verdict = Verdict(failures=[str(refused)], unjudged=True)
    except Exception:  # the judge's own, which would go unseen here
        verdict = Verdict(failures=[f"the judge failed:\n{traceback.format_exc()}"])
    pipe.send(verdict)


def _importing(function: str) -> str:
    return f"while {function!r} was imported"


def _listen(child: Alone, limit: float, function: str) -> Verdict:
    """Wait for the verdict for as long as the process reports: a case begun, or a failure."""
    line = OURS
    found: list[Failure] = []
    while True:
        try:
            said = child.hear(STARTING if line == OURS else limit)
        except (TimeoutError, Ended) as end:
            words = f"it {end}\n  {line}"
            failures = [words, *foreign.listed(found)]
            unjudged = line == _importing(function)
            return Verdict(failures=failures, found=found, ended=words, unjudged=unjudged)
        if isinstance(said, Verdict):
            return said
        if isinstance(said, list):
            found += said
        else:
            line = said
