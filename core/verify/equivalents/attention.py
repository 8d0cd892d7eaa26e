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

_HEADS = of(
    "reference/multi_head_attention.py",
    {"both are None or neither is": (("backward", "db_q is None or db_kv is None → *"),)},
)

EQUIVALENT: tuple[Equivalent, ...] = (*_FORWARD, *_BACKWARD, *_HEADS)
