"""Mutants: contracts catch them; the catalogue of faults, and the list of equivalents."""

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twofold.core import ops
from twofold.core.cli import app
from twofold.core.verify import equivalents, faults, mutants, report
from twofold.core.verify.equivalents import Equivalent

TOP = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def trials(reference, triton):
    """Return one small case on each side; a GPU's does not survive a fork."""
    contract = report.contract("rotary")
    small = dataclasses.replace(contract.pinned[0], batch=1, heads=1, length=3)
    few = dataclasses.replace(contract, pinned=[small])
    sides = [side for side in (reference, triton) if side.device == "cpu"]
    return [mutants.Trial(few, side, 0) for side in sides]


WRONG = {"reference": "turned *= across → turned /= across", "triton": "x1 * cos → x1 / cos"}


def divided(side):
    """Return a mutant of rotary that divides where it should multiply."""
    found = mutants.of_operator("rotary", side.name)
    return next(m for m in found if m.what == WRONG[side.name])


def test_a_fault_is_killed_and_leaves_this_process_as_it_is(trials):
    for trial in trials:
        right = trial.side.rotary.forward
        (verdict,) = trial.verdicts([divided(trial.side)])
        assert verdict.fate == mutants.KILLED and verdict.by
        assert trial.side.rotary.forward is right
        assert any(question.kills for question in trial.questions)


def test_what_does_not_end_or_does_not_load_is_killed(trials):
    for trial in trials:
        right = mutants.of_operator("rotary", trial.side.name)[0]
        fates = {
            "while True: pass": (mutants.TIMEOUT, "does not end"),
            "import nowhere": (mutants.KILLED, "ModuleNotFoundError"),
            "import os; os._exit(3)": (mutants.KILLED, "the process ended"),
        }
        faulty = [dataclasses.replace(right, source=source) for source in fates]
        verdicts = list(trial.verdicts(faulty, jobs=2))
        assert len(verdicts) == len(fates)
        for verdict in verdicts:
            fate, by = fates[verdict.mutant.source]
            assert verdict.fate == fate and by in verdict.by


def test_what_is_right_survives_every_question(trials):
    for trial in trials:
        mutant = mutants.of_operator("rotary", trial.side.name)[0]
        right = dataclasses.replace(mutant, source=(TOP / mutant.file).read_text())
        (verdict,) = trial.verdicts([right])
        assert verdict.fate == mutants.SURVIVED
        claims = {question.claim for question in trial.questions}
        assert claims == {"", *trial.contract.claims()}


def test_a_fault_that_no_case_reaches_is_asked_nothing(trials):
    for trial in trials:
        mutant = divided(trial.side)
        unreached = dataclasses.replace(mutant, line=1, source="import nowhere")
        reached = dataclasses.replace(mutant, source="import nowhere")
        fates = [verdict.fate for verdict in trial.verdicts([unreached, reached])]
        assert fates == [mutants.SURVIVED, mutants.KILLED]


def test_what_imports_the_changed_file_is_loaded_again(triton):
    if triton.device == "cuda":
        pytest.skip("CUDA does not outlive a fork")
    found = mutants.of_operator("attention", "triton")
    lost = next(m for m in found if m.function == "load" and m.kind == "comparison")
    contract = report.contract("attention")
    few = dataclasses.replace(contract, pinned=contract.pinned[:1])
    (verdict,) = mutants.Trial(few, triton, 0).verdicts([lost])
    assert lost.file == "kernels/attention_parts.py" and verdict.fate == mutants.KILLED


def test_a_gpu_is_refused(triton):
    side = dataclasses.replace(triton, device="cuda")
    with pytest.raises(ValueError, match="CUDA does not outlive a fork"):
        mutants.Trial(report.contract("rotary"), side, 0)


def test_what_is_listed_is_not_run_unless_asked_and_then_must_survive(reference, monkeypatch):
    contract = report.contract("rotary")
    few = dataclasses.replace(contract, pinned=contract.pinned[:1])
    monkeypatch.setattr(report, "contract", lambda operator: few)
    wrong = WRONG["reference"]
    entry = Equivalent("reference/rotary.py", "turn", "*", wrong, "no reason")
    monkeypatch.setattr(equivalents, "EQUIVALENT", (*equivalents.EQUIVALENT, entry))
    for listed, fate in ((False, mutants.EQUIVALENT), (True, mutants.MISJUDGED)):
        verdicts = mutants.judge("rotary", reference, examples=0, listed=listed)
        assert [m for m in mutants.of_operator("rotary", "reference")] == [
            v.mutant for v in verdicts
        ]
        assert {v.fate for v in verdicts if v.mutant.what == wrong} == {fate}
        assert mutants.count(verdicts)[fate] >= 1


def test_the_list_of_equivalents_is_not_stale():
    found = [m for side in ops.SIDES for o in ops.OPERATORS for m in mutants.of_operator(o, side)]
    assert not equivalents.stale(found)
    assert len(set(found)) == len(found)
    entry = Equivalent("kernels/rotary.py", "turn_head", "no such line", "*", "")
    assert not entry.names(found[0])


def test_the_catalogue_is_not_stale_and_says_when_it_is():
    assert not faults.stale(TOP)
    assert len(faults.CATALOGUE) >= 40
    assert {f.operator for f in faults.CATALOGUE} == set(ops.OPERATORS)
    for folder in ("kernels", "reference"):
        for mutant in faults.mutants("attention", TOP, folder):
            compile(mutant.source, mutant.file, "exec")
            assert mutant.source != (TOP / mutant.file).read_text()
            assert (
                mutant.text == (TOP / mutant.file).read_text().splitlines()[mutant.line - 1].strip()
            )
    gone = faults.CATALOGUE[0]._replace(swaps=(("no such text", ""),))
    assert faults.stale(TOP, [gone]) == [gone]


def test_a_sample_takes_from_every_function_and_kind_and_is_drawn_from_its_seed():
    found = mutants.of_operator("rotary", "triton")
    drawn = mutants.sample(found, 24, seed=1)
    assert len(drawn) == 24 and {m.function for m in drawn} == {m.function for m in found}
    of_turn = [m.kind for m in drawn if m.function == "turn_head"]
    assert len(set(of_turn)) == len(of_turn)
    assert drawn == mutants.sample(found, 24, seed=1) != mutants.sample(found, 24, seed=2)
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
    assert result["command"] == "twofold verify mutants dropout --examples 0 --sample 6 --seed 0"
    for row in result["operators"]:
        fates = (row[fate] for fate in ("killed", "equivalent", "beyond", "survived"))
        assert row["mutants"] == sum(fates) == 6
        assert len(row["survivors"]) == row["survived"]
        assert all(survivor["at"] in said.output for survivor in row["survivors"])
    assert said.exit_code == int(not result["holds"])
