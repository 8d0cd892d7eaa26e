"""The ceilings of attention's kernels, and of every step to them, from their machine code.

Kernels are compiled for sm_90a without a device and disassembled. The instructions in the loop over
tiles without an edge are counted; the work of each unit of a multiprocessor in it gives the share
of the matrix unit's peak that cannot be exceeded (`twofold.core.verify.compiling.machine_code` has
rates and sources). Nothing is timed.

    python benchmarks/attention_ceilings.py            writes results/attention-ceilings.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attention_step_kernels as steps
import torch

from twofold.core import ops
from twofold.core.bench.problems import HIDDEN
from twofold.core.verify.compiling import machine_code
from twofold.core.verify.compiling.chips import CHIPS
from twofold.core.verify.compiling.compiled import Compiled, describe
from twofold.core.verify.compiling.compiles import compiling
from twofold.core.verify.peers.peer import installed
from twofold.kernels import attention_tiles
from twofold.kernels.attention_tiles import Tile

RESULT = Path(__file__).resolve().parent / "results" / "attention-ceilings.json"
TARGET = "sm_90a"
HEAD_DIMS, DTYPES, LENGTH = (64, 128, 256), ("bfloat16", "float16"), 1024
PRESENT, OTHER = "present kernel", "other tile"
# Steps of forward, each with tiles of no more rows than these.
FEW = {
    "short sequences": attention_tiles.SHORT,
    "sequences of middle length": attention_tiles.MIDDLE,
}
# Tiles not in Hopper's table, those of the general table first, by kernel and head_dim.
OTHERS: dict[str, dict[int, tuple[Tile, ...]]] = {
    "forward_kernel": {
        64: (Tile(128, 64, 4, 3), Tile(128, 128, 8, 2), Tile(64, 128, 4, 2)),
        128: (Tile(128, 64, 8, 3), Tile(128, 32, 8, 3), Tile(64, 64, 4, 2)),
        256: (Tile(128, 32, 8, 2), Tile(64, 32, 8, 2), Tile(64, 32, 4, 1), Tile(128, 64, 8, 1)),
    },
    "dk_dv_kernel": {
        64: (Tile(64, 128, 8, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
        128: (Tile(32, 128, 8, 2), Tile(32, 64, 8, 2), Tile(16, 64, 4, 1)),
        256: (Tile(32, 32, 8, 1),),
    },
    "dq_kernel": {
        64: (Tile(128, 128, 8, 2), Tile(64, 64, 8, 2), Tile(64, 128, 4, 2)),
        128: (Tile(128, 64, 8, 2), Tile(64, 32, 8, 2), Tile(64, 64, 4, 1)),
        256: (Tile(128, 32, 8, 2), Tile(32, 16, 8, 1), Tile(64, 16, 4, 2)),
    },
}
# How many products over a tile's queries, keys and features each kernel makes.
PRODUCTS = {
    "forward_kernel": 2, "dk_dv_kernel": 4, "dq_kernel": 3,
    "step_kernel": 2, "step_backward_kernel": 5,
}  # fmt: skip
BY_KEYS = ("dk_dv_kernel", "step_backward_kernel")  # a tile of keys is held, queries stream past


@dataclass(frozen=True)
class Wanted:
    """A call whose kernels' instructions are counted, and how it is labelled."""

    step: str
    head_dim: int
    dtype: str
    causal: bool


def calls(quick: bool = False) -> Iterator[tuple[Wanted, Callable[[], object]]]:
    """Yield what is compiled: the present kernels in every dtype, the rest in bfloat16."""
    side = ops.compiling_side()
    for head_dim in HEAD_DIMS[:1] if quick else HEAD_DIMS:
        for causal in (False, True):
            for dtype in DTYPES[:1] if quick else DTYPES:
                shape = (2, HIDDEN // head_dim, LENGTH, head_dim)
                q = torch.empty(shape, dtype=getattr(torch, dtype))
                # Giving a tile selects the plain kernel: without one, Hopper's own would run.
                tile = attention_tiles.choose_tile(
                    "forward", head_dim, q.element_size(), architecture="sm_90", rows=LENGTH
                )

                def present(q: Any = q, causal: bool = causal, tile: Tile = tile) -> None:
                    out, cache = side.attention.forward(q, q, q, causal=causal, tile=tile)
                    side.attention.backward(out, cache)

                yield Wanted(PRESENT, head_dim, dtype, causal), present
                if not causal and dtype == DTYPES[0]:
                    for name, most in FEW.items():

                        def short(q: Any = q[:, :, :most]) -> None:
                            side.attention.forward(q, q, q)

                        yield Wanted(name, head_dim, dtype, causal), short
            if quick:
                continue
            flat = torch.empty(64, LENGTH, head_dim, dtype=torch.bfloat16)
            lse = torch.empty(64, LENGTH)
            for name, step in (steps.STEPS | (steps.ASIDE if causal else {})).items():

                def forward(x: Any = flat, step: Any = step, causal: bool = causal) -> None:
                    steps.forward(step, x, x, x, 0.1, causal)

                yield Wanted(name, head_dim, "bfloat16", causal), forward
            for name, skip in steps.BACKWARD_STEPS.items():

                def backward(
                    x: Any = flat, lse: Any = lse, skip: bool = skip, causal: bool = causal
                ) -> None:
                    steps.backward(skip, x, (x, x, x, x, lse), 0.1, causal)

                yield Wanted(name, head_dim, "bfloat16", causal), backward


def others() -> Iterator[tuple[str, Wanted, Callable[[], object]]]:
    """Yield the present kernels with other tiles, causal and in bfloat16, and which one counts."""
    side = ops.compiling_side()
    for kernel, of in OTHERS.items():
        for head_dim, candidates in of.items():
            q = torch.empty(2, HIDDEN // head_dim, LENGTH, head_dim, dtype=torch.bfloat16)
            for tile in candidates:

                def call(kernel: str = kernel, q: Any = q, tile: Tile = tile) -> None:
                    how = {"tile": tile} if kernel == "forward_kernel" else {}
                    out, cache = side.attention.forward(q, q, q, causal=True, **how)
                    if kernel != "forward_kernel":
                        name = kernel.replace("kernel", "tile")
                        side.attention.backward(out, cache, **{name: tile})

                yield kernel, Wanted(OTHER, head_dim, "bfloat16", True), call


def counted(quick: bool = False) -> list[dict[str, Any]]:
    """Compile and count; return a row for each kernel of each call."""
    rows: list[dict[str, Any]] = []
    wanting = [("", wanted, call) for wanted, call in calls(quick)]
    for only, wanted, call in [*wanting, *(() if quick else others())]:

        def compile_once(
            function: Any, args: Any, options: Any, launch: Any,
            wanted: Wanted = wanted, only: str = only,
        ) -> None:  # fmt: skip
            if function.__name__ in PRODUCTS and only in ("", function.__name__):
                rows.append(row(wanted, function.__name__, options, launch()))

        with compiling(CHIPS[TARGET], compile_once):
            call()
    return rows


def row(wanted: Wanted, kernel: str, options: dict[str, Any], made: Any) -> dict[str, Any]:
    """Return one kernel's counts and its ceilings."""
    name = Compiled("attention", kernel, TARGET, wanted.dtype, "")
    resources = describe(name, made)
    block_m, block_n, features = (options[f"BLOCK_{x}"] for x in "MND")
    threads = 32 * resources.warps
    loop = machine_code.loops(machine_code.disassemble(made.asm["cubin"]))[0]
    streamed = 2 * 2 * (block_m if kernel in BY_KEYS else block_n) * features
    if "UTMALDG" in loop.instructions:  # a tile's copy, whose size is not in the machine code
        loop.copied = streamed / threads
        loop.shared += loop.copied
    clocks = loop.clocks(threads)
    needed = 2.0 * PRODUCTS[kernel] * block_m * block_n * wanted.head_dim
    found = machine_code.ceiling(clocks, needed)
    return {
        "step": wanted.step,
        "kernel": kernel,
        "head_dim": wanted.head_dim,
        "dtype": wanted.dtype,
        "causal": wanted.causal,
        "block_m": block_m,
        "block_n": block_n,
        "warps": resources.warps,
        "stages": options["num_stages"],
        "registers": resources.registers,
        "spilled": resources.spilled,
        "programs": resources.programs,
        "matrix": list(resources.matrix),
        # Per trip: tiles, judged by what is copied; how often products and exponentials are made.
        "tiles": loop.copied * threads / streamed,
        "products_made": loop.operations * threads / needed,
        "exponentials_made": loop.exponentials * threads / (block_m * block_n),
        "synchronous": loop.synchronous / loop.operations,
        "instructions": dict(loop.instructions.most_common()),
        "clocks": {unit: round(t, 1) for unit, t in clocks.items()},
        "needed": needed,
        "apart": found.apart,
        "together": found.together,
        "limit": found.limit,
    }


def text(result: dict[str, Any]) -> str:
    """Return a result as JSON, one line for each row."""
    head = json.dumps({**result, "rows": []}, indent=1).removesuffix("[]\n}")
    return head + "[\n" + ",\n".join(map(json.dumps, result["rows"])) + "\n]}\n"


def main() -> None:
    """Count, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULT, help="write the result to this file")
    parser.add_argument("--quick", action="store_true", help="one head_dim, no steps")
    asked = parser.parse_args()
    result = {
        "target": TARGET,
        "triton": installed("triton"),
        "rates": dict(machine_code.RATES),
        "synchronous": machine_code.SYNCHRONOUS,
        "rows": counted(asked.quick),
    }
    asked.json.write_text(text(result))
    for r in result["rows"]:
        print(
            f"{r['step']:20} {r['kernel']:21} {r['head_dim']:3} {r['dtype']:8} "
            f"{'causal' if r['causal'] else 'full':6} {r['block_m']:3}x{r['block_n']:<3} "
            f"w{r['warps']} regs {r['registers']:3} spilled {r['spilled']} tiles {r['tiles']:.2f} "
            f"products {r['products_made']:.2f} exps {r['exponentials_made']:.2f} "
            f"apart {r['apart']:.2f} together {r['together']:.2f} {r['limit']}"
        )


if __name__ == "__main__":
    main()
