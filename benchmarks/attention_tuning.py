"""Time every tile that attention's kernels might use, the table's included, on the GPU at hand.

What `attention_ceilings.py` counts for a few tiles is measured here for all that may be worth it:
forward, and the two kernels of backward separately, one varying while the other keeps its tile.
All are compiled first, in parallel processes. A tile that does not fit is left out with the reason;
one that spills is timed and marked.

    python benchmarks/attention_tuning.py --save        and with --small, into one result
    python benchmarks/attention_tuning.py --list        how many tiles there are; needs no GPU
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import harness
import torch
import tuning

from twofold.core import ops
from twofold.core.bench import problems
from twofold.core.bench.problems import HIDDEN, SMALL, TOKENS, Problem
from twofold.kernels.attention_tiles import Tile, choose_tile

KERNELS = ("forward", "dk_dv", "dq")
MOST_REGISTERS = 260  # of a thread, for accumulators and a tile of scores


class Shape(NamedTuple):
    """A call with as many keys as queries."""

    batch: int
    heads: int
    length: int
    head_dim: int
    causal: bool
    dtype: str


class Trial(NamedTuple):
    """A kernel with a tile, on a shape."""

    kernel: str
    shape: Shape
    tile: Tile


def tiles(kernel: str, head_dim: int) -> Iterator[Tile]:
    """Yield the tiles worth a trial: those whose sums and scores may fit in registers."""
    rows, columns = ("block_n", "block_m") if kernel == "dk_dv" else ("block_m", "block_n")
    sums = 2 * head_dim if kernel == "dk_dv" else head_dim
    for warps, many, few, stages in itertools.product(
        (4, 8), (64, 128), (16, 32, 64, 128), (1, 2, 3, 4)
    ):
        # Each four warps compute the scores of 64 rows; more warps would compute the same ones.
        made_by = 128 if many == 64 else 32 * warps
        scores = many * few * (1 if kernel == "forward" else 2)
        if many * sums / (32 * warps) + scores / made_by <= MOST_REGISTERS:
            yield Tile(**{rows: many, columns: few}, num_warps=warps, num_stages=stages)


def shapes(asked: Any) -> Iterator[Shape]:
    """Yield the shapes that are tuned for."""
    if asked.small:
        for shape in SMALL:
            yield Shape(*shape, False, asked.dtype)
        return
    for causal, head_dim in itertools.product(asked.causal, asked.head_dims):
        batch, heads = max(1, TOKENS // asked.length), HIDDEN // head_dim
        yield Shape(batch, heads, asked.length, head_dim, bool(causal), asked.dtype)


def trials(shape: Shape, kernels: Sequence[str]) -> list[Trial]:
    return [Trial(k, shape, tile) for k in kernels for tile in tiles(k, shape.head_dim)]


def problem_of(shape: Shape) -> Problem:
    """Return the race's problem."""
    B, H, L, D, causal, dtype = shape
    return problems.attention(B, H, H, L, L, D, dtype, causal)


def inputs(shape: Shape) -> list[torch.Tensor]:
    """Return q, k, v and dout."""
    draw = torch.Generator("cuda").manual_seed(0)
    q, k, v = problem_of(shape).make(draw, "cuda").values()
    return [q, k, v, problems.normal(draw, "cuda", shape.dtype, *q.shape)]


def calls(trial: Trial, tensors: Sequence[torch.Tensor]) -> Callable[[], object]:
    """Return a call of the kernel with this tile; backward's other kernel keeps the table's."""
    attention = ops.load("triton").attention
    q, k, v, dout = tensors
    if trial.kernel == "forward":
        return lambda: attention.forward(q, k, v, causal=trial.shape.causal, tile=trial.tile)
    _, cache = attention.forward(q, k, v, causal=trial.shape.causal)
    own = {f"{trial.kernel}_tile": trial.tile}
    return lambda: attention.backward(dout, cache, **own)


def compiled(trial: Trial) -> str:
    """Make one call, leaving the compiled kernel in Triton's cache; return "" or what it raised."""
    return tuning.first_call(lambda: calls(trial, inputs(trial.shape)))


def tuned(shape: Shape, kernels: Sequence[str], seconds: float, pool: Any) -> dict[str, Any]:
    """Return milliseconds of every tile that runs, the quickest first, and why others do not.

    For dk_dv and dq, they are the whole backward's.
    """
    tensors, found = inputs(shape), {}
    listed = trials(shape, kernels)
    said = dict(zip(listed, pool.map(compiled, listed, chunksize=1), strict=True))
    for kernel in kernels:
        own = [(t.tile, said[t]) for t in listed if t.kernel == kernel]
        chosen = choose_tile(kernel, shape.head_dim, 2, architecture="sm_90", rows=shape.length)

        def call(tile: Tile, kernel: str = kernel) -> Callable[[], object]:
            return calls(Trial(kernel, shape, tile), tensors)

        figures = tuning.timed(own, call, call(chosen), problem_of(shape), seconds)
        found[kernel] = {"table": str(tuple(chosen)), **figures}
    return found


def main() -> None:
    """Tune, and write the result after every shape."""
    asked = harness.options(
        __doc__,
        seconds={"type": float, "default": 0.6, "help": "for all tiles of a kernel together"},
        minutes={"type": float, "default": 8.0, "help": "after which no other shape begins"},
        head_dims={"type": int, "nargs": "+", "default": [128, 64, 256], "help": "of a head"},
        causal={"type": int, "nargs": "+", "default": [0, 1], "help": "1, 0 or both"},
        small={"action": "store_true", "help": "a classifier's shapes instead"},
        dtype={"default": "bfloat16", "help": "of q, k and v"},
        length={"type": int, "default": 4096, "help": "of every sequence"},
        kernels={"nargs": "+", "default": list(KERNELS), "choices": KERNELS, "help": "to tune"},
        list={"action": "store_true", "help": "print how many tiles there are"},
    )
    chosen = list(shapes(asked))
    if asked.list:
        for shape in chosen:
            print(shape, {k: len(list(tiles(k, shape.head_dim))) for k in asked.kernels})
        return
    with tuning.session("attention_tuning", asked, "small" if asked.small else "long") as session:
        for shape in session.while_time_lasts(chosen):
            name = " ".join(f"{k}={v}" for k, v in shape._asdict().items())
            found = tuned(shape, asked.kernels, asked.seconds, session.pool)
            for kernel, figures in found.items():
                best, table = tuning.told(figures)
                print(f"{name} {kernel}: {best}; table {figures['table']} {table}")
            session.keep(name, found)


if __name__ == "__main__":
    main()
