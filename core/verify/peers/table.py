"""The table of peers: what is judged of other libraries, and what was found in it."""

from __future__ import annotations

from twofold.core.verify.peers import (
    of_cce,
    of_fla,
    of_flag_gems,
    of_liger,
    of_sglang,
    of_torch,
    of_unsloth,
)
from twofold.core.verify.peers.peer import Peer

LIBRARIES = (of_torch, of_liger, of_fla, of_unsloth, of_flag_gems, of_sglang, of_cce)
PEERS = tuple(peer for library in LIBRARIES for peer in library.PEERS)


def named(names: list[str] | None) -> list[Peer]:
    """Return the peers of these names, or all if none are given.

    Raises:
        ValueError: there is no peer of such a name.
    """
    by_name = {peer.name: peer for peer in PEERS}
    for name in names or ():
        if name not in by_name:
            raise ValueError(f"peer is {name!r}; it must be one of {', '.join(by_name)}")
    return [by_name[name] for name in names or by_name]
