"""What happens to arguments before an operator is called: autocast, seeds, what is kept."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from twofold.reference import checks


def autocast(*tensors: Any, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
    """Return floating tensors, cast where autocast is on: to its dtype, or to `dtype`.

    float64 tensors are not cast, as in torch.
    """
    given = [x for x in tensors if isinstance(x, torch.Tensor)]  # the operator refuses others
    if not given or not autocasts(given[0]):
        return tensors
    dtype = dtype or torch.get_autocast_dtype(given[0].device.type)
    return tuple(
        x.to(dtype)
        if isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype != torch.float64
        else x
        for x in tensors
    )


def autocasts(x: torch.Tensor) -> bool:
    """Return whether autocast is on for a tensor's device."""
    kind = x.device.type  # torch.compile of 2.11 cannot ask torch which kinds have autocast
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)


def without_autocast(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off for a tensor's device."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


def seed_tensor(
    dropout_p: float, seed: int | torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor | None:
    """Return the seed of a dropout mask as operators take it, drawn by torch if none is given.

    It is a tensor, so that torch.compile does not make it constant. A drawn seed is on x's device:
    kernels read it there, and in a CUDA graph every replay draws another.

    Raises:
        TypeError, ValueError: the seed is neither an integer nor a tensor of one.
    """
    if isinstance(seed, torch.Tensor):
        checks.integer(seed=seed)
        checks.shape("seed", seed, ())
        seed = seed.long()
    elif seed is not None:
        checks.seed(seed)
    if dropout_p == 0.0:
        return None
    if seed is None:
        device = x.device if isinstance(x, torch.Tensor) else "cpu"  # the operator refuses others
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)
    if isinstance(seed, torch.Tensor):
        return seed
    return torch.tensor(seed, dtype=torch.int64, device="cpu")


def read_seed(seed: Any) -> Any:
    """Return the seed of a mask as a side takes it; kernels read a seed in GPU memory themselves.

    Raises:
        RuntimeError: a CUDA graph is being captured, which would fix the value of a seed on the
            host.
    """
    if seed is None or getattr(seed, "is_cuda", False):
        return 0 if seed is None else seed
    if capturing():
        must = "it must be a tensor on the GPU, or every replay drops out the same"
        raise RuntimeError(f"seed is the host's while a CUDA graph is captured; {must}")
    return int(seed)


def capturing() -> bool:
    """Return whether launches are being captured into a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def recorded(*tensors: Any) -> bool:
    """Return whether autograd records operations on these tensors, so that backward may follow."""
    learns = any(isinstance(x, torch.Tensor) and x.requires_grad for x in tensors)
    return learns and torch.is_grad_enabled()
