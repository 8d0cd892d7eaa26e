"""What pages say in figures and code is that of the results and the sources."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = [BENCHMARKS / "readme.py", *sorted(BENCHMARKS.glob("*_page.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_page_is_what_its_script_writes(script):
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_link_of_a_page_leads_somewhere():
    root = BENCHMARKS.parent
    pages = [root / "README.md", root / "reference" / "README.md", *BENCHMARKS.glob("*.md")]
    assert len(pages) >= len(SCRIPTS)
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)[)#]", page.read_text())
        if "://" not in link
    ]
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


def test_kernels_of_a_step_are_told_where_they_were_profiled(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_tables

    taken = {"gemm_kernel": [3.0, 72.0], "adam_kernel": [1.0, 1.0]}
    lines = gpu_tables.of_kernels({"kernels": {"a race": {gpu_tables.OURS: taken}}})
    assert lines[0].startswith("| a race") and lines[-1] == ""
    assert lines[2:4] == [
        "| `gemm_kernel` | 72 | 3.000 | 75.0% |",
        "| `adam_kernel` | 1 | 1.000 | 25.0% |",
    ]
    assert gpu_tables.of_kernels({}) == []
    failed = {"kernels": {"a race": {gpu_tables.OURS: {"RuntimeError: no": []}}}}
    assert gpu_tables.of_kernels(failed) == []


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # there may be no GPU to profile
def test_a_profile_that_fails_costs_no_times(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_steps

    def step():
        raise RuntimeError("no such luck")

    assert list(gpu_steps.kernels(step).values()) == [[]]
