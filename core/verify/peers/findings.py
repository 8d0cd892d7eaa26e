"""What judging the peers found, each finding with its kind and reason.

Nothing is filtered by this list: a failure is shown with its kind, one that is not listed as
unexplained, and a listed one that no longer shows as gone. The kinds, from worst to least:

- fault: wrong by any reading, such as another gradient, a NaN, memory that is not the function's;
- precision: further off than arithmetic in float32 with one rounding of each stored result may be;
- undefined: right only if the language fills in what it leaves undefined;
- convention: another choice that is documented or common, where ours differs.

A bound is that of a kernel which computes in float32 and rounds what it stores, once. To leave it
is not to be useless; how far off, and why, is in the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

FAULT, PRECISION, UNDEFINED, CONVENTION = "fault", "precision", "undefined", "convention"
UNEXPLAINED = "unexplained"
ANY = "*"


class Known(NamedTuple):
    """A finding, or several of one cause.

    `precisions` and `outputs` are those that it shows in, separated by spaces, or `ANY`;
    `reproduction` is a script in benchmarks/peer_faults, "" where a convention needs none.
    """

    peer: str
    precisions: str
    outputs: str
    kind: str
    reason: str
    reproduction: str = ""

    def names(self, peer: str, precision: str, output: str) -> bool:
        """Return whether this is the entry of a failure."""
        return (
            self.peer == peer
            and (self.precisions == ANY or precision in self.precisions.split())
            and (self.outputs == ANY or output in self.outputs.split(", "))
        )


KNOWN: tuple[Known, ...] = ()


def known(peer: str, precision: str, output: str) -> Known | None:
    """Return the entry of a failure, if it has one."""
    return next((k for k in KNOWN if k.names(peer, precision, output)), None)


def gone(peers: Iterable[str], seen: Iterable[Known]) -> list[Known]:
    """Return the entries of these peers that were not seen."""
    peers, seen = set(peers), set(seen)
    return [k for k in KNOWN if k.peer in peers and k not in seen]
