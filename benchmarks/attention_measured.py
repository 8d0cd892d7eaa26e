"""What was measured of attention's kernels and tiles on a GPU, as tables for ATTENTION.md."""

from __future__ import annotations

from typing import Any

import pages
from attention_variants import CUDNN, FLASH, PLAIN, name
from committed import newest
from harness import OF_GPUS as GPU

from twofold.kernels.attention_hopper import LEAST_ROWS, VARIANTS

SHOWN = 3  # tiles beside the one of the table
Race = dict[str, Any]


def source(kind: str) -> str:
    """Say where figures are from."""
    path, found = newest(kind, GPU)
    on = found["ran_on"]
    return pages.wrapped(
        f"From `results/gpu/{path.name}`: {on['gpu']}, driver {on['driver']}, "
        f"PyTorch {on['torch']}, Triton {on['triton']}."
    )


def by_kernel() -> list[Race]:
    """Return the races of kernels of forward, full ones of most features first."""
    races = newest("attention_variants", GPU)[1]["kernels"]
    return sorted(races, key=lambda r: (-r["head_dim"], r["causal"], r["length"]))


def kind_of(race: Race) -> str:
    """Return what results call the kernel that a call takes: of the table, if that was raced."""
    key = (race["head_dim"], race["causal"])
    rates = race["tera_operations_per_second"]
    if race["length"] < LEAST_ROWS[key]:
        return PLAIN
    chosen = name(VARIANTS[key])
    return chosen if chosen in rates else name(VARIANTS[key]._replace(pairs=False))


def unraced() -> list[str]:
    """Say of which calls the variant that is chosen by now was not raced, if there are any."""
    said = {}
    for race in by_kernel():
        key, own = (race["head_dim"], race["causal"]), kind_of(race)
        if own != PLAIN and own != name(VARIANTS[key]):
            said[key] = (
                f"At head_dim {key[0]}, {'causal' if key[1] else 'full'}, the figures of Hopper's "
                f"kernel are those of “{variant(own)}”: “{variant(name(VARIANTS[key]))}”, which is "
                "chosen by now, was not raced."
            )
    return ["", pages.wrapped(" ".join(said.values()))] if said else []


def variant(named: str) -> str:
    """Return a variant's name without the kernel's."""
    return named.removeprefix("Hopper ")


def kernels() -> str:
    """Return TFLOP/s of forward by kernel and length, a line for each call."""
    lines = [
        "| head_dim | | length | torch, flash | plain kernel | chosen "
        "| quickest variant of Hopper's | torch, cuDNN | chosen ÷ flash | ÷ cuDNN |",
        "|--:|---|--:|--:|--:|--:|---|--:|--:|--:|",
    ]
    for race in by_kernel():
        rates = race["tera_operations_per_second"]
        own = rates[kind_of(race)]
        best = max((who for who in rates if who.startswith("Hopper")), key=lambda who: rates[who])
        cells = (
            race["head_dim"], "causal" if race["causal"] else "full", race["length"],
            f"{rates[FLASH]:.0f}", f"{rates[PLAIN]:.0f}", f"{own:.0f}",
            f"{rates[best]:.0f}: {variant(best)}", f"{rates[CUDNN]:.0f}",
            f"{own / rates[FLASH]:.2f}", f"{own / rates[CUDNN]:.2f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, *unraced(), "", source("attention_variants")])


def copies() -> str:
    """Return TFLOP/s of forward by tile and by how tiles are copied."""
    kinds = (PLAIN, "step", "descriptors", "descriptors, persistent")
    lines = [
        "| head_dim | | tile | present | last step | descriptors | descriptors, persistent |",
        "|--:|---|---|--:|--:|--:|--:|",
    ]
    for race in newest("attention_variants", GPU)[1]["tiles"]:
        rates = race["tera_operations_per_second"]
        tiles = [who.removeprefix(f"{PLAIN} ") for who in rates if who.startswith(PLAIN)]
        for tile in sorted(tiles, key=lambda t: -rates[f"{PLAIN} {t}"]):
            cells = [f"{rates[f'{kind} {tile}']:.0f}" for kind in kinds]
            about = (race["head_dim"], "causal" if race["causal"] else "full", tile, *cells)
            lines.append(f"| {' | '.join(map(str, about))} |")
    return "\n".join(lines)


def tuned() -> str:
    """Return milliseconds of the quickest tiles, and of the one that counts had chosen."""
    lines = ["| call | kernel | chosen by counts | quickest |", "|---|---|---|---|"]
    found = newest("attention_tuning", GPU)[1]
    for group in found["groups"].values():
        for shape, of in group.items():
            call = dict(part.split("=") for part in shape.split())
            title = ", ".join(call[k] for k in ("batch", "heads", "length", "head_dim"))
            title += ", causal" if call["causal"] == "True" else ""
            for kernel, ms in of.items():
                own, others = ms["table"], dict(ms["median_ms"])
                before = f"{_tile(own)} {others.pop('table'):.3f}"
                best = [f"{_tile(t)} {others[t]:.3f}" for t in list(others)[:SHOWN]]
                lines.append(f"| {title} | {kernel} | {before} | {'; '.join(best)} |")
    return "\n".join([*lines, "", source("attention_tuning")])


def _tile(written: str) -> str:
    m, n, warps, stages, _ = written.strip("()").split(", ")
    return f"{m}×{n}/{warps}/{stages}"
