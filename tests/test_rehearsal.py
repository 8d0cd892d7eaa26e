"""Scripts that need a GPU run on what Python takes for one, and pages read their results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rehearsed import CALLS, ROOT


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """Return the folder of results, one from each script, all of which succeeded."""
    folder = tmp_path_factory.mktemp("rehearsed")
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "rehearsed.py", folder],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def left_out(found):
    """Yield what a result says, anywhere, about contenders that were not timed."""
    for name, value in found.items() if isinstance(found, dict) else enumerate(found):
        if name in ("left_out", "reasons"):
            yield from value.values() if isinstance(value, dict) else ()
        if isinstance(value, (dict, list)):
            yield from left_out(value)


def test_everybody_races_and_is_right(rehearsed):
    names = sorted({name for name, _ in CALLS})
    assert sorted(path.stem for path in rehearsed.iterdir()) == names
    for name in names:
        found = json.loads((rehearsed / f"{name}.json").read_text())
        assert found["ran_on"]["gpu"] == "NVIDIA H200" and found["command"]
        assert [reason for reason in left_out(found) if reason and reason != {}] == [], name
    variants = json.loads((rehearsed / "attention_variants.json").read_text())
    assert [len(variants[name]) for name in ("kernels", "tiles", "features")] == [4, 6, 8]
    assert len(
        json.loads((rehearsed / "attention_steps.json").read_text())["parts"]["2"]["left_out"]
    )


def test_pages_read_what_scripts_write(rehearsed, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import attention_measured
    import collect
    import gpu_tables
    import gpu_variants
    import harness

    monkeypatch.setattr(harness, "OF_GPUS", tmp_path)
    for module in (attention_measured, gpu_tables, gpu_variants):
        monkeypatch.setattr(module, "GPU", tmp_path)
    (rehearsed / "bench_inference.json").rename(rehearsed / "inference.json")
    written = {path.name.partition("-")[0] for path in collect.collect([rehearsed], False)}
    assert written == {name for name, _ in CALLS} - {"bench_inference"} | {"inference"}
    assert attention_measured.kernels().count("\n| 128 | full |") == 1
    assert attention_measured.copies().count("\n| 256 | causal |") == 2
    assert attention_measured.copies().count(" | backward | ") == 4
    assert attention_measured.tuned().count("| dk_dv |") == 2
    assert "TFLOP/s" in attention_measured.limits()
    assert "| twofold, Triton |" in "\n".join(gpu_tables.steps())
    assert "| head_dim 64, length 4096, causal |" in "\n".join(gpu_tables.attention())
    operators = gpu_tables.operators()
    assert any(x.startswith("| 16 → 32 forward gelu | 0 | 0 | 0: 32×32, 4 w") for x in operators)
    assert any(x.startswith("| layer_norm R=43690 C=768 bfloat16 backward |") for x in operators)
