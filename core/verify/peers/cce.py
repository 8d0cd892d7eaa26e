"""Apple's cut cross-entropy (PyPI: cut-cross-entropy), whose logits are products it does not store.

Their classifier is the identity here, so that the logits are what it is given, exactly. Backward
takes embeddings of 16 bits, and by default leaves out gradients that are small; here it does not.
"""

from __future__ import annotations

from typing import Any

import torch

from twofold.core.verify.peers import interpreted

interpreted.prepare()

from cut_cross_entropy import linear_cross_entropy  # noqa: E402  (the interpreter is fit first)

BLOCK = 128  # classes to a program
MOST = 1024  # classes: the identity has the square of it


def cross_entropy(logits: Any, targets: Any, reduction: str = "mean") -> Any:
    """Cross-entropy of products with the identity."""
    return _cross_entropy(logits, targets, reduction, MOST)


def cross_entropy_of_one_block(logits: Any, targets: Any, reduction: str = "mean") -> Any:
    """Cross-entropy of so few classes that no two programs have the same rows."""
    return _cross_entropy(logits, targets, reduction, BLOCK)


def _cross_entropy(logits: Any, targets: Any, reduction: str, most: int) -> Any:
    if (classes := logits.shape[-1]) > most:
        raise NotImplementedError(f"of no more than {most:,} classes")
    identity = torch.eye(classes, dtype=logits.dtype, device=logits.device)
    return linear_cross_entropy(logits, identity, targets, reduction=reduction, filter_eps=None)
