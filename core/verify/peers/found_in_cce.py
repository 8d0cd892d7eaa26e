"""What judging cut cross-entropy found; `findings` says what the kinds mean."""

from __future__ import annotations

from twofold.core.verify.peers.finding import ANY, UNDEFINED, Known

FOUND = (
    Known(
        "cce", ANY, ANY, UNDEFINED,
        "programs add up what they share by a lock, and release it with no barrier behind what "
        "their threads store: the next may read the sum too early, and drop what comes late. "
        "Triton 3.9 puts a barrier there of its own, Triton 3.6 does not",
        "cce_lock", "races at element",
    ),
)  # fmt: skip
