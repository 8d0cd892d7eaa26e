"""Judges each peer in a process of its own, and looks its failures up in `findings`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from twofold.core.verify.foreign import BITS, HOLDS, Verdict, apart
from twofold.core.verify.peers import conventions
from twofold.core.verify.peers.finding import UNEXPLAINED, Known
from twofold.core.verify.peers.findings import known
from twofold.core.verify.peers.peer import Peer

_FAILURE = re.compile(r"(forward|backward|property) (\S+) (.+?): (.*)", re.DOTALL)


@dataclass(frozen=True)
class Failure:
    """One failure of a peer.

    Attributes:
        precision, output: where: an output, a gradient, a property; "" for the whole run.
        words: what is wrong.
        again: the line of Python that repeats it, on the smallest input found.
        known: its entry in `findings`.
    """

    precision: str
    output: str
    words: str
    again: str
    known: Known | None

    @property
    def kind(self) -> str:
        """Return the finding's kind."""
        return self.known.kind if self.known else UNEXPLAINED


@dataclass(frozen=True)
class Judged:
    """A peer and its verdict, or the reason why there is none.

    `answers` are those to what its operator's definition leaves open.
    """

    peer: Peer
    missing: str = ""
    verdict: Verdict = field(default_factory=Verdict)
    answers: dict[str, str] = field(default_factory=dict)

    def failures(self) -> list[Failure]:
        """Return what is wrong, each with the line that shows it."""
        return list(_failures(self.peer.name, self.verdict.failures))

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "peer": self.peer.name,
            "operator": self.peer.operator,
            "what": self.peer.what,
            "distribution": self.peer.distribution,
            "version": self.peer.version(),
            "missing": self.missing,
            "precisions": [asdict(row) for row in self.rows()],
            "failures": [
                {
                    "precision": f.precision,
                    "output": f.output,
                    "words": f.words,
                    "again": f.again,
                    "kind": f.kind,
                    "reason": f.known.reason if f.known else "",
                    "reproduction": f.known.reproduction if f.known else "",
                }
                for f in self.failures()
            ],
            "conventions": self.answers,
            "notes": [*self.verdict.taken, *self.verdict.notes],
        }

    def rows(self) -> list[Row]:
        """Return a row for each precision, or a single one if there was no run."""
        failures, verdict = self.failures(), self.verdict
        if self.missing or not (verdict.rows or verdict.claims):
            kinds = [f.kind for f in failures]
            return [Row("", 0, 0.0, 0.0, 0, 0, 0, self.missing, tuple(dict.fromkeys(kinds)))]
        precisions = dict.fromkeys(
            [row.precision for row in verdict.rows] + [c.precision for c in verdict.claims]
        )
        rows = []
        for precision in precisions:
            mine = [r for r in verdict.rows if r.precision == precision]
            worst = {
                p: max((r.share for r in mine if r.pass_ == p), default=0.0)
                for p in ("forward", "backward")
            }
            outcomes = [c.outcome for c in verdict.claims if c.precision == precision]
            kinds = [f.kind for f in failures if f.precision in (precision, "")]
            rows.append(
                Row(
                    precision,
                    max((r.cases for r in mine), default=0),
                    worst["forward"],
                    worst["backward"],
                    outcomes.count(HOLDS),
                    outcomes.count(BITS),
                    sum(f.precision == precision for f in failures),
                    "",
                    tuple(dict.fromkeys(kinds)),
                )
            )
        return rows


@dataclass(frozen=True)
class Row:
    """A peer in one precision.

    Attributes:
        precision: which.
        cases: how many were run against the bounds.
        forward, backward: the worst |computed − truth| as a share of its bound, 0 if none was.
        properties, bits: those that hold, and those that hold except for the last bits.
        failures: how many outputs and properties fail.
        missing: why it was not run.
        kinds: of the failures.
    """

    precision: str
    cases: int
    forward: float
    backward: float
    properties: int
    bits: int
    failures: int
    missing: str
    kinds: tuple[str, ...]


def judge(peers: Iterable[Peer], examples: int, limit: float, jobs: int) -> Iterator[Judged]:
    """Judge peers, `jobs` at a time, each by its share of `examples`; yield them in order.

    A peer that is not installed is not judged.
    """
    peers = list(peers)
    with ThreadPoolExecutor(jobs) as pool:
        verdicts = [pool.submit(_verdict, peer, examples, limit) for peer in peers]
        try:
            for peer, verdict in zip(peers, verdicts, strict=True):
                found = verdict.result()
                # Asked in this process, so not of a peer that crashed its own, or hung.
                answers = conventions.answers(peer) if found.rows else {}
                yield Judged(peer, peer.missing(), found, answers)
        finally:
            pool.shutdown(cancel_futures=True)


def _verdict(peer: Peer, examples: int, limit: float) -> Verdict:
    """Judge a peer in a process of its own."""
    if peer.missing():
        return Verdict()
    each = max(len(peer.precisions), examples // peer.cost)
    return apart.judge(peer.target, peer.operator, each, peer.precisions, limit, peer.claimed)


def _failures(peer: str, said: list[str]) -> Iterator[Failure]:
    """Parse failures; of several outputs of one case the last has the line that repeats it."""
    waiting: list[tuple[str, str, str]] = []
    for text in said:
        words, _, again = text.partition("\n  foreign.")
        found = _FAILURE.match(words)
        precision, output, fault = found.group(2, 3, 4) if found else ("", "", words)
        waiting.append((precision, output, fault))
        if again or not found:
            line = f"foreign.{again}" if again else ""
            yield from (_failure(peer, *one, line) for one in waiting)
            waiting = []
    yield from (_failure(peer, *one, "") for one in waiting)


def _failure(peer: str, precision: str, output: str, fault: str, again: str) -> Failure:
    """Look a failure up; compiler output is shortened, and paths begin at their package."""
    words = "\n".join(fault.splitlines()[:3])
    for folder in filter(None, sys.path):
        words = words.replace(f"{folder.rstrip('/')}/", "")
    return Failure(precision, output, words, again, known(peer, precision, output, words))
