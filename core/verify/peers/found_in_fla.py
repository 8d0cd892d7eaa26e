"""What judging flash-linear-attention's functions found; `findings` says what the kinds mean."""

from __future__ import annotations

from twofold.core.verify.peers.finding import (
    ANY,
    LSE,
    ONE_LESS,
    PRECISION,
    PROPERTIES,
    UNDEFINED,
    Known,
)

FOUND = tuple(
    Known(*entry)
    for entry in (
        ("fla swiglu", "float32", "dgate, odd part, leading axes", PRECISION, ONE_LESS, ""),
        *(
            (
                peer, ANY, ANY, UNDEFINED,
                "backward adds up 0 times lanes of the weight that a masked load without `other` "
                "leaves undefined; Triton fills them with 0 for NVIDIA today",
                "fla_layer_norm_undefined", "layer_norm_bwd_kernel",
            )
            for peer in ("fla layer_norm", "fla rms_norm")
        ),
        ("fla cross_entropy", "float32", "loss", PRECISION, LSE, "fla_cross_entropy_loss"),
        (
            "fla cross_entropy", "float32 bfloat16", f"dlogits, {PROPERTIES}", PRECISION,
            "the gradient's softmax is exp(x − lse), and lse is rounded: the relative error is "
            "half a unit in the last place of lse, and logits of 10¹⁵ have no lse but themselves",
            "fla_cross_entropy_lse",
        ),
    )
)  # fmt: skip
