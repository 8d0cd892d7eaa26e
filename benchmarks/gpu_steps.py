"""One training step on a GPU: ours against the same model in torch, eager and compiled.

Both do the same work, as `bench_train_step.py` says, with sinusoidal positions on both sides; torch
has its fused AdamW, autocast where the precision is bfloat16, no attention mask where nothing is
padded, and torch.compile in the mode "max-autotune". In float32 torch multiplies in float32, ours
in three tf32 products, which are as exact.

Our step is a CUDA graph that is replayed (`core.captured`); beside it stands the same step with
every kernel launched each time.

A contender that fails is in the result with the reason, and so is one for which no time is left:
compiling may take minutes, and everything is over in nine.

Beside the times: the share of the machine's rate of matrix products, measured in bfloat16, that a
step makes use of (model FLOPs utilisation, Chowdhery et al. 2022, "PaLM", appendix B); and which
kernels its time goes to, as torch's profiler says, in a few steps more.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from peer import config_of, examples
from steps import our_step, torch_step, uncaptured

from twofold.core import ops
from twofold.core.bench import machine, timing
from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.training.batches import Array
from twofold.core.training.recipe import Recipe

LIMIT = 420.0  # seconds after which nothing new is begun
COMPILED = "max-autotune"
PRECISIONS = ("bfloat16", "float32")
PROFILED = 5  # steps
LISTED, REST = 30, "others"  # kernels, those that take longest; the rest together
BERT_BASE = {
    "input_size": 30522,
    "max_length": 512,
    "d_model": 768,
    "num_heads": 12,
    "num_layers": 12,
    "d_ff": 3072,
    "activation": "gelu",
}


class Problem(NamedTuple):
    """A model and a batch of it: so many examples, of these lengths."""

    name: str
    config: ClassifierConfig
    examples: int
    shortest: int
    longest: int


def problems(rehearsed: bool) -> list[Problem]:
    """Return what is raced; rehearsed, the same models with hardly anything in them."""
    small = {}
    if rehearsed:
        small = {"input_size": 50, "d_model": 16, "num_heads": 2, "d_ff": 24, "num_layers": 1}
    shape = {"positions": "sinusoidal"}
    default, bert = (config_of("default", **(f | shape | small)) for f in ({}, BERT_BASE))
    if rehearsed:
        return [Problem("default", default, 4, 3, 5), Problem("BERT-base", bert, 2, 6, 6)]
    return [Problem("default", default, 64, 21, 24), Problem("BERT-base", bert, 32, 512, 512)]


def operations(config: ClassifierConfig, lengths: Sequence[int]) -> float:
    """Return what a step must multiply and add: 6·N + 12·layers·length·d for every token.

    N are the weights of the layers; embeddings are looked up.
    """
    shapes = Classifier(config, ops.load("reference")).layout.shapes
    layers = [s for name, s in shapes.items() if name.startswith("layers.") and len(s) == 2]
    weights = sum(rows * columns for rows, columns in layers)
    attention = 12 * config.num_layers * config.d_model
    return float(sum(n * (6 * weights + attention * n) for n in lengths))


def contenders(
    problem: Problem,
    side: ops.Side,
    inputs: Sequence[Array],
    targets: Array,
    precisions: Sequence[str] = PRECISIONS,
) -> dict[str, Callable[[], Callable[[], None]]]:
    """Return what makes each contender's step, those of most worth first."""
    compiled = COMPILED if side.device == "cuda" else "default"
    found: dict[str, Callable[[], Callable[[], None]]] = {}
    for precision in precisions:
        # Parts are for processes and for threads: one GPU takes the batch whole.
        recipe = replace(Recipe(), parts=1, precision=precision)
        for name, mode in (("eager", ""), ("compiled", compiled)):
            how = {"device": side.device, "compiled": mode}

            def theirs(recipe: Recipe = recipe, how: dict[str, Any] = how) -> Callable[[], None]:
                return torch_step(problem.config, recipe, inputs, targets, **how)

            found[f"PyTorch {name}, {precision}"] = theirs

        for name, on in (("twofold", side), ("twofold, not captured", uncaptured(side))):

            def ours(recipe: Recipe = recipe, on: ops.Side = on) -> Callable[[], None]:
                return our_step(problem.config, recipe, inputs, targets, on)

            found[f"{name}, {precision}"] = ours
    return found


def race(asked: argparse.Namespace, side: ops.Side) -> dict[str, Any]:
    """Race all problems and return the result, which is also written after each of them."""
    began, device, rehearsed = time.perf_counter(), side.device, side.device != "cuda"
    ceilings = machine.ceilings(device, 0.0 if rehearsed else 1.0)
    result: dict[str, Any] = {
        "ran_on": machine.ran_on(asked.threads, device),
        "operations_per_second": ceilings.rate,
        "races": {},
        "utilisation": {},
        "kernels": {},
        "reasons": {},
    }
    for problem in problems(rehearsed):
        if asked.only not in (None, problem.name):
            continue
        rng = np.random.default_rng(0)
        lengths = (problem.shortest, problem.longest)
        inputs = examples(rng, problem.examples, *lengths, problem.config.input_size)
        right = rng.random(problem.examples)
        targets = np.stack([1 - right, right], 1).astype(np.float32)
        ready, reasons = {}, {}
        for name, make in contenders(problem, side, inputs, targets, asked.precisions).items():
            if time.perf_counter() - began > LIMIT:
                reasons[name] = "no time left"
                continue
            try:
                step = make()
                step()  # compiles
                step()  # captures
                ready[name] = step
            except Exception as error:  # its own, whatever it is: the others go on
                reasons[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        title = f"{problem.name}, batch {problem.examples} × length {problem.longest}"
        result["reasons"][title] = reasons
        if ready:
            seconds = 0.0 if rehearsed else 1.0 if asked.quick else 15.0
            times = timing.race({name: [step] for name, step in ready.items()}, device, seconds)
            eager = "PyTorch eager, bfloat16"
            summary = timing.summary(times, eager if eager in ready else next(iter(ready)))
            work = operations(problem.config, [len(x) for x in inputs])
            result["races"][title] = summary
            result["utilisation"][title] = {
                name: work / (found["median_ms"] * 1e-3) / ceilings.rate
                for name, found in summary.items()
            }
            if not rehearsed:
                result["kernels"][title] = {name: kernels(step) for name, step in ready.items()}
        if asked.json:
            asked.json.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return result


def kernels(step: Callable[[], None]) -> dict[str, list[float]]:
    """Return how many milliseconds of a step each kernel takes, and how often it is launched.

    Those that take least are one entry. A profile that fails says so, and costs no race its times.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for _ in range(PROFILED):
                step()
            torch.cuda.synchronize()
        events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
    except Exception as error:  # whatever the profiler says: what was timed is kept
        return {f"{type(error).__name__}: {error}"[:200]: []}
    taken = {
        event.key: [event.self_device_time_total / PROFILED / 1000, event.count / PROFILED]
        for event in events
    }
    listed = dict(list(taken.items())[:LISTED])
    rest = [taken[name] for name in taken.keys() - listed.keys()]
    return listed | {REST: [sum(ms for ms, _ in rest), sum(times for _, times in rest)]}


def say(result: dict[str, Any]) -> None:
    """Print what the table of times does not hold."""
    for title, shares in result["utilisation"].items():
        for name, share in shares.items():
            print(f"{title}: {name}: {share:.2%} of the measured rate of matrix products")
        for name, reason in result["reasons"][title].items():
            print(f"{title}: {name} did not run: {reason}")
