"""Optimizers over one flat buffer: one launch a step, all of it in registers.

Bytes, for n elements of b bytes: Adam reads params, grads, m, v and writes three of them, 7nb; SGD
3nb, with momentum 5nb; Adagrad 5nb; the norm nb. The arithmetic is hidden behind these bytes.

The norm stays on the device: a step reads it there and computes the clipping factor itself, so the
host never waits for the gradient. `global_norm` gives each of a fixed number of programs a
contiguous share; their sums are written once and added up by a second kernel: no atomics, the same
bits in every run.

Arithmetic is float32 whatever the buffers hold. What depends only on the step and the betas is
computed by the host in float64: 1 − β₂ from a rounded β₂ would be off in the fifth digit. Kernels
are not specialised on what changes from step to step, so a schedule recompiles nothing. A captured
CUDA graph would replay these numbers, so there they are read from memory, as is whether to take the
step at all.
Steps (1)–(4) are those of the reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from twofold.kernels import precision
from twofold.reference import checks
from twofold.reference.optimizers import check, check_adagrad, check_adam, check_sgd

BLOCK = 1024  # elements that a program works on at a time
SHARES = 1024  # most shares of a buffer, a program and a number each; the second kernel holds all


@triton.jit
def gradient(theta, g, index, coupled_numel, weight_decay, norm_ptr, max_norm, CLIP: tl.constexpr):
    """(1) Clip the gradient; (2) add the decay to the elements before `coupled_numel`."""
    if CLIP:
        norm = tl.load(norm_ptr).to(tl.float32)
        # The maximum avoids a division by zero; an unclipped gradient keeps its bits.
        g *= tl.where(norm > max_norm, max_norm / tl.maximum(norm, max_norm), 1.0)
    return tl.where(index < coupled_numel, g + weight_decay * theta, g)


@triton.jit
def wanted(index, n, go_ptr):
    """Return which elements exist and are to be changed."""
    if go_ptr is not None:
        n = tl.where(tl.load(go_ptr) != 0, n, 0)
    return index < n


@triton.jit
def put(ptr, stride, index, value, inside):
    """Store float32 numbers in the buffer's dtype."""
    tl.store(ptr + index * stride, value.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def get(ptr, stride, index, inside):
    """Load numbers as float32."""
    return tl.load(ptr + index * stride, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["lr", "shrink", "unbias2"])
def adam_kernel(
    params_ptr, grads_ptr, m_ptr, v_ptr,  # (n,) each
    norm_ptr,  # () if CLIP
    numbers_ptr,  # (3,) float32 in place of lr, shrink and unbias2, or None
    go_ptr,  # () bool, whether to take the step, or None
    params_stride, grads_stride, m_stride, v_stride,
    n: tl.int64,
    coupled_numel: tl.int64,
    decoupled_numel: tl.int64,
    max_norm: tl.float32,
    weight_decay: tl.float32,
    lr: tl.float32,  # divided by 1 − β₁^t
    eps: tl.float32,
    shrink: tl.float32,  # 1 − lr·λ
    beta1: tl.float32,
    rest1: tl.float32,  # 1 − β₁
    beta2: tl.float32,
    rest2: tl.float32,  # 1 − β₂
    unbias2: tl.float32,  # 1/(1 − β₂^t)
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Take one step of Adam on BLOCK elements."""
    if numbers_ptr is not None:
        lr, shrink = tl.load(numbers_ptr), tl.load(numbers_ptr + 1)
        unbias2 = tl.load(numbers_ptr + 2)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = wanted(index, n, go_ptr)
    theta = get(params_ptr, params_stride, index, inside)
    g = get(grads_ptr, grads_stride, index, inside)
    # (1) clip; (2) weight decay
    g = gradient(theta, g, index, coupled_numel, weight_decay, norm_ptr, max_norm, CLIP)
    theta = tl.where(index < decoupled_numel, theta * shrink, theta)
    # (3) m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²
    m = beta1 * get(m_ptr, m_stride, index, inside) + rest1 * g
    v = beta2 * get(v_ptr, v_stride, index, inside) + rest2 * (g * g)
    put(m_ptr, m_stride, index, m, inside)
    put(v_ptr, v_stride, index, v, inside)
    # (4) θ ← θ − lr·m̂/(√v̂ + ε)
    theta -= lr * (m / (tl.sqrt(v * unbias2) + eps))
    put(params_ptr, params_stride, index, theta, inside)


@triton.jit(do_not_specialize=["lr"])
def sgd_kernel(
    params_ptr, grads_ptr,  # (n,) each
    momentum_ptr,  # (n,) if MOMENTUM
    norm_ptr,  # () if CLIP
    numbers_ptr,  # (1,) float32 that stands for lr, or None
    go_ptr,  # () bool, whether to take the step, or None
    params_stride, grads_stride, momentum_stride,
    n: tl.int64,
    coupled_numel: tl.int64,
    max_norm: tl.float32,
    weight_decay: tl.float32,
    lr: tl.float32,
    momentum: tl.float32,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Take one step of gradient descent on BLOCK elements."""
    if numbers_ptr is not None:
        lr = tl.load(numbers_ptr)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = wanted(index, n, go_ptr)
    theta = get(params_ptr, params_stride, index, inside)
    g = get(grads_ptr, grads_stride, index, inside)
    # (1) clip; (2) weight decay
    g = gradient(theta, g, index, coupled_numel, weight_decay, norm_ptr, max_norm, CLIP)
    # (3) b ← μb + g;  g ← b, with Nesterov's momentum g + μb
    if MOMENTUM:
        b = momentum * get(momentum_ptr, momentum_stride, index, inside) + g
        put(momentum_ptr, momentum_stride, index, b, inside)
        g = g + momentum * b if NESTEROV else b
    # (4) θ ← θ − lr·g
    put(params_ptr, params_stride, index, theta - lr * g, inside)


@triton.jit(do_not_specialize=["lr"])
def adagrad_kernel(
    params_ptr, grads_ptr, squares_ptr,  # (n,) each
    norm_ptr,  # () if CLIP
    numbers_ptr,  # (1,) float32 that stands for lr, or None
    go_ptr,  # () bool, whether to take the step, or None
    params_stride, grads_stride, squares_stride,
    n: tl.int64,
    coupled_numel: tl.int64,
    max_norm: tl.float32,
    weight_decay: tl.float32,
    lr: tl.float32,
    eps: tl.float32,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Take one step of Adagrad on BLOCK elements."""
    if numbers_ptr is not None:
        lr = tl.load(numbers_ptr)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = wanted(index, n, go_ptr)
    theta = get(params_ptr, params_stride, index, inside)
    g = get(grads_ptr, grads_stride, index, inside)
    # (1) clip; (2) weight decay
    g = gradient(theta, g, index, coupled_numel, weight_decay, norm_ptr, max_norm, CLIP)
    # (3) s ← s + g²
    s = get(squares_ptr, squares_stride, index, inside) + g * g
    put(squares_ptr, squares_stride, index, s, inside)
    # (4) θ ← θ − lr·g/(√s + ε)
    put(params_ptr, params_stride, index, theta - lr * g / (tl.sqrt(s) + eps), inside)


@triton.jit
def sum_squares_kernel(
    grads_ptr,  # (n,)
    partials_ptr,  # (programs,) float32
    stride,
    n: tl.int64,
    share: tl.int64,
    BLOCK: tl.constexpr,
):
    """Add up the squares of one program's share."""
    program = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float32)
    first = program.to(tl.int64) * share
    last = tl.minimum(first + share, n)
    for start in range(first, last, BLOCK):
        index = start + tl.arange(0, BLOCK)
        g = get(grads_ptr, stride, index, index < last)
        total += g * g
    tl.store(partials_ptr + program, tl.sum(total, axis=0))


@triton.jit
def norm_kernel(
    partials_ptr,  # (programs,) float32
    norm_ptr,  # () float32
    programs,
    BLOCK: tl.constexpr,
):
    """Take the root of the sum of all partial sums."""
    program = tl.arange(0, BLOCK)
    partials = tl.load(partials_ptr + program, mask=program < programs, other=0.0)
    tl.store(norm_ptr, tl.sqrt(tl.sum(partials, axis=0)))


def global_norm(grads: torch.Tensor) -> torch.Tensor:
    """Return ‖g‖₂ over the whole buffer, 0-d float32 on its device; sums are in float32 too.

    Arguments are those of `reference.optimizers.global_norm`.
    """
    checks.floating(grads=grads)
    checks.shape("grads", grads, ("n",))
    precision.supported("grads", grads)
    n = grads.numel()
    share = triton.cdiv(n, SHARES * BLOCK) * BLOCK
    programs = triton.cdiv(n, share)
    partials = torch.empty(programs, dtype=torch.float32, device=grads.device)
    norm = torch.empty((), dtype=torch.float32, device=grads.device)
    sum_squares_kernel[(programs,)](grads, partials, grads.stride(0), n, share, BLOCK=BLOCK)
    norm_kernel[(1,)](partials, norm, programs, BLOCK=SHARES)
    return norm


def adam_numbers(
    step: int,
    lr: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
) -> tuple[float, float, float]:
    """Return Adam's numbers for this step: lr/(1 − β₁^t), 1 − lr·λ and 1/(1 − β₂^t)."""
    return lr / (1 - beta1**step), 1 - lr * weight_decay, 1 / (1 - beta2**step)


def adam(
    params: torch.Tensor,
    grads: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
    decay_numel: int | None = None,
    grad_norm: torch.Tensor | None = None,
    max_norm: float | None = None,
    numbers: torch.Tensor | None = None,
    go: torch.Tensor | None = None,
) -> None:
    """Take one step of Adam or AdamW, in place; arguments are those of the reference.

    In addition, `numbers`, (3,) float32 on the device, holds what `adam_numbers` returns for a
    step, which is then taken whatever `step` and `lr` are; if `go`, () bool there, is False, there
    is no change. The kernel reads both, so that a captured CUDA graph replays for another step.
    """
    check(lr, weight_decay, decay_numel, grad_norm, max_norm, params=params, grads=grads, m=m, v=v)
    check_adam(step, beta1, beta2, eps, decoupled)
    lr, beta1, beta2, eps, weight_decay = map(float, (lr, beta1, beta2, eps, weight_decay))
    read = _read(params, 3, numbers, go)
    step_lr, shrink, unbias2 = adam_numbers(
        int(step), lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay
    )
    n, decays, norm = _common(params, weight_decay, decay_numel, grad_norm)
    adam_kernel[(triton.cdiv(n, BLOCK),)](
        params, grads, m, v, norm, *read,
        params.stride(0), grads.stride(0), m.stride(0), v.stride(0),
        n,
        0 if decoupled else decays,
        decays if decoupled else 0,
        float(max_norm or 0.0),
        weight_decay,
        step_lr,
        eps,
        shrink,
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        unbias2,
        CLIP=max_norm is not None,
        BLOCK=BLOCK,
    )  # fmt: skip


def sgd(
    params: torch.Tensor,
    grads: torch.Tensor,
    momentum_buffer: torch.Tensor | None,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay_numel: int | None = None,
    grad_norm: torch.Tensor | None = None,
    max_norm: float | None = None,
    numbers: torch.Tensor | None = None,
    go: torch.Tensor | None = None,
) -> None:
    """Take one step of gradient descent, in place; arguments are those of the reference.

    In addition, `numbers`, (1,) float32, replaces `lr`; for it and `go` see `adam`.
    """
    buffers = {"params": params, "grads": grads, "momentum_buffer": momentum_buffer}
    check(lr, weight_decay, decay_numel, grad_norm, max_norm, **buffers)
    check_sgd(momentum_buffer, momentum, nesterov)
    lr, momentum, weight_decay = float(lr), float(momentum), float(weight_decay)
    read = _read(params, 1, numbers, go)
    n, decays, norm = _common(params, weight_decay, decay_numel, grad_norm)
    b = params if momentum_buffer is None else momentum_buffer
    sgd_kernel[(triton.cdiv(n, BLOCK),)](
        params, grads, b, norm, *read,
        params.stride(0), grads.stride(0), b.stride(0),
        n,
        decays,
        float(max_norm or 0.0),
        weight_decay,
        lr,
        momentum,
        MOMENTUM=momentum > 0.0,
        NESTEROV=bool(nesterov),
        CLIP=max_norm is not None,
        BLOCK=BLOCK,
    )  # fmt: skip


def adagrad(
    params: torch.Tensor,
    grads: torch.Tensor,
    sum_of_squares: torch.Tensor,
    *,
    lr: float,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    decay_numel: int | None = None,
    grad_norm: torch.Tensor | None = None,
    max_norm: float | None = None,
    numbers: torch.Tensor | None = None,
    go: torch.Tensor | None = None,
) -> None:
    """Take one step of Adagrad, in place; arguments are those of the reference.

    In addition, `numbers`, (1,) float32, replaces `lr`; for it and `go` see `adam`.
    """
    buffers = {"params": params, "grads": grads, "sum_of_squares": sum_of_squares}
    check(lr, weight_decay, decay_numel, grad_norm, max_norm, **buffers)
    check_adagrad(eps)
    lr, eps, weight_decay = float(lr), float(eps), float(weight_decay)
    read = _read(params, 1, numbers, go)
    n, decays, norm = _common(params, weight_decay, decay_numel, grad_norm)
    adagrad_kernel[(triton.cdiv(n, BLOCK),)](
        params, grads, sum_of_squares, norm, *read,
        params.stride(0), grads.stride(0), sum_of_squares.stride(0),
        n,
        decays,
        float(max_norm or 0.0),
        weight_decay,
        lr,
        eps,
        CLIP=max_norm is not None,
        BLOCK=BLOCK,
    )  # fmt: skip


def _read(
    params: torch.Tensor, count: int, numbers: torch.Tensor | None, go: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Check and return the tensors that say a kernel's numbers and whether to take the step."""
    precision.supported("params", params)
    if numbers is not None:
        checks.dtype("numbers", numbers, "float32")
        checks.shape("numbers", numbers, (count,))
        numbers = numbers.contiguous()
    if go is not None:
        checks.boolean(go=go)
        checks.shape("go", go, ())
    checks.same_device(params=params, numbers=numbers, go=go)
    return numbers, go


def _common(
    params: torch.Tensor,
    weight_decay: float,
    decay_numel: int | None,
    grad_norm: torch.Tensor | None,
) -> tuple[int, int, torch.Tensor]:
    """Return the number of elements, how many of them decay, and where a program finds the norm."""
    n = params.numel()
    decays = n if decay_numel is None else int(decay_numel)
    unread = params  # stands in for an absent norm
    return n, decays if weight_decay > 0.0 else 0, unread if grad_norm is None else grad_norm
