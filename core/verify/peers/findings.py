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

# What no contract asks, by the script in benchmarks/peer_faults that shows it.
BY_HAND = {
    "cce_target_logit": "cut-cross-entropy rounds the products of the target's logit to 16 bits, "
    "but not those in the log-sum-exp; it is judged here with an identity classifier matrix, whose "
    "products are exact",
    "flag_gems_sdpa_bias": "where FlagGems' attention is not causal, a float mask is added to "
    "base-2 logits without the factor log₂ e; other faults stop its cases earlier",
    "flag_gems_sdpa_mask": "in a boolean mask of FlagGems' attention True hides, where torch's "
    "shows; the contract finds out by trial which is meant",
    "sglang_temperature": "SGLang's two extend kernels use different formulas for a temperature by "
    "position: one sharpens, the other flattens",
    "sglang_verify_scratch": "SGLang's split verification multiplies by 0 what torch.empty left in "
    "the memory of splits without keys, which may be NaN",
}
KNOWN = tuple(known for library in LIBRARIES for known in library.FOUND)


def known(peer: str, precision: str, output: str, words: str) -> Known | None:
    """Return the first entry of a failure, if it has one."""
    return next((k for k in KNOWN if k.names(peer, precision, output, words)), None)


def gone(peers: Iterable[str], seen: Iterable[Known]) -> list[Known]:
    """Return the entries of these peers that were not seen."""
    peers, seen = set(peers), set(seen)
    return [k for k in KNOWN if k.peer in peers and k not in seen]
