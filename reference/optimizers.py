r"""Optimizers over one flat buffer: Adam, AdamW, SGD with momentum, Adagrad; clipping by the norm.

All parameters of a model are in one 1-D buffer, gradients and moments in buffers of the same
layout, so an optimizer is one sweep over memory. Every step here has the form

    (1) g ← g · min(1, max_norm / ‖g‖)        clipping (Pascanu et al. 2013, algorithm 1)
    (2) g ← g + λ·θ   or   θ ← θ − lr·λ·θ     weight decay, coupled or decoupled
    (3) moments from g
    (4) θ ← θ − lr·step

and only the first `decay_numel` elements decay: a model puts its matrices first, biases after them.
Buffers are changed in place. The sweep goes block by block, so that each block stays in cache; a
float16 block is computed in float32, as in the kernel, and rounded at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from twofold.reference import checks
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 1 << 15


def check(
    lr: float,
    weight_decay: float,
    decay_numel: int | None,
    grad_norm: Any,
    max_norm: float | None,
    **buffers: Any,
) -> None:
    """Raise TypeError or ValueError for what either side cannot take; `params` is in `buffers`."""
    params = buffers["params"]
    checks.floating(**buffers)
    checks.shape("params", params, ("n",))
    for name, buffer in buffers.items():
        if buffer is not None or name != "momentum_buffer":
            checks.shape(name, buffer, (int(params.shape[0]),))
            if name != "grads":
                checks.writable(**{name: buffer})
    for name, x in (("lr", lr), ("weight_decay", weight_decay)):
        checks.number(name, x)
        checks.require(0.0 <= x < math.inf, name, x, "at least 0 and finite")
    if decay_numel is not None:
        n = int(params.shape[0])
        checks.count("decay_numel", decay_numel, 0)
        checks.require(decay_numel <= n, "decay_numel", decay_numel, f"from 0 to {n}")
    if max_norm is not None:
        checks.number("max_norm", max_norm)
        checks.require(max_norm > 0.0, "max_norm", max_norm, "positive")
        checks.require(grad_norm is not None, "grad_norm", None, "given along with max_norm")
    if grad_norm is not None:
        checks.floating(grad_norm=grad_norm)
        checks.shape("grad_norm", grad_norm, ())
        checks.same_device(params=params, grad_norm=grad_norm)


def check_adam(step: int, beta1: float, beta2: float, eps: float, decoupled: Any) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.count("step", step, 1)
    checks.probability("beta1", beta1)
    checks.probability("beta2", beta2)
    checks.positive("eps", eps)
    checks.flag("decoupled", decoupled)


def check_sgd(momentum_buffer: Any, momentum: float, nesterov: bool) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.probability("momentum", momentum)
    checks.flag("nesterov", nesterov)
    checks.require(
        momentum == 0.0 or momentum_buffer is not None,
        "momentum_buffer",
        None,
        "a buffer where momentum is used",
    )
    checks.require(not nesterov or momentum > 0.0, "momentum", momentum, "positive with nesterov")


def check_adagrad(eps: float) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.positive("eps", eps)


def global_norm(grads: Array) -> Array:
    """Return ‖g‖₂ over the whole buffer, 0-d, the same bits every time.

    Squares are summed in blocks, in float32 (float64 for float64), and the blocks in float64. Where
    the squares of a block exceed float32's range, as with a gradient of 2·10¹⁹, the norm is ∞; in
    the kernel, also where the squares of the whole buffer do.

    Args:
        grads: (n,), floating.

    Returns:
        the norm, float32 (float64 for float64).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.floating(grads=grads)
    checks.shape("grads", grads, ("n",))
    total = 0.0
    for block in _blocks(len(grads)):
        g = widened(grads[block])
        total += float(np.vdot(g, g))
    return np.asarray(math.sqrt(total), g.dtype)


def adam(
    params: Array,
    grads: Array,
    m: Array,
    v: Array,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
    decay_numel: int | None = None,
    grad_norm: Array | None = None,
    max_norm: float | None = None,
) -> None:
    """Take one step of Adam, in place: θ ← θ − lr·m̂/(√v̂ + ε), m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ).

    Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1; decoupled decay is
    AdamW's (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2).

    Args:
        params, grads, m, v: (n,) each, of one floating dtype; m and v are zero before the first
            step.
        step: t of the paper, 1 at the first call.
        lr, beta1, beta2, eps: α, β₁, β₂, ε of the paper.
        weight_decay: λ. Decoupled, it is multiplied by lr, as in PyTorch; in the paper by the
            schedule's factor alone, without α.
        decoupled: decay the parameters (AdamW) instead of adding λ·θ to the gradient.
        decay_numel: how many leading elements decay; all by default.
        grad_norm, max_norm: clip the gradient, whose norm is `grad_norm`, 0-d, floating, as
            returned by `global_norm`, to `max_norm`.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(lr, weight_decay, decay_numel, grad_norm, max_norm, params=params, grads=grads, m=m, v=v)
    check_adam(step, beta1, beta2, eps, decoupled)
    lr, beta1, beta2, eps, weight_decay = map(float, (lr, beta1, beta2, eps, weight_decay))
    step = int(step)
    clip = clip_factor(grad_norm, max_norm)
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    buffers = params, m, v
    for block, decay in _decaying_blocks(len(params), weight_decay, decay_numel):
        # (1) clip; (2) weight decay
        state = [x[block] for x in buffers]
        theta, m, v = (widened(x) for x in state)
        g = _gradient(theta, grads[block], clip, 0.0 if decoupled else decay)
        if decoupled and decay:
            theta *= 1 - lr * decay
        # (3) m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²
        m *= beta1
        m += (1 - beta1) * g
        np.square(g, out=g)
        g *= 1 - beta2
        v *= beta2
        v += g
        # (4) θ ← θ − lr·m̂/(√v̂ + ε)
        np.divide(v, correction2, out=g)
        np.sqrt(g, out=g)
        g += eps
        np.divide(m, g, out=g)
        g *= lr / correction1
        theta -= g
        _store((theta, m, v), state)


def sgd(
    params: Array,
    grads: Array,
    momentum_buffer: Array | None,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay_numel: int | None = None,
    grad_norm: Array | None = None,
    max_norm: float | None = None,
) -> None:
    """Take one step of stochastic gradient descent, in place.

    b ← μ·b + g and θ ← θ − lr·b, or with Nesterov's momentum θ ← θ − lr·(g + μ·b): θ is then the
    point ahead along the momentum, at which the gradient is taken (Bengio, Boulanger-Lewandowski &
    Pascanu 2013, "Advances in Optimizing Recurrent Networks", rewrite in this way what Sutskever et
    al. 2013, "On the importance of initialization and momentum in deep learning", section 2, say of
    the point behind it). As in PyTorch, lr multiplies b where it is used, not what is added to it.

    Args:
        params, grads, momentum_buffer: (n,) each, of one floating dtype; the last is zero before
            the first step, and may be None without momentum.
        lr, momentum: step size, and μ.
        nesterov: look ahead along the momentum.
        weight_decay, decay_numel, grad_norm, max_norm: as for `adam`, coupled.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    buffers = {"params": params, "grads": grads, "momentum_buffer": momentum_buffer}
    check(lr, weight_decay, decay_numel, grad_norm, max_norm, **buffers)
    check_sgd(momentum_buffer, momentum, nesterov)
    lr, momentum, weight_decay = float(lr), float(momentum), float(weight_decay)
    clip = clip_factor(grad_norm, max_norm)
    for block, decay in _decaying_blocks(len(params), weight_decay, decay_numel):
        # (1) clip; (2) weight decay
        state = [x[block] for x in (params, momentum_buffer) if x is not None]
        theta, *moments = (widened(x) for x in state)
        g = _gradient(theta, grads[block], clip, decay)
        # (3) b ← μb + g;  g ← b, with Nesterov's momentum g + μb
        if momentum > 0.0:
            (b,) = moments
            b *= momentum
            b += g
            g = g + momentum * b if nesterov else b
        # (4) θ ← θ − lr·g
        theta -= lr * g
        _store((theta, *moments), state)


def adagrad(
    params: Array,
    grads: Array,
    sum_of_squares: Array,
    *,
    lr: float,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    decay_numel: int | None = None,
    grad_norm: Array | None = None,
    max_norm: float | None = None,
) -> None:
    """Take one step of Adagrad, in place: s ← s + g², θ ← θ − lr·g/(√s + ε).

    Duchi, Hazan & Singer 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization", section 1.1, with diagonal matrices.

    Args:
        params, grads, sum_of_squares: (n,) each, of one floating dtype; the last is zero before
            the first step.
        lr, eps: step size, and what keeps the division finite.
        weight_decay, decay_numel, grad_norm, max_norm: as for `adam`, coupled.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    buffers = {"params": params, "grads": grads, "sum_of_squares": sum_of_squares}
    check(lr, weight_decay, decay_numel, grad_norm, max_norm, **buffers)
    check_adagrad(eps)
    lr, eps, weight_decay = float(lr), float(eps), float(weight_decay)
    clip = clip_factor(grad_norm, max_norm)
    for block, decay in _decaying_blocks(len(params), weight_decay, decay_numel):
        # (1) clip; (2) weight decay
        state = params[block], sum_of_squares[block]
        theta, s = (widened(x) for x in state)
        g = _gradient(theta, grads[block], clip, decay)
        # (3) s ← s + g²
        s += np.square(g)
        # (4) θ ← θ − lr·g/(√s + ε)
        theta -= lr * g / (np.sqrt(s) + eps)
        _store((theta, s), state)


def clip_factor(grad_norm: Array | None, max_norm: float | None) -> float:
    """Return min(1, max_norm/‖g‖), the factor by which clipping multiplies the gradient."""
    if grad_norm is None or max_norm is None:
        return 1.0
    norm = float(grad_norm)
    return float(max_norm) / norm if norm > max_norm else 1.0


def _gradient(theta: Array, g: Array, clip: float, decay: float) -> Array:
    g = widened(g) * clip
    if decay:
        g += decay * theta
    return g


def _store(found: Iterable[Array], state: Iterable[Array]) -> None:
    """Write new values over the old ones, if they are not there already."""
    for x, to in zip(found, state, strict=True):
        rounded(x, to.dtype, to)


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


def _decaying_blocks(
    n: int, weight_decay: float, decay_numel: int | None
) -> Iterator[tuple[slice, float]]:
    """Yield the blocks with the decay of each; none straddles the end of the decaying part."""
    boundary = n if decay_numel is None else decay_numel
    for part, decay in ((range(0, boundary), weight_decay), (range(boundary, n), 0.0)):
        for block in _blocks(len(part)):
            yield slice(part.start + block.start, part.start + block.stop), decay
