"""Race ways to compute the same call of attention on a GPU: kernels, tiles, ways to copy.

Three questions, each for 16,384 tokens of 2,048 features in bfloat16:

    --kernels   the plain kernel, Hopper's in its variants, and torch's (flash, cuDNN), by length
    --tiles     tiles of the plain kernel, and of the last of the steps with and without descriptors
                and persistence (`attention_step_kernels.py`), at one length
    --features  80 and 96 features in two tiles and in one of 128, forward and backward. Products
                are 0.63 and 0.75 of the padded ones, and about four fifths of the time: expected
                are 0.7 and 0.8 of the time, both ways

    python benchmarks/attention_variants.py --kernels --tiles --features --save

Questions asked one after the other, with the same --json or on one day, have one result. Who fails,
or does not compute what the first does, is left out with the reason.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import attention_step_kernels as steps
import harness
import numpy as np
import torch

from twofold.core import ops
from twofold.core.bench import agreement, machine, problems, timing
from twofold.core.bench.problems import HIDDEN, TOKENS, Problem
from twofold.kernels import attention, attention_hopper
from twofold.kernels.attention_hopper import Variant
from twofold.kernels.attention_tiles import Tile, choose_tile

PLAIN, FLASH, CUDNN = "plain", "torch flash", "torch cuDNN"
LENGTHS = (1024, 4096, 16384, 512, 2048, 8192)
TILES_AT = 4096
VARIANTS = {
    128: [
        Variant(128, 2), Variant(128, 2, early=True), Variant(128, 2, turns=True),
        Variant(128, 2, turns=True, early=True), Variant(128, 2, persistent=False),
        Variant(128, 2, turns=True, persistent=False), Variant(128, 2, pairs=True),
        Variant(128, 2, early=True, pairs=True), Variant(64, 4), Variant(64, 4, turns=True),
    ],
    64: [
        Variant(128, 2), Variant(128, 3), Variant(128, 3, early=True),
        Variant(128, 3, turns=True), Variant(128, 3, turns=True, early=True),
        Variant(128, 3, persistent=False), Variant(128, 3, early=True, persistent=False),
        Variant(128, 3, early=True, pairs=True), Variant(64, 4), Variant(64, 4, 3),
        Variant(64, 4, 3, turns=True),
    ],
}  # fmt: skip
TILES = {
    128: [Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(128, 128, 8, 3), Tile(128, 128, 8, 2),
          Tile(64, 128, 4, 2)],
    64: [Tile(128, 64, 8, 3), Tile(128, 64, 4, 3), Tile(128, 128, 8, 3), Tile(64, 64, 4, 3),
         Tile(64, 128, 4, 3)],
    256: [Tile(128, 32, 8, 3), Tile(128, 64, 8, 2)],
}  # fmt: skip
STEPS = {
    "step": steps.ALL,
    "descriptors": steps.ASIDE["descriptors"],
    "descriptors, persistent": steps.ASIDE["descriptors, persistent"],
}
FEATURES = (80, 96)
BACKWARD = "backward"
Call = Callable[[], object]


def name(variant: Variant) -> str:
    """Return the name of a variant of Hopper's kernel in results."""
    flags = "".join(f", {f}" for f in ("turns", "early", "pairs") if getattr(variant, f))
    grid = "" if variant.persistent else ", grid"
    groups = "" if variant.consumers == 2 else f", {variant.consumers} consumers"
    return f"Hopper {variant.block_n} keys, {variant.stages} stages{groups}{flags}{grid}"


def problem_of(head_dim: int, length: int, causal: bool) -> Problem:
    """Return the race's problem."""
    H = HIDDEN // head_dim
    return problems.attention(TOKENS // length, H, H, length, length, head_dim, "bfloat16", causal)


def inputs(problem: Problem) -> list[torch.Tensor]:
    """Return q, k and v."""
    return list(problem.make(torch.Generator("cuda").manual_seed(0), "cuda").values())


def of_torch(tensors: list[torch.Tensor], causal: bool) -> dict[str, Call]:
    """Return torch's calls."""
    from twofold.core.verify.peers import torch_attention  # slow to import, and it warns

    return {
        FLASH: lambda: torch_attention.flash(*tensors, causal=causal),
        CUDNN: lambda: torch_attention.cudnn(*tensors, causal=causal),
    }


def kernels(head_dim: int, length: int, causal: bool) -> dict[str, Call]:
    """Return the plain kernel, Hopper's, and torch's."""
    q, k, v = tensors = inputs(problem_of(head_dim, length, causal))
    scale = head_dim**-0.5
    tile = choose_tile("forward", head_dim, 2, architecture="sm_90", rows=length)

    def hopper(variant: Variant) -> Call:
        def call() -> torch.Tensor:
            out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
            attention_hopper.forward(q, k, v, out, lse, scale, causal, variant)
            return out

        return call

    found: dict[str, Call] = {PLAIN: lambda: attention.forward(q, k, v, causal=causal, tile=tile)}
    found |= {name(variant): hopper(variant) for variant in VARIANTS[head_dim]}
    return found | of_torch(tensors, causal)


def tiled(head_dim: int, length: int, causal: bool) -> dict[str, Call]:
    """Return the plain kernel and the steps, in every tile, and torch's."""
    tensors = inputs(problem_of(head_dim, length, causal))
    flat = [x.flatten(0, 1) for x in tensors]
    found: dict[str, Call] = {}
    for tile in TILES[head_dim]:
        size = f"{tile.block_m}×{tile.block_n}, {tile.num_warps} warps, {tile.num_stages} stages"
        found[f"{PLAIN} {size}"] = lambda tile=tile: attention.forward(
            *tensors, causal=causal, tile=tile
        )
        for kind, step in STEPS.items():
            found[f"{kind} {size}"] = lambda step=step, tile=tile: steps.forward(
                step, *flat, head_dim**-0.5, causal, tile
            )
    return found | of_torch(tensors, causal)


def in_tiles(head_dim: int, length: int, causal: bool, which: str) -> dict[str, Call]:
    """Return a pass of the plain kernel with its features in two tiles, and in one; and torch's."""
    tensors = inputs(problem_of(head_dim, length, causal))
    dout = torch.randn_like(tensors[0])  # same seed, so that both compute the same
    found: dict[str, Call] = {}
    for who, padded in (("in two tiles", False), ("in one, padded", True)):

        def tile(kernel: str, padded: bool = padded) -> Tile:
            chosen = choose_tile(kernel, head_dim, 2, architecture="sm_90", rows=length)
            return chosen._replace(tail_d=0) if padded else chosen

        def forward(tile: Callable[[str], Tile] = tile) -> Any:
            return attention.forward(*tensors, causal=causal, tile=tile("forward"))

        if which == BACKWARD:
            _, cache = attention.forward(*tensors, causal=causal)
            how = {"dk_dv_tile": tile("dk_dv"), "dq_tile": tile("dq")}
            found[who] = functools.partial(attention.backward, dout, cache, **how)
        else:
            found[who] = forward
    return found if which == BACKWARD else found | of_torch(tensors, causal)


def raced(
    calls: dict[str, Call], problem: Problem, which: str, seconds: float
) -> dict[str, dict[str, Any]]:
    """Return a pass's TFLOP/s of all that run and agree, and why others are left out."""
    lost = agreement.unlike(calls, problem)
    ready = {who: [call] for who, call in calls.items() if who not in lost}
    times = timing.race(ready, "cuda", seconds, lost)
    work = problem.costs[which].operations
    rates = {who: work / float(np.median(taken)) * 1e-12 for who, taken in times.items()}
    return {"tera_operations_per_second": rates, "left_out": {w: x[:200] for w, x in lost.items()}}


def main() -> None:
    asked = harness.options(
        __doc__,
        kernels={"action": "store_true", "help": "kernels, by length"},
        tiles={"action": "store_true", "help": "tiles and ways to copy"},
        features={"action": "store_true", "help": "features in two tiles and in one"},
        seconds={"type": float, "default": 0.5, "help": "for each race"},
    )
    if not ops.cuda_available():
        raise SystemExit("attention_variants.py needs a GPU")
    result = harness.begun(asked.threads, "cuda")
    result["ceilings"] = machine.ceilings("cuda", 1.0)._asdict()
    questions = {
        "kernels": [*itertools.product((128, 64), LENGTHS)],
        "tiles": [*itertools.product((128, 64, 256), (TILES_AT,))],
        "features": [*itertools.product(FEATURES, (TILES_AT,))],
    }
    races: list[tuple[str, str, Callable[[int, int, bool], dict[str, Call]]]] = [
        ("kernels", "forward", kernels),
        ("tiles", "forward", tiled),
        ("features", "forward", functools.partial(in_tiles, which="forward")),
        ("features", BACKWARD, functools.partial(in_tiles, which=BACKWARD)),
    ]
    for question, which, make in races:
        shapes = itertools.product(questions[question], (False, True))
        for (head_dim, length), causal in shapes if getattr(asked, question) else ():
            problem = problem_of(head_dim, length, causal)
            found = raced(make(head_dim, length, causal), problem, which, asked.seconds)
            race = {"head_dim": head_dim, "length": length, "causal": causal, "pass": which}
            result.setdefault(question, []).append(race | found)
            print(race, harness.leading(found["tera_operations_per_second"]), flush=True)
            for who, reason in found["left_out"].items():
                print(f"{who}: {reason}", flush=True)
            harness.add("attention_variants", result, asked)


if __name__ == "__main__":
    main()
