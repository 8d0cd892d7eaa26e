r"""Softmax and cross-entropy in one, loss and gradient together.

    loss_r = −Σ_c t_rc·w_c·log p_rc,   p = softmax(logits),  log p_rc = x_rc − lse_r

For a class index y with smoothing ε the target is t = (1 − ε)·onehot(y) + ε/C (Szegedy et al. 2016,
"Rethinking the Inception Architecture for Computer Vision", section 7); given probabilities are
smoothed the same way. The mean divides by Σ w_y over the rows that count, or, if targets are
probabilities, by the number of rows, as torch does; if no row counts it is 0, where torch gives
NaN. With T = t·w, as ∂lse_r/∂x_rc = p_rc,

    ∂loss_r/∂x_rc = p_rc·Σ_k T_rk − T_rc

`R` rows, `C` classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]

REDUCTIONS = ("mean", "sum", "none")


class Cache(NamedTuple):
    """The gradient of the loss by the logits, (R, C), if kept, and whether each row has a loss."""

    dlogits: Array | None
    per_row: bool


class Gradients(NamedTuple):
    """Gradient of the logits, (R, C)."""

    dlogits: Array


def check(
    logits: Any,
    targets: Any,
    weight: Any,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.floating(logits=logits, weight=weight)
    checks.shape("logits", logits, ("R", "C"))
    R, C = (int(n) for n in logits.shape)
    checks.array("targets", targets)
    if checks.dtype_name(targets) not in checks.FLOATING:
        found, must = checks.dtype_name(targets), "int32 or int64 of class indices, or floating"
        if found not in checks.INTEGER:
            raise TypeError(f"targets has dtype {found}; it must be {must}")
        checks.shape("targets", targets, (R,))
    else:
        checks.floating(logits=logits, targets=targets)
        checks.shape("targets", targets, (R, C))
    checks.same_device(logits=logits, targets=targets)
    if weight is not None:
        checks.shape("weight", weight, (C,))
    checks.number("label_smoothing", label_smoothing)
    checks.require(0.0 <= label_smoothing <= 1.0, "label_smoothing", label_smoothing, "from 0 to 1")
    if not checks.whole(ignore_index):
        raise TypeError(f"ignore_index is a {type(ignore_index).__name__}; it must be an int")
    checks.choice("reduction", reduction, REDUCTIONS)


def check_backward(dloss: Any, dlogits: Any, per_row: bool) -> None:
    """Raise TypeError or ValueError unless dloss is shaped as the loss; a number is 0-d."""
    if hasattr(dloss, "dtype"):
        checks.floating(dloss=dloss)
    else:
        checks.number("dloss", dloss)
    found = tuple(int(n) for n in getattr(dloss, "shape", ()))
    expected = (int(dlogits.shape[0]),) if per_row else ()
    checks.require(found == expected, "dloss.shape", found, f"that of the loss, {expected}")


def forward(
    logits: Array,
    targets: Array,
    *,
    weight: Array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    keep: bool = True,
) -> tuple[Array, Cache]:
    """Return the cross-entropy of softmax(logits) with the targets.

    Args:
        logits: (R, C), floating.
        targets: class indices (R,), int32 or int64, or probabilities (R, C) in the logits' dtype.
        weight: (C,), of the logits' dtype, or None, multiplies each class's term.
        label_smoothing: ε, the share of the target that is spread evenly over all classes.
        ignore_index: rows with this class index have loss 0, and are not counted; if their logits
            are finite, their gradient is 0.
        reduction: "mean", "sum" or "none".
        keep: whether the gradient is computed and kept; without it there is no backward.

    Returns:
        the loss in nats, 0-d, or (R,) for "none", and the cache. A row with NaN or +∞, or with
        nothing but −∞, has a gradient of NaN, as in torch, and a loss of NaN if it counts.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
        IndexError: a class index outside 0 … C − 1 that is not `ignore_index`, naming its row (the
            kernel, which cannot look at values without waiting for the GPU, gives NaN there).
    """
    check(logits, targets, weight, label_smoothing, ignore_index, reduction)
    checks.flag("keep", keep)
    (R, C), dtype, label_smoothing = logits.shape, logits.dtype, float(label_smoothing)
    logits = widened(logits)
    # (1) T = t·w
    if targets.ndim == 1:
        counts = targets != ignore_index  # (R,)
        _check_range(targets, counts, C)
        index = np.where(counts, targets, 0)
        t = np.full((R, C), label_smoothing / C, logits.dtype)
        t[np.arange(R), index] += 1 - label_smoothing
        t[~counts] = 0
        counted = counts if weight is None else weight[index] * counts
    else:
        t = widened(targets) * (1 - label_smoothing) + label_smoothing / C
        counted = np.ones(R, logits.dtype)
    if weight is not None:
        t *= weight  # (R, C)
    # (2) log-softmax, shifted by the row's maximum
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is meant to be NaN
        shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    p = np.exp(shifted)
    total = p.sum(axis=1, keepdims=True)  # (R, 1)
    p /= total
    # (3) loss: terms without weight are left out, so that 0·∞ cannot arise
    log_p = np.subtract(shifted, np.log(total), out=shifted)
    loss = -np.multiply(t, log_p, out=np.zeros_like(t), where=t != 0).sum(axis=1)  # (R,)
    dlogits = None
    if keep:
        # (4) ∂loss/∂x = p·rowsum(T) − T
        mass = t.sum(axis=1, keepdims=True)  # (R, 1)
        dlogits = np.multiply(p, mass, out=p)  # (R, C)
        dlogits -= t
    # (5) reduction
    if reduction != "none":
        scale = logits.dtype.type(1)
        if reduction == "mean":
            denominator = counted.sum(dtype=logits.dtype)
            scale = 1 / denominator if denominator != 0 else denominator
        loss = loss.sum() * scale
        if dlogits is not None:
            dlogits *= scale
    saved = None if dlogits is None else rounded(dlogits, dtype)
    return np.asarray(loss, dtype), Cache(saved, reduction == "none")


def backward(dloss: Array, cache: Cache) -> Gradients:
    """Return dlogits, given the gradient of the loss.

    Args:
        dloss: shaped as the loss: a number or 0-d, (R,) for reduction "none".
        cache: from `forward`.

    Returns:
        dlogits (R, C), of the logits' dtype.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    saved = checks.kept("cache.dlogits", cache.dlogits)
    check_backward(dloss, saved, cache.per_row)
    dlogits = widened(saved)
    dloss = np.asarray(dloss, dlogits.dtype)
    dlogits = dlogits * (dloss[:, None] if cache.per_row else dloss)
    return Gradients(rounded(dlogits, saved.dtype))


def _check_range(targets: Array, counts: Array, classes: int) -> None:
    outside = np.flatnonzero(counts & ((targets < 0) | (targets >= classes)))
    if len(outside):
        raise IndexError(
            f"targets[{outside[0]}] is {targets[outside[0]]}; "
            f"it must be at least 0 and below {classes}, or ignore_index"
        )
