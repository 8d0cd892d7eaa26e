"""Measure `twofold train` or `finetune`: test accuracy, time and memory, for seeds from 0 on.

    python benchmarks/bench_accuracy.py [--save]
    python benchmarks/bench_accuracy.py --command finetune [--seeds 1] [--save]

Each run is a process of its own, started as a user would. With --save the figures and the plot of
seed 0 go to results/.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np


def run(name: str, data: str, seed: int, folder: Path, quick: bool) -> dict[str, object]:
    """Train once and return the result with the process's peak memory."""
    command = [sys.executable, "-c", "from twofold.core.cli import main; main()", name]
    command += ["--data", data, "--seed", str(seed), "--out", str(folder), "--side", "reference"]
    subprocess.run([*command, *(["--quick"] if quick else [])], check=True, env=os.environ)
    result = json.loads((folder / "result.json").read_text())
    # the largest of all children so far; runs on the same data set need the same
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {**result, "peak_memory_mb": round(peak / 1024)}


def main() -> None:
    commands = {"default": "train", "choices": ["train", "finetune"], "help": "what is run"}
    data = {"default": "movie", "help": "data set"}
    seeds = {"type": int, "default": 3, "help": "how many"}
    asked = harness.options(__doc__, command=commands, data=data, seeds=seeds)
    with tempfile.TemporaryDirectory() as scratch:
        runs = [
            run(asked.command, asked.data, seed, Path(scratch) / str(seed), asked.quick)
            for seed in range(asked.seeds)
        ]
        accuracies = [r["test_accuracy"] for r in runs]
        found = {
            **harness.begun(asked.threads, "cpu"),
            "mean_test_accuracy": float(np.mean(accuracies)),
            "deviation_of_seeds": float(np.std(accuracies, ddof=1)) if len(runs) > 1 else None,
            "runs": runs,
        }
        print(json.dumps(found, indent=1))
        if asked.save:
            name = f"{asked.command}-{asked.data}"
            (harness.RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
            shutil.copy(Path(scratch) / "0" / "plot.png", harness.RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
