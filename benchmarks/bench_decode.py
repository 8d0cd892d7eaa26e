"""Decoding, one new query of every sequence to a long cache, against torch and against a copy.

Decoding reads the cache and does little else, so its measure is bytes per second: 4·B·K·N·D bytes
of keys and values in 16 bits. On a GPU the kernel in bfloat16, with the cache in one piece and in
pages, stands against SDPA, and against a copy that moves as many bytes: what the device's memory
gives. On the CPU the reference in float32 stands against SDPA with the same number of threads.

    python benchmarks/bench_decode.py [--save]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import harness
import numpy as np
import torch
from torch.nn import functional as F

from twofold.core import ops

COPY = "a copy of as many bytes"
PAGE = 16


class Shape(NamedTuple):
    """Sequences, heads, heads of keys, keys of every sequence, head_dim."""

    B: int
    H: int
    K: int
    N: int
    D: int


CPU_SHAPES = (Shape(4, 8, 2, 1024, 64), Shape(1, 8, 8, 4096, 64))
GPU_SHAPES = (
    Shape(1, 32, 8, 131072, 128),
    Shape(16, 32, 8, 8192, 128),
    Shape(64, 32, 8, 2048, 128),
    Shape(64, 32, 32, 2048, 64),
)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def finished(call: Callable[[], object]) -> Callable[[], object]:
    """Let a call wait for the GPU."""

    def waiting() -> object:
        call()
        return torch.cuda.synchronize()

    return waiting


def race_on_cpu(seconds: float) -> dict[str, Any]:
    side, rng, races = ops.load("reference"), np.random.default_rng(0), {}
    for shape in CPU_SHAPES:
        B, H, K, N, D = shape
        q = rng.standard_normal((B, H, 1, D), np.float32)
        k, v = rng.standard_normal((2, B, K, N, D), np.float32)
        tensors = [torch.tensor(x) for x in (q, k, v)]
        lengths = np.full(B, N)
        contenders: dict[str, Callable[[], object]] = {
            "twofold reference": lambda q=q, k=k, v=v, lengths=lengths: (
                side.attention_decode.forward(q, k, v, key_lengths=lengths)
            ),
            "torch SDPA": lambda tensors=tensors: sdpa(*tensors),
        }
        found = harness.summary(harness.race(contenders, seconds), "torch SDPA")
        races[f"float32 {described(shape)}"] = with_bytes(found, 8 * B * K * N * D)
    return races


def race_on_gpu(seconds: float) -> dict[str, Any]:
    decode, races = ops.load("triton").attention_decode.forward, {}
    for shape in GPU_SHAPES:
        B, H, K, N, D = shape
        q = torch.randn((B, H, 1, D), dtype=torch.bfloat16, device="cuda")
        k, v = (torch.randn((B, K, N, D), dtype=torch.bfloat16, device="cuda") for _ in range(2))
        pages = N // PAGE
        places = torch.randperm(B * pages, device="cuda", dtype=torch.int32).view(B, pages)
        k_pages, v_pages = (
            torch.empty((B * pages, K, PAGE, D), dtype=x.dtype, device="cuda").index_copy_(
                0,
                places.flatten().long(),
                x.view(B, K, pages, PAGE, D).transpose(1, 2).flatten(0, 1),
            )
            for x in (k, v)
        )
        lengths = torch.full((B,), N, dtype=torch.int32, device="cuda")
        target = torch.empty_like(k)
        calls: dict[str, Callable[[], object]] = {
            "twofold kernel": lambda a=(q, k, v), n=lengths: decode(*a, key_lengths=n),
            f"twofold kernel, pages of {PAGE}": (
                lambda a=(q, k_pages, v_pages), n=lengths, t=places: decode(
                    *a, key_lengths=n, block_table=t
                )
            ),
            "torch SDPA": lambda a=(q, k, v): sdpa(*a),
            COPY: lambda to=target, x=k: to.copy_(x),
        }
        contenders = {name: finished(call) for name, call in calls.items()}
        found = harness.summary(harness.race(contenders, seconds), COPY)
        races[f"bfloat16 {described(shape)}"] = with_bytes(found, 4 * B * K * N * D)
    return races


def described(shape: Shape) -> str:
    return f"(B, H, K, N, D) = {tuple(shape)}"


def with_bytes(found: dict[str, dict[str, float]], moved: int) -> dict[str, dict[str, float]]:
    """Add how many bytes of the cache went by in a second."""
    for times in found.values():
        times["giga_bytes_per_second"] = moved / times["median_ms"] * 1e-6
    return found


def main() -> None:
    asked = harness.options(__doc__)
    harness.use_threads(asked.threads)
    race = race_on_gpu if torch.cuda.is_available() else race_on_cpu
    races = race(0.5 if asked.quick else 5.0)
    harness.report("decode", {"ran_on": harness.ran_on(asked.threads), "races": races}, asked)


if __name__ == "__main__":
    main()
