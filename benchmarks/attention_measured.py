"""Measurements of attention's kernels and tiles on GPUs, as tables for ATTENTION.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pages
from attention_variants import CUDNN, FLASH, PLAIN, name
from committed import Race, Raced, Result, every, machine, made, raced
from harness import OF_GPUS as GPU

from twofold.kernels.attention_hopper import LEAST_ROWS, VARIANTS

SHOWN = 3  # tiles beside the one of the table
VARIED = "benchmarks/attention_variants.py"
# What a variant changes, and what the one it is compared with changes.
CHANGES: tuple[tuple[str, dict[str, bool], dict[str, bool]], ...] = (
    ("early", {"early": True}, {}),
    ("turns", {"turns": True}, {}),
    ("pairs", {"pairs": True}, {}),
    ("pairs, both early", {"early": True, "pairs": True}, {"early": True}),
    ("a grid with one program per tile", {"persistent": False}, {}),
    ("that grid over pairs", {"persistent": False}, {"pairs": True}),
)


def source(results: Iterable[Result], program: str) -> str:
    """Say where figures are from, which command made them and on which machine."""
    each = (f"{origin(of, program)}: {machine(of[1]['ran_on'])}." for of in results)
    return pages.wrapped(" ".join(each))


def origin(result: Result, program: str) -> str:
    """Say where figures are from, and which command made them."""
    path, found = result
    return f"From `results/gpu/{path.name}`, {made(found, program)}"


def by_kernel() -> list[Raced]:
    """Return races of forward kernels by machine: largest head_dim first, full before causal.

    A result may have been cut short before all had been raced.
    """
    return [each._replace(races=sorted(each.races, key=_order)) for each in _of_question("kernels")]


def _of_question(question: str) -> list[Raced]:
    """Return the races of `attention_variants.py` for one of its questions, machine by machine."""
    named_by = ("head_dim", "causal", "length", *(("pass",) if question == "features" else ()))
    return raced("attention_variants", GPU, lambda found: found.get(question, []), named_by)


def _order(race: Race) -> tuple[int, bool, int]:
    return -race["head_dim"], race["causal"], race["length"]


def kind_of(race: Race) -> str:
    """Return the name that results give to a call's kernel: the table's choice, if raced."""
    key = (race["head_dim"], race["causal"])
    rates = race["tera_operations_per_second"]
    if race["length"] < LEAST_ROWS[key]:
        return PLAIN
    chosen, without = (name(v) for v in (VARIANTS[key], VARIANTS[key]._replace(pairs=False)))
    return without if chosen not in rates and without in rates else chosen


def rate(race: Race, who: str) -> str:
    """Return a contender's TFLOP/s in words, "" if it did not run."""
    found = race["tera_operations_per_second"].get(who)
    return "" if found is None else f"{found:.0f}"


def over(race: Race, who: str, other: str) -> float | None:
    """Return the ratio of two rates, None if either contender did not run."""
    rates = race["tera_operations_per_second"]
    return rates[who] / rates[other] if who in rates and other in rates else None


def divided(race: Race, who: str, other: str) -> str:
    """Return the ratio of two rates in words, "" if either contender did not run."""
    found = over(race, who, other)
    return "" if found is None else f"{found:.2f}"


def unraced(races: Iterable[Race]) -> list[str]:
    """Say for which calls, if any, the variant chosen now was not raced."""
    said = []
    for race in races:
        key, own = (race["head_dim"], race["causal"]), kind_of(race)
        call = f"At head_dim {key[0]}, {_mask(key[1])}"
        if own not in race["tera_operations_per_second"]:
            said.append(f"{call}, length {race['length']}, “{variant(own)}” did not run.")
        elif own not in (PLAIN, name(VARIANTS[key])):
            said.append(
                f"{call}, the figures of the Hopper kernel are those of “{variant(own)}”: "
                f"“{variant(name(VARIANTS[key]))}”, which is chosen now, was not raced."
            )
    return ["", pages.wrapped(" ".join(dict.fromkeys(said)))] if said else []


def variant(named: str) -> str:
    """Return a variant's name without the kernel's."""
    return named.removeprefix("Hopper ")


def kernels() -> str:
    """Return TFLOP/s of forward by kernel and length, one line for each call."""
    lines = []
    for results, races in by_kernel():
        lines += [
            "| head_dim | | length | torch, flash | plain kernel | chosen "
            "| quickest Hopper variant | torch, cuDNN | chosen ÷ flash | ÷ cuDNN |",
            "|--:|---|--:|--:|--:|--:|---|--:|--:|--:|",
        ]
        for race in races:
            rates, own = race["tera_operations_per_second"], kind_of(race)
            of_hopper = [who for who in rates if who.startswith("Hopper")]
            best = max(of_hopper, key=lambda who: rates[who], default="")
            cells = (
                race["head_dim"], _mask(race["causal"]), race["length"], rate(race, FLASH),
                rate(race, PLAIN), rate(race, own),
                f"{rate(race, best)}: {variant(best)}" if best else "", rate(race, CUDNN),
                divided(race, own, FLASH), divided(race, own, CUDNN),
            )  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines += [*unraced(races), "", source(results, VARIED), ""]
    return "\n".join(lines[:-1])


def changes() -> str:
    """Return by how many percent each change of Hopper's kernel raises TFLOP/s, by length."""
    lines = []
    for _, races in by_kernel():
        lengths = sorted({race["length"] for race in races})
        lines += [f"| % gained by | head_dim | | {' | '.join(map(str, lengths))} |"]
        lines += ["|---|--:|---|" + "--:|" * len(lengths)]
        shapes = dict.fromkeys((race["head_dim"], race["causal"]) for race in races)
        for what, with_it, without in CHANGES:
            for key in shapes:
                own = {r["length"]: r for r in races if (r["head_dim"], r["causal"]) == key}
                plain = VARIANTS[key]._replace(
                    turns=False, early=False, pairs=False, persistent=True
                )
                pair = name(plain._replace(**with_it)), name(plain._replace(**without))
                gains = [over(own[n], *pair) if n in own else None for n in lengths]
                if any(gain is not None for gain in gains):
                    cells = ("" if g is None else f"{100 * (g - 1):+.1f}" for g in gains)
                    about = (what, str(key[0]), _mask(key[1]), *cells)
                    lines.append(f"| {' | '.join(about)} |")
        lines.append("")
    return "\n".join(lines[:-1])


def _mask(causal: bool) -> str:
    return "causal" if causal else "full"


def copies() -> str:
    """Return TFLOP/s of forward by tile and by how tiles are copied."""
    kinds = (PLAIN, "step", "descriptors", "descriptors, persistent")
    lines = []
    for results, races in _of_question("tiles"):
        lines += [
            "| head_dim | | tile | present | last step | descriptors | descriptors, persistent |",
            "|--:|---|---|--:|--:|--:|--:|",
        ]
        for race in races:
            rates = race["tera_operations_per_second"]
            starts = [(who, f"{kind} ") for who in rates for kind in kinds]
            tiles = dict.fromkeys(w.removeprefix(s) for w, s in starts if w.startswith(s))
            for tile in sorted(tiles, key=lambda t: -rates.get(f"{PLAIN} {t}", 0.0)):
                cells = [rate(race, f"{kind} {tile}") for kind in kinds]
                about = (race["head_dim"], _mask(race["causal"]), tile, *cells)
                lines.append(f"| {' | '.join(map(str, about))} |")
        where = ", ".join(f"`results/gpu/{path.name}`" for path, _ in results)
        lines += ["", f"From {where}.", ""]
    return "\n".join([*lines, *features()][:-1]) or "Not measured yet."


def features() -> list[str]:
    """Return TFLOP/s with features in two tiles and in one, where both were measured."""
    lines = []
    for results, races in _of_question("features"):
        kinds = ("in two tiles", "in one, padded", FLASH, CUDNN)
        lines += [f"| head_dim | | pass | {' | '.join(kinds)} |", "|--:|---|---|" + "--:|" * 4]
        for race in races:
            about = (race["head_dim"], _mask(race["causal"]), race["pass"])
            cells = (*about, *(rate(race, kind) for kind in kinds))
            lines.append(f"| {' | '.join(map(str, cells))} |")
        where = ", ".join(f"`results/gpu/{path.name}`" for path, _ in results)
        lines += ["", f"TFLOP/s, from {where}.", ""]
    return lines


def tuned() -> str:
    """Return milliseconds of the quickest tiles, and of the one then in the table."""
    lines = []
    for path, found in every("attention_tuning", GPU):
        lines += ["| call | kernel | table's tile when timed | quickest |", "|---|---|---|---|"]
        for shape, of in merged(found["groups"]).items():
            call = dict(part.split("=") for part in shape.split())
            title = ", ".join(call[k] for k in ("batch", "heads", "length", "head_dim"))
            title += ", causal" if call["causal"] == "True" else ""
            for kernel, ms in of.items():
                others = dict(ms["median_ms"])
                own = others.pop("table", None)
                before = f"{_tile(ms['table'])} {'did not run' if own is None else f'{own:.3f}'}"
                best = [f"{_tile(t)} {others[t]:.3f}" for t in list(others)[:SHOWN]]
                lines.append(f"| {title} | {kernel} | {before} | {'; '.join(best)} |")
        lines += ["", source([(path, found)], "benchmarks/attention_tuning.py"), ""]
    return "\n".join(lines[:-1])


def merged(groups: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the times of each call, by kernel, the quickest tile first.

    Several groups may each have timed some of a call's tiles; of a tile in two, the later counts.
    """
    found: dict[str, dict[str, Any]] = {}
    for shape, of in _calls(groups):
        for kernel, figures in of.items():
            earlier = found.setdefault(shape, {}).get(kernel, {"median_ms": {}})["median_ms"]
            ms = sorted((earlier | figures["median_ms"]).items(), key=lambda item: item[1])
            found[shape][kernel] = {"table": figures["table"], "median_ms": dict(ms)}
    return found


def _calls(groups: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for group in groups.values():
        yield from ((shape, of) for shape, of in group.items() if isinstance(of, dict))


def _tile(written: str) -> str:
    m, n, warps, stages, *_ = written.strip("()").split(", ")
    return f"{m}×{n}/{warps}/{stages}"


def limits() -> str:
    """Say which rates products and copies reached in the runs that the page's figures are from."""
    said = []
    kinds = ("attention_variants", "attention_steps")
    for path, found in (result for kind in kinds for result in every(kind, GPU)):
        runs = [found, *found.get("parts", {}).values()]
        reached = [
            f"{run['ceilings']['rate'] * 1e-12:.0f} TFLOP/s and "
            f"{run['ceilings']['bandwidth'] * 1e-12:.2f} TB/s"
            for run in runs
            if "ceilings" in run
        ]
        if reached:
            said.append(f"{'; '.join(reached)} in `results/gpu/{path.name}`")
    return (
        pages.wrapped(f"Large matrix products and copies reached {', '.join(said)}.")
        if said
        else ""
    )
