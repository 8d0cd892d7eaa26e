"""What is judged of cut-cross-entropy, and what was found; the kinds are in `findings`."""

from __future__ import annotations

from twofold.core.verify.peers.finding import ANY, UNDEFINED, Known
from twofold.core.verify.peers.peer import Peer

_CCE = "cut_cross_entropy.linear_cross_entropy, filter_eps=None, of the identity"

PEERS = tuple(
    Peer(
        name, "softmax_cross_entropy", f"cce:{function}", "cut-cross-entropy", f"{_CCE}{of}",
        ("float16", "bfloat16"), cost=2,
    )
    for name, function, of in (
        ("cce", "cross_entropy", ""),
        ("cce, one block", "cross_entropy_of_one_block", " of up to 128 classes"),
    )
)  # fmt: skip

FOUND = (
    Known(
        "cce", ANY, ANY, UNDEFINED,
        "programs add to a shared sum under a lock, and release it with no barrier after their "
        "threads' stores: the next program may read the sum before all stores have arrived, and "
        "so lose the late ones. Triton 3.9 inserts a barrier there; Triton 3.6 does not",
        "cce_lock", "races at element",
    ),
)  # fmt: skip
