"""Which tile of which head a program takes: programs begin in the order of their numbers.

Where causal, the programs of a head visit between one tile and all of them. The longest should
begin first, as the whole launch waits for those that begin last. But ordered like this over all
heads, the keys and values of all of them would be read at the same time, and do not fit into the L2
cache. So the order is within groups of as many heads as fit, one group after the other: see
benchmarks/ATTENTION.md.
"""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 (Triton's interpreter needs it in kernels' modules)

from twofold.kernels.attention_parts import Call
from twofold.kernels.device import cache_bytes

# Share of the L2 cache for what the programs of a group read. An H100's cache has two halves, and
# both come to hold what multiprocessors on either side read.
SHARE = 0.5


def heads_together(heads: int, bytes_read: int, cache: int) -> int:
    """Return how many heads begin together, a divisor of all: a smaller group has a long tail.

    Args:
        heads: how many there are, in all batches.
        bytes_read: by all programs of one head.
        cache: size of the L2 cache in bytes.
    """
    fitting = max(1, int(SHARE * cache) // max(1, bytes_read))
    return next(n for n in range(min(fitting, heads), 0, -1) if heads % n == 0)


def by_queries(x: Call) -> Call:
    """Return the call with `together`, in heads, for programs that read keys and values."""
    return x._replace(together=x.G * _heads(x, 2 * x.longest_k)) if _differ(x) else x


def by_keys(x: Call) -> Call:
    """Return the call with `together`, in heads of keys, for programs that read q and dout."""
    return x._replace(together=_heads(x, 2 * x.G * x.longest_q)) if _differ(x) else x


def _differ(x: Call) -> bool:
    """Return whether some programs visit far more tiles than others."""
    return x.ahead is not None and x.behind is None


def _heads(x: Call, rows: int) -> int:
    """Return how many heads of keys begin together if `rows` rows are read for each."""
    sequences = len(x.q) if x.q_starts is None else len(x.q_starts) - 1
    bytes_read = rows * x.q.shape[-1] * x.q.element_size()
    return heads_together(sequences * x.H // x.G, bytes_read, cache_bytes())


@triton.jit
def place_in_groups(program, blocks, H, together):
    """Return (block, b, h) of a program, the last blocks of `together` heads first."""
    first = program // (blocks * together) * together  # it divides all heads: groups are equal
    i = program - first * blocks
    bh = first + i % together
    return blocks - 1 - i // together, bh // H, bh % H
