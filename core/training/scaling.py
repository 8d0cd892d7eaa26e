"""How far data parallelism scales, on paper: bytes, latency, and the share of time that is work.

Nothing here is measured. A step exchanges one buffer by recursive halving and doubling
(`processes`): with partner r XOR 2ᵏ at level k, k = 0 … log₂N − 1, two exchanges of n/2ᵏ⁺¹ bytes,
one on the way down and one on the way up; the first levels stay in the machine. An exchange takes
α + bytes/β. Both directions of a link work at the same time.

Links of a machine with eight H100s: NVLink 900 GB/s for both directions together (NVIDIA H100
Tensor Core GPU data sheet), so β = 450 GB/s; InfiniBand NDR 400 Gb/s for each GPU (NVIDIA
ConnectX-7 data sheet), so β = 50 GB/s. α is what NCCL's own model takes, a ring's with the protocol
"Simple" (NCCL, src/graph/tuning.cc, `baseLat` and `hwLat`, commit 01afd20): 8.4 µs for a launch,
and 3.4 µs over NVLink or 9.6 µs over the network.

The work of a step is taken at its minimum, 6 operations for each weight and token (Kaplan et al.
2020, "Scaling Laws for Neural Language Models", 2.1) at the H100's 495·10¹² operations a second
(tf32, dense, data sheet), so that the efficiency, work ÷ (work + exchange), is a minimum too: work
that takes longer hides more. The case is `twofold finetune` for MiniLM, whose 10,795,394 weights
above the embeddings are trained, with the same number of tokens on every GPU (weak scaling):

tokens a GPU    GPUs    MB sent    of them leave    ms exchange    efficiency    begun early
        8192       8         76                0           0.24         0.818          0.874
        8192      64         85                9           0.54         0.667          0.750
        8192    1024         86               11           0.70         0.603          0.615
      131072       8         76                0           0.24         0.986          0.991
      131072      64         85                9           0.54         0.970          0.980
      131072    1024         86               11           0.70         0.961          0.971

The last column is the most that could be had by beginning the exchange while the backward pass
still runs: two halves of the gradient, each exchanged as soon as it is ready; more pieces gain less
on many machines, since each has its own launches. This is not implemented. With enough tokens to
keep a GPU busy it gains one point. It needs a backward pass that reports when a layer is done, and
a buffer in the order of layers, whereas now all matrices come before all vectors. It gains nothing
if a process has several parts, since no sum is ready before the last part's backward; and in the
model of `twofold train`, 85% of the gradient is the embedding's table, which is ready last.
"""

from __future__ import annotations

from typing import NamedTuple

MACHINE = 8  # GPUs that NVLink joins
H100_FLOPS = 495e12  # tf32, dense, operations a second
BACKWARD = 2 / 3  # of a step's operations


class Link(NamedTuple):
    """What an exchange takes: seconds, and bytes a second each way."""

    alpha: float
    beta: float

    def seconds(self, size: float) -> float:
        """Return how long it takes to send so many bytes and receive as many."""
        return self.alpha + size / self.beta


NVLINK = Link(8.4e-6 + 3.4e-6, 450e9)
INFINIBAND = Link(8.4e-6 + 9.6e-6, 50e9)


class Exchange(NamedTuple):
    """One all-reduce, for each process.

    Attributes:
        sent: bytes that it sends, and receives.
        leaving: how many of them go to another machine.
        exchanges: with a partner, one after the other.
        seconds: in all.
    """

    sent: float
    leaving: float
    exchanges: int
    seconds: float


def exchange(size: float, processes: int) -> Exchange:
    """Count one all-reduce.

    Args:
        size: bytes of the buffer.
        processes: N, a power of two.
    """
    levels = (processes - 1).bit_length()
    sent = leaving = seconds = 0.0
    for level in range(levels):
        piece = size / 2 ** (level + 1)
        inside = 2**level < MACHINE
        sent += 2 * piece
        leaving += 0.0 if inside else 2 * piece
        seconds += 2 * (NVLINK if inside else INFINIBAND).seconds(piece)
    return Exchange(sent, leaving, 2 * levels, seconds)


def work(weights: float, tokens: float, flops: float = H100_FLOPS) -> float:
    """Return the least seconds of a step's operations on one GPU."""
    return 6 * weights * tokens / flops


def efficiency(seconds: float, size: float, processes: int, pieces: int = 1) -> float:
    """Return the share of a step's time that is work.

    Args:
        seconds: of work in a step.
        size: bytes of the gradient.
        processes: N, a power of two.
        pieces: of the gradient, ready one after the other in the backward pass and each exchanged
            as soon as it is ready and the one before it is through; 1 begins after the pass.
    """
    each = exchange(size / pieces, processes).seconds
    end = 0.0
    for piece in range(1, pieces + 1):
        ready = seconds * (1 - BACKWARD * (1 - piece / pieces))
        end = max(ready, end) + each
    return seconds / end


def table(weights: int = 10_795_394) -> str:
    """Return the figures above."""
    columns = ("tokens a GPU", "GPUs", "MB sent", "of them leave", "ms exchange", "efficiency")
    rows = ["    ".join((*columns, "begun early"))]
    for tokens in (8192, 131072):
        for processes in (8, 64, 1024):
            counted, seconds = exchange(4 * weights, processes), work(weights, tokens)
            once, early = (efficiency(seconds, 4 * weights, processes, n) for n in (1, 2))
            rows.append(
                f"{tokens:12}{processes:8}{counted.sent / 1e6:11.0f}{counted.leaving / 1e6:17.0f}"
                f"{1e3 * counted.seconds:15.2f}{once:14.3f}{early:15.3f}"
            )
    return "\n".join(rows) + "\n"
