"""The figures and code on the pages are those of the results and the sources."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from twofold.core.bench import timing
from twofold.core.bench.costs import Ceilings

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

    taken = {"adam_kernel": [1.0, 1.0], "gemm_kernel": [3.0, 72.0]}  # as in a sorted file
    lines = gpu_tables.of_kernels({"kernels": {"a race": {gpu_tables.OURS: taken}}})
    assert lines[0].startswith("| a race") and lines[-1] == ""
    assert lines[2:4] == [
        "| `gemm_kernel` | 72 | 3.000 | 75.0% |",
        "| `adam_kernel` | 1 | 1.000 | 25.0% |",
    ]
    assert gpu_tables.of_kernels({}) == []
    failed = {"kernels": {"a race": {gpu_tables.OURS: {"RuntimeError: no": []}}}}
    assert gpu_tables.of_kernels(failed) == []


def test_growth_on_a_gpu_stands_behind_that_on_a_cpu(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import speed_page

    before = speed_page.growth()
    _, found = speed_page.newest("growth")
    found["bench"]["ran_on"] |= {"gpu": "A GPU", "driver": "1"}
    (tmp_path / "growth-A-GPU-2026-01-01.json").write_text(json.dumps(found))
    monkeypatch.setattr(speed_page, "OF_GPUS", tmp_path)
    lines = speed_page.growth()
    assert lines[: len(before) + 1] == [*before, ""] and len(lines) == 2 * len(before) + 1
    assert "Memory is that of twofold and torch. " in lines[-1] and "A GPU, driver 1" in lines[-1]


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # there may be no GPU to profile
def test_a_profile_that_fails_costs_no_times(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_steps

    def step():
        raise RuntimeError("no such luck")

    assert list(gpu_steps.kernels(step).values()) == [[]]


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """Race steps that are made and taken instantly; record what was made and raced, in order."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_steps

    asked = argparse.Namespace(
        threads=1,
        quick=True,
        only=None,
        precisions=["bfloat16"],
        json=tmp_path / "a.json",
        limit=1e9,
    )
    events, fails, race = [], set(), timing.race

    def contenders(problem, *given):
        def make(name):
            def made():
                events.append(f"{problem.name} {name}")
                if name in fails:
                    raise RuntimeError("does not compile")
                return lambda: None

            return made

        named = {"compiled": True, "eager": False, "ours": False}
        return {n: gpu_steps.Contender(make(n), compiles) for n, compiles in named.items()}

    def raced(calls, *given):
        events.append(sorted(calls))
        return race(calls, *given)

    monkeypatch.setattr(gpu_steps, "contenders", contenders)
    monkeypatch.setattr(gpu_steps.machine, "ceilings", lambda *given: Ceilings(1e10, 1e11))
    monkeypatch.setattr(timing, "race", raced)
    return gpu_steps, asked, events, fails


def test_what_compiles_is_made_when_all_others_are_raced(steps, reference):
    gpu_steps, asked, events, _ = steps
    result = gpu_steps.race(asked, reference)
    both = ["eager", "ours"]
    assert events == [
        "default eager", "default ours", both, "BERT-base eager", "BERT-base ours", both,
        "default compiled", ["compiled", *both], "BERT-base compiled", ["compiled", *both],
    ]  # fmt: skip
    assert all(set(race) == {"compiled", *both} for race in result["races"].values())
    assert json.loads(asked.json.read_text()) == result
    assert not any(result["reasons"].values()) and len(result["reasons"]) == 2


def test_no_compiling_is_begun_that_would_end_too_late(steps, reference):
    gpu_steps, asked, events, _ = steps
    asked.limit = gpu_steps.COMPILING - 1
    result = gpu_steps.race(asked, reference)
    assert not any("compiled" in event for event in events)
    assert [*result["reasons"].values()] == [{"compiled": "no time left"}] * 2
    assert all(set(race) == {"eager", "ours"} for race in result["races"].values())


def test_who_did_not_run_is_said_where_nobody_did(steps, reference, capsys):
    gpu_steps, asked, _, _ = steps
    asked.limit = -1.0
    gpu_steps.say(gpu_steps.race(asked, reference))
    said = capsys.readouterr().out
    assert "default, batch 4 × length 5: ours did not run: no time left" in said


def test_a_step_that_does_not_compile_costs_no_times(steps, reference):
    gpu_steps, asked, events, fails = steps
    fails.add("compiled")
    result = gpu_steps.race(asked, reference)
    assert [*result["reasons"].values()] == [{"compiled": "RuntimeError: does not compile"}] * 2
    assert sum(isinstance(event, list) for event in events) == 2
