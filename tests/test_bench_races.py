"""What a race remembers, counts and keeps."""

import itertools
import json
from types import SimpleNamespace

import pytest
from small_races import CEILINGS, COST, SMALL, of_the_command, raced
from typer.testing import CliRunner

from twofold.core.bench import races
from twofold.core.bench.contenders import Contender
from twofold.core.cli import app


def test_a_judge_remembers_what_it_said_of_a_name_an_operator_and_a_dtype():
    asked, judge = [], races.Judge()
    for _ in range(2):
        for key in itertools.product("ab", "xy", ("float32", "bfloat16")):
            name, operator, dtype = key
            rival = SimpleNamespace(
                name=name, foreign=False, fault=lambda problem, key=key: asked.append(key) or key
            )
            assert judge(rival, SimpleNamespace(operator=operator, dtype=dtype)) == key
    assert len(asked) == 8


def test_a_result_has_what_was_counted_and_inputs_rotate(monkeypatch):
    seen, raced_with = [], []

    def timed(calls, *rest):
        seen.clear()
        for call in calls["rival"]:
            call()
        raced_with.append(set(seen))
        return {"rival": [1.0]}

    def rival(x):
        seen.append(x.data_ptr())
        return x.softmax(-1)

    problem = SMALL["softmax"]
    monkeypatch.setattr(races.timing, "race", timed)
    for race in raced(problem, [Contender("rival", rival)]):
        cost = problem.costs[race["pass"]]
        assert (race["bytes"], race["operations"]) == (cost.bytes, cost.operations)
        assert race["least_ms"] == CEILINGS.least(cost) * 1e3
        assert (race["operator"], race["dtype"]) == ("softmax", "float32")
    assert len(raced_with[0]) == races.INPUTS == 2
    figures = races._figures({"a": [1.0], "b": [1.0]}, COST, CEILINGS, {"a": 5, "b": 0})
    assert figures["a"]["peak_bytes"] == 5 and "peak_bytes" not in figures["b"]


def test_who_fails_while_it_is_timed_is_named_beside_those_that_did_not_begin():
    calls = []

    def tires(x):
        calls.append(x)
        if len(calls) > 5:
            raise RuntimeError("no\n  more " + 400 * "!")
        return x.softmax(-1)

    def begins_badly(x):
        raise RuntimeError("no\n  more " + 400 * "?")

    rivals = [Contender("tires", tires), Contender("away", missing="it is not installed")]
    rivals.append(Contender("begins badly", begins_badly))
    rivals.append(Contender("sound", lambda x: x.softmax(-1)))
    forward, _ = raced(SMALL["softmax"], rivals)
    assert forward["reasons"].keys() == {"tires", "away", "begins badly"}
    assert forward["reasons"]["tires"].startswith("forward: RuntimeError: no more !!!")
    assert forward["reasons"]["begins badly"].startswith("RuntimeError: no more ???")
    assert len(forward["reasons"]["tires"]) == len(forward["reasons"]["begins badly"]) == 300
    assert forward["contenders"].keys() == {"sound"} and forward["wrong"] == []


def test_what_was_raced_is_written_though_a_later_race_ends_all(tmp_path, monkeypatch):
    run, begun, path = races.run, [], tmp_path / "r.json"

    def ends(problem, *rest):
        if begun:
            raise KeyboardInterrupt
        begun.append(problem)
        yield from run(problem, *rest)

    monkeypatch.setattr(races, "run", ends)
    arguments = ["bench", "softmax", "dropout", "--quick", "--no-judge", "--json", str(path)]
    assert CliRunner().invoke(app, arguments).exit_code == 130
    found = json.loads(path.read_text())["bench"]
    assert found["command"] == "twofold bench softmax dropout --no-judge --quick"
    first = next(p for p in of_the_command()[1] if p.operator in ("softmax", "dropout"))
    assert {race["operator"] for race in found["races"]} == {first.operator}
    assert [race["pass"] for race in found["races"]] == list(first.costs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--plots", "FILE", "--limit", "0"],
            "--plots is 'FILE'; it must be a folder that can be written to",
        ),
        (
            ["--growth", "--against", "a:b", "--limit", "0"],
            "--against is given; it must not be beside --growth",
        ),
        (["--predict", "H200", "--plots", "x"], "--plots is given; it must not be beside --predi"),
        (["--predict", "H200", "--limit", "1"], "--limit is given; it must not be beside --predi"),
        (["--predict", "H200", "--against", "a:b"], "--against is given; it must not be beside"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    said = CliRunner().invoke(app, ["bench", *arguments])
    assert said.exit_code == 2 and words in " ".join(said.stderr.split())
