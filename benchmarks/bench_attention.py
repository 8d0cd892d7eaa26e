"""Attention, forward and backward, against torch's scaled_dot_product_attention.

On the CPU the reference in float32 stands against SDPA with the same number of threads; on a GPU
the kernels in bfloat16 against SDPA with each of its backends that takes the problem. Operations
are counted as 4·B·H·M·N·D forward and 10·B·H·M·N·D backward, half where causal.

    python benchmarks/bench_attention.py [--save]
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import harness
import numpy as np
import torch
from torch.nn import attention as torch_attention
from torch.nn import functional as F

from twofold.core import ops

CPU_SHAPES = ((64, 4, 24, 32), (64, 4, 48, 32), (8, 8, 256, 64), (4, 8, 512, 64))
GPU_SHAPES = tuple((16384 // n, 2048 // d, n, d) for n in (512, 2048, 8192) for d in (64, 128))


def numpy_call(side: ops.Side, arrays: list[np.ndarray]) -> Callable[[], object]:
    q, k, v, dout = arrays

    def call() -> object:
        _, cache = side.attention.forward(q, k, v)
        return side.attention.backward(dout, cache)

    return call


def kernel_call(side: ops.Side, arrays: list[Any], causal: bool) -> Callable[[], object]:
    q, k, v, dout = arrays

    def call() -> object:
        _, cache = side.attention.forward(q, k, v, causal=causal)
        side.attention.backward(dout, cache)
        return torch.cuda.synchronize()

    return call


def torch_call(
    tensors: list[torch.Tensor], causal: bool = False, backend: Any = None
) -> Callable[[], object]:
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    dout = tensors[3]

    def call() -> object:
        with torch_attention.sdpa_kernel(backend) if backend else nullcontext():
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        torch.autograd.grad(out, (q, k, v), dout)
        return torch.cuda.synchronize() if q.is_cuda else None

    return call


def race_on_cpu(seconds: float) -> dict[str, Any]:
    side = ops.load("reference")
    rng = np.random.default_rng(0)
    races = {}
    for shape in CPU_SHAPES:
        arrays = [rng.standard_normal(shape, np.float32) for _ in range(4)]
        contenders = {
            "twofold reference": numpy_call(side, arrays),
            "torch SDPA": torch_call([torch.tensor(x) for x in arrays]),
        }
        name = f"float32 (B, H, L, D) = {shape}"
        races[name] = harness.summary(harness.race(contenders, seconds), "torch SDPA")
    return races


def race_on_gpu(seconds: float) -> dict[str, Any]:
    side = ops.load("triton")
    backends = torch_attention.SDPBackend
    races = {}
    for shape in GPU_SHAPES:
        for causal in (False, True):
            tensors = [torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(4)]
            contenders = {"twofold kernel": kernel_call(side, tensors, causal)}
            for backend in (backends.FLASH_ATTENTION, backends.CUDNN_ATTENTION):
                call = torch_call(tensors, causal, backend)
                try:
                    call()
                except RuntimeError:  # this backend does not take the problem
                    continue
                contenders[f"torch SDPA, {backend.name}"] = call
            name = f"bfloat16 (B, H, L, D) = {shape}{', causal' if causal else ''}"
            B, H, L, D = shape
            found = harness.summary(harness.race(contenders, seconds), list(contenders)[-1])
            operations = 14 * B * H * L * L * D / (2 if causal else 1)
            for times in found.values():
                times["tera_operations_per_second"] = operations / times["median_ms"] * 1e-9
            races[name] = found
    return races


def main() -> None:
    asked = harness.options(__doc__)
    harness.use_threads(asked.threads)
    race = race_on_gpu if torch.cuda.is_available() else race_on_cpu
    races = race(0.5 if asked.quick else 5.0)
    harness.report("attention", {"ran_on": harness.ran_on(asked.threads), "races": races}, asked)


if __name__ == "__main__":
    main()
