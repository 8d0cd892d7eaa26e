"""What is judged of flash-linear-attention, and what was found; the kinds are in `findings`."""

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
from twofold.core.verify.peers.peer import IN_TF32, Peer

PEERS = (
    Peer(
        "fla attention", "attention", "fla:attention", "fla-core",
        "fla.ops.attn.parallel.parallel_attn", IN_TF32, cost=2,
    ),
    Peer(
        "fla layer_norm", "layer_norm", "fla:layer_norm", "fla-core",
        "fla.modules.norm.layernorm.layer_norm", cost=2,
    ),
    Peer(
        "fla layer_norm, full blocks", "layer_norm", "fla:layer_norm_of_full_blocks", "fla-core",
        "fla.modules.norm.layernorm.layer_norm, rows of a power of two", cost=2,
    ),
    Peer(
        "fla rms_norm", "rms_norm", "fla:rms_norm", "fla-core",
        "fla.modules.norm.layernorm.rms_norm", cost=2,
    ),
    Peer(
        "fla rms_norm, full blocks", "rms_norm", "fla:rms_norm_of_full_blocks", "fla-core",
        "fla.modules.norm.layernorm.rms_norm, rows of a power of two", cost=2,
    ),
    Peer(
        "fla cross_entropy", "softmax_cross_entropy", "fla:cross_entropy", "fla-core",
        "fla.modules.fused_cross_entropy.cross_entropy_loss", cost=2,
    ),
    Peer(
        "fla swiglu", "gated_activation", "fla:swiglu", "fla-core",
        "fla.modules.activations.swiglu", cost=2,
    ),
    Peer(
        "fla rotary", "rotary", "fla:rotary", "fla-core",
        "fla.modules.rotary.rotary_embedding", cost=2,
    ),
)  # fmt: skip

FOUND = tuple(
    Known(*entry)
    for entry in (
        ("fla swiglu", "float32", "dgate, odd part, leading axes", PRECISION, ONE_LESS, ""),
        *(
            (
                peer, ANY, ANY, UNDEFINED,
                "backward multiplies by 0, and adds up, lanes of the weight that a masked load "
                "without `other` leaves undefined; for NVIDIA, Triton fills them with 0 at present",
                "fla_layer_norm_undefined", "layer_norm_bwd_kernel",
            )
            for peer in ("fla layer_norm", "fla rms_norm")
        ),
        ("fla cross_entropy", "float32", "loss", PRECISION, LSE, "fla_cross_entropy_loss"),
        (
            "fla cross_entropy", "float32 bfloat16", f"dlogits, {PROPERTIES}", PRECISION,
            "the gradient's softmax is exp(x − lse) with lse rounded: its relative error is half "
            "a unit in the last place of lse, and for logits of 10¹⁵ lse rounds to the largest "
            "logit itself",
            "fla_cross_entropy_lse",
        ),
    )
)  # fmt: skip
