"""A GPU's results are filed where the pages look, merged by kind."""

import json
import tarfile
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ON = {"date": "2026-02-03", "cpu": "a CPU", "gpu": "A GPU", "torch": "2.11.0", "threads": 2}
OLDER = ON | {"date": "2026-01-01"}
CEILINGS = {"bandwidth": 1.0, "rate": 2.0}


@pytest.fixture
def collect(monkeypatch, tmp_path):
    """Import the script, with results going to a folder of the test's."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import collect
    import harness

    monkeypatch.setattr(harness, "OF_GPUS", tmp_path / "gpu")
    (tmp_path / "gpu").mkdir()
    return collect


def raced(*operators, on=ON):
    races = [
        {"operator": operator, "problem": "N=1", "dtype": "float32", "pass": "forward", "at": on}
        for operator in operators
    ]
    made = f"twofold bench {' '.join(operators)}"
    return {"bench": {"ran_on": on, "command": made, "ceilings": CEILINGS, "races": races}}


def write(folder, **results):
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        (folder / f"{name.replace('__', '-')}.json").write_text(json.dumps(result))
    return folder


def pack(folder):
    """Put a folder's files into an archive, as on_gpu.sh does, and nothing else."""
    with tarfile.open(folder / "results.tar.gz", "w:gz") as archive:
        for path in sorted(folder.glob("*.json")):
            archive.add(path, f"./{path.name}")
            path.unlink()
    return folder


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "gpu").iterdir())


def result(tmp_path, name):
    return json.loads((tmp_path / "gpu" / name).read_text())


def test_races_of_several_operators_become_one_result(collect, tmp_path):
    """From several calls, in archives or files."""
    one = pack(write(tmp_path / "one", bench__attention=raced("attention", "linear")))
    two = write(tmp_path / "two" / "loose", bench__others=raced("linear", "softmax"))
    two = two.parent
    collect.collect([one, two], False)
    assert names(tmp_path) == ["bench-A-GPU-2026-02-03.json"]
    found = result(tmp_path, "bench-A-GPU-2026-02-03.json")["bench"]
    assert [r["operator"] for r in found["races"]] == ["attention", "linear", "softmax"]
    assert found["command"] == "twofold bench attention linear; twofold bench linear softmax"
    assert found["ran_on"] == ON


def test_what_was_measured_on_two_days_has_the_later_date(collect, tmp_path):
    parts = [
        {"ran_on": ON | {"date": day}, "command": str(n), "parts": {str(n): {"races": []}}}
        for n, day in ((2, "2026-02-04"), (1, "2026-02-03"))
    ]
    one = write(tmp_path / "one", attention_steps=parts[0])
    collect.collect([one, write(tmp_path / "two", attention_steps=parts[1])], False)
    (name,) = names(tmp_path)
    assert name == "attention_steps-A-GPU-2026-02-04.json"
    assert result(tmp_path, name)["parts"].keys() == {"1", "2"}


def test_a_later_call_is_added_to_what_is_there(collect, tmp_path):
    features = {"ran_on": ON, "command": "--features", "features": [1]}
    kernels = {"ran_on": ON, "command": "--kernels", "kernels": [2]}
    collect.collect([write(tmp_path / "one", attention_variants=features)], False)
    collect.collect([write(tmp_path / "two", attention_variants=kernels)], False)
    found = result(tmp_path, "attention_variants-A-GPU-2026-02-03.json")
    assert found["features"] == [1] and found["kernels"] == [2]
    assert found["command"] == "--features; --kernels"


def test_runs_are_named_by_their_precision(collect, tmp_path):
    run = {"side": "triton", "seed": 0, "test_accuracy": 0.8}
    given = {f"train-movie-{p}": run for p in ("float32", "bfloat16")}
    with pytest.raises(SystemExit, match="does not say what it ran on"):
        collect.collect([write(tmp_path / "one", **given)], False)
    collect.collect([write(tmp_path / "one", machine={"ran_on": ON})], False)
    found = result(tmp_path, "train-movie-A-GPU-2026-02-03.json")
    assert [r["precision"] for r in found["runs"]] == ["bfloat16", "float32"]
    assert found["ran_on"] == ON and "--precision bfloat16 --seed 0" in found["command"]


def test_a_result_that_lacks_what_pages_have_is_not_put_there(collect, tmp_path, capsys):
    """Unless it may take that from the older result, which it then names."""
    old = raced("attention", "softmax", on=OLDER)
    old["bench"]["note"] = "by hand"
    write(tmp_path / "gpu", **{"bench-A-GPU-2026-01-01": old})
    new = write(tmp_path / "one", bench__attention=raced("attention"))
    assert collect.collect([new], False) == []
    assert "lacks softmax, which bench-A-GPU-2026-01-01.json has" in capsys.readouterr().out
    assert names(tmp_path) == ["bench-A-GPU-2026-01-01.json"]
    collect.collect([new], True)
    found = result(tmp_path, "bench-A-GPU-2026-02-03.json")["bench"]
    assert {r["operator"]: r["at"]["date"] for r in found["races"]} == {
        "attention": "2026-02-03", "softmax": "2026-01-01",
    }  # fmt: skip
    carried = {"from": "bench-A-GPU-2026-01-01.json", "what": ["softmax"], "note": "by hand"}
    assert found["carried"] == [carried] and found["ran_on"] == ON and "note" not in found


def test_runs_of_fewer_seeds_are_not_put_there(collect, tmp_path, capsys):
    runs = [{"precision": "float32", "seed": seed, "test_accuracy": 0.8} for seed in (0, 1)]
    write(tmp_path / "gpu", **{"train-movie-A-GPU-2026-01-01": {"ran_on": OLDER, "runs": runs}})
    new = write(tmp_path / "one", **{"train-movie": {"ran_on": ON, "runs": runs[:1]}})
    assert collect.collect([new], False) == []
    assert "lacks float32, seed 1, which" in capsys.readouterr().out


def test_nothing_is_carried_over_from_other_versions(collect, tmp_path):
    old = {"ran_on": OLDER | {"torch": "2.10.0"}, "groups": {"all": {"L=1": {}, "L=2": {}}}}
    write(tmp_path / "gpu", **{"attention_tuning-A-GPU-2026-01-01": old})
    new = {"ran_on": ON, "groups": {"long": {"L=2": {}}}}
    assert collect.collect([write(tmp_path / "one", attention_tuning=new)], True) == []
    new["groups"]["small"] = {"L=1": {}}
    assert collect.collect([write(tmp_path / "one", attention_tuning=new)], False)


def test_calls_that_were_not_tuned_in_time_are_missed(collect, tmp_path, capsys):
    """Whatever group they were in; with --carry, a group keeps the calls not measured again."""
    old = {"ran_on": OLDER, "groups": {"long": {"L=1": {"dq": 1}, "L=2": {"dq": 1}}}}
    write(tmp_path / "gpu", **{"attention_tuning-A-GPU-2026-01-01": old})
    new = {"ran_on": ON, "groups": {"long": {"L=2": {"dq": 2}}, "small": {"L=3": {"dq": 2}}}}
    given = write(tmp_path / "one", attention_tuning=new)
    assert collect.collect([given], False) == []
    assert "attention_tuning lacks L=1, which" in capsys.readouterr().out
    collect.collect([given], True)
    found = result(tmp_path, "attention_tuning-A-GPU-2026-02-03.json")["groups"]
    assert found == {"long": {"L=1": {"dq": 1}, "L=2": {"dq": 2}}, "small": {"L=3": {"dq": 2}}}


def test_models_that_were_not_raced_in_time_are_missed(collect, tmp_path, capsys):
    """Whatever their sizes were: races are matched by model."""
    titles = {"a, 64 sentences": {"us": {"ratio": 1.0}}, "b, 64 sentences": {"us": {"ratio": 2.0}}}
    shares = {title: {"us": 0.5} for title in titles}
    old = {"ran_on": OLDER, "races": titles, "utilisation": shares}
    write(tmp_path / "gpu", **{"train_step-A-GPU-2026-01-01": old})
    again = {"a, 512 sentences": {"us": {"ratio": 3.0}}}
    new = {"ran_on": ON, "races": again, "utilisation": {"a, 512 sentences": {"us": 0.6}}}
    given = write(tmp_path / "one", train_step=new)
    assert collect.collect([given], False) == []
    assert "train_step lacks race of b, which" in capsys.readouterr().out
    collect.collect([given], True)
    found = result(tmp_path, "train_step-A-GPU-2026-02-03.json")
    kept = {"b, 64 sentences": titles["b, 64 sentences"], **again}
    assert found["races"] == kept and found["utilisation"].keys() == kept.keys()


def test_two_machines_are_not_one(collect, tmp_path):
    other = raced("linear", on=ON | {"gpu": "Another"})
    given = write(tmp_path / "one", bench__a=raced("attention"), bench__b=other)
    with pytest.raises(SystemExit, match="of two machines"):
        collect.collect([given], False)
    assert names(tmp_path) == []


def test_what_is_no_result_is_named(collect, tmp_path, capsys):
    given = write(tmp_path / "one", verify={}, inference={"ran_on": ON, "races": {}})
    (given / "train_step.json").write_text('{"ran_on')
    collect.collect([given], False)
    said = capsys.readouterr().out
    assert "no page has verify.json" in said and "train_step.json is cut short" in said
    assert names(tmp_path) == ["inference-A-GPU-2026-02-03.json"]
