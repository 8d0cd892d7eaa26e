"""Equivalent mutants of attention and multi-head attention."""

from __future__ import annotations

from twofold.core.verify.equivalents.entry import Equivalent, of
from twofold.core.verify.equivalents.reasons import BOTH_FLOAT32, STORE_CASTS, UNSTORED

_FORWARD = of(
    "kernels/attention.py",
    {
        "every tile is then treated as one at the edge: slower, and the same": (
            (
                "forward_kernel",
                "for start in range(full if EDGE else 0, end if EDGE else full, BLOCK_N):",
                "EDGE → not EDGE",
            ),
        ),
        "any finite number will do: all scores are −∞ there": (
            (
                "forward_kernel",
                'safe = tl.where(new_top == -float("inf"), 0.0, new_top)',
                "0.0 → 1.0",
            ),
        ),
        "what it divides is 0 there, and lse is replaced": (
            ("forward_kernel", "divisor = tl.where(empty, 1.0, total)", "1.0 → 1.001"),
        ),
        STORE_CASTS: (("forward_kernel", "drop .to(out_ptr.dtype.element_ty) of out"),),
    },
)

_BACKWARD = of(
    "kernels/attention_backward.py",
    {
        BOTH_FLOAT32: (
            ("delta_kernel", "drop .to(tl.float32) of load(out_ptr*"),
            ("delta_kernel", "drop .to(tl.float32) of load(dout_ptr*"),
        ),
        "all scores are −∞ there, whatever is subtracted": (
            (
                "weights_again",
                'return tl.exp2(s - tl.where(lse == -float("inf"), 0.0, lse * LOG2_E))',
                "0.0 → 1.0",
            ),
        ),
        "read only where causal, and there it is set again": (
            ("dk_dv_kernel", "begin = 0", "0 → 1"),
        ),
        "rounded down to a multiple of BLOCK_M all the same": (
            (
                "dk_dv_kernel",
                "begin = tl.maximum(first - shift, 0) // BLOCK_M * BLOCK_M",
                "0 → 1",
            ),
        ),
        "a tile is masked that need not be: slower, and the same": (
            (
                "dk_dv_kernel",
                "full = tl.cdiv(tl.maximum(first + BLOCK_N - 1 - shift, 0), BLOCK_M) * BLOCK_M",
                "1 → 0",
            ),
            (
                "dk_dv_kernel",
                "full = tl.cdiv(tl.maximum(first + BLOCK_N - 1 - shift, 0), BLOCK_M) * BLOCK_M",
                "0 → 1",
            ),
        ),
        UNSTORED: (
            ("delta_kernel", "tl.load(dlse_ptr + row_at, mask=i < M, other=0.0): drop other"),
            ("dq_kernel", "tl.load(lse_ptr + row_at, mask=rows < M, other=0.0): drop other"),
            ("dq_kernel", "tl.load(delta_ptr + row_at, mask=rows < M, other=0.0): drop other"),
        ),
        STORE_CASTS: (
            ("dk_dv_kernel", "drop .to(dk_ptr.dtype.element_ty) of dk"),
            ("dk_dv_kernel", "drop .to(dv_ptr.dtype.element_ty) of dv"),
            ("dq_kernel", "drop .to(dq_ptr.dtype.element_ty) of *"),
        ),
    },
)

_PARTS = of(
    "kernels/attention_parts.py",
    {
        "a tile is masked that need not be: slower, and the same": (
            (
                "keys_seen",
                "full = tl.minimum(present, tl.maximum(first + 1 + shift, 0))",
                "1 → 0",
            ),
        ),
        "rounded down to a multiple of BLOCK_N all the same": (
            (
                "keys_seen",
                "full = tl.minimum(present, tl.maximum(first + 1 + shift, 0))",
                "0 → 1",
            ),
        ),
    },
)

_HEADS = of(
    "reference/multi_head_attention.py",
    {"both are None or neither is": (("backward", "db_q is None or db_kv is None → *"),)},
)

EQUIVALENT: tuple[Equivalent, ...] = (*_FORWARD, *_BACKWARD, *_PARTS, *_HEADS)
