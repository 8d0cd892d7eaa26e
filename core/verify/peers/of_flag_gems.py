"""What is judged of FlagGems, and what was found; the kinds are in `findings`."""

from __future__ import annotations

from twofold.core.verify.peers.finding import (
    ANY,
    FAULT,
    HALVES,
    LSE,
    OF_GATES,
    ONE_LESS,
    PRECISION,
    TANH,
    UNDEFINED,
    Known,
)
from twofold.core.verify.peers.peer import Peer

PEERS = tuple(
    Peer(
        f"flag_gems {name}", operator, f"flag_gems:{function}", "flag-gems", what,
        cost=4 if operator in ("attention", "softmax_cross_entropy") else 2,
    )
    for name, operator, function, what in (
        (
            "sdpa", "attention", "sdpa",
            "flag_gems.ops.scaled_dot_product_attention, of contiguous tensors",
        ),
        (
            "sdpa, forward", "attention", "sdpa_forward",
            "flag_gems.ops.scaled_dot_product_attention, without gradients",
        ),
        ("softmax", "softmax", "softmax", "flag_gems.ops.softmax, its backward"),
        (
            "softmax, whole blocks", "softmax", "softmax_of_whole_blocks",
            "flag_gems.ops.softmax, its backward, rows filled up to whole blocks",
        ),
        ("layer_norm", "layer_norm", "layer_norm", "flag_gems.ops.layer_norm, its backward"),
        (
            "layer_norm, whole blocks", "layer_norm", "layer_norm_of_whole_blocks",
            "flag_gems.ops.layer_norm, its backward, rows filled up to whole blocks",
        ),
        (
            "layer_norm, forward", "layer_norm", "layer_norm_forward",
            "flag_gems.ops.layer_norm, without gradients",
        ),
        (
            "skip_layer_norm", "layer_norm", "add_layer_norm",
            "flag_gems.fused.skip_layer_norm, without gradients",
        ),
        ("rms_norm", "rms_norm", "rms_norm", "flag_gems.ops.rms_norm"),
        (
            "fused_add_rms_norm", "rms_norm", "add_rms_norm",
            "flag_gems.fused.fused_add_rms_norm, on copies, without gradients",
        ),
        (
            "cross_entropy", "softmax_cross_entropy", "cross_entropy",
            "flag_gems.fused.cross_entropy_loss",
        ),
        (
            "cross_entropy, contiguous", "softmax_cross_entropy", "cross_entropy_of_contiguous",
            "flag_gems.fused.cross_entropy_loss, of contiguous logits",
        ),
        ("relu", "activation", "relu", "flag_gems.ops.relu, threshold_backward"),
        ("gelu", "activation", "gelu", "flag_gems.ops.gelu, its backward"),
        (
            "gelu tanh", "activation", "gelu_tanh",
            "flag_gems.ops.gelu, approximate='tanh', its backward",
        ),
        ("silu", "activation", "silu", "flag_gems.ops.silu, its backward"),
        ("silu_and_mul", "gated_activation", "swiglu_of_two", "flag_gems.fused.silu_and_mul"),
        ("gelu_and_mul", "gated_activation", "geglu_of_two", "flag_gems.fused.gelu_and_mul"),
        ("swiglu", "gated_activation", "swiglu", "flag_gems.fused.swiglu, dswiglu"),
        ("geglu tanh", "gated_activation", "geglu_tanh", "flag_gems.fused.geglu, dgeglu"),
        ("reglu", "gated_activation", "reglu_of_gate", "flag_gems.fused.reglu, dreglu"),
        (
            "rotary", "rotary", "rotary",
            "flag_gems.fused.apply_rotary_pos_emb, without gradients",
        ),
        ("embedding", "embedding", "embedding", "flag_gems.ops.embedding, its backward"),
    )
)  # fmt: skip

_MASKED = "masked lanes"
_FROM_0 = (
    "the running maximum starts at 0, not −∞, so where all logits are below −104 every "
    "exponential is 0: the loss is −∞ and the gradient NaN"
)
_HALVED = "x/2 is rounded to float16, which is inexact for odd multiples of the smallest subnormal"
_STRIDED = (
    "forward makes its inputs contiguous, but backward takes the gradient to be so, unchecked, and "
    "reads memory that is not the gradient's"
)
_CROSS_ENTROPIES = ("flag_gems cross_entropy", "flag_gems cross_entropy, contiguous")

FOUND = tuple(
    Known(*entry)
    for entry in (
        (
            "flag_gems sdpa", ANY, ANY, FAULT,
            "backward loads rows past the end of the gradient without a mask and multiplies them "
            "by 0; a NaN there survives",
            "flag_gems_sdpa_gradient_rows", "load from DO",
        ),
        (
            "flag_gems sdpa", ANY, ANY, FAULT,
            "backward launches one program per 128 queries, but in two of its three "
            "configurations each writes the gradient of only 64; the rest is never written",
            "flag_gems_sdpa_unwritten", "were written by no program",
        ),
        (
            "flag_gems sdpa", ANY, ANY, FAULT,
            "backward always computes the gradients of a causal call without a mask, whatever the "
            "call was; it also rounds the scaled keys to their dtype, and multiplies float32 in "
            "tf32",
            "flag_gems_sdpa_backward",
        ),
        (
            "flag_gems sdpa, forward", ANY, ANY, FAULT,
            "offsets of a head's rows are computed in 32 bits, and overflow past 2³¹ where rows "
            "are far apart",
            "", "int32 overflow",
        ),
        (
            "flag_gems sdpa, forward", ANY, ANY, FAULT,
            "the heads of the values are addressed with the strides of the keys: where values are "
            "laid out differently from keys, it reads the wrong values, or past their end",
            "flag_gems_sdpa_strides",
        ),
        (
            "flag_gems softmax", ANY, ANY, UNDEFINED,
            "backward adds up products of lanes that masked loads without `other` leave "
            "undefined; for NVIDIA, Triton fills them with 0 at present",
            "flag_gems_softmax_undefined", _MASKED,
        ),
        (
            "flag_gems layer_norm, whole blocks", HALVES, "dx, dweight", PRECISION,
            "the mean and 1/std are saved for backward in the input's dtype",
            "flag_gems_layer_norm_half",
        ),
        (
            "flag_gems layer_norm", ANY, "leading axes", FAULT,
            "whatever axes it is told are normalised, backward takes the first axis as rows and "
            "all others together as columns: with three axes, rows get each other's statistics, "
            "and it reads and writes past the end of weight, statistics and gradients",
            "flag_gems_layer_norm_batch",
        ),
        (
            "flag_gems layer_norm", ANY, ANY, UNDEFINED,
            "backward adds up gradients, alone and multiplied by weights, over lanes that masked "
            "loads without `other` leave undefined; for NVIDIA, Triton fills them with 0 at "
            "present",
            "flag_gems_layer_norm_undefined", _MASKED,
        ),
        ("flag_gems embedding", ANY, ANY, FAULT, _STRIDED, "", "load from grad_out"),
        (
            "flag_gems embedding", "float32 bfloat16", "dtable, adjoint", FAULT, _STRIDED,
            "flag_gems_embedding_strided",
        ),
        (
            "flag_gems embedding", "float16", ANY, PRECISION,
            "the gradients of one row are added up in float16; where that overflows, Triton's "
            "interpreter raises, and a GPU gives ∞",
            "flag_gems_embedding_half",
        ),
        (
            "flag_gems gelu tanh", "float16", "out, dx", PRECISION,
            f"{TANH}; besides, {_HALVED}", "flag_gems_gelu_half",
        ),
        (
            "flag_gems gelu tanh", "float32 bfloat16", "out, dx", PRECISION,
            TANH, "",
        ),
        (
            "flag_gems gelu", "float16", "out", PRECISION,
            _HALVED, "flag_gems_gelu_half",
        ),
        *(
            (
                peer, "float32", "dgate, odd part, leading axes", PRECISION, ONE_LESS,
                "",
            )
            for peer in ("flag_gems swiglu", "flag_gems silu_and_mul")
        ),
        ("flag_gems silu", "float32", "dx", PRECISION, ONE_LESS,
            "flag_gems_silu_gradient"),
        (
            "flag_gems geglu tanh", ANY, f"out, dgate, dup, {OF_GATES}", PRECISION,
            TANH, "flag_gems_gelu_tanh_tail",
        ),
        (
            "flag_gems gelu_and_mul", "float32", f"out, dgate, dup, {OF_GATES}",
            PRECISION, TANH, "",
        ),
        (
            "flag_gems gelu_and_mul", HALVES, f"out, dgate, dup, {OF_GATES}",
            PRECISION,
            "backward of the exact form multiplies the gradient by up in their dtype, which "
            f"rounds or overflows; in the tanh form, {TANH}",
            "flag_gems_gelu_and_mul_half",
        ),
        *(
            (
                peer, ANY, "NaN stays, NaN is seen", FAULT,
                "everything that is not greater than 0 becomes 0, NaN included; torch's ReLU "
                "keeps NaN",
                "flag_gems_relu_nan",
            )
            for peer in ("flag_gems reglu", "flag_gems relu")
        ),
        (
            "flag_gems cross_entropy", ANY, ANY, FAULT,
            "for logits that are not contiguous, backward raises: forward asks their contiguous "
            "copy, not the logits, whether a gradient is required, and so saves nothing",
            "flag_gems_cross_entropy_strided", "not enough values to unpack",
        ),
        *(
            entry
            for peer in _CROSS_ENTROPIES
            for entry in (
                (
                    peer, ANY, ANY, FAULT,
                    "the logit of an ignored target, −100, is still read, 100 classes before the "
                    "row, and is added to the loss multiplied by 0",
                    "flag_gems_cross_entropy_ignored", "out of bounds",
                ),
                (
                    peer, "float32", "loss", FAULT, f"{_FROM_0}; besides, {LSE}",
                    "flag_gems_cross_entropy_lse",
                ),
                (
                    peer, ANY, "loss, dlogits", FAULT, _FROM_0,
                    "flag_gems_cross_entropy_negative",
                ),
            )
        ),
    )
)  # fmt: skip
