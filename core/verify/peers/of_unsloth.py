"""What is judged of Unsloth, and what was found; the kinds are in `findings`."""

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
    TANH,
    Known,
)
from twofold.core.verify.peers.peer import Peer

_UNSLOTH = "unsloth.kernels"

PEERS = (
    Peer(
        "unsloth layer_norm", "layer_norm", "unsloth:layer_norm", "unsloth",
        f"{_UNSLOTH}.fast_layernorm", cost=2,
    ),
    Peer(
        "unsloth rms_norm", "rms_norm", "unsloth:rms_norm", "unsloth",
        f"{_UNSLOTH}.fast_rms_layernorm, gemma=False", cost=2,
    ),
    Peer(
        "unsloth rms_norm, gemma", "rms_norm", "unsloth:rms_norm_of_gemma", "unsloth",
        f"{_UNSLOTH}.fast_rms_layernorm, gemma=True", cost=2,
    ),
    Peer(
        "unsloth rms_norm, several rows", "rms_norm", "unsloth:rms_norm_of_several_rows",
        "unsloth", f"{_UNSLOTH}.rms_layernorm: its kernels of narrow rows", cost=2,
    ),
    Peer(
        "unsloth add_rms_norm", "rms_norm", "unsloth:add_rms_norm", "unsloth",
        f"{_UNSLOTH}.fused_add_rms_layernorm.fast_add_rms_layernorm_inference, on copies", cost=2,
    ),
    Peer(
        "unsloth cross_entropy", "softmax_cross_entropy", "unsloth:cross_entropy", "unsloth",
        f"{_UNSLOTH}.fast_cross_entropy_loss", cost=2,
    ),
    Peer(
        "unsloth swiglu, strided", "gated_activation", "unsloth:swiglu_of_strided", "unsloth",
        f"{_UNSLOTH}.swiglu_fg_kernel, swiglu_DWf_DW_dfg_kernel", cost=4,
    ),
    Peer(
        "unsloth swiglu, contiguous", "gated_activation", "unsloth:swiglu_of_contiguous",
        "unsloth", f"{_UNSLOTH}.swiglu_fg_kernel, swiglu_DWf_DW_dfg_kernel, on contiguous copies",
        cost=2,
    ),
    Peer(
        "unsloth geglu, contiguous", "gated_activation", "unsloth:geglu_of_contiguous", "unsloth",
        f"{_UNSLOTH}.geglu_exact_…_kernel, on contiguous copies", cost=2,
    ),
    Peer(
        "unsloth geglu tanh, contiguous", "gated_activation",
        "unsloth:geglu_tanh_of_contiguous", "unsloth",
        f"{_UNSLOTH}.geglu_approx_…_kernel, on contiguous copies", cost=2,
    ),
    Peer(
        "unsloth rope", "rotary", "unsloth:rotary", "unsloth",
        f"{_UNSLOTH}.fast_rope_embedding, on copies", cost=2,
    ),
)  # fmt: skip

_BOTH_ROUNDED = f"{GATE}, as are dup and dgate"

FOUND = tuple(
    Known(*entry)
    for entry in (
        (
            "unsloth cross_entropy", "float32", "loss, dlogits", PRECISION,
            f"{LSE}, and likewise in the gradient's softmax, exp(x − lse)",
            "unsloth_cross_entropy_lse",
        ),
        ("unsloth swiglu, contiguous", "float32", "dgate, odd part", PRECISION, ONE_LESS),
        (
            "unsloth geglu tanh, contiguous", "float32",
            f"out, dgate, dup, {OF_GATES}", PRECISION, TANH,
        ),
        (
            "unsloth geglu tanh, contiguous", HALVES, f"out, dgate, dup, {OF_GATES}",
            PRECISION, f"{_BOTH_ROUNDED}; besides, {TANH}",
        ),
        (
            "unsloth swiglu, strided", ANY, ANY, FAULT,
            "gate and up are read as if they were contiguous, whatever their strides: for the "
            "halves of one tensor, the wrong numbers are read. Its GEGLUs do the same, and none "
            "of them says so",
            "unsloth_swiglu_strided",
        ),
        (
            "unsloth rope", HALVES,
            "q, k, dq, dk, norms, relative position, conjugation inverts", PRECISION,
            "x·sin is rounded to the dtype of the tables before it is added, even where the sum "
            "cancels",
            "unsloth_rope_half",
        ),
    )
)  # fmt: skip
