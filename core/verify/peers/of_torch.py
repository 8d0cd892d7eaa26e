"""What is judged of PyTorch, and what was found; the kinds are in `findings`."""

from __future__ import annotations

from twofold.core.verify.peers.finding import (
    ANY,
    FAULT,
    HALVES,
    ONE_LESS,
    PRECISION,
    PROPERTIES,
    TANH,
    Known,
)
from twofold.core.verify.peers.peer import Peer

_SDPA = "torch.nn.functional.scaled_dot_product_attention"
_FLEX = "torch.nn.attention.flex_attention.flex_attention"

PEERS = (
    Peer("sdpa math", "attention", "torch_attention:math", "torch", f"{_SDPA}, MATH"),
    Peer("sdpa flash", "attention", "torch_attention:flash", "torch", f"{_SDPA}, FLASH_ATTENTION"),
    Peer(
        "sdpa efficient", "attention", "torch_attention:efficient", "torch",
        f"{_SDPA}, EFFICIENT_ATTENTION", cuda=True,
    ),
    Peer(
        "sdpa cudnn", "attention", "torch_attention:cudnn", "torch",
        f"{_SDPA}, CUDNN_ATTENTION", cuda=True,
    ),
    Peer("flex", "attention", "torch_attention:flex", "torch", f"{_FLEX}, not compiled", cost=4),
    Peer(
        "flex compiled", "attention", "torch_attention:flex_compiled", "torch",
        f"torch.compile({_FLEX})", ("float32",), cost=20, claimed=0,
    ),
    Peer(
        "torch layer_norm", "layer_norm", "torch_functions:layer_norm", "torch",
        "torch.nn.functional.layer_norm",
    ),
    Peer(
        "torch rms_norm", "rms_norm", "torch_functions:rms_norm", "torch",
        "torch.nn.functional.rms_norm",
    ),
    Peer("torch softmax", "softmax", "torch_functions:softmax", "torch", "torch.softmax"),
    Peer(
        "torch cross_entropy", "softmax_cross_entropy", "torch_functions:cross_entropy", "torch",
        "torch.nn.functional.cross_entropy",
    ),
    Peer("torch relu", "activation", "torch_functions:relu", "torch", "torch.nn.functional.relu"),
    Peer("torch gelu", "activation", "torch_functions:gelu", "torch", "torch.nn.functional.gelu"),
    Peer("torch silu", "activation", "torch_functions:silu", "torch", "torch.nn.functional.silu"),
    Peer(
        "torch gelu tanh", "activation", "torch_functions:gelu_tanh", "torch",
        "torch.nn.functional.gelu, approximate='tanh'",
    ),
    Peer(
        "torch swiglu", "gated_activation", "torch_functions:swiglu", "torch",
        "torch.nn.functional.silu of the gate, times up",
    ),
    *(
        Peer(
            f"torch adam {how}", "optimizers", f"torch_functions:{function}", "torch",
            f"torch.optim.Adam and AdamW, {how}",
        )
        for how, function in (
            ("for-loop", "adam"), ("foreach", "adam_foreach"), ("fused", "adam_fused")
        )
    ),
)  # fmt: skip

_LOG_SOFTMAX = (
    "on a CPU, it is log_softmax followed by nll_loss; what log_softmax returns is rounded to the "
    "logits' dtype in between, in backward as well"
)
_ADAM = (
    "each operation of a step rounds to the parameters' dtype; in float16, eps and small squares "
    "become 0, and the quotient infinite or NaN"
)

FOUND = tuple(
    Known(*entry)
    for entry in (
        (
            "sdpa flash", ANY, "NaN is seen", FAULT,
            "on a CPU, the output of a query that holds a NaN is 0, not NaN",
            "torch_sdpa_flash_nan",
        ),
        (
            "sdpa flash", HALVES, "dk, dv", PRECISION,
            "dk and dv are added up in their own dtype, 32 queries at a time, so they are rounded "
            "once per block instead of once; a small contribution beside large ones that cancel "
            "is lost",
            "torch_sdpa_flash_sums",
        ),
        (
            "flex compiled", "float32", ANY, FAULT,
            "with a mask that reads a tensor and with dynamic sizes, it cannot be compiled for a "
            "CPU: an internal assertion fails, or the C++ compiler rejects the generated code",
            "torch_flex_compiled",
        ),
        (
            "torch layer_norm", HALVES, "dx, dweight, gradient sums, leading axes", FAULT,
            "on a CPU, the mean and 1/σ are saved in the input's dtype: the gradient is computed "
            "from other numbers than the output was, and is NaN where 1/σ exceeds the largest "
            "float16",
            "torch_layer_norm_half",
        ),
        (
            "torch layer_norm", HALVES, "dbias", FAULT,
            "on a CPU, the gradients of weight and bias are added up row by row in their own "
            "dtype: in each thread, a sum of ones stops at 256 in bfloat16 and at 2048 in float16",
            "torch_layer_norm_sums",
        ),
        (
            "torch rms_norm", "float32 bfloat16", "dx, leading axes", FAULT,
            "on a CPU, the gradient is computed through that of rsqrt, and so with the third "
            "power of 1/RMS: for rows above 1e12 or so this is subnormal, and further up 0, where "
            "the gradient itself is neither",
            "torch_rms_norm_cubed",
        ),
        (
            "torch cross_entropy", HALVES, f"loss, dlogits, {PROPERTIES}", PRECISION,
            _LOG_SOFTMAX, "torch_cross_entropy_half",
        ),
        (
            "torch gelu", "float32", "out, dx", PRECISION,
            "on a CPU, for a contiguous input, its relative error reaches 3.4e-7, three times "
            "that of its formula in float32; the gradient is off by up to 2.4e-7, twice as much "
            "as its formula",
            "torch_gelu",
        ),
        ("torch silu", "float32", "dx", PRECISION, ONE_LESS, "torch_silu_gradient"),
        ("torch swiglu", "float32", "dgate, odd part, leading axes", PRECISION, ONE_LESS, ""),
        ("torch gelu tanh", ANY, "out, dx", PRECISION, TANH, "torch_gelu_tanh_tail"),
        ("torch adam for-loop", "float16", "params", FAULT, _ADAM, "torch_adam_float16"),
        ("torch adam for-loop", "bfloat16", "params", PRECISION, _ADAM, ""),
        ("torch adam foreach", "float16", "params", FAULT, _ADAM, "torch_adam_float16"),
        ("torch adam foreach", "bfloat16", "params", PRECISION, _ADAM, ""),
    )
)  # fmt: skip
