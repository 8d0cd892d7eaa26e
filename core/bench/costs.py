"""The least that an operator must move and compute, and the least time that this takes.

A machine with a memory of β bytes a second and units of π operations a second needs

    t ≥ max(bytes/β, operations/π)

(Williams, Waterman & Patterson 2009, "Roofline"). Bytes are those of arguments and results, each
read or written once; whatever else a kernel moves lowers its share of the limit. Operations are
those of matrix products alone: others can be done while waiting for memory.

`b` bytes of an element, `R` rows, `C` columns, `B` batch, `H` heads, `K` heads of keys, `M`
queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """Bytes that must move, and operations of matrix products, 2 for each multiply-add."""

    bytes: float
    operations: float = 0.0


class Ceilings(NamedTuple):
    """A machine's limits: bytes a second of a copy, operations a second of a matrix product."""

    bandwidth: float
    rate: float

    def least(self, cost: Cost) -> float:
        """Return the least seconds that a cost takes."""
        return max(cost.bytes / self.bandwidth, cost.operations / self.rate)


def attention(
    B: int, H: int, K: int, M: int, N: int, D: int, b: int, causal: bool = False
) -> dict[str, Cost]:
    """Two products forward, five backward (Dao 2023, "FlashAttention-2"); half if causal."""
    q, kv, rows = B * H * M * D * b, B * K * N * D * b, B * H * M * 4
    product = 2.0 * B * H * M * N * D / (2 if causal else 1)
    return {
        "forward": Cost(2 * q + 2 * kv + rows, 2 * product),
        "backward": Cost(4 * q + 4 * kv + rows, 5 * product),
    }


def decode(B: int, H: int, K: int, M: int, N: int, D: int, b: int) -> dict[str, Cost]:
    """Keys and values read once, 2·B·K·N·D·b, and queries and outputs."""
    return {"forward": Cost((2 * B * K * N + 2 * B * H * M) * D * b, 4.0 * B * H * M * N * D)}


def layer_norm(R: int, C: int, b: int, fused: bool = False) -> dict[str, Cost]:
    """x and out; backward x, dout and dx.

    Fused with dropout and a residual, forward also reads the residual and writes the sum, which
    backward reads in place of x; dx and dresidual then differ by the mask.
    """
    forward, backward = (4, 4) if fused else (2, 3)
    return {"forward": Cost(forward * R * C * b), "backward": Cost(backward * R * C * b)}


def rms_norm(R: int, C: int, b: int, fused: bool = False) -> dict[str, Cost]:
    """The bytes of layer norm; fused with a residual alone, dx is dresidual."""
    return {**layer_norm(R, C, b, fused), "backward": Cost(3 * R * C * b)}


def linear(R: int, C: int, F: int, b: int, activation: bool = False) -> dict[str, Cost]:
    """One product forward, two backward; an activation's input is written, then read again."""
    x, weight, out, product = R * C * b, C * F * b, R * F * b, 2.0 * R * C * F
    kept = out if activation else 0
    return {
        "forward": Cost(x + weight + out + kept, product),
        "backward": Cost(2 * x + 2 * weight + out + kept, 2 * product),
    }


def softmax(n: int, b: int) -> dict[str, Cost]:
    """x and out; backward out, dout and dx."""
    return elementwise(n, b)


def cross_entropy(R: int, C: int, b: int) -> dict[str, Cost]:
    """Logits and their gradient, once each: 2·R·C·b, whichever pass computes the gradient."""
    return {"forward and backward": Cost(2 * R * C * b)}


def elementwise(n: int, b: int) -> dict[str, Cost]:
    """x and out; backward x, dout and dx."""
    return {"forward": Cost(2 * n * b), "backward": Cost(3 * n * b)}


def gated_activation(n: int, b: int) -> dict[str, Cost]:
    """gate, up and out; backward dout, gate, up and two gradients."""
    return {"forward": Cost(3 * n * b), "backward": Cost(5 * n * b)}


def dropout(n: int, b: int) -> dict[str, Cost]:
    """x and out; backward dout and dx, with the mask drawn again."""
    return {"forward": Cost(2 * n * b), "backward": Cost(2 * n * b)}


def rotary(n: int, b: int) -> dict[str, Cost]:
    """q and k, n elements in all, read and written; backward the same."""
    return {"forward": Cost(2 * n * b), "backward": Cost(2 * n * b)}


def embedding(places: int, rows: int, C: int, b: int) -> dict[str, Cost]:
    """A row read and written for each place; backward each row read, and the table written."""
    return {
        "forward": Cost(2 * places * C * b),
        "backward": Cost((places + rows) * C * b),
    }


def positions(places: int, L: int, rows: int, C: int, b: int) -> dict[str, Cost]:
    """As an embedding, and a table of L positions: read forward, its gradient written backward."""
    looked_up = embedding(places, rows, C, b)
    return {name: Cost(cost.bytes + L * C * b) for name, cost in looked_up.items()}


def adam(n: int) -> dict[str, Cost]:
    """Parameters and two moments read and written, gradients read: 28 bytes each, in float32."""
    return {"step": Cost(28.0 * n)}
