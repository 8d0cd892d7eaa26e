"""Write the figures in ATTENTION.md: predictions from counts, and measurements.

python benchmarks/attention_page.py            rewrites what is between the page's markers
python benchmarks/attention_page.py --check    exits with status 1 if that would change anything
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import attention_measured
import attention_step_kernels as step_kernels
import pages
from committed import newest

from twofold.core.bench.machine import published
from twofold.core.bench.problems import HIDDEN, SMALL, TOKENS
from twofold.kernels import attention_tiles
from twofold.kernels.attention_order import heads_together
from twofold.kernels.device import H100_CACHE

HERE = Path(__file__).resolve().parent
PAGE, RESULTS = HERE / "ATTENTION.md", HERE / "results"
COUNTED = RESULTS / "attention-ceilings.json"
BANDWIDTH, PEAK = published("sm_90a")[1]
MULTIPROCESSORS = 132  # of the H100 SXM, as those are
LENGTH = 4096  # for the shape that predictions are made for
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
HEAD_DIMS = (64, 128, 256)
SHAPES = [(D, causal) for D in HEAD_DIMS for causal in (False, True)]
IN_MEMORY, PRESENT, OTHER = "scores in memory", "present kernel", "other tile"
DESCRIPTORS = "descriptors"
FEW = "short sequences", "sequences of middle length"
# Bytes moved for each score where scores are in memory, 2 for each time it is read or written:
# forward the product, its scale, the mask where there is one, the softmax, the other product;
# backward dp, dv, the softmax's, the mask's, the scale's, dq, dk.
PASSED = {"forward": (12, 4), "backward": (18, 4)}
WORK = {"forward": (2, 2), "backward": (5, 4)}  # products counted as useful, and made
NAMES = {"twofold": PRESENT}
Range = tuple[float, float]


@cache
def counted() -> dict[str, Any]:
    """Return the committed counts."""
    return dict(json.loads(COUNTED.read_text()))


def rows(step: str, head_dim: int, causal: bool, dtype: str = "bfloat16") -> list[dict[str, Any]]:
    """Return the counts of a step's kernels."""
    key = (step, head_dim, causal, dtype)
    fields = ("step", "head_dim", "causal", "dtype")
    return [r for r in counted()["rows"] if tuple(r[f] for f in fields) == key]


def steps(which: str) -> list[str]:
    """Return the names of the steps on the way, in order."""
    kernel = {"forward": "step_kernel", "backward": "step_backward_kernel"}[which]
    named = dict.fromkeys(r["step"] for r in counted()["rows"] if r["kernel"] == kernel)
    return [name for name in named if name not in step_kernels.ASIDE]


def visited(row: dict[str, Any], causal: bool, skips: bool) -> float:
    """Return how many scores of a head are computed, counting partly masked tiles as whole.

    A tile of queries sees keys up to its last query, in whole tiles; a tile of keys likewise.
    """
    if not (causal and skips):
        return float(LENGTH * LENGTH)
    held, streamed = row["block_m"], row["block_n"]
    if row["kernel"] in ("dk_dv_kernel", "step_backward_kernel"):
        held, streamed = streamed, held
    ends = (first + held for first in range(0, LENGTH, held))
    return float(held * sum(-(-min(end, LENGTH) // streamed) * streamed for end in ends))


def predicted(which: str, step: str, head_dim: int, causal: bool) -> Range:
    """Return TFLOP/s, counting operations as races do, with no overlap and with full overlap."""
    scores = float(LENGTH * LENGTH)
    count, made = WORK[which]
    useful = 2.0 * count * head_dim * scores / (2 if causal else 1)
    if step == IN_MEMORY:
        always, masked = PASSED[which]
        memory = scores * (always + masked * causal) / BANDWIDTH
        products = 2.0 * made * head_dim * scores / PEAK
        return useful / (memory + products) * 1e-12, useful / max(memory, products) * 1e-12
    kernels = [r for r in rows(step, head_dim, causal) if of_pass(r["kernel"], which)]
    skips = "no masked" in step or step not in ("one pass", "powers of two", *steps("backward"))
    found = []
    for how in ("apart", "together"):
        seconds = sum(
            visited(r, causal, skips) * r["needed"] / (r["block_m"] * r["block_n"])
            / (r[how] * PEAK)
            for r in kernels
        )  # fmt: skip
        moved = (4 if which == "forward" else 8) * LENGTH * head_dim * 2 / BANDWIDTH
        found.append(useful / max(seconds, moved) * 1e-12)
    return found[0], found[1]


def of_pass(kernel: str, which: str) -> bool:
    """Return whether a kernel belongs to this pass, forward or backward."""
    return (kernel in ("forward_kernel", "step_kernel")) == (which == "forward")


def predictions(which: str) -> str:
    """Return the table of a pass, one line for each step."""
    lines = [
        "| predicted TFLOP/s | "
        + " | ".join(f"{D} {'causal' if causal else 'full'}" for D, causal in SHAPES)
        + " | gain |",
        "|---|" + "--:|" * (len(SHAPES) + 1),
    ]
    before: Range | None = None
    for step in (IN_MEMORY, *steps(which), PRESENT):
        found = [predicted(which, step, *shape) for shape in SHAPES]
        here = predicted(which, step, 128, True)
        gain = "" if before is None else " / ".join(
            f"{b / a:.2f}" for a, b in zip(before, here, strict=True)
        )  # fmt: skip
        cells = [f"{low:.0f}–{high:.0f}" for low, high in found]
        lines.append(f"| {step} | {' | '.join(cells)} | {gain} |")
        before = here
    return "\n".join(lines)


HEADER = (
    "| kernel | head_dim | tile | warps | registers | programs | instructions | products "
    "| exponentials | matrix | shared | exp2 | issue | apart | together | limit |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"
)
KERNELS = ("forward_kernel", "dk_dv_kernel", "dq_kernel")


def tiles(step: str, causal: bool) -> str:
    """Return the counts of the kernels with the tiles of a table, one line for each."""
    found = [r for D in HEAD_DIMS for r in rows(step, D, causal)]
    return "\n".join([HEADER, *map(line, sorted(found, key=lambda r: KERNELS.index(r["kernel"])))])


# Instructions of a warp on scores, and those of the matrix unit.
OF_SOFTMAX = ("MUFU", "FMNMX", "FADD", "FMUL", "FFMA", "FSEL", "FSETP", "F2FP", "SHFL")
OF_PRODUCTS = ("HGMMA", "HMMA")


def softmax(r: dict[str, Any]) -> str:
    """Return how many instructions for softmax, and for the matrix unit, a warp's trip has."""
    found = r["instructions"]
    return " : ".join(str(sum(found.get(n, 0) for n in of)) for of in (OF_SOFTMAX, OF_PRODUCTS))


def line(r: dict[str, Any]) -> str:
    """Return a kernel's counts, including the clocks of the four units that may limit it."""
    clocks = (r["clocks"][unit] for unit in ("matrix", "shared", "special", "issue"))
    kind = "mma" if r["synchronous"] == 1.0 else "wgmma"
    cells = (
        r["kernel"].removesuffix("_kernel"), r["head_dim"], f"{r['block_m']}×{r['block_n']}",
        r["warps"], r["registers"], r["programs"], softmax(r), f"{r['products_made']:.2f} {kind}",
        f"{r['exponentials_made']:.2f}", *(f"{t:.0f}" for t in clocks),
        f"{r['apart']:.2f}", f"{r['together']:.2f}", r["limit"],
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def aside() -> str:
    """Return the counts of the steps beside the way, below those of the step before them."""
    lines = [HEADER.replace("| kernel |", "| step |", 1)]
    for name in (steps("forward")[-1], *step_kernels.ASIDE):
        for D in HEAD_DIMS:
            (row,) = rows(name, D, True)
            lines.append(line({**row, "kernel": name}))
    return "\n".join([*lines, "", pages.wrapped(descriptors())])


def descriptors() -> str:
    """Compare registers and ceilings with descriptors to those of the step before."""
    pairs = [(rows(steps("forward")[-1], D, True)[0], rows(DESCRIPTORS, D, True)[0])
             for D in HEAD_DIMS]  # fmt: skip
    fewer = listed(str(a["registers"] - b["registers"]) for a, b in pairs)
    apart, together = (
        listed(f"{b[x] / a[x]:.2f}" for a, b in pairs) for x in ("apart", "together")
    )
    return (
        f"With descriptors, at head_dim {listed(map(str, HEAD_DIMS))}: {fewer} registers fewer "
        f"than in the step before, and ceilings {apart} times as high apart, {together} together."
    )


def listed(words: Iterable[str]) -> str:
    """Return words joined by commas and an 'and'."""
    *most, last = words
    return f"{', '.join(most)} and {last}"


def dtypes() -> str:
    """Say how far the ceilings of float16, and of causal calls, are from the table's."""

    def furthest(pairs: Iterable[tuple[Any, Any]]) -> float:
        return max(abs(a["together"] - b["together"]) for a, b in pairs)

    pairs = [
        list(zip(rows(PRESENT, D, c), rows(PRESENT, D, c, "float16"), strict=True))
        for D, c in SHAPES
    ]
    halves = furthest(p for both in pairs for p in both)
    causal = furthest(
        p for D in HEAD_DIMS
        for p in zip(rows(PRESENT, D, False), rows(PRESENT, D, True), strict=True)
    )  # fmt: skip
    return pages.wrapped(
        f"In *together*, float16 differs from bfloat16 by at most {halves:.3f}, and causal calls "
        f"from full ones by at most {causal:.3f}. "
        f"Triton {counted()['triton']}, {counted()['target']}."
    )


def order() -> str:
    """Return which share of the slots a causal call at head_dim 128 keeps busy, by order."""
    (row,) = (r for r in rows(PRESENT, 128, True) if r["kernel"] == "forward_kernel")
    slots, block = MULTIPROCESSORS * row["programs"], row["block_m"]
    lines = ["| length | programs | unordered | long rows first in each head "
             "| in each group of heads | heads per group | over all heads |"]  # fmt: skip
    lines.append("|--:|--:|--:|--:|--:|--:|--:|")
    for length in LENGTHS:
        heads = TOKENS // length * HIDDEN // 128
        together = heads_together(heads, 2 * length * 128 * 2, H100_CACHE)
        a_head = [-(-min(first + block, length) // row["block_n"])
                  for first in range(0, length, block)]  # fmt: skip
        every = [a_head * heads, *(grouped(a_head, heads, n) for n in (1, together, heads))]
        shares = [f"{sum(x) / (slots * makespan(x, slots)):.2f}" for x in every]
        shares.insert(3, str(together))
        lines.append(f"| {length} | {len(every[0])} | {' | '.join(shares)} |")
    return "\n".join([*lines, "", f"{slots} slots: {row['programs']} programs of the present tile "
                      f"on each of {MULTIPROCESSORS} multiprocessors."])  # fmt: skip


def grouped(a_head: list[int], heads: int, together: int) -> list[int]:
    """Return the programs' lengths, in the order of `attention_order.place_in_groups`."""
    groups = (min(together, heads - first) for first in range(0, heads, together))
    return [n for size in groups for n in a_head[::-1] for _ in range(size)]


def makespan(lengths: Iterable[int], slots: int) -> int:
    """Return when the last program is done, if each in turn takes the slot that is free first."""
    free = [0] * slots
    for n in lengths:
        heapq.heapreplace(free, free[0] + n)
    return max(free)


def has(row: dict[str, Any], tile: attention_tiles.Tile) -> bool:
    """Return whether a row is for this tile, with features not in chunks."""
    return tuple(row[n] for n in ("block_m", "block_n", "warps", "stages")) == tile[:4]


def small() -> str:
    """Return the least work of forward on small batches, and its number of programs."""
    lines = [
        "| batch, heads, length, head_dim | tile | programs | per slot "
        "| scores made ÷ needed | bytes, µs | products, µs |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for B, H, L, D in SMALL:
        tile = attention_tiles.choose_tile("forward", D, 2, architecture="sm_90", rows=L)
        own = (r for step in (PRESENT, *FEW) for r in rows(step, D, False) if has(r, tile))
        row = next(r for r in own if r["kernel"] == "forward_kernel")
        blocks, keys = -(-L // row["block_m"]), -(-L // row["block_n"])
        made = blocks * row["block_m"] * keys * row["block_n"] / (L * L)
        programs = B * H * blocks
        cells = (
            f"{B}, {H}, {L}, {D}", f"{row['block_m']}×{row['block_n']}", programs,
            f"{programs / (MULTIPROCESSORS * row['programs']):.1f}", f"{made:.2f}",
            f"{(4 * B * H * L * D * 2 + B * H * L * 4) / BANDWIDTH * 1e6:.1f}",
            f"{4.0 * B * H * L * L * D * made / row['together'] / PEAK * 1e6:.1f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def measured(which: str) -> str:
    """Return what was measured, or how to measure it."""
    if not any(attention_measured.GPU.glob("attention_steps-*.json")):
        return (
            "Measured: **not measured yet** (`python benchmarks/attention_steps.py --part 1 "
            "--save`, and 2, and 3, on a GPU)."
        )
    path, found = newest("attention_steps", attention_measured.GPU)
    races = [r for part in found["parts"].values() for r in part["races"] if r["pass"] == which]
    lines = [
        *_lines(races, [IN_MEMORY, *steps(which), *step_kernels.ASIDE, PRESENT]),
        "",
        pages.wrapped(
            f"{attention_measured.origin((path, found), 'benchmarks/attention_steps.py')}: "
            f"{found['ran_on']['gpu']}."
        ),
    ]
    return "\n".join(lines)


def _lines(races: list[dict[str, Any]], way: list[str]) -> Iterator[str]:
    """Yield a table of rates: the steps in the order of the way, then all others.

    Shapes at which nothing was measured have no column.
    """
    columns: dict[str, dict[str, Any]] = {}
    for D, causal in SHAPES:
        end = f"N={LENGTH} D={D}{' causal' if causal else ''}"
        for race in races:
            if race["problem"].endswith(end) and race["dtype"] == "bfloat16":
                columns.setdefault(f"{D} {'causal' if causal else 'full'}", race)
    yield f"| measured TFLOP/s | {' | '.join(columns)} |"
    yield "|---|" + "--:|" * len(columns)
    found = {NAMES.get(n, n): n for c in columns.values() for n in c["contenders"]}
    for name in (*(n for n in way if n in found), *(n for n in found if n not in way)):
        cells = []
        for column in columns.values():
            figures = column["contenders"].get(found[name])
            outside = "*" if found[name] in column.get("wrong", column["reasons"]) else ""
            cells.append(f"{figures['tera_operations_per_second']:.0f}{outside}" if figures else "")
        yield f"| {name} | {' | '.join(cells)} |"
    if any(set(c["contenders"]) & set(c.get("wrong", c["reasons"])) for c in columns.values()):
        yield ""
        yield "\\* not within the contract's bound; the result file says how."


def rates() -> str:
    """Return the rates that predictions are based on."""
    per_clock = ", ".join(f"{unit} {rate:.0f}" for unit, rate in counted()["rates"].items())
    return pages.wrapped(
        f"Per clock of a multiprocessor: {per_clock}; `mma.sync` {counted()['synchronous']} of "
        f"matrix. Memory {BANDWIDTH * 1e-12} TB/s, matrix units {PEAK * 1e-12:.0f} TFLOP/s."
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "rates": rates,
    "forward": lambda: predictions("forward"),
    "forward measured": lambda: measured("forward"),
    "backward": lambda: predictions("backward"),
    "backward measured": lambda: measured("backward"),
    "tiles": lambda: tiles(PRESENT, False),
    "others": lambda: tiles(OTHER, True),
    "aside": aside,
    "small": small,
    "dtypes": dtypes,
    "order": order,
    "limits": attention_measured.limits,
    "kernels": attention_measured.kernels,
    "changes": attention_measured.changes,
    "copies": attention_measured.copies,
    "tuned": attention_measured.tuned,
}


def main() -> None:
    """Write the page, or check it."""
    pages.put(PAGE, pages.filled(PAGE, SECTIONS), __file__)


if __name__ == "__main__":
    main()
