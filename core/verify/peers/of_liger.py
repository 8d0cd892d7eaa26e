"""What is judged of Liger-Kernel, and what was found; the kinds are in `findings`."""

from __future__ import annotations

from twofold.core.verify.peers.finding import (
    ANY,
    FAULT,
    GATE,
    HALVES,
    LSE,
    OF_GATES,
    ONE_LESS,
    PRECISION,
    PROPERTIES,
    TANH,
    Known,
)
from twofold.core.verify.peers.peer import Peer

_LIGER = "liger_kernel.ops.Liger"

PEERS = (
    Peer(
        "liger layer_norm", "layer_norm", "liger:layer_norm", "liger-kernel",
        f"{_LIGER}LayerNormFunction", cost=2,
    ),
    Peer(
        "liger rms_norm", "rms_norm", "liger:rms_norm", "liger-kernel",
        f"{_LIGER}RMSNormFunction, casting_mode='gemma', in_place=False", cost=2,
    ),
    Peer(
        "liger rms_norm, llama", "rms_norm", "liger:rms_norm_of_llama", "liger-kernel",
        f"{_LIGER}RMSNormFunction, casting_mode='llama', in_place=False", cost=2,
    ),
    Peer(
        "liger rms_norm, in place", "rms_norm", "liger:rms_norm_in_place", "liger-kernel",
        f"{_LIGER}RMSNormFunction", cost=2,
    ),
    Peer(
        "liger softmax", "softmax", "liger:softmax", "liger-kernel", f"{_LIGER}SoftmaxFunction",
        cost=2,
    ),
    Peer(
        "liger cross_entropy", "softmax_cross_entropy", "liger:cross_entropy", "liger-kernel",
        f"{_LIGER}CrossEntropyFunction, on a copy of the logits", cost=2,
    ),
    Peer(
        "liger cross_entropy, contiguous", "softmax_cross_entropy",
        "liger:cross_entropy_of_contiguous", "liger-kernel",
        f"{_LIGER}CrossEntropyFunction, on a contiguous copy",
    ),
    Peer(
        "liger cross_entropy, in place", "softmax_cross_entropy",
        "liger:cross_entropy_in_place", "liger-kernel",
        f"{_LIGER}CrossEntropyFunction, on the logits", cost=2,
    ),
    Peer(
        "liger gelu tanh", "activation", "liger:gelu_tanh", "liger-kernel",
        f"{_LIGER}GELUMulFunction, times 1", cost=2,
    ),
    Peer(
        "liger swiglu", "gated_activation", "liger:swiglu", "liger-kernel",
        f"{_LIGER}SiLUMulFunction, on copies", cost=2,
    ),
    Peer(
        "liger geglu tanh", "gated_activation", "liger:geglu_tanh", "liger-kernel",
        f"{_LIGER}GELUMulFunction, on copies", cost=2,
    ),
    Peer(
        "liger rope", "rotary", "liger:rotary", "liger-kernel",
        f"{_LIGER}RopeFunction, on copies", cost=2,
    ),
    Peer(
        "liger rope, own gradients", "rotary", "liger:rotary_with_own_gradients", "liger-kernel",
        f"{_LIGER}RopeFunction, on copies, times 1", cost=2,
    ),
)  # fmt: skip

_STRIDED = (
    "for logits that are not contiguous, the gradient returned is the logits themselves: their "
    "contiguous copy requires no grad, so the kernel leaves the gradient out"
)
_IN_PLACE = (
    "it overwrites the logits with their gradient, as it says, but does not tell autograd: an "
    "operation that saved the logits for its own backward silently gives a wrong gradient "
    "(Liger-Kernel issue 272)"
)
_OF_STRIDED = f"dlogits, NaN is seen, {PROPERTIES}"
_LIGER_CROSS_ENTROPIES = (
    "liger cross_entropy", "liger cross_entropy, contiguous", "liger cross_entropy, in place",
)  # fmt: skip

FOUND = tuple(
    Known(*entry)
    for entry in (
        (
            "liger rms_norm, in place", HALVES, "out, dweight, leading axes", PRECISION,
            "as in Hugging Face's Llama, the normalised row is cast to the input's dtype before "
            "it is multiplied by the gain: the output is rounded twice, and the gain's gradient "
            "is summed from rounded numbers",
        ),
        (
            "liger rms_norm, in place", ANY, "inputs, back again", FAULT,
            "backward overwrites the gradient that it is given with dx, as it says; in a sum, the "
            "other summand is given the same tensor, and gets dx as its gradient",
        ),
        (
            "liger cross_entropy", ANY, _OF_STRIDED, FAULT, _STRIDED,
            "liger_cross_entropy_strided",
        ),
        (
            "liger cross_entropy, contiguous", "float32", "loss", PRECISION, LSE,
            "liger_cross_entropy_lse",
        ),
        ("liger cross_entropy", "float32", "loss", PRECISION, LSE, ""),
        ("liger cross_entropy, in place", "float32", "loss", PRECISION, LSE, ""),
        *(
            (
                peer, HALVES, "loss", PRECISION,
                "each row's loss is rounded to the logits' dtype before the losses are added",
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
        *(
            (
                peer, ANY, "back again", FAULT,
                "backward multiplies the gradient that forward saved by the loss's, in place, and "
                "does so each time: a second backward through the same graph gives a different "
                "gradient",
                "liger_cross_entropy_twice",
            )
            for peer in _LIGER_CROSS_ENTROPIES
        ),
        *(
            (
                peer, ANY, "back again", FAULT,
                "backward overwrites gate and up, which forward saved, with their gradients, and "
                "does not tell autograd: a second backward through the same graph takes these for "
                "gate and up",
                "liger_gated_twice",
            )
            for peer in ("liger gelu tanh", "liger swiglu", "liger geglu tanh")
        ),
        ("liger gelu tanh", ANY, "out, dx", PRECISION, TANH, "liger_gelu_tanh_tail"),
        ("liger swiglu", "float32", "dgate, odd part, leading axes", PRECISION, ONE_LESS, ""),
        (
            "liger geglu tanh", "float32", "out, dgate, dup, odd part, leading axes", PRECISION,
            TANH, "",
        ),
        (
            "liger geglu tanh", HALVES, f"out, dgate, dup, {OF_GATES}", PRECISION,
            f"{GATE}, as are dup and dgate; besides, {TANH}", "",
        ),
        (
            "liger rope", ANY, "inputs, back again", FAULT,
            "backward rotates the gradient that it is given in place, in layouts that it need not "
            "copy; in a sum, the other summand is given the same tensor, and gets it rotated",
            "liger_rope_gradient",
        ),
        *(
            (
                peer, ANY, ANY, FAULT,
                "rows are taken to be as far apart as the stride of the axis of positions, which "
                "can be anything where there is one position: in a batch of several sequences, "
                "the wrong rows are rotated",
                "liger_rope_one_position", "_triton_rope",
            )
            for peer in ("liger rope, own gradients", "liger rope")
        ),
        *(
            (
                peer, HALVES, "q, k, dq, dk, norms, relative position, conjugation inverts",
                PRECISION,
                "products and sums are computed in the dtype of cos and sin, even where they "
                "cancel",
                "liger_rope_half",
            )
            for peer in ("liger rope", "liger rope, own gradients")
        ),
        (
            "liger softmax", HALVES, "dx, shares add up, nothing in front, leading axes",
            PRECISION,
            "backward multiplies weights by gradients, and adds the products up, in the dtype of "
            "the logits",
            "liger_softmax_half",
        ),
    )
)  # fmt: skip
