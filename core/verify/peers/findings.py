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
from typing import NamedTuple

FAULT, PRECISION, UNDEFINED = "fault", "precision", "undefined"
UNEXPLAINED = "unexplained"
ANY = "*"


class Known(NamedTuple):
    """A finding, or several of one cause.

    `precisions` and `outputs` are those that it shows in, separated by spaces, or `ANY`;
    `reproduction` is a script in benchmarks/peer_faults, "" where another entry has it, and
    `saying` is in the words of the failure, where outputs alone do not tell causes apart.
    """

    peer: str
    precisions: str
    outputs: str
    kind: str
    reason: str
    reproduction: str = ""
    saying: str = ""

    def names(self, peer: str, precision: str, output: str, words: str) -> bool:
        """Return whether this is the entry of a failure."""
        return (
            self.peer == peer
            and (self.precisions == ANY or precision in self.precisions.split())
            and (self.outputs == ANY or output in self.outputs.split(", "))
            and self.saying in words
        )


_HALVES = "float16 bfloat16"
_TANH = (
    "0.5·x·(1 + tanh u) cancels in the left tail, where tanh u is near −1: nothing is left of "
    "numbers that x/(1 + exp(−2u)) has to full precision"
)
_ONE_LESS = (
    "1 − σ(x) cancels in SiLU's gradient where σ(x) is near 1, and what is lost is multiplied by x"
)
_GATE = (
    "the activated gate is rounded to 16 bits before the product with up, so out has two roundings"
)
_LOG_SOFTMAX = (
    "on a CPU it is log_softmax and then nll_loss, and log_softmax is rounded to the logits' dtype "
    "between them, in backward as well"
)
_ADAM = (
    "each operation of a step rounds to the parameters' dtype; in float16 eps and small squares "
    "are 0, and the quotient is infinite or NaN"
)
_STRIDED = (
    "the gradient of logits that are not contiguous is the logits themselves: the contiguous copy "
    "requires no grad, so the kernel leaves the gradient out"
)
_IN_PLACE = (
    "it writes the gradient over the logits, as it says, and does not tell autograd, so that "
    "whatever kept the logits for its own backward goes wrong silently (Liger-Kernel issue 272)"
)
_OF_GATES = "odd part, one gate, leading axes"
_PROPERTIES = "gradient sums, shift invariance, impossible classes"
_OF_STRIDED = f"dlogits, NaN is seen, {_PROPERTIES}"
_LIGER_CROSS_ENTROPIES = (
    "liger cross_entropy", "liger cross_entropy, contiguous", "liger cross_entropy, in place",
)  # fmt: skip
_LSE = (
    "the loss is the log-sum-exp, rounded, minus the target's logit: where logits are large, that "
    "rounding is all that is left"
)

KNOWN = tuple(
    Known(*entry)
    for entry in (
        (
            "sdpa flash", ANY, "NaN is seen", FAULT,
            "on a CPU a query that has a NaN gets the output 0",
            "torch_sdpa_flash_nan",
        ),
        (
            "sdpa flash", _HALVES, "dk, dv", PRECISION,
            "dk and dv are added up in their own dtype, 32 queries at a time: rounded once for "
            "each block, not once; a small part beside large ones that cancel is lost",
            "torch_sdpa_flash_sums",
        ),
        (
            "flex compiled", "float32", ANY, FAULT,
            "with a mask that reads a tensor and sizes that are not fixed it cannot be compiled "
            "for a CPU: an assertion of its own fails, or the C++ that it generates is refused",
            "torch_flex_compiled",
        ),
        (
            "torch layer_norm", _HALVES, "dx, dweight, gradient sums, leading axes", FAULT,
            "on a CPU the mean and 1/σ are saved in the dtype of the input: the gradient is that "
            "of other numbers, and NaN where 1/σ passes the largest float16",
            "torch_layer_norm_half",
        ),
        (
            "torch layer_norm", _HALVES, "dbias", FAULT,
            "on a CPU the gradients of weight and bias are added up row by row in their own dtype: "
            "a sum of ones stops at 256 in bfloat16, at 2048 in float16, in each thread",
            "torch_layer_norm_sums",
        ),
        (
            "torch rms_norm", "float32 bfloat16", "dx, leading axes", FAULT,
            "on a CPU the gradient is that of rsqrt, with the third power of 1/RMS in it: of rows "
            "above 1e12 or so a subnormal, and then 0, where the gradient itself is neither",
            "torch_rms_norm_cubed",
        ),
        (
            "torch cross_entropy", _HALVES, f"loss, dlogits, {_PROPERTIES}", PRECISION,
            _LOG_SOFTMAX, "torch_cross_entropy_half",
        ),
        (
            "torch gelu", "float32", "out, dx", PRECISION,
            "on a CPU, of a contiguous input, it is off by 3.4e-7 of itself, its formula in "
            "float32 by a third of that; and the gradient by up to 2.4e-7, twice as much",
            "torch_gelu",
        ),
        ("torch silu", "float32", "dx", PRECISION, _ONE_LESS, "torch_silu_gradient"),
        ("torch swiglu", "float32", "dgate, odd part, leading axes", PRECISION, _ONE_LESS, ""),
        (
            "torch swiglu", _HALVES, f"out, dgate, dup, {_OF_GATES}", PRECISION,
            f"{_GATE}; and so have both gradients", "torch_swiglu_half",
        ),
        ("torch gelu tanh", ANY, "out, dx", PRECISION, _TANH, "torch_gelu_tanh_tail"),
        ("torch adam for-loop", "float16", "params", FAULT, _ADAM, "torch_adam_float16"),
        ("torch adam for-loop", "bfloat16", "params", PRECISION, _ADAM, ""),
        ("torch adam foreach", "float16", "params", FAULT, _ADAM, "torch_adam_float16"),
        ("torch adam foreach", "bfloat16", "params", PRECISION, _ADAM, ""),
        *(
            (
                peer, _HALVES, "out, dweight, leading axes", PRECISION,
                "as in Llama of Hugging Face, what is normalised is cast to the dtype of the input "
                "before the gain: the output is rounded twice, and the gain's gradient is summed "
                "from rounded numbers",
            )
            for peer in ("liger rms_norm, llama", "liger rms_norm, in place")
        ),
        (
            "liger rms_norm, in place", ANY, "inputs", FAULT,
            "backward writes dx over the gradient that it is given, as it says; another summand "
            "has the same gradient, and gets dx",
        ),
        (
            "liger cross_entropy", ANY, _OF_STRIDED, FAULT, _STRIDED,
            "liger_cross_entropy_strided",
        ),
        (
            "liger cross_entropy, contiguous", "float32", "loss", PRECISION, _LSE,
            "liger_cross_entropy_lse",
        ),
        ("liger cross_entropy", "float32", "loss", PRECISION, _LSE, ""),
        ("liger cross_entropy, in place", "float32", "loss", PRECISION, _LSE, ""),
        *(
            (
                peer, _HALVES, "loss", PRECISION,
                "each row's loss is stored in the logits' dtype before they are added",
                "liger_cross_entropy_half",
            )
            for peer in _LIGER_CROSS_ENTROPIES
        ),
        (
            "liger cross_entropy, in place", ANY, "inputs", FAULT, _IN_PLACE,
            "liger_cross_entropy_in_place",
        ),
        (
            "liger cross_entropy, in place", ANY, _OF_STRIDED, FAULT, _STRIDED,
            "liger_cross_entropy_strided",
        ),
        ("liger gelu tanh", ANY, "out, dx", PRECISION, _TANH, "liger_gelu_tanh_tail"),
        ("liger swiglu", "float32", "dgate, odd part, leading axes", PRECISION, _ONE_LESS, ""),
        ("liger swiglu", _HALVES, f"out, {_OF_GATES}", PRECISION, _GATE, ""),
        (
            "liger geglu tanh", "float32", "out, dgate, dup, odd part, leading axes", PRECISION,
            _TANH, "",
        ),
        (
            "liger geglu tanh", _HALVES, f"out, dgate, dup, {_OF_GATES}", PRECISION,
            f"{_GATE}, as dup and dgate have; and {_TANH}", "",
        ),
        ("fla swiglu", "float32", "dgate, odd part, leading axes", PRECISION, _ONE_LESS, ""),
        (
            "liger rope", ANY, "inputs", FAULT,
            "backward turns the gradient that it is given in place, in the layouts that it need "
            "not copy; another summand has the same gradient, and gets it turned",
            "liger_rope_gradient",
        ),
        *(
            (
                peer, ANY, ANY, FAULT,
                "rows are as far apart as the stride of the axis of positions, which of one "
                "position may be any: in a batch of several, other rows are turned",
                "liger_rope_one_position", "_triton_rope",
            )
            for peer in ("liger rope, own gradients", "liger rope")
        ),
        *(
            (
                peer, _HALVES, "q, k, dq, dk, norms, relative position, conjugation inverts",
                PRECISION,
                "products and sums are in the dtype of cos and sin, where they cancel as well",
                "liger_rope_half",
            )
            for peer in ("liger rope", "liger rope, own gradients")
        ),
        (
            "liger softmax", _HALVES, "dx, shares add up, nothing in front, leading axes",
            PRECISION,
            "weights times gradients, and their sum, are in the dtype of the logits",
            "liger_softmax_half",
        ),
        *(
            (
                peer, ANY, ANY, UNDEFINED,
                "backward adds up 0 times lanes of the weight that a masked load without `other` "
                "leaves undefined; Triton fills them with 0 for NVIDIA today",
                "fla_layer_norm_undefined", "layer_norm_bwd_kernel",
            )
            for peer in ("fla layer_norm", "fla rms_norm")
        ),
        ("fla cross_entropy", "float32", "loss", PRECISION, _LSE, "fla_cross_entropy_loss"),
        (
            "fla cross_entropy", "float32 bfloat16", f"dlogits, {_PROPERTIES}", PRECISION,
            "the gradient's softmax is exp(x − lse), and lse is rounded: the relative error is "
            "half a unit in the last place of lse, and logits of 10¹⁵ have no lse but themselves",
            "fla_cross_entropy_lse",
        ),
    )
)  # fmt: skip


def known(peer: str, precision: str, output: str, words: str) -> Known | None:
    """Return the first entry of a failure, if it has one."""
    return next((k for k in KNOWN if k.names(peer, precision, output, words)), None)


def gone(peers: Iterable[str], seen: Iterable[Known]) -> list[Known]:
    """Return the entries of these peers that were not seen."""
    peers, seen = set(peers), set(seen)
    return [k for k in KNOWN if k.peer in peers and k not in seen]
