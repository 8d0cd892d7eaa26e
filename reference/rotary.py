r"""Rotary positions: pairs of features are rotated by an angle that grows with the position.

    (x₁, x₂) ↦ (x₁·cos θ − x₂·sin θ, x₁·sin θ + x₂·cos θ),   θ = pos / base^(2i/rotary_dim)

Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.2.
The product of a query and a key rotated this way depends only on the difference of their positions.
Pair i is (i, i + rotary_dim/2), half (GPT-NeoX, Llama as transformers has it: rotate_half), or
(2i, 2i + 1), interleaved (the paper, GPT-J). A rotation's transpose is its inverse, so backward is
forward with −θ.

`B` batch, `H` and `K` heads of q and k, `L` length, `D` head_dim, `F` = rotary_dim/2 pairs. The
steps are numbered; the kernel carries the same numbers where it does the same thing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """The angles, and which features pair up."""

    cos: Array
    sin: Array
    interleaved: bool


class Gradients(NamedTuple):
    """Gradients of q and k, with their shapes."""

    dq: Array
    dk: Array


class Rotary(NamedTuple):
    """The angles by which `attention` rotates queries and keys; see `tables`.

    Row i of cos and sin, (M, F) or (B, M, F), F ≤ D/2, float32 or of q's dtype, holds the angles of
    row i of q as it lies in memory; `k_cos` and `k_sin`, (N, F) or (B, N, F), hold those of k's
    rows, and are None if they are the same as q's.
    """

    cos: Any
    sin: Any
    k_cos: Any = None
    k_sin: Any = None
    interleaved: bool = False

    @property
    def of_q(self) -> tuple[Any, Any, bool]:
        """What rotates q: cos, sin, interleaved."""
        return self.cos, self.sin, self.interleaved

    @property
    def of_k(self) -> tuple[Any, Any, bool]:
        """What rotates k."""
        if self.k_cos is None:
            return self.of_q
        return self.k_cos, self.k_sin, self.interleaved


def check_tables(positions: Any, rotary_dim: int, base: float) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.array("positions", positions)
    checks.integer(positions=positions)
    checks.require(
        len(positions.shape) in (1, 2), "positions.shape", tuple(positions.shape), "(L,) or (B, L)"
    )
    fits = checks.whole(rotary_dim) and rotary_dim >= 2 and rotary_dim % 2 == 0
    checks.require(fits, "rotary_dim", rotary_dim, "even and at least 2")
    checks.positive("base", base)


def check(q: Any, k: Any, cos: Any, sin: Any, interleaved: Any) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.floating(q=q, k=k)
    checks.same_device(q=q, k=k, cos=cos, sin=sin)
    checks.shape("q", q, ("B", "H", "L", "D"))
    B, L, D = int(q.shape[0]), int(q.shape[2]), int(q.shape[3])
    checks.shape("k", k, (B, "K", L, D))
    check_shapes("", q, cos, sin)
    checks.flag("interleaved", interleaved)


def check_shapes(prefix: str, x: Any, cos: Any, sin: Any) -> None:
    """Refuse angles, named with this prefix, whose shapes do not fit x (B, H, L, D)."""
    B, _, L, D = (int(n) for n in x.shape)
    check_angles(prefix, x, cos, sin)
    checks.shape(f"{prefix}cos", cos, (L, "F") if len(cos.shape) <= 2 else (B, L, "F"))
    checks.shape(f"{prefix}sin", sin, tuple(int(n) for n in cos.shape))
    F = int(cos.shape[-1])
    checks.require(2 * F <= D, f"{prefix}cos.shape[-1]", F, f"at most half of head_dim {D}")


def check_angles(prefix: str, x: Any, cos: Any, sin: Any) -> None:
    """Refuse angles, named with this prefix, that are not float32 or of the dtype of x."""
    checks.array(f"{prefix}cos", cos)
    checks.floating(**{f"{prefix}cos": cos, f"{prefix}sin": sin})
    found, own = checks.dtype_name(cos), checks.dtype_name(x)
    if found not in ("float32", own):
        either = "float32" if own == "float32" else f"float32 or {own}"
        raise TypeError(f"{prefix}cos has dtype {found}; it must be {either}")


def check_backward(dq_out: Any, dk_out: Any, cos: Any) -> None:
    """Raise TypeError or ValueError for gradients that do not fit the angles."""
    checks.floating(dq_out=dq_out, dk_out=dk_out)
    of_batch: int | str = int(cos.shape[0]) if len(cos.shape) == 3 else "B"
    checks.shape("dq_out", dq_out, (of_batch, "H", int(cos.shape[-2]), "D"))
    B, _, L, D = (int(n) for n in dq_out.shape)
    checks.shape("dk_out", dk_out, (B, "K", L, D))
    turned = 2 * int(cos.shape[-1])
    checks.require(D >= turned, "dq_out.shape[-1]", D, f"at least rotary_dim, {turned}")


def check_is_rotary(rotary: Any) -> None:
    """Refuse what is neither a `Rotary` nor None."""
    if rotary is None:
        return
    if not isinstance(rotary, Rotary):
        raise TypeError(f"rotary is a {type(rotary).__name__}; it must be a Rotary")
    checks.flag("rotary.interleaved", rotary.interleaved)


def check_rotary(rotary: Rotary | None, q: Any, k: Any) -> None:
    """Refuse what attention on either side cannot take."""
    check_is_rotary(rotary)
    if rotary is None:
        return
    own = (rotary.k_cos is None) == (rotary.k_sin is None)
    was = "None" if rotary.k_sin is None else "given"
    checks.require(own, "rotary.k_sin", was, "given if rotary.k_cos is, and only then")
    M, N = int(q.shape[2]), int(k.shape[2])
    must = f"({N}, F), the angles of k's rows, as q has {M}"
    checks.require(M == N or rotary.k_cos is not None, "rotary.k_cos", None, must)
    for name, x, (cos, sin, _) in (("", q, rotary.of_q), ("k_", k, rotary.of_k)):
        name = f"rotary.{name if rotary.k_cos is not None else ''}"
        checks.same_device(**{"q": q, f"{name}cos": cos, f"{name}sin": sin})
        check_shapes(name, x, cos, sin)
        F, pairs = int(cos.shape[-1]), int(rotary.cos.shape[-1])
        checks.require(F == pairs, f"{name}cos.shape[-1]", F, f"that of rotary.cos, {pairs}")


def tables(
    positions: Array, rotary_dim: int, *, base: float = 10000.0, dtype: Any = "float64"
) -> tuple[Array, Array]:
    """Return cos θ and sin θ of every position and pair.

    Args:
        positions: (L,) or (B, L), int32 or int64.
        rotary_dim: how many features are rotated; even.
        base: of the geometric progression of angles.
        dtype: of the results; angles are float64 throughout.

    Returns:
        cos θ and sin θ, each (L, rotary_dim/2) or (B, L, rotary_dim/2), of this dtype.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check_tables(positions, rotary_dim, base)
    checks.floating_dtype("dtype", dtype, checks.NUMPY_FLOATING)
    angle = positions[..., None] / base ** (np.arange(0, rotary_dim, 2) / rotary_dim)
    # (L, F) or (B, L, F)
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def forward(
    q: Array, k: Array, cos: Array, sin: Array, *, interleaved: bool = False
) -> tuple[tuple[Array, Array], Cache]:
    """Rotate the first rotary_dim features of q and k; the others pass through.

    Args:
        q: (B, H, L, D), floating.
        k: (B, K, L, D), of q's dtype.
        cos, sin: (L, F) or (B, L, F), float32 or the dtype of q; F ≤ D/2.
        interleaved: pairs (2i, 2i + 1) instead of (i, i + F).

    Returns:
        (q, k), rotated, and the cache.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(q, k, cos, sin, interleaved)
    turned = (turn(q, cos, sin, interleaved), turn(k, cos, sin, interleaved))
    return turned, Cache(cos, sin, interleaved)


def backward(dq_out: Array, dk_out: Array, cache: Cache, *, into: checks.Into = None) -> Gradients:
    """Return dq and dk: the gradients of the results, rotated by −θ.

    Args:
        dq_out: (B, H, L, D), floating.
        dk_out: (B, K, L, D), of its dtype.
        cache: from `forward`.
        into: (dq, dk), arrays to write to and return instead of new ones; None for a new one. They
            may be (dq_out, dk_out).

    Returns:
        dq (B, H, L, D) and dk (B, K, L, D), of dq_out's dtype.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check_backward(dq_out, dk_out, cache.cos)
    given = checks.into(into, dq=dq_out.shape, dk=dk_out.shape)
    found = (turn_back(x, *cache) for x in (dq_out, dk_out))
    return Gradients(*(rounded(x, x.dtype, to) for x, to in zip(found, given, strict=True)))


def turn_back(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Return x (B, H, L, D) with its pairs rotated by the opposite angles."""
    return turn(x, cos, -sin, interleaved)


def turn(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Return x (B, H, L, D) with its pairs rotated by the angles of cos and sin."""
    F, dtype, x = cos.shape[-1], x.dtype, widened(x)
    # (1 or B, 1, L, F)
    cos, sin = (a.reshape(-1, 1, *a.shape[-2:]).astype(x.dtype, copy=False) for a in (cos, sin))
    # (1) pairs
    first, second = (
        (slice(0, 2 * F, 2), slice(1, 2 * F, 2)) if interleaved else (slice(F), slice(F, 2 * F))
    )
    # (2) rotated: x·cos, and x⊥·sin, where x⊥ has (−x₂, x₁) for every pair (x₁, x₂)
    along, across = np.empty((2, *cos.shape[:3], 2 * F), x.dtype)  # (1 or B, 1, L, 2F)
    along[..., first], along[..., second] = cos, cos
    across[..., first], across[..., second] = -sin, sin
    out = np.empty(x.shape, x.dtype)
    turned = out[..., : 2 * F]  # (B, H, L, 2F)
    turned[..., first], turned[..., second] = x[..., second], x[..., first]
    turned *= across
    turned += x[..., : 2 * F] * along
    # (3) features that have no pair
    out[..., 2 * F :] = x[..., 2 * F :]
    return rounded(out, dtype)
