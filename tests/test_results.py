"""Results of the scripts: the options that they name, and how they are merged."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

from twofold.core.bench import problems, timing

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ON = {"date": "2026-01-31", "cpu": "a CPU", "gpu": "a GPU", "torch": "2.11.0"}


@pytest.fixture
def harness(monkeypatch):
    """Import what the scripts share, so that they can be imported beside it."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import harness

    return harness


@pytest.fixture
def on_cpu(monkeypatch):
    """Make races that are meant for a GPU run on the CPU."""
    race = timing.race
    monkeypatch.setattr(timing, "race", lambda calls, _, *rest: race(calls, "cpu", *rest))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def fails_at(nth, call):
    """Return a call that fails the n-th time."""
    made = []

    def called(*given):
        made.append(given)
        if len(made) >= nth:
            raise RuntimeError("out of resources")
        return call(*given)

    return called


@pytest.mark.parametrize(
    "given, said",
    [
        ([], "python benchmarks/bench_x.py"),
        (["--quick", "--only", "a b"], "python benchmarks/bench_x.py --quick --only 'a b'"),
        (["--json", "/a/b.json", "--save"], "python benchmarks/bench_x.py --save"),
        (["--save", "--json=/a/b.json"], "python benchmarks/bench_x.py --save"),
    ],
)
def test_a_result_says_how_it_was_asked_for(harness, monkeypatch, given, said):
    """But not which file it was to go to."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/bench_x.py", *given])
    assert harness.begun(1, "cpu")["command"] == said


def test_a_report_shows_the_command(harness, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_x.py", "--quick"])
    asked = argparse.Namespace(json=tmp_path / "found.json", save=False)
    races = {"a race": harness.summary({"a": [0.1], "b": [0.2]}, "a")}
    harness.report("x", {**harness.begun(1, "cpu"), "races": races}, asked)
    assert "python benchmarks/bench_x.py --quick" in capsys.readouterr().out
    assert json.loads(asked.json.read_text())["command"] == "python benchmarks/bench_x.py --quick"


def test_what_one_machine_measures_lies_in_one_result(harness, tmp_path):
    """Midnight does not split it: the latest date is kept."""
    asked = argparse.Namespace(json=tmp_path / "found.json", save=False)
    first = {"ran_on": ON, "command": "one", "parts": {"1": {"races": [1]}}, "tiles": [1, 2]}
    later = {"ran_on": ON | {"date": "2026-02-01"}, "command": "two", "parts": {"2": {}}}
    for result in (first, later, later):
        harness.add("x", result, asked)
    found = json.loads(asked.json.read_text())
    assert found == {
        "ran_on": later["ran_on"], "command": "one; two", "tiles": [1, 2],
        "parts": {"1": {"races": [1]}, "2": {}},
    }  # fmt: skip
    for changed in ({"gpu": "another GPU"}, {"torch": "2.13.0"}):
        other = {"ran_on": ON | changed, "command": "three", "parts": {"3": {}}}
        harness.add("x", other, asked)
        assert json.loads(asked.json.read_text()) == other, "another machine's is begun anew"


def test_a_result_is_whole_or_as_it_was(harness, monkeypatch, tmp_path):
    """If a part is killed at its time limit while writing."""
    path = tmp_path / "found.json"
    harness.put(path, "before")

    def ended(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", ended)
    with pytest.raises(KeyboardInterrupt):
        harness.put(path, "after")
    assert path.read_text() == "before"


ROWS = torch.arange(1.0, 9.0).reshape(2, 4)
SHAPE = problems.softmax(2, 4, "float32")
WRONG = "at this size 1 of 2 rows are not twofold's"


def off(rows):
    """Return rows, the last of them changed."""
    return torch.cat([rows[:-1], 2 * rows[-1:]])


def test_variants_of_attention_lose_who_fails_or_is_wrong(harness, on_cpu):
    """A wrong one is not timed; an output may come with what is saved for backward."""
    import attention_variants

    calls = {
        "plain": lambda: (ROWS, None),
        "Hopper": fails_at(3, lambda: ROWS),
        "never": fails_at(1, lambda: ROWS),
        "wrong": fails_at(2, lambda: off(ROWS)),
    }
    found = attention_variants.raced(calls, SHAPE, "forward", 0.0)
    assert list(found["tera_operations_per_second"]) == ["plain"]
    assert found["left_out"].pop("wrong").startswith(WRONG)
    assert found["left_out"] == dict.fromkeys(("Hopper", "never"), "RuntimeError: out of resources")


def test_tiles_that_fail_or_are_wrong_are_left_out(harness, on_cpu):
    """A tile that skips some of the work would be the quickest."""
    import tuning

    made = {(1,): lambda: ROWS, (2,): fails_at(3, lambda: ROWS), (4,): lambda: off(ROWS)}
    found = tuning.timed(
        [((1,), ""), ((2,), ""), ((3,), "too large"), ((4,), "")],
        made.__getitem__, lambda: ROWS, SHAPE, 0.0,
    )  # fmt: skip
    assert found["median_ms"].keys() == {"(1,)", tuning.TABLE}
    assert found["left_out"].pop("(4,)").startswith(WRONG)
    assert found["left_out"] == {"(2,)": "RuntimeError: out of resources", "(3,)": "too large"}
    assert len(tuning.told(found)) == 2


def test_a_kernel_that_never_ran_is_raced_apart(harness, on_cpu):
    """Apart from those whose figures it might cost; one that fails while timed costs no other's."""
    import linear_variants

    whole = linear_variants.makers(True)
    assert not any(who.startswith("Hopper") for who in whole)
    assert all(who.startswith("Hopper") for who in linear_variants.hoppers())
    rows = torch.randn(8, 4, dtype=torch.bfloat16)
    weight = torch.randn(6, 4, dtype=torch.bfloat16)
    product = linear_variants.Product(rows, weight.mT, rows.new_empty(8, 6))
    made = {"good": linear_variants.of_torch, "bad": fails_at(3, linear_variants.of_torch)}
    found = linear_variants.raced(product, made, 0.0)
    assert list(found["tera_operations_per_second"]) == ["torch", "good"]
    assert found["left_out"] == {"bad": "RuntimeError: out of resources"}
    assert "left out bad" in linear_variants.told(found)
