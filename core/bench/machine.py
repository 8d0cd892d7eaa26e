"""The machine of a race: its name and versions, its clocks and temperature, its limits."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from twofold.core.bench import timing
from twofold.core.bench.costs import Ceilings
from twofold.core.verify.peers.peer import installed

PACKAGES = ("numpy", "torch", "triton", "liger-kernel")
COPIED = {"cpu": 2**27, "cuda": 2**30}  # bytes: more than any cache holds
MULTIPLIED = {"cpu": 1024, "cuda": 8192}  # rows and columns
GAUGES = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
# Published peaks (data sheets: bytes and dense bfloat16 operations a second) of one chip for each
# target, and of others by name.
PUBLISHED = {
    "sm_80": ("A100 80 GB SXM", Ceilings(2.039e12, 312e12)),
    "sm_90a": ("H100 SXM", Ceilings(3.35e12, 989e12)),
    "H200": ("H200 SXM, sm_90a", Ceilings(4.8e12, 989e12)),
    "sm_100a": ("B200", Ceilings(8.0e12, 2250e12)),
    "gfx942": ("MI300X", Ceilings(5.3e12, 1307e12)),
}


def ran_on(threads: int, device: str) -> dict[str, Any]:
    """Return the machine and the versions that a result was obtained with."""
    gpu = {"gpu": gpu_name(), "driver": _driver()} if device == "cuda" else {}
    versions = {name: installed(name) for name in PACKAGES}
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_name(),
        **gpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "blas": _blas(),
        "python": platform.python_version(),
        **{name: found for name, found in versions.items() if found},
    }


def _blas() -> str:
    """Return NumPy's BLAS, and the processor that its kernels are for.

    OPENBLAS_CORETYPE, if set, overrides the library's choice of kernels.
    """
    found = (each for each in threadpool_info() if each["user_api"] == "blas")
    parts = ("internal_api", "version", "architecture")
    return ", ".join(" ".join(str(each.get(part) or "") for part in parts) for each in found)


def _cpu_name() -> str:
    try:
        found = processor(Path("/proc/cpuinfo").read_text())
    except OSError:
        found = ""
    return found or platform.processor() or platform.machine()


def processor(cpuinfo: str) -> str:
    """Return the first processor's name in /proc/cpuinfo, "" if it has none.

    Family and model are appended to a name without a number, as in virtual machines: two
    generations of "AMD EPYC" differ by a factor of two in matrix products.
    """
    first = cpuinfo.split("\n\n")[0].splitlines()
    said = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in first)}
    name = said.get("model name", "")
    if not name or re.search(r"\d", name) or not {"cpu family", "model"} <= said.keys():
        return name
    return f"{name}, family {said['cpu family']} model {said['model']}"


def gpu_name() -> str:
    """Return the name of the GPU that torch sees."""
    import torch

    return torch.cuda.get_device_name()


def _driver() -> str:
    return gauges(("driver_version",)).get("driver_version", "")


def gauges(names: tuple[str, ...] = GAUGES) -> dict[str, str]:
    """Return clocks (MHz), temperature (°C) and power (W) of the GPU, as far as available."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    values = said.splitlines()[0].split(", ") if said.strip() else []
    return dict(zip(names, values, strict=False))


@contextlib.contextmanager
def gauged(result: dict[str, Any], device: str) -> Iterator[None]:
    """Record a GPU's gauges before and after in a result."""
    if device == "cuda":
        result["gauges"] = {"before": gauges()}
    yield
    if device == "cuda":
        result["gauges"]["after"] = gauges()


def published(target: str) -> tuple[str, Ceilings]:
    """Return the name of a chip and its data sheet's limits.

    Raises:
        ValueError: there is no such target.
    """
    if target not in PUBLISHED:
        raise ValueError(f"--predict is {target!r}; it must be one of {', '.join(PUBLISHED)}")
    return PUBLISHED[target]


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Give NumPy's BLAS and torch `n` threads each."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        with threadpool_limits(n):
            yield
    finally:
        torch.set_num_threads(before)


def ceilings(device: str, seconds: float) -> Ceilings:
    """Measure the machine's limits: bytes a second of a copy, operations of a matrix product.

    On a GPU the product is torch's in bfloat16, on a CPU the faster of NumPy's and torch's in
    float32.
    """
    import torch

    half = COPIED[device] // 2
    source = torch.empty(half, dtype=torch.int8, device=device).fill_(1)
    target = torch.empty_like(source)
    multiply, operations = _products(device)
    times = timing.race({"copy": [lambda: target.copy_(source)], **multiply}, device, seconds)
    taken = {name: float(np.median(t)) for name, t in times.items()}
    product = min(t for name, t in taken.items() if name != "copy")
    return Ceilings(2 * half / taken["copy"], operations / product)


def product_rates(seconds: float) -> dict[str, float]:
    """Measure matrix products of NumPy and torch on one CPU thread: float32 operations a second.

    They ship different libraries, which can differ by a factor of two on the same processor.
    """
    multiply, operations = _products("cpu")
    with threads(1):
        times = timing.race(multiply, "cpu", seconds)
    return {name: operations / float(np.median(t)) for name, t in times.items()}


def _products(device: str) -> tuple[dict[str, timing.Calls], float]:
    """Return calls that multiply two square matrices on a device, and the operations of each."""
    import torch

    n = MULTIPLIED[device]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
    calls: dict[str, timing.Calls] = {"PyTorch": [lambda: a @ b]}
    if device == "cpu":
        x, y = a.numpy(), b.numpy()
        calls["NumPy"] = [lambda: x @ y]
    return calls, 2.0 * n**3
