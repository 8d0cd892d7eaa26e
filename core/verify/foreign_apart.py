"""A judge in a process of its own: a function that hangs or crashes ends that, and is named."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection

from twofold.core.verify import foreign
from twofold.core.verify.alone import IMPORTING, LIMIT, Alone, Ended
from twofold.core.verify.foreign import Failure, Verdict


def judge(
    function: str,
    operator: str,
    examples: int,
    precisions: Sequence[str] | None = None,
    limit: float = LIMIT,
    claimed: int = foreign.CLAIMED,
) -> Verdict:
    """Judge "module:function" as `foreign.judge` does; whatever happens is in the verdict.

    A case that takes longer than `limit` seconds, or ends the process, is the last failure; what
    was found before it stays, but for tables and notes.
    """
    child = Alone(_child, function, operator, examples, precisions, claimed)
    try:
        return _listen(child, limit)
    finally:
        child.end()


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


def _listen(child: Alone, limit: float) -> Verdict:
    """Wait for the verdict, as long as cases keep coming."""
    line = "before the first case"
    found: list[Failure] = []
    while True:
        try:
            said = child.hear(limit if line.startswith("foreign.") else IMPORTING)
        except TimeoutError as hung:
            return _cut_short(f"it {hung}", line, found)
        except Ended as gone:
            how = f"by {gone.signal}" if gone.signal else "without a word"
            return _cut_short(f"it ended the process {how}", line, found)
        if isinstance(said, Verdict):
            return said
        if isinstance(said, list):
            found += said
        else:
            line = said


def _cut_short(words: str, line: str, found: list[Failure]) -> Verdict:
    """Return what is known of a function whose process is gone."""
    end = f"{words}\n  {line}"
    return Verdict(failures=[end, *foreign.listed(found)], found=found, ended=end)
