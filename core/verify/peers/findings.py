"""What was found by judging the peers, each finding with its kind and reason.

Nothing is filtered by this list: a listed failure is shown with its kind, an unlisted one as
unexplained, and an entry that no longer shows as gone. The kinds, from the worst down:

- fault: wrong by any reading, such as a wrong gradient, a NaN, access to memory not its own;
- precision: further off than float32 arithmetic with one rounding of each stored result may be;
- undefined: right only by relying on what the language leaves undefined.

A choice that is documented or common, but differs from ours, is no failure: see `conventions`.

A bound is that of a kernel that computes in float32 and rounds what it stores, once. A function
that exceeds it need not be useless; how far it is off, and why, is in the reason.
"""

from __future__ import annotations

from collections.abc import Iterable

from twofold.core.verify.peers.finding import Known
from twofold.core.verify.peers.table import LIBRARIES

# Findings outside the contracts, by the script in benchmarks/peer_faults that shows each.
BY_HAND = {
    "cce_target_logit": "cut-cross-entropy rounds the products of the target's logit to 16 bits, "
    "which those in the log-sum-exp are not; here it is judged with the identity for a classifier, "
    "whose products are exact",
    "flag_gems_sdpa_bias": "where FlagGems' attention is not causal, a mask of numbers is added to "
    "logits of base 2 as it is, not times log₂ e; other faults end its cases before",
    "flag_gems_sdpa_mask": "in a boolean mask of FlagGems' attention True hides, where torch's "
    "shows; the judge finds out which of both it is",
    "sglang_temperature": "SGLang's two kernels of extension have two formulas for a temperature "
    "by position, of which one sharpens and the other flattens",
    "sglang_verify_scratch": "SGLang's split verification multiplies with 0 what torch.empty left "
    "in the memory of splits without keys, be it NaN",
}
KNOWN = tuple(known for library in LIBRARIES for known in library.FOUND)


def known(peer: str, precision: str, output: str, words: str) -> Known | None:
    """Return the first entry that describes a failure, if there is one."""
    return next((k for k in KNOWN if k.names(peer, precision, output, words)), None)


def gone(peers: Iterable[str], seen: Iterable[Known]) -> list[Known]:
    """Return the entries of these peers that were not seen."""
    peers, seen = set(peers), set(seen)
    return [k for k in KNOWN if k.peer in peers and k not in seen]
