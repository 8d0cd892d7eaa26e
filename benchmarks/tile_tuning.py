"""Time every tile that norms, cross-entropy and products might use, on the GPU at hand.

The counterpart of `attention_tuning.py`. Tiles are compiled first, in parallel processes; one that
cannot be compiled is left out with the reason. The table's own choice is among them.

    python benchmarks/tile_tuning.py --save
    python benchmarks/tile_tuning.py --list        how many tiles there are; needs no GPU
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import harness
import torch
import tuning

from twofold.core import ops
from twofold.core.bench import problems
from twofold.core.bench.problems import Problem
from twofold.kernels import layer_norm, linear_tiles, softmax_cross_entropy

MOST_ELEMENTS = 64  # of a thread: more would spill
TOKENS = 16384


class Race(NamedTuple):
    """A pass of a problem, and the tiles it might use."""

    problem: Problem
    backward: bool
    tiles: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Return the race's name in the results."""
        return f"{self.problem.name} {'backward' if self.backward else 'forward'}"


def of_rows(columns: int) -> Iterator[layer_norm.Tile]:
    """Yield both norms' tiles for rows of so many columns."""
    for rows, warps, stages in itertools.product((1, 2, 4, 8), (1, 2, 4, 8, 16), (1, 2, 3)):
        if 4 <= rows * columns / (32 * warps) <= MOST_ELEMENTS:
            yield layer_norm.Tile(rows, warps, stages)


def of_classes() -> Iterator[softmax_cross_entropy.Tile]:
    """Yield cross-entropy's tiles for rows of many classes."""
    blocks = (1024, 2048, 4096, 8192, 16384)
    for classes, warps, stages in itertools.product(blocks, (4, 8, 16), (1, 2, 3)):
        if 8 <= classes / (32 * warps) <= MOST_ELEMENTS:
            yield softmax_cross_entropy.Tile(1, classes, warps, stages)


def of_products() -> Iterator[linear_tiles.Tile]:
    """Yield tiles of products whose accumulators fit in a thread's registers."""
    for m, n, k, group, warps, stages in itertools.product(
        (64, 128, 256), (64, 128, 256), (32, 64, 128), (8,), (4, 8), (3, 4, 5)
    ):
        fits = 2 * (m + n) * k * stages <= 227 * 1024  # bytes of Hopper's shared memory
        if fits and 32 <= m * n / (32 * warps) <= 128:
            yield linear_tiles.Tile(m, n, k, group, warps, stages)


def races() -> list[Race]:
    """Return what is tuned: BERT's widths and a decoder's, in bfloat16."""
    b, found = "bfloat16", []
    for columns in (768, 4096, 2048, 384, 128):
        tiles = tuple(of_rows(1 << (columns - 1).bit_length()))
        norms = (problems.layer_norm, problems.rms_norm)
        for norm, fused, backward in itertools.product(norms, (False, True), (True, False)):
            made = norm(2**25 // columns, columns, b, fused)
            found.append(Race(made, backward, tiles))
    for rows, classes in ((8192, 8192), (4096, 32768)):
        found.append(Race(problems.cross_entropy(rows, classes, b), False, tuple(of_classes())))
    for K, N in ((768, 2304), (768, 768), (768, 3072), (3072, 768), (2048, 8192)):
        made = problems.linear(TOKENS, K, N, b)
        found += [Race(made, backward, tuple(of_products())) for backward in (False, True)]
    return found


def calls(race: Race, tensors: Mapping[str, torch.Tensor]) -> Callable[[Any], tuning.Call]:
    """Return a function that calls the pass with a tile, or with the table's for None."""
    operator = getattr(ops.load("triton"), race.problem.operator)
    options = dict(race.problem.options)
    if not race.backward:
        return lambda tile: lambda: operator.forward(**tensors, **options, tile=tile)
    out, cache = operator.forward(**tensors, **options)
    dout = torch.randn_like(out)  # same seed, so that all compute the same
    return lambda tile: lambda: operator.backward(dout, cache, tile=tile)


def inputs(race: Race) -> Mapping[str, torch.Tensor]:
    """Return the problem's tensors."""
    return race.problem.make(torch.Generator("cuda").manual_seed(0), "cuda")


def compiled(place: tuple[int, int]) -> str:
    """Make one call, leaving the compiled kernel in Triton's cache; return "" or what it raised."""
    race = races()[place[0]]
    return tuning.first_call(lambda: calls(race, inputs(race))(race.tiles[place[1]]))


def tuned(place: int, seconds: float, pool: Any) -> dict[str, Any]:
    """Return milliseconds of every tile that runs, the quickest first, and why others do not."""
    race = races()[place]
    said = pool.map(compiled, [(place, i) for i in range(len(race.tiles))], chunksize=1)
    own = calls(race, inputs(race))
    tiles = zip(race.tiles, said, strict=True)
    return tuning.timed(tiles, own, own(None), race.problem, seconds)


def main() -> None:
    """Tune, and write the result after every race."""
    asked = harness.options(
        __doc__,
        seconds={"type": float, "default": 1.0, "help": "for all tiles of a pass together"},
        minutes={"type": float, "default": 8.0, "help": "after which no other race begins"},
        only={"default": "", "help": "races whose name has this in it"},
        list={"action": "store_true", "help": "print how many tiles there are"},
    )
    listed = races()
    chosen = [i for i, race in enumerate(listed) if asked.only in race.name]
    if asked.list:
        for i in chosen:
            print(listed[i].name, len(listed[i].tiles))
        return
    with tuning.session("tile_tuning", asked, "tiles") as session:
        for i in session.while_time_lasts(chosen):
            found = tuned(i, asked.seconds, session.pool)
            best, table = tuning.told(found)
            print(f"{listed[i].name}: {best}; table {table}")
            session.keep(listed[i].name, found)


if __name__ == "__main__":
    main()
