"""Equivalent mutants of attention and multi-head attention."""

from __future__ import annotations

from twofold.core.verify.equivalents.entry import Equivalent, of

_HEADS = of(
    "reference/multi_head_attention.py",
    {
        "both are None or neither is": (
            ("backward", "db_q is None or db_kv is None → *"),
        ),
    },
)  # fmt: skip

EQUIVALENT: tuple[Equivalent, ...] = (*_HEADS,)
