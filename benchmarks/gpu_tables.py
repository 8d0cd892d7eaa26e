"""What was measured on a GPU, as tables for SPEED.md."""

from __future__ import annotations

from typing import Any

from attention_measured import by_kernel, kind_of, unraced
from attention_variants import CUDNN, FLASH
from committed import ends, newest, rows, source
from harness import OF_GPUS as GPU

NAMES = ("torch", "torch.compile")
OURS, MOST = "twofold, bfloat16", 12  # whose kernels are shown, and how many
UNCOMPILED = " torch.compile was not raced yet."


def attention() -> list[str]:
    """TFLOP/s of attention forward, and milliseconds of what was raced in both passes."""
    path, _ = newest("attention_variants", GPU)
    lines = [
        "| attention forward, 16,384 tokens of 2,048 features, bfloat16; TFLOP/s "
        "| FlashAttention-2 | cuDNN | twofold | ÷ FlashAttention-2 | ÷ cuDNN |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for race in by_kernel():
        rates = race["tera_operations_per_second"]
        own = rates[kind_of(race)]
        title = f"head_dim {race['head_dim']}, length {race['length']}"
        title += ", causal" if race["causal"] else ""
        lines.append(
            f"| {title} | {rates[FLASH]:.0f} | {rates[CUDNN]:.0f} | {own:.0f} "
            f"| {own / rates[FLASH]:.2f} | {own / rates[CUDNN]:.2f} |"
        )
    made = "`python benchmarks/attention_variants.py --kernels --save`"
    return [
        *lines,
        *unraced(),
        "",
        f"{made}, {source(path)}. FlashAttention-2 and cuDNN as PyTorch brings them.",
        "",
    ]


def operators() -> list[str]:
    """Times of the races as multiples of torch's, from the least to the most of the sizes."""
    path, found = newest("bench", GPU)
    lines = [
        "| twofold's time ÷ | torch, forward | torch.compile, forward | torch, backward "
        "| torch.compile, backward | of the limit |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    races = found["bench"]["races"]
    for operator in dict.fromkeys(race["operator"] for race in races):
        cells = []
        own = [r for r in races if r["operator"] == operator and "twofold" in r["contenders"]]
        timed = [r for r in own if operator == "softmax_cross_entropy" or " and " not in r["pass"]]
        for passes in (("forward", "forward and backward", "step"), ("backward",)):
            for name in NAMES:
                ratios = (_ratio(r, name) for r in timed if r["pass"] in passes)
                cells.append(ends(r for r in ratios if r is not None))
        shares = sorted(r["contenders"]["twofold"]["share"] for r in timed)
        cells.append(f"{shares[0]:.0%} to {shares[-1]:.0%}")
        lines.append(f"| {operator} | {' | '.join(cells)} |")
    limit = found["bench"]["ceilings"]
    return [
        *lines,
        "",
        f"`{found['bench']['command']}`, {source(path)}. Limits measured in the same "
        f"run: {limit['bandwidth'] * 1e-12:.2f} TB/s copied, {limit['rate'] * 1e-12:.0f} TFLOP/s "
        "of products. Cross-entropy is both passes, an optimizer a step.",
        "",
    ]


def _ratio(race: dict[str, Any], name: str) -> float | None:
    times = race["contenders"]
    return times["twofold"]["median_ms"] / times[name]["median_ms"] if name in times else None


def steps() -> list[str]:
    """Training steps and predictions."""
    path, found = newest("train_step", GPU)
    lines = ["| training step | contender | median ms | ratio | of the limit |"]
    lines.append("|---|---|--:|--:|--:|")
    for race, contenders in found["races"].items():
        for who, times in contenders.items():
            share = found["utilisation"][race][who]
            lines.append(
                f"| {race} | {who} | {times['median_ms']:.2f} | {times['ratio']:.2f} "
                f"| {share:.1%} |"
            )
    compiled = any("compiled" in who for race in found["races"].values() for who in race)
    lines += [
        "",
        f"`python benchmarks/bench_train_step.py`, {source(path)}; the limit is the "
        f"measured rate of products in bfloat16.{'' if compiled else UNCOMPILED}",
        "",
        *of_kernels(found),
    ]
    path, found = newest("inference", GPU)
    lines += ["| prediction | contender | median ms | ratio |", "|---|---|--:|--:|"]
    return [
        *lines,
        *rows(found["races"]),
        "",
        f"`python benchmarks/bench_inference.py`, {source(path)}.",
        "",
    ]


def of_kernels(found: dict[str, Any]) -> list[str]:
    """Where the time of our captured step in bfloat16 goes, kernel by kernel, if that is known."""
    lines = []
    for race, contenders in found.get("kernels", {}).items():
        taken = contenders.get(OURS, {})
        whole = sum(ms for ms, *_ in filter(None, taken.values()))
        if whole:
            lines += [f"| {race}: kernel | launches | ms | share |", "|---|--:|--:|--:|"]
            for kernel, (ms, times) in list(taken.items())[:MOST]:
                lines.append(f"| `{kernel}` | {times:.0f} | {ms:.3f} | {ms / whole:.1%} |")
            lines.append("")
    return lines


def accuracy() -> list[str]:
    """Test accuracy of the default run by precision."""
    path, found = newest("train-movie", GPU)
    said = []
    for precision in ("float32", "bfloat16"):
        of = [run for run in found["runs"] if run["precision"] == precision]
        each = ", ".join(f"{run['test_accuracy']:.3f} (seed {run['seed']})" for run in of)
        said.append(f"{precision}: {each}")
    on = found["ran_on"]
    return [
        f"The default run, test accuracy in {'; in '.join(said)}. "
        f"`twofold train --precision … --seed …`, {source(path)}.",
        "",
        f"All on one {on['gpu']}, driver {on['driver']}, Python {on['python']}, NumPy "
        f"{on['numpy']}, PyTorch {on['torch']}, Triton {on['triton']}, {on['date']}.",
    ]
