"""Write the figures in the README from the committed results and the sources.

python benchmarks/readme.py            rewrites what is between the README's markers
python benchmarks/readme.py --check    exits with status 1 if that would change anything
"""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pages
import peers_page
import raced
from attention_measured import by_kernel, kind_of, over
from attention_variants import CUDNN, FLASH
from committed import ends, every, machine, machines, newest, source
from harness import OF_GPUS, RESULTS

from twofold.core.bench.problems import TOKENS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (RESULTS, OF_GPUS)
MADE = "python benchmarks/bench_accuracy.py"
OURS = ("twofold, NumPy", "twofold, bfloat16", "twofold, Triton")  # whose ratios are shown
# Operators that both sides raced, and the passes.
RACED = tuple(
    (operator, passes)
    for operator in ("attention", "linear", "layer_norm", "softmax")
    for passes in ("forward", "backward")
) + (("softmax_cross_entropy", "forward and backward"), ("optimizers", "step"))


def accuracy() -> str:
    """Return the test accuracy of the default run and of fine-tuning beside the baselines."""
    found = accuracy_of("train"), accuracy_of("finetune")
    baselines = found[0][1]["runs"][0]["baselines"]
    lines = ["| movie reviews, sign of the rating | test accuracy |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in baselines.items()]
    ways = (
        ("twofold train", f"{MADE} --save"),
        ("twofold finetune", f"{MADE} --command finetune --seeds {{}} --save"),
    )
    made = []
    for (path, result), (command, told) in zip(found, ways, strict=True):
        runs = result["runs"]
        seeds = ", ".join(f"{run['test_accuracy']:.3f}" for run in runs)
        lines.append(
            f"| `{command}`, {runs[0]['parameters'] / 1e6:.1f} million parameters, mean of seeds "
            f"({seeds}) | **{result['mean_test_accuracy']:.3f}** |"
        )
        made.append(
            f"`{command}`: {max(run['seconds'] for run in runs):.0f} s and "
            f"{max(run['peak_memory_mb'] for run in runs)} MB at most; "
            f"`{result.get('command', told.format(len(runs)))}`, {source(path)}."
        )
    where = [on(result) for _, result in found]
    if len(set(where)) == 1:
        made.append(where[0])
    else:  # each by what it ran on
        made = [f"{sentence} {ran}" for sentence, ran in zip(made, where, strict=True)]
    return "\n".join([*lines, "", pages.wrapped(" ".join(made))])


def accuracy_of(command: str) -> tuple[Path, dict[str, Any]]:
    """Return path and content of the committed accuracy of a command."""
    path = RESULTS / f"{command}-movie.json"
    return path, json.loads(path.read_text())


def on(found: dict[str, Any]) -> str:
    """Say in a sentence what a result ran on."""
    return f"{machine(found['ran_on'])}."


def race() -> str:
    """Return our time as a multiple of PyTorch's, on CPUs and on GPUs."""
    lines = [
        "| twofold's time ÷ PyTorch's | CPU, NumPy side | GPU, Triton side |",
        "|---|--:|--:|",
    ]
    shown: list[list[dict[str, Any]]] = [[], []]  # results, of CPUs and of GPUs
    for kind, words in (("train_step", "training step"), ("inference", "prediction")):
        both = [[found for _, found in every(kind, folder)] for folder in FOLDERS]
        for title in dict.fromkeys(t for found in both for each in found for t in each["races"]):
            cells = (
                ends(r for each in found for r in of_model(each["races"].get(title, {})))
                for found in both
            )
            lines.append(f"| {words}, {title} | {' | '.join(cells)} |")
        shown = [[*before, *found] for before, found in zip(shown, both, strict=True)]
    machines_raced = [raced.operators(folder) for folder in FOLDERS]
    both_races = [[race for each in found for race in each.races] for found in machines_raced]
    for operator, passes in RACED:
        cells = (ends(raced.ratios(raced.of(races, operator, passes))) for races in both_races)
        lines.append(f"| {operator}, {passes} | {' | '.join(cells)} |")
    variants = by_kernel()
    for name, peer in (("cuDNN's", CUDNN), ("FlashAttention-2's", FLASH)):
        found = (over(race, peer, kind_of(race)) for each in variants for race in each.races)
        ratio = ends(r for r in found if r is not None)
        lines.append(f"| attention, forward, of {TOKENS:,} tokens, ÷ {name} |  | {ratio} |")
    of_operators = [[f for each in found for _, f in each.results] for found in machines_raced]
    of_operators[1] += [found for each in variants for _, found in each.results]
    cpus, gpus = (
        machines([*found, *more]) for found, more in zip(shown, of_operators, strict=True)
    )
    ran = [r for races in both_races for r in races if (r["operator"], r["pass"]) in RACED]
    sentences = (
        "Ranges are over the sizes and machines raced; PyTorch's time is that of its fastest eager "
        "implementation unless stated otherwise. On a GPU, both sides train in bfloat16 and "
        "predict in float32; twofold's steps and predictions are captured as CUDA graphs, "
        "PyTorch's are not. This is a selection; SPEED.md has every race, including twofold's "
        "slowest.",
        *raced.notes(ran, of_torch=False),
        f"CPUs: {cpus}. GPUs: {gpus}.",
    )
    return "\n".join([*lines, "", pages.wrapped(" ".join(sentences))])


def of_model(contenders: dict[str, Any]) -> Iterator[float]:
    """Yield our ratio in a race of whole models, if it is one to PyTorch eager's time."""
    eager = (times for who, times in contenders.items() if who.startswith("PyTorch eager"))
    if any(times["ratio"] == 1.0 for times in eager):
        yield from (contenders[who]["ratio"] for who in OURS if who in contenders)


def operators() -> str:
    """Return every operator with its files and how near its kernel came to its bound."""
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
        pages.wrapped(
            f"The worst of all elements, `twofold verify --json …`, {source(path)}. 1 is expected "
            "where a result is a single rounding of an exact number: the bound is then that "
            "rounding. The median element is far from it: [TRUST.md](benchmarks/TRUST.md)."
        ),
    ]
    return "\n".join(lines)


def attention() -> str:
    """Return steps (1) to (4) of attention on both sides."""
    reference = between(ROOT / "reference/attention.py", "# (1) S =", "return out, Cache")
    kernel = between(ROOT / "kernels/attention.py", "# (1) S =", "# (3) lse =")
    after = between(ROOT / "kernels/attention.py", "# (3) lse =", "i = first + tl.arange")
    weigh = between(ROOT / "kernels/attention_parts.py", "def weigh", "@triton.jit").rstrip()
    return "\n".join(
        [
            "<table><tr><th>reference/attention.py</th><th>kernels/attention.py, in the loop over "
            "tiles of keys</th></tr><tr valign=top><td>",
            f"<pre>{html.escape(reference)}</pre>",
            "</td><td>",
            f"<pre>{html.escape(kernel)}</pre>",
            "and after the loop",
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


def peers() -> str:
    """Return how many functions of other libraries hold, and the source of the figures."""
    found = peers_page.result()
    kinds = "; ".join(f"{kind}: {words}" for kind, words in peers_page.KINDS.items())
    made = (
        f"Each function counts once, by the worst found in any precision ({kinds}). "
        f"`twofold verify peers`, "
        f"{source(peers_page.RESULT)}."
    )
    return "\n".join([*peers_page.by_library(found["peers"]), "", pages.wrapped(made)])


SECTIONS: dict[str, Callable[[], str]] = {
    "accuracy": accuracy,
    "attention": attention,
    "operators": operators,
    "peers": peers,
    "race": race,
}


def main() -> None:
    """Write the page, or check it."""
    path = ROOT / "README.md"
    pages.put(path, pages.filled(path, SECTIONS), __file__)


if __name__ == "__main__":
    main()
