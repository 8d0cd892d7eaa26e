"""What judging the peers found, each finding with its kind and reason.

Nothing is filtered by this list: a failure is shown with its kind, one that is not listed as
unexplained, and a listed one that no longer shows as gone. The kinds, from worst to least:

- fault: wrong by any reading, such as another gradient, a NaN, memory that is not the function's;
- precision: further off than arithmetic in float32 with one rounding of each stored result may be;
- undefined: right only if the language fills in what it leaves undefined.

Another choice that is documented or common, where ours differs, is no failure: `conventions`.

A bound is that of a kernel which computes in float32 and rounds what it stores, once. To leave it
is not to be useless; how far off, and why, is in the reason.
"""

from __future__ import annotations

from collections.abc import Iterable

from twofold.core.verify.peers.finding import Known
from twofold.core.verify.peers.table import LIBRARIES

KNOWN = tuple(known for library in LIBRARIES for known in library.FOUND)


def known(peer: str, precision: str, output: str, words: str) -> Known | None:
    """Return the first entry of a failure, if it has one."""
    return next((k for k in KNOWN if k.names(peer, precision, output, words)), None)


def gone(peers: Iterable[str], seen: Iterable[Known]) -> list[Known]:
    """Return the entries of these peers that were not seen."""
    peers, seen = set(peers), set(seen)
    return [k for k in KNOWN if k.peer in peers and k not in seen]
