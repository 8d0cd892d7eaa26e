"""The steps to the present kernel: each computes attention and is raced against the others."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from twofold.core.bench import problems
from twofold.core.bench.costs import Ceilings
from twofold.core.verify.contract import judge
from twofold.core.verify.foreign import subjects
from twofold.core.verify.strict import strict_interpreter

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def script(name):
    """Import a script, which finds the others beside it."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


for name in (
    "harness", "committed", "pages", "attention_step_kernels", "attention_variants",
    "attention_measured",
):  # fmt: skip
    script(name)
steps, races = script("attention_step_kernels"), script("attention_steps")
page = script("attention_page")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("length", [20, 150])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", [*steps.STEPS, *steps.ASIDE])
def test_every_step_holds_the_contract(triton, name, causal, length, dtype):
    """Forward and backward, over several tiles with and without an edge, at a padded head_dim."""
    subject = subjects.subject(steps.attention((steps.STEPS | steps.ASIDE)[name]), "attention")
    case = subject.fitting(subject.contract.pinned[0], dtype)
    keys = length if causal else length + 70
    case = replace(
        case, batch=1, heads=2, head_dim=24, causal=causal, seqlen_q=length, seqlen_k=keys
    )
    with strict_interpreter():
        found = judge(subject.contract, subject.side, case)
    assert [f.fault for f in found if f.fault] == []
    assert subject.ever >= {"out", "dq", "dk", "dv"}


def test_all_shapes_are_in_some_part():
    listed = [p for part in races.PARTS for p in races.listed(part)]
    assert len({(p.name, *p.costs) for p in listed}) == len(listed)
    for dtype, lengths in (("bfloat16", races.LENGTHS), ("float16", (512, 4096))):
        for L in lengths:
            for D in (64, 128, 256):
                of = [p for p in listed if f"N={L} D={D}" in p.title and p.dtype == dtype]
                if dtype == "float16" and L == 512:
                    continue
                big = [p for p in of if p.title.startswith(f"B={16384 // L} ")]
                assert len(big) == 4, "causal and full, forward and backward"
    assert sum("N=48 " in p.title for p in listed) == 2


def test_a_part_is_raced_and_what_is_too_late_is_named(triton, tmp_path):
    shape = problems.attention(1, 1, 1, 20, 20, 16, "bfloat16", True)
    chosen = [replace(shape, costs={n: shape.costs[n]}) for n in ("forward", "backward")]
    kept = []
    with strict_interpreter():
        races.race(chosen, [], Ceilings(1e10, 1e11), triton.device, 0.0, 10.0, kept.append)
    forward, backward = kept[-1]["races"]
    own = {"twofold", steps.IN_MEMORY}
    assert set(forward["contenders"]) == own | set(steps.STEPS)
    assert set(backward["contenders"]) == own | set(steps.BACKWARD_STEPS)
    for race in kept[-1]["races"]:
        # Scores and weights in memory are rounded to bfloat16: more than the contract allows.
        assert set(race["reasons"]) <= {steps.IN_MEMORY}
    races.race(chosen, [], Ceilings(1e10, 1e11), triton.device, 0.0, -1.0, kept.append)
    assert kept[-1]["races"] == [] and len(kept[-1]["left_out"]) == 2


def test_scores_that_fill_the_memory_are_not_tried():
    large = problems.attention(1, 32, 32, 16384, 16384, 64, "bfloat16")
    assert "GB" in next(c.missing for c in races.rivals(large) if c.name == steps.IN_MEMORY)


def test_programs_of_a_group_of_heads_begin_together():
    assert page.grouped([1, 2], 3, 2) == [2, 2, 1, 1, 2, 1]
    assert page.grouped([1, 2], 2, 1) == [2, 1, 2, 1], "each head by itself"


def test_programs_begin_where_a_slot_is_free():
    assert page.makespan([1, 1, 1, 3], 2) == 4, "the longest last"
    assert page.makespan([3, 1, 1, 1], 2) == 3


def test_scores_of_seen_tiles_are_counted():
    """Of four tiles of queries, the last sees all keys, the first as many as it has queries."""
    row = {"kernel": "forward_kernel", "block_m": 1024, "block_n": 512}
    assert page.LENGTH == 4096
    assert page.visited(row, True, True) == 1024 * 1024 * (1 + 2 + 3 + 4)
    assert page.visited(row, True, False) == page.visited(row, False, True) == 4096 * 4096
    wide = {**row, "kernel": "dk_dv_kernel", "block_n": 2048}
    assert page.visited(wide, True, True) == 2048 * (2048 + 4096)


def test_measurements_stand_on_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(page.attention_measured, "GPU", tmp_path)
    assert "not measured yet" in page.measured("forward")
    race = {
        "problem": "B=4 H=16 M=4096 N=4096 D=128 causal", "dtype": "bfloat16", "pass": "forward",
        "contenders": {
            "twofold": {"tera_operations_per_second": 321.4},
            "scores in memory": {"tera_operations_per_second": 12.0},
        },
        "reasons": {"scores in memory": "out of bounds"},
    }  # fmt: skip
    found = {"ran_on": {"gpu": "a GPU"}, "parts": {"1": {"races": [race]}}}
    (tmp_path / "attention_steps-a-GPU-2026-01-01.json").write_text(json.dumps(found))
    said = page.measured("forward")
    assert "| measured TFLOP/s | 128 causal |" in said
    assert "| present kernel | 321 |" in said
    assert "| scores in memory | 12* |" in said and "a GPU" in said
    assert "321" not in page.measured("backward")
