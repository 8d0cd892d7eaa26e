"""Measurements on GPUs, as tables for SPEED.md: separate for each GPU, the latest first."""

from __future__ import annotations

from typing import Any

import gpu_variants
import raced
from attention_measured import by_kernel, divided, kind_of, rate, unraced
from attention_variants import CUDNN, FLASH
from committed import Result, ends, every, is_to_another, machines, made, rows, source
from harness import OF_GPUS as GPU

from twofold.core.bench.contenders import COMPILED, TWOFOLD

OURS, MOST = "twofold, bfloat16", 12  # the contender whose kernels are shown, and how many
UNCOMPILED = " torch.compile has not been raced yet."


def attention() -> list[str]:
    """Return TFLOP/s of attention forward, and milliseconds of races of both passes."""
    lines = []
    for results, races in by_kernel():
        lines += [
            "| attention forward, 16,384 tokens of 2,048 features, bfloat16; TFLOP/s "
            "| FlashAttention-2 | cuDNN | twofold | ÷ FlashAttention-2 | ÷ cuDNN |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for race in races:
            own = kind_of(race)
            title = f"head_dim {race['head_dim']}, length {race['length']}"
            title += ", causal" if race["causal"] else ""
            lines.append(
                f"| {title} | {rate(race, FLASH)} | {rate(race, CUDNN)} | {rate(race, own)} "
                f"| {divided(race, own, FLASH)} | {divided(race, own, CUDNN)} |"
            )
        how = " ".join(
            f"{made(found, 'benchmarks/attention_variants.py')}, {source(path)}."
            for path, found in results
        )
        shipped = "FlashAttention-2 and cuDNN are those shipped with PyTorch."
        lines += [*unraced(races), "", f"{how} {shipped}", ""]
    return lines


def operators() -> list[str]:
    """Return the races' times as multiples of torch's, from least to most over the sizes."""
    lines = []
    for results, races in raced.operators(GPU):
        lines += [
            "| twofold's time ÷ | torch, forward | torch.compile, forward | torch, backward "
            "| torch.compile, backward | of the limit |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for operator in dict.fromkeys(race["operator"] for race in races):
            cells = []
            for passes in (raced.FIRST, raced.BACKWARD):
                own = raced.of(races, operator, *passes)
                compiled = (raced.ratio(race, raced.right(race, [COMPILED])) for race in own)
                cells += [ends(raced.ratios(own)), ends(r for r in compiled if r is not None)]
            shares = sorted(
                race["contenders"][TWOFOLD]["share"]
                for race in races
                if race["operator"] == operator and raced.counts(race)
            )
            cells.append(f"{shares[0]:.0%} to {shares[-1]:.0%}" if shares else "")
            lines.append(f"| {operator} | {' | '.join(cells)} |")
        lines += ["", *map(_of_operators, results)]
        lines += [raced.PASSES, *raced.notes(races), ""]
    return [*lines, *gpu_variants.products(), *gpu_variants.tiles()]


def _of_operators(result: Result) -> str:
    path, found = result
    limit = found["bench"]["ceilings"]
    return (
        f"{made(found, 'twofold bench')}, {source(path)}. Limits measured in the same run: "
        f"{limit['bandwidth'] * 1e-12:.2f} TB/s copied, {limit['rate'] * 1e-12:.0f} TFLOP/s in "
        "matrix products."
    )


def steps() -> list[str]:
    """Return the tables of training steps and predictions."""
    lines = []
    for path, found in every("train_step", GPU):
        lines += ["| training step | contender | median ms | ratio | of the limit |"]
        lines += ["|---|---|--:|--:|--:|"]
        for race, contenders in found["races"].items():
            for who, times in contenders.items():
                ratio = f"{times['ratio']:.2f}" if is_to_another(contenders) else ""
                share = found["utilisation"][race][who]
                lines.append(
                    f"| {race} | {who} | {times['median_ms']:.2f} | {ratio} | {share:.1%} |"
                )
        compiled = any("compiled" in who for race in found["races"].values() for who in race)
        lines += [
            "",
            f"{made(found, 'benchmarks/bench_train_step.py')}, {source(path)}; the limit is the "
            f"measured rate of products in bfloat16.{'' if compiled else UNCOMPILED}",
            "",
            *of_kernels(found),
        ]
    for path, found in every("inference", GPU):
        lines += ["| prediction | contender | median ms | ratio |", "|---|---|--:|--:|"]
        lines += [*rows(found["races"]), ""]
        lines += [f"{made(found, 'benchmarks/bench_inference.py')}, {source(path)}.", ""]
    return lines


def of_kernels(found: dict[str, Any]) -> list[str]:
    """Return where the time of our captured step in bfloat16 goes, kernel by kernel, if known."""
    lines = []
    for race, contenders in found.get("kernels", {}).items():
        taken = contenders.get(OURS, {})
        whole = sum(ms for ms, *_ in filter(None, taken.values()))
        if whole:
            lines += [f"| {race}: kernel | launches | ms | share |", "|---|--:|--:|--:|"]
            # A result's keys may be in alphabetical order.
            longest = sorted((x for x in taken.items() if x[1]), key=lambda x: -x[1][0])
            for kernel, (ms, times) in longest[:MOST]:
                lines.append(f"| `{kernel}` | {times:.0f} | {ms:.3f} | {ms / whole:.1%} |")
            lines.append("")
    return lines


def accuracy() -> list[str]:
    """Return the default run's test accuracy by precision, and what all tables here ran on."""
    lines = []
    for path, found in every("train-movie", GPU):
        said = []
        for precision in dict.fromkeys(run["precision"] for run in found["runs"]):
            of = [run for run in found["runs"] if run["precision"] == precision]
            each = ", ".join(f"{run['test_accuracy']:.3f} (seed {run['seed']})" for run in of)
            said.append(f"{precision}: {each}")
        lines += [
            f"Test accuracy of the default run in {'; in '.join(said)}. "
            f"{made(found, 'twofold train')}, {source(path)}.",
            "",
        ]
    return [*lines, f"GPU figures were measured on {machines(shown())}."]


def shown() -> list[dict[str, Any]]:
    """Return all results that figures on GPUs are from."""
    races = [result for each in (*by_kernel(), *raced.operators(GPU)) for result in each.results]
    kinds = ("train_step", "inference", "train-movie")
    return [found for _, found in (*races, *(r for kind in kinds for r in every(kind, GPU)))]
