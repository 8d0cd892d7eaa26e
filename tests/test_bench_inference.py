"""Predictions are raced by wall-clock time, also with all sentences in one batch."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from twofold.core.bench import timing

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """Import the script, which finds the others beside it."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_inference

    return bench_inference


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_predictions_are_timed_by_the_clock(bench, monkeypatch, device):
    """On a GPU each is waited for; no cache is flushed before it, which would hide work."""
    said = []
    monkeypatch.setattr(timing, "waited", lambda call: lambda: said.append("waited") or call())
    monkeypatch.setattr(timing, "come_to_rest", lambda: None)
    times = bench.raced({"a": lambda: said.append("called")}, device, 0.0, {})
    assert len(times["a"]) == timing.FEWEST
    assert said[:2] == (["waited", "called"] if device == "cuda" else ["called", "called"])


@pytest.mark.parametrize("number, batches", [(512, (16, 64, 256, 512)), (20, (16, 20))])
def test_one_of_theirs_takes_all_sentences_at_once(bench, monkeypatch, number, batches):
    """As ours does where they fit; no batch is larger than the number of sentences."""
    monkeypatch.setattr(bench, "Peer", lambda config: bench.torch.nn.Identity())
    found = bench.theirs("default", [np.zeros(3, np.int64)] * number, "cpu")
    assert list(found) == [f"PyTorch eager, batches of {n}" for n in batches]


def test_a_result_is_written_after_every_size(bench, monkeypatch, tmp_path, capsys):
    """A failing contender is named and costs no other its times; a cut-off run leaves a result."""
    written = tmp_path / "a.json"
    monkeypatch.setattr(
        sys, "argv", ["bench_inference.py", "--seconds", "0", "--json", f"{written}"]
    )
    monkeypatch.setattr(bench, "SENTENCES", 4)
    monkeypatch.setattr(bench.ops, "cuda_available", lambda: False)
    monkeypatch.setattr(bench.harness, "use_threads", lambda n: None)
    monkeypatch.setattr(bench.machine, "product_rates", lambda seconds: {})
    monkeypatch.setattr(timing, "come_to_rest", lambda: None)
    monkeypatch.setattr(bench, "ours", lambda size, *_: {"twofold": fails[size]})

    def torch_is_gone(*given):
        raise RuntimeError("out of\nresources")

    def cut_off():
        found = json.loads(written.read_text())
        assert list(found["races"]) == ["default, 4 sentences"]
        raise KeyboardInterrupt

    fails = {"default": torch_is_gone, "MiniLM": cut_off}
    monkeypatch.setattr(bench, "theirs", lambda *_: {"PyTorch eager": lambda: None})
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    found = json.loads(written.read_text())
    assert found["reasons"] == {
        "default, 4 sentences": {"twofold": "RuntimeError: out of resources"}
    }
    assert list(found["races"]["default, 4 sentences"]) == ["PyTorch eager"]
    fails["MiniLM"] = lambda: None
    monkeypatch.setattr(bench, "theirs", lambda *_: {"PyTorch eager": torch_is_gone})
    bench.main()
    found = json.loads(written.read_text())
    assert list(found["races"]) == ["MiniLM, 4 sentences"]
    assert found["races"]["MiniLM, 4 sentences"]["twofold"]["ratio"] == 1.0
    assert "PyTorch eager did not run: RuntimeError" in capsys.readouterr().out
