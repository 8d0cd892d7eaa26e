"""Race one training step on a GPU: ours against the same model in torch, eager and compiled.

Both do the same work, described in `bench_train_step.py`, with sinusoidal positions in both; torch
uses its fused AdamW, autocast if the precision is bfloat16, no attention mask if nothing is padded,
and torch.compile in the mode "max-autotune". In float32 torch multiplies in float32, our kernels
with three tf32 products, which are as accurate.

Our step is a CUDA graph that is replayed (`core.captured`); the same step with every kernel
launched each time races too.

Contenders that need not compile the whole step race first, on both models; then the others are
compiled, one after another, and each races beside the contenders of its model. The result is
written before every compilation, which may take minutes and is begun only if that much time is
left. A contender that fails is in the result with the reason, and so is one without time left.

Beside the times: the share of the machine's rate of matrix products, measured in bfloat16, that a
step reaches (model FLOPs utilisation, Chowdhery et al. 2022, "PaLM", appendix B); and the kernels
that its time goes to, from torch's profiler, in a few further steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import harness
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
COMPILING = 150.0  # that compiling a step may take: with less left, it is not begun
SECONDS = 10.0  # of a race
EAGER = "PyTorch eager, bfloat16"  # what ratios are to
COMPILED = "max-autotune"
PRECISIONS = ("bfloat16", "float32")
PROFILED = 5  # steps
LISTED, REST = 30, "others"  # kernels listed, the slowest; the rest are one entry
BERT_BASE = {
    "input_size": 30522,
    "max_length": 512,
    "d_model": 768,
    "num_heads": 12,
    "num_layers": 12,
    "d_ff": 3072,
    "activation": "gelu",
}


Step = Callable[[], None]


class Problem(NamedTuple):
    """A model and a batch: so many examples, of these lengths."""

    name: str
    config: ClassifierConfig
    examples: int
    shortest: int
    longest: int


def problems(rehearsed: bool) -> list[Problem]:
    """Return what is raced; in a rehearsal, tiny versions of the same models."""
    small = {}
    if rehearsed:
        small = {"input_size": 50, "d_model": 16, "num_heads": 2, "d_ff": 24, "num_layers": 1}
    shape = {"positions": "sinusoidal"}
    default, bert = (config_of("default", **(f | shape | small)) for f in ({}, BERT_BASE))
    if rehearsed:
        return [Problem("default", default, 4, 3, 5), Problem("BERT-base", bert, 2, 6, 6)]
    return [Problem("default", default, 64, 21, 24), Problem("BERT-base", bert, 32, 512, 512)]


def operations(config: ClassifierConfig, lengths: Sequence[int]) -> float:
    """Return a step's multiplications and additions: 6·N + 12·layers·length·d for every token.

    N is the number of weights in the layers; embeddings are looked up.
    """
    shapes = Classifier(config, ops.load("reference")).layout.shapes
    layers = [s for name, s in shapes.items() if name.startswith("layers.") and len(s) == 2]
    weights = sum(rows * columns for rows, columns in layers)
    attention = 12 * config.num_layers * config.d_model
    return float(sum(n * (6 * weights + attention * n) for n in lengths))


class Contender(NamedTuple):
    """What makes a step, and whether making it takes minutes."""

    make: Callable[[], Step]
    compiles: bool = False


def contenders(
    problem: Problem,
    side: ops.Side,
    inputs: Sequence[Array],
    targets: Array,
    precisions: Sequence[str] = PRECISIONS,
) -> dict[str, Contender]:
    """Return each contender by name, the most important first."""
    mode = COMPILED if side.device == "cuda" else "default"
    found: dict[str, Contender] = {}
    for precision in precisions:
        # Parts are for processes and threads: one GPU takes the batch whole.
        recipe = replace(Recipe(), parts=1, precision=precision)
        given = (problem.config, recipe, inputs, targets)
        theirs = partial(torch_step, *given, device=side.device)
        found[f"PyTorch eager, {precision}"] = Contender(theirs)
        found[f"PyTorch compiled, {precision}"] = Contender(partial(theirs, compiled=mode), True)
        for name, on in (("twofold", side), ("twofold, not captured", uncaptured(side))):
            found[f"{name}, {precision}"] = Contender(partial(our_step, *given, on))
    return found


class Race:
    """A problem, the contenders entered, and those ready."""

    def __init__(self, problem: Problem, side: ops.Side, precisions: Sequence[str]) -> None:
        rng, lengths = np.random.default_rng(0), (problem.shortest, problem.longest)
        inputs = examples(rng, problem.examples, *lengths, problem.config.input_size)
        right = rng.random(problem.examples)
        targets = np.stack([1 - right, right], 1).astype(np.float32)
        self.title = f"{problem.name}, batch {problem.examples} × length {problem.longest}"
        self.entered = contenders(problem, side, inputs, targets, precisions)
        self.work = operations(problem.config, [len(x) for x in inputs])
        self.device = side.device
        self.ready: dict[str, Step] = {}
        self.reasons: dict[str, str] = {}
        self.kernels: dict[str, dict[str, list[float]]] = {}

    def prepare(self, name: str) -> None:
        """Have a contender take its first steps."""
        try:
            step = self.entered[name].make()
            step()  # compiles
            step()  # captures
            self.ready[name] = step
        except Exception as error:  # any fault of its own: the others go on
            self.reasons[name] = f"{type(error).__name__}: {error}"

    def run(self, seconds: float, rate: float) -> dict[str, Any]:
        """Race those that are ready; return this problem's part of the result."""
        calls = {name: [step] for name, step in self.ready.items()}
        times = timing.race(calls, self.device, seconds, self.reasons)
        self.ready = {name: self.ready[name] for name in times}
        if not times:
            return {}
        summary = timing.summary(times, EAGER if EAGER in times else next(iter(times)))
        if self.device == "cuda":
            for name in self.ready.keys() - self.kernels.keys():
                self.kernels[name] = kernels(self.ready[name])
        return {
            "races": summary,
            "utilisation": {
                name: self.work / (found["median_ms"] * 1e-3) / rate
                for name, found in summary.items()
            },
            "kernels": self.kernels,
        }


def race(asked: argparse.Namespace, side: ops.Side) -> dict[str, Any]:
    """Race all problems and return the result, which is also written after every race."""
    ends, rehearsed = time.perf_counter() + asked.limit, side.device != "cuda"
    seconds = 0.0 if rehearsed else 1.0 if asked.quick else SECONDS
    rate = machine.ceilings(side.device, 0.0 if rehearsed else 1.0).rate
    result = harness.begun(asked.threads, side.device) | {"operations_per_second": rate}
    result |= {name: {} for name in ("races", "utilisation", "kernels", "reasons")}
    raced = [
        Race(problem, side, asked.precisions)
        for problem in problems(rehearsed)
        if asked.only in (None, problem.name)
    ]

    def run(one: Race) -> None:
        for name, found in one.run(seconds, rate).items():
            result[name][one.title] = found
        keep(one)

    def keep(one: Race) -> None:
        reasons = {name: " ".join(x.split())[:300] for name, x in one.reasons.items()}
        result["reasons"][one.title] = reasons
        if asked.json:
            harness.put(asked.json, harness.written(result))

    def entered(one: Race, compiles: bool) -> list[str]:
        return [name for name, each in one.entered.items() if each.compiles == compiles]

    def prepare(one: Race, name: str, takes: float) -> bool:
        if time.perf_counter() + takes > ends:
            one.reasons[name] = "no time left"
        else:
            one.prepare(name)
        return name in one.ready

    for one in raced:
        for name in entered(one, False):
            prepare(one, name, 0.0)
        one.reasons |= dict.fromkeys(entered(one, True), "not yet compiled")
        run(one)
    for names in zip(*(entered(one, True) for one in raced), strict=True):
        for one, name in zip(raced, names, strict=True):
            del one.reasons[name]
            (run if prepare(one, name, COMPILING) else keep)(one)
    return result


def kernels(step: Callable[[], None]) -> dict[str, list[float]]:
    """Return how many milliseconds of a step each kernel takes, and how often it is launched.

    The quickest ones form one entry. A failed profile is reported, and costs no race its times.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for _ in range(PROFILED):
                step()
            torch.cuda.synchronize()
        events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
    except Exception as error:  # whatever the profiler raises: the times are kept
        return {f"{type(error).__name__}: {error}"[:200]: []}
    taken = {
        event.key: [event.self_device_time_total / PROFILED / 1000, event.count / PROFILED]
        for event in events
    }
    listed = dict(list(taken.items())[:LISTED])
    rest = [taken[name] for name in taken.keys() - listed.keys()]
    return listed | {REST: [sum(ms for ms, _ in rest), sum(times for _, times in rest)]}


def say(result: dict[str, Any]) -> None:
    """Print what the table of times does not show."""
    for title, shares in result["utilisation"].items():
        for name, share in shares.items():
            print(f"{title}: {name}: {share:.2%} of the measured rate of matrix products")
    for title, reasons in result["reasons"].items():
        for name, reason in reasons.items():
            print(f"{title}: {name} did not run: {reason}")
