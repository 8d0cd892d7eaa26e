"""Scripts that need a GPU, run on what Python takes for one: `python tests/rehearsed.py FOLDER`.

Time on a GPU is dear: a name or an argument that would end a script there should be found here.
Tensors say that they are on a GPU and lie on the CPU, kernels are interpreted, those for Hopper are
replaced by torch's, a CUDA graph is the function it was captured from, and torch compiles nothing.
Tensors are tiny, whatever their problem is called. Results are written to FOLDER, by script.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).parent.parent
GPU = torch.device("cuda", 0)
SAID = {torch.Tensor.is_cuda.__get__: True, torch.Tensor.device.__get__: GPU}
# The scripts, by the names of their results; an existing result is added to.
CALLS = (
    ("attention_variants", "--kernels --tiles --features --seconds 0"),
    ("linear_variants", "--seconds 0"),
    ("linear_variants", "--hopper --seconds 0"),
    ("attention_tuning", "--small --seconds 0"),
    ("attention_tuning", "--head-dims 64 --causal 1 --seconds 0"),
    ("tile_tuning", "--seconds 0"),
    ("attention_steps", "--part 2 --minutes 0"),
    ("bench_inference", "--seconds 0"),
)


class Pretending(TorchFunctionMode):
    """Answers queries to torch as a GPU would, and computes on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in SAID:
            return SAID[function]
        if function is torch.Tensor.get_device:
            return GPU.index
        kwargs = {name: at_home(x) for name, x in (kwargs or {}).items() if name != "pin_memory"}
        return function(*map(at_home, args), **kwargs)


def at_home(x):
    """Return "cpu" for the GPU, and everything else unchanged."""
    return "cpu" if isinstance(x, (str, torch.device)) and str(x).startswith("cuda") else x


class Event:
    """A point in time."""

    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, later):
        return 1e3 * max(later.at - self.at, 1e-6)


class Graph:
    """A captured function, which runs when captured and at every replay but the first."""

    replays = 0

    def replay(self):
        self.replays += 1
        if self.replays > 1:
            sys._getframe(1).f_locals["self"].function()


def pretend():
    """Make torch.cuda, torch.compile and Triton's device those of an H200."""
    os.environ["TRITON_INTERPRET"] = "1"  # here: a process that imports this may have a GPU
    h200 = SimpleNamespace(multi_processor_count=132, L2_cache_size=60 * 2**20)
    nothing = contextlib.nullcontext
    for name, new in {
        "is_available": lambda: True, "get_device_name": lambda *_: "NVIDIA H200",
        "get_device_properties": lambda *_: h200, "current_device": lambda: 0,
        "synchronize": nothing, "Event": Event, "CUDAGraph": Graph,
        "graph": lambda *_, **__: nothing(), "graph_pool_handle": lambda: (0, 0),
        "current_stream": nothing, "set_stream": nothing, "_lazy_init": lambda: None,
    }.items():  # fmt: skip
        setattr(torch.cuda, name, new)

    importlib.import_module("torch._dynamo")  # before it would find what follows

    drawn, torch.compile = torch.Generator, lambda function, **_: function
    torch.Generator = lambda device="cpu": drawn("cpu")
    torch.nn.attention.sdpa_kernel = lambda *_: nothing()  # whichever a CPU has

    from twofold.core import ops
    from twofold.kernels import attention_hopper

    def hoppers(q, k, v, out, lse, scale, causal, variant):
        attend = torch.nn.functional.scaled_dot_product_attention
        out.copy_(attend(q, k, v, is_causal=causal, scale=scale))

    ops.triton_device, attention_hopper.forward = lambda: "cuda", hoppers


def shrink():
    """Make problems' tensors tiny, and repetitions few; names and costs stay."""
    from twofold.core.bench import machine, problems, timing

    tiny = {
        "attention": lambda B, H, K, M, N, D, *rest: (1, 2, 2, 9, 9, D, *rest),
        "layer_norm": lambda R, C, *rest: (3, 32, *rest),
        "rms_norm": lambda R, C, *rest: (3, 32, *rest),
        "linear": lambda R, C, F, *rest: (*((R, C, F) if R < 64 else (20, 16, 16)), *rest),
        "cross_entropy": lambda R, C, *rest: (3, 17, *rest),
    }

    def small(plain, sizes):
        return lambda *given: dataclasses.replace(plain(*given), make=plain(*sizes(*given)).make)

    for name, sizes in tiny.items():
        setattr(problems, name, small(getattr(problems, name), sizes))
    timing.FLUSHED, timing.FLUSHES, timing.WARMUP, timing.FEWEST = 64, 1, 0, 1
    timing.come_to_rest, timing.AWAKE = lambda: None, 0.0
    machine.COPIED["cuda"], machine.MULTIPLIED["cuda"] = 2**16, 32


def shrunk(name):
    """Import a script and make its races small."""
    script = importlib.import_module(name)
    if name == "attention_variants":
        script.LENGTHS = (4096,)
    elif name == "linear_variants":
        script.SHAPES, script.WITH_GELU, script.SPLITS = ((16, 32),), ((16, 32),), (1, 2)
        script.TILES = (script.Tile(32, 32, 16, 8, 4, 2),)
        script.products.__defaults__ = (48,)
        script.on_hopper = lambda x, how: script.of_torch(x)
    elif name == "bench_inference":
        script.SENTENCES, script.LENGTHS = 4, (3, 6)
        script.SIZES.pop("MiniLM")
        script.SIZES["default"] |= {"d_model": 16, "num_heads": 2, "d_ff": 24, "num_layers": 1}
    elif name.endswith("tuning"):
        pool = SimpleNamespace(map=lambda function, given, chunksize: list(map(function, given)))
        context = SimpleNamespace(Pool=lambda number: contextlib.nullcontext(pool))
        script.tuning.multiprocessing = SimpleNamespace(get_context=lambda kind: context)
    if name == "attention_tuning":
        of_all = script.tiles
        script.tiles, script.SMALL = lambda *given: list(of_all(*given))[:2], script.SMALL[:1]
    elif name == "tile_tuning":
        whole = script.races()[::9]
        script.races = lambda: [race._replace(tiles=race.tiles[:2]) for race in whole]
    return script


def main(folder):
    """Run all; return how many raised, whose tracebacks are printed."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    pretend()
    shrink()
    from twofold.core.verify.strict import strict_interpreter

    failed = 0
    with Pretending(), strict_interpreter(poison=False, races=False, uninitialised=False):
        for name, options in CALLS:
            sys.argv = [f"{name}.py", *options.split(), "--json", f"{folder}/{name}.json"]
            try:
                shrunk(name).main()
            except Exception:  # the other scripts go on
                print(name, options, traceback.format_exc(), file=sys.stderr)
                failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
