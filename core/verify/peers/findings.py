"""What was found by judging the peers, each finding with its kind and reason.

Nothing is filtered by this list: a failure is shown with its kind (an unlisted one as unexplained),
and a listed failure that no longer occurs is shown as gone. The kinds, from worst to mildest:

- fault: wrong by any reading, such as a wrong gradient, a NaN, access to others' memory;
- precision: less accurate than float32 arithmetic with one rounding of each stored result allows;
- undefined: right only by relying on behaviour that the language leaves undefined.

A documented or common choice that differs from ours is not a failure: see `conventions`.

The bound is that of a kernel that computes in float32 and rounds each stored result once. A
function beyond it may still be useful; the reason says how far off it is, and why.
"""

from __future__ import annotations

from collections.abc import Iterable

from twofold.core.verify.peers.finding import Known
from twofold.core.verify.peers.table import LIBRARIES

# Findings outside the contracts, by the script in benchmarks/peer_faults that shows each.
BY_HAND = {
    "cce_target_logit": "cut-cross-entropy rounds the products of the target's logit to 16 bits, "
    "but not those in the log-sum-exp; here it is judged with the identity as classifier matrix, "
    "for which products are exact",
    "flag_gems_sdpa_bias": "FlagGems' attention, where it is not causal, adds a float mask to "
    "base-2 logits without the factor log₂ e; in its cases other faults show first",
    "flag_gems_sdpa_mask": "FlagGems' attention hides a key where a boolean mask is True; torch's "
    "attends it. The contract finds out by trial which is meant",
    "sglang_temperature": "SGLang's two extend kernels compute a query's temperature from its "
    "position by different formulas: one sharpens the weights, the other flattens them",
    "sglang_verify_scratch": "SGLang's split verification multiplies by 0 what torch.empty left "
    "in the output of splits without keys, which may be NaN",
}
KNOWN = tuple(known for library in LIBRARIES for known in library.FOUND)


def known(peer: str, precision: str, output: str, words: str) -> Known | None:
    """Return the first entry that describes a failure, if there is one."""
    return next((k for k in KNOWN if k.names(peer, precision, output, words)), None)


def gone(peers: Iterable[str], seen: Iterable[Known]) -> list[Known]:
    """Return the entries of these peers that were not seen."""
    peers, seen = set(peers), set(seen)
    return [k for k in KNOWN if k.peer in peers and k not in seen]
