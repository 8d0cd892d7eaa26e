"""Apple's cut cross-entropy (PyPI: cut-cross-entropy), which computes logits without storing them.

The classifier is the identity here, so that the logits are exactly the embeddings it is given.
Backward takes 16-bit embeddings, and by default drops small gradients; here it does not.
"""

from __future__ import annotations

from typing import Any

import torch

from twofold.core.verify.peers import interpreted

interpreted.prepare()

from cut_cross_entropy import linear_cross_entropy  # noqa: E402  (the interpreter is fit first)

BLOCK = 128  # classes per program
MOST = 1024  # classes: the identity has the square of that


def cross_entropy(logits: Any, targets: Any, reduction: str = "mean") -> Any:
    """Take the cross-entropy of products with the identity."""
    return _cross_entropy(logits, targets, reduction, MOST)


def cross_entropy_of_one_block(logits: Any, targets: Any, reduction: str = "mean") -> Any:
    """Take the cross-entropy of so few classes that no two programs have the same rows."""
    return _cross_entropy(logits, targets, reduction, BLOCK)


def _cross_entropy(logits: Any, targets: Any, reduction: str, most: int) -> Any:
    if (classes := logits.shape[-1]) > most:
        raise NotImplementedError(f"of no more than {most:,} classes")
    identity = torch.eye(classes, dtype=logits.dtype, device=logits.device)
    return linear_cross_entropy(logits, identity, targets, reduction=reduction, filter_eps=None)
