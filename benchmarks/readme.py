"""Write the figures of the README anew from the committed results and the sources.

python benchmarks/readme.py            rewrites what stands between the README's markers
python benchmarks/readme.py --check    exits with status 1 where that would change anything
"""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pages
from attention_measured import by_kernel, kind_of
from attention_variants import CUDNN, FLASH
from committed import ends, every, machine, newest, source
from harness import OF_GPUS, RESULTS

from twofold.core.bench.problems import TOKENS

ROOT = Path(__file__).resolve().parent.parent
# Operators whose races both sides ran, and in which pass.
RACED = tuple(
    (operator, passes)
    for operator in ("attention", "linear", "layer_norm", "softmax")
    for passes in ("forward", "backward")
) + (("softmax_cross_entropy", "forward and backward"), ("optimizers", "step"))


def accuracy() -> str:
    """Test accuracy of the default run and of fine-tuning beside the baselines."""
    found = accuracy_of("train"), accuracy_of("finetune")
    (_, trained), _ = found
    baselines = trained["runs"][0]["baselines"]
    lines = ["| movie reviews, sign of the rating | test accuracy |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in baselines.items()]
    ways = (
        ("twofold train", "--save"),
        ("twofold finetune", "--command finetune --seeds {} --save"),
    )
    made = []
    for (path, result), (command, options) in zip(found, ways, strict=True):
        runs = result["runs"]
        seeds = ", ".join(f"{run['test_accuracy']:.3f}" for run in runs)
        lines.append(
            f"| `{command}`, {runs[0]['parameters'] / 1e6:.1f} million parameters, mean of seeds "
            f"({seeds}) | **{result['mean_test_accuracy']:.3f}** |"
        )
        made.append(
            f"`{command}`: {max(run['seconds'] for run in runs):.0f} s and "
            f"{max(run['peak_memory_mb'] for run in runs)} MB at most; `python "
            f"benchmarks/bench_accuracy.py {options.format(len(runs))}`, {source(path)}."
        )
    return "\n".join([*lines, "", pages.wrapped(f"{' '.join(made)} {on(trained)}")])


def accuracy_of(command: str) -> tuple[Path, dict[str, Any]]:
    """Return path and content of the committed accuracy of a command."""
    path = RESULTS / f"{command}-movie.json"
    return path, json.loads(path.read_text())


def on(found: dict[str, Any]) -> str:
    """Say in a sentence what a result ran on."""
    return f"{machine(found['ran_on'])}."


def race() -> str:
    """Our time as a multiple of PyTorch's, on a CPU and on a GPU."""
    lines = [
        "| twofold's time ÷ PyTorch's | CPU, NumPy side | GPU, Triton side |",
        "|---|--:|--:|",
    ]
    ours = ("twofold, NumPy", "twofold, bfloat16", "twofold, Triton")
    kinds = (("train_step", "training step"), ("inference", "prediction"))
    for kind, words in kinds:
        both = [
            [race for _, found in every(kind, folder) for race in found["races"].items()]
            for folder in (RESULTS, OF_GPUS)
        ]
        for model in dict.fromkeys(title.split(",")[0] for races in both for title, _ in races):
            cells = (
                ends(
                    contenders[name]["ratio"]
                    for title, contenders in races
                    if title.split(",")[0] == model
                    for name in ours
                    if name in contenders
                )
                for races in both
            )
            lines.append(f"| {words}, {model} | {' | '.join(cells)} |")
    both = [
        [race for _, found in every("bench", folder) for race in found["bench"]["races"]]
        for folder in (RESULTS, OF_GPUS)
    ]
    for operator, passes in RACED:
        cells = (
            ends(
                race["contenders"]["twofold"]["ratio"]
                for race in races
                if race["operator"] == operator and race["pass"] == passes
            )
            for races in both
        )
        lines.append(f"| {operator}, {passes} | {' | '.join(cells)} |")
    rates = [(race["tera_operations_per_second"], kind_of(race)) for race in by_kernel()]
    for name, peer in (("cuDNN's", CUDNN), ("FlashAttention-2's", FLASH)):
        ratio = ends(of[peer] / of[own] for of, own in rates)
        lines.append(f"| attention, forward, of {TOKENS:,} tokens, ÷ {name} |  | {ratio} |")
    cpus = dict.fromkeys(found["ran_on"]["cpu"] for _, found in every("train_step"))
    cpu, gpu = newest("train_step")[1], newest("train_step", OF_GPUS)[1]
    lines += [
        "",
        pages.wrapped(
            "From the least to the most of the sizes and machines that were raced, against PyTorch "
            "eager where nothing else is said; steps on the GPU in bfloat16, captured. A "
            "selection: SPEED.md has all, what is slowest here among them. "
            f"CPUs: {' and '.join(cpus)}, last {on(cpu)} GPU: {on(gpu)}"
        ),
    ]
    return "\n".join(lines)


def operators() -> str:
    """Every operator with its files and how near its kernel came to its bound."""
    path, found = newest("verify-interpreter")
    rows = found["operators"]["rows"]
    lines = ["| operator | | worst error ÷ bound | cases |", "|---|---|--:|--:|"]
    for operator in dict.fromkeys(row["operator"] for row in rows):
        bounds = ("forward", "backward")
        mine = [row for row in rows if row["operator"] == operator and row["pass_"] in bounds]
        means = (ROOT / "reference" / f"{operator}.py").read_text().split('"""')[1]
        first = means.strip().splitlines()[0].split(": ")[0].rstrip(".")
        lines.append(
            f"| [{operator}](reference/{operator}.py) · [kernel](kernels/{operator}.py) · "
            f"[contract](core/verify/contracts/{operator}.py) | {first} | "
            f"{max(row['share'] for row in mine):.2f} | {sum(row['cases'] for row in mine)} |"
        )
    lines += [
        "",
        f"`twofold verify --json …`, {source(path)}. Near 1 is as it should be where a result is "
        "one rounding of an exact number: then the bound is that rounding.",
    ]
    return "\n".join(lines)


def attention() -> str:
    """Steps (1) to (4) of attention on both sides."""
    reference = between(ROOT / "reference/attention.py", "# (1) scores", "return out, Cache")
    kernel = between(ROOT / "kernels/attention.py", "# (1) scores", "# (3) log-sum-exp, whole")
    after = between(
        ROOT / "kernels/attention.py", "# (3) log-sum-exp, whole", "i = first + tl.arange"
    )
    weigh = between(ROOT / "kernels/attention_parts.py", "def weigh", "@triton.jit").rstrip()
    return "\n".join(
        [
            "<table><tr><th>reference/attention.py</th><th>kernels/attention.py, in the loop over "
            "tiles of keys</th></tr><tr valign=top><td>",
            f"<pre>{html.escape(reference)}</pre>",
            "</td><td>",
            f"<pre>{html.escape(kernel)}</pre>",
            "and behind the loop",
            f"<pre>{html.escape(after)}</pre>",
            "and from kernels/attention_parts.py",
            f"<pre>{html.escape(weigh)}</pre>",
            "</td></tr></table>",
        ]
    )


def between(path: Path, first: str, last: str) -> str:
    """Return a file's lines from the one with `first` to before the one with `last`, dedented."""
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if first in line)
    stop = next(i for i, line in enumerate(lines) if i > start and last in line)
    return textwrap.dedent("\n".join(lines[start:stop])).replace("  # fmt: skip", "")


SECTIONS: dict[str, Callable[[], str]] = {
    "accuracy": accuracy,
    "attention": attention,
    "operators": operators,
    "race": race,
}


def main() -> None:
    """Write the page, or check it."""
    path = ROOT / "README.md"
    pages.put(path, pages.filled(path, SECTIONS), __file__)


if __name__ == "__main__":
    main()
