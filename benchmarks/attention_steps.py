"""Race every step of attention's kernel, from the first to the present one, and peers, on a GPU.

Three parts of less than nine minutes each: 1 is bfloat16 at head_dim 128, and small batches; 2 is
bfloat16 at head_dim 64 and 256; 3 is float16. A part stops when its minutes are over and names what
it left out; the result is written after every race. Each contender is first judged by the contract
in the race's dtype; anything wrong with it is reported beside its times.

    python benchmarks/attention_steps.py --part 1 --save      and 2, and 3, into one result
    python benchmarks/attention_steps.py --part 1 --list      what would be raced; needs no GPU
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import attention_step_kernels as steps
import harness

from twofold.core import ops
from twofold.core.bench import contenders, machine, problems, races
from twofold.core.bench.contenders import Contender
from twofold.core.bench.costs import Ceilings
from twofold.core.bench.problems import HIDDEN, SMALL, TOKENS, Problem

PARTS = (1, 2, 3)
PEERS = ("sdpa flash", "sdpa cudnn", "flex compiled")
LENGTHS = (4096, 16384, 1024, 8192, 2048, 512)  # what is left out comes last
MOST_SCORES = 5e9  # bytes of scores in memory, of which autograd keeps several copies


def listed(part: int) -> Iterator[Problem]:
    """Yield a part's problems, forward and backward apart, as their contenders differ."""
    for problem in _shapes(part):
        for name in ("forward", "backward"):
            yield replace(problem, costs={name: problem.costs[name]})


def _shapes(part: int) -> Iterator[Problem]:
    dtype = "float16" if part == 3 else "bfloat16"
    head_dims = {1: (128,), 2: (64, 256), 3: (128, 64, 256)}[part]
    for L in LENGTHS[:3] if part == 3 else LENGTHS:
        for D in head_dims:
            for causal in (False, True):
                H = HIDDEN // D
                yield problems.attention(TOKENS // L, H, H, L, L, D, dtype, causal)
    if part == 1:
        for B, H, L, D in SMALL:
            yield problems.attention(B, H, H, L, L, D, dtype)


def rivals(problem: Problem) -> list[Contender]:
    """Return the steps that differ in the pass that a problem times, the present kernel first."""
    B, H, L = (int(x.split("=")[1]) for x in problem.title.split()[:3])
    scores = 2.0 * B * H * L * L
    missing = f"its scores take {scores * 1e-9:.1f} GB" if scores > MOST_SCORES else ""
    found = [
        Contender(contenders.TWOFOLD, side=ops.load("triton")),
        Contender(steps.IN_MEMORY, steps.materialised, missing=missing),
    ]
    if "forward" in problem.costs:
        return found + [Contender(n, steps.attention(step)) for n, step in steps.STEPS.items()]
    return found + [
        Contender(name, steps.attention(steps.Step(exp2=True, skip=skip)))
        for name, skip in steps.BACKWARD_STEPS.items()
    ]


def peers() -> list[Contender]:
    """Return the other contenders, as `twofold bench` has them."""
    return [c for c in contenders.of("attention", "cuda") if c.name in PEERS]


def race(
    chosen: Sequence[Problem],
    others: Sequence[Contender],
    ceilings: Ceilings,
    device: str,
    seconds: float,
    minutes: float,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Race until time is up; `keep` is given the part's result after every problem."""
    begun, judge = time.monotonic(), races.Judge()
    result: dict[str, Any] = {"races": [], "left_out": []}
    for problem in chosen:
        if time.monotonic() - begun > 60 * minutes:
            result["left_out"].append(f"{problem.name} {'/'.join(problem.costs)}")
        else:
            entered = [*rivals(problem), *others]
            result["races"] += races.run(problem, entered, ceilings, device, seconds, judge)
        result["seconds"] = round(time.monotonic() - begun, 1)
        keep(result)


def main() -> None:
    """Race one part."""
    asked = harness.options(
        __doc__,
        part={"type": int, "choices": PARTS, "required": True, "help": "which of the three"},
        seconds={"type": float, "default": 0.2, "help": "for each race"},
        minutes={"type": float, "default": 8.0, "help": "after which no other race begins"},
        list={"action": "store_true", "help": "print what would be raced"},
    )
    chosen = list(listed(asked.part))
    if asked.list:
        print("\n".join(f"{p.name} {'/'.join(p.costs)}" for p in chosen))
        return
    if not ops.cuda_available():
        raise SystemExit("attention_steps.py needs a GPU; --list says what it would race")
    chosen = chosen[:4] if asked.quick else chosen
    begun = harness.begun(asked.threads, "cuda")
    about: dict[str, Any] = {}
    last: dict[str, Any] = {}

    def keep(found: dict[str, Any]) -> None:
        last.update(found)
        parts = {str(asked.part): {**found, **about}}
        harness.add("attention_steps", {**begun, "parts": parts}, asked)

    with machine.gauged(about, "cuda"):
        ceilings = machine.ceilings("cuda", 1.0)
        about["ceilings"] = ceilings._asdict()
        race(chosen, peers(), ceilings, "cuda", asked.seconds, asked.minutes, keep)
    keep(last)


if __name__ == "__main__":
    main()
