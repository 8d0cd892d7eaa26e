"""What a finding is, and the wording that findings in several libraries share."""

from __future__ import annotations

from typing import NamedTuple

FAULT, PRECISION, UNDEFINED = "fault", "precision", "undefined"
UNEXPLAINED = "unexplained"
ANY = "*"


class Known(NamedTuple):
    """A finding, or several with one cause.

    `precisions` and `outputs` are those in which it shows, separated by spaces, or `ANY`;
    `reproduction` is a script in benchmarks/peer_faults, "" where another entry has it, and
    `saying` is part of the failure's words, where outputs alone do not tell causes apart.
    """

    peer: str
    precisions: str
    outputs: str
    kind: str
    reason: str
    reproduction: str = ""
    saying: str = ""

    def names(self, peer: str, precision: str, output: str, words: str) -> bool:
        """Return whether this entry describes a failure."""
        return (
            self.peer == peer
            and (self.precisions == ANY or precision in self.precisions.split())
            and (self.outputs == ANY or output in self.outputs.split(", "))
            and self.saying in words
        )


HALVES = "float16 bfloat16"
TANH = (
    "0.5·x·(1 + tanh u) cancels in the left tail, where tanh u is near −1; x/(1 + exp(−2u)), the "
    "same number, keeps full precision there"
)
ONE_LESS = (
    "SiLU's gradient is computed with 1 − σ(x), which cancels where σ(x) is near 1; the error is "
    "then multiplied by x"
)
GATE = (
    "the activated gate is rounded to 16 bits before it is multiplied by up, so out is rounded "
    "twice"
)
OF_GATES = "odd part, one gate, leading axes"
PROPERTIES = "gradient sums, shift invariance, impossible classes"
LSE = (
    "the loss is the rounded log-sum-exp minus the target's logit; for large logits, the error of "
    "that rounding dominates"
)
