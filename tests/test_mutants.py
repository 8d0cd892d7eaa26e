"""Mutants: what the small faults are, that contracts see them, and the list of the others."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from twofold.core import ops
from twofold.core.cli import app
from twofold.core.verify import equivalents, mutants, mutation, report

KERNEL = '''
@triton.jit
def kernel(x_ptr, n, BLOCK: tl.constexpr = 2):
    """1 + 1."""
    at: tl.int64 = tl.arange(0, BLOCK)
    inside = (at < n) & (at > 2)  # μ
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.max(x - 1.5, axis=0)
    total += tl.where(inside, x * 3, 0.0)
    if BLOCK:
        tl.store(x_ptr, total / n, mask=inside)


def launch(x):
    return x + 1
'''


def changes(what):
    """Return the lines that the mutants of KERNEL which are called `what` have instead."""
    before, found = KERNEL.splitlines(), []
    for mutant in mutation.mutants(KERNEL, "kernels/x.py", mutation.jitted):
        if mutant.what == what:
            after = mutant.source.splitlines()
            assert len(before) == len(after)
            (pair,) = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            assert pair[0] == before[mutant.line - 1] and pair[0].strip() == mutant.text
            found.append(pair[1].strip())
    return found


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("at < n → at <= n", "inside = ((at <= n)) & (at > 2)  # μ"),
        ("at > 2 → at >= 2", "inside = (at < n) & ((at >= 2))  # μ"),
        ("(at < n) & (at > 2) → at > 2", "inside = (at > 2)  # μ"),
        ("(at < n) & (at > 2) → (at < n) | (at > 2)", "inside = ((at < n) | (at > 2))  # μ"),
        ("2 → 3", "inside = (at < n) & (at > 3)  # μ"),
        ("2 → 1", "inside = (at < n) & (at > 1)  # μ"),
        (
            "tl.load(x_ptr + at, mask=inside, other=0.0): drop other",
            "x = tl.load(x_ptr + at, mask=inside).to(tl.float32)",
        ),
        (
            "drop .to(tl.float32) of tl.load(x_ptr + at, mask=inside, other=0.0)",
            "x = tl.load(x_ptr + at, mask=inside, other=0.0)",
        ),
        ("tl.max → tl.min", "total = tl.min(x - 1.5, axis=0)"),
        ("x - 1.5 → x", "total = tl.max(x, axis=0)"),
        ("0 → 1", "total = tl.max(x - 1.5, axis=1)"),
        ("x * 3 → x / 3", "total += tl.where(inside, (x / 3), 0.0)"),
        ("tl.where: arguments swap", "total += tl.where(inside, 0.0, x * 3)"),
        ("total / n → total * n", "tl.store(x_ptr, (total * n), mask=inside)"),
        ("tl.store(x_ptr, total / n, mask=inside): drop mask", "tl.store(x_ptr, total / n)"),
        ("drop tl.store(x_ptr, total / n, mask=inside)", "pass"),
        ("BLOCK → not BLOCK", "if (not BLOCK):"),
    ],
)
def test_a_mutant_changes_what_it_says_and_nothing_else(what, line):
    assert changes(what) == [line]


def test_only_bodies_of_the_functions_asked_for_change():
    found = mutation.mutants(KERNEL, "kernels/x.py", mutation.jitted)
    assert {m.function for m in found} == {"kernel"}
    assert not {m.text for m in found} & {'"""1 + 1."""', "at: tl.int64 = tl.arange(0, BLOCK)"}
    assert len({(m.function, m.text, m.what) for m in found}) == len(found)
    for mutant in found:
        compile(mutant.source, mutant.file, "exec")


def test_backward_functions_are_found_with_what_they_call():
    source = "def check(x): 1\ndef f(x): 2\ndef g(x): return f(x)\ndef backward(x): check(f(x))"
    taken = mutation.mutants(source + "\ndef h(): 3", "reference/x.py", lambda f: True)
    assert {m.function for m in taken} == {"check", "f", "h"}
    taken = mutation.mutants(
        source + "\ndef h(): 3", "reference/x.py", mutation.differentiates(source)
    )
    assert {m.function for m in taken} == {"f"}


@pytest.fixture(scope="module")
def trials(reference, triton):
    """One small case on each side; a GPU's does not outlive a fork."""
    contract = report.contract("rotary")
    small = dataclasses.replace(contract.pinned[0], batch=1, heads=1, length=3)
    few = dataclasses.replace(contract, pinned=[small], properties={})
    found = [mutants.Trial(few, side, 0) for side in (reference, triton) if side.device == "cpu"]
    for trial in found:
        trial.cases = [(0.0, case) for _, case in trial.cases]  # the first run also imports
    return found


def rotary(side, what):
    """Return the first mutant of rotary with this change."""
    return next(m for m in mutants.of_operator("rotary", side.name) if m.what == what)


def test_a_fault_is_killed_and_leaves_this_process_as_it_is(trials):
    for trial in trials:
        right = trial.side.rotary.forward
        verdict = trial.verdict(rotary(trial.side, "x1 * cos → x1 / cos"))
        assert verdict.fate == mutants.KILLED and "it must be" in verdict.by
        assert trial.side.rotary.forward is right


def test_what_changes_no_number_survives_and_the_list_says_why(trials, monkeypatch):
    for trial in trials:
        listed = [
            m for m in mutants.of_operator("rotary", trial.side.name) if equivalents.reason(m)
        ]
        verdict = trial.verdict(listed[-1])
        assert verdict.fate == mutants.EQUIVALENT and verdict.by
        with monkeypatch.context() as patch:
            patch.setattr(equivalents, "EQUIVALENT", ())
            assert trial.verdict(listed[-1]).fate == mutants.SURVIVED


def test_what_does_not_end_or_does_not_load_is_killed(trials):
    for trial in trials:
        right = mutants.of_operator("rotary", trial.side.name)[0]
        for source, fate, by in (
            ("while True: pass", mutants.TIMEOUT, "does not end"),
            ("import nowhere", mutants.KILLED, "ModuleNotFoundError"),
            ("import os; os._exit(3)", mutants.KILLED, "the process ended"),
        ):
            verdict = trial.verdict(dataclasses.replace(right, source=source))
            assert verdict.fate == fate and by in verdict.by


def test_a_gpu_is_refused(triton):
    side = dataclasses.replace(triton, device="cuda")
    with pytest.raises(ValueError, match="CUDA does not outlive a fork"):
        mutants.Trial(report.contract("rotary"), side, 0)


@pytest.mark.parametrize("operator", ops.OPERATORS)
def test_the_list_of_equivalents_is_not_stale(operator):
    for side in ops.SIDES:
        assert not equivalents.stale(mutants.of_operator(operator, side))


def test_a_sample_takes_from_every_function_and_is_drawn_from_its_seed():
    found = mutants.of_operator("rotary", "triton")
    drawn = mutants.sample(found, 9, seed=1)
    assert len(drawn) == 9 and {m.function for m in drawn} == {m.function for m in found}
    assert drawn == mutants.sample(found, 9, seed=1) != mutants.sample(found, 9, seed=2)
    assert mutants.sample(found, 10**6, seed=1) == found


def test_the_command_counts_and_lists(triton, tmp_path, monkeypatch):
    contract = report.contract("dropout")
    few = dataclasses.replace(contract, pinned=contract.pinned[:1], properties={})
    monkeypatch.setattr(report, "contract", lambda operator: few)
    monkeypatch.setattr(equivalents, "EQUIVALENT", ())
    how = ["--sample", "6", "--examples", "0", "--json", str(tmp_path / "m.json")]
    monkeypatch.setattr(ops, "SIDES", ("reference",) if triton.device == "cuda" else ops.SIDES)
    said = CliRunner().invoke(app, ["verify", "mutants", "dropout", *how])
    result = json.loads((tmp_path / "m.json").read_text())["mutants"]
    for row in result["operators"]:
        assert row["mutants"] == row["killed"] + row["equivalent"] + row["survived"] == 6
        assert len(row["survivors"]) == row["survived"]
        assert all(survivor["at"] in said.output for survivor in row["survivors"])
    assert said.exit_code == int(not result["holds"])
