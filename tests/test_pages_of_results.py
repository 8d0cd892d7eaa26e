"""Pages can be written from any result of a GPU: partial, wrong, new, of another machine."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MODULES = (
    "committed", "attention_measured", "raced", "gpu_tables", "speed_page", "readme",
    "attention_page",
)  # fmt: skip
LINEAR, SOFTMAX = "R=16384 C=768 F=3072 gelu", "R=8192 C=4096"


class Pages:
    """The scripts, with their results in a folder that a test may change."""

    def __init__(self, folder, monkeypatch):
        self.gpu = folder / "gpu"
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr(importlib.import_module("harness"), "RESULTS", folder)
        monkeypatch.setattr(importlib.import_module("harness"), "OF_GPUS", self.gpu)
        for name in (name for name in MODULES if (BENCHMARKS / f"{name}.py").exists()):
            spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
            setattr(self, name, module)

    def change(self, kind, how, named=None):
        """Change the GPU's result of a kind, or write the changed one under another name."""
        (path,) = self.gpu.glob(f"{kind}-NVIDIA-H200-2026-11-27.json")
        found = json.loads(path.read_text())
        how(found)
        (self.gpu / f"{named}.json" if named else path).write_text(json.dumps(found))

    def change_races(self, problem, how, passes="forward"):
        """Change the races of a problem."""

        def changed(found):
            for race in found["bench"]["races"]:
                if race["problem"] == problem and race["pass"] == passes:
                    how(race)

        self.change("bench", changed)

    def readme_race(self):
        return self.readme.race()

    def speed(self):
        tables = self.gpu_tables
        of = (tables.attention, tables.operators, tables.steps, tables.accuracy)
        return "\n".join(line for section in of for line in section())

    def attention(self):
        measured = self.attention_measured
        return "\n".join(
            (measured.kernels(), measured.changes(), measured.copies(), measured.tuned(),
             measured.limits())
        )  # fmt: skip


@pytest.fixture
def made(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks" / "results"
    unread = shutil.ignore_patterns("*.png", "*.txt", "peers.json", "tightness.json")
    shutil.copytree(BENCHMARKS / "results", folder, ignore=unread)
    return Pages(folder, monkeypatch)


def row(page, start):
    """Return the cells of the only line that begins like this in a GPU's table on a page."""
    (found,) = (line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in found.strip("|").split("|")][start.count("|") + 1 :]


def unwrapped(page):
    """Return a page as one line."""
    return " ".join(page.split())


def wrong(race):
    race["wrong"], race["reasons"]["twofold"] = ["twofold"], "out[0] is 1; it must be 2"
    del race["contenders"]["twofold"]["ratio"]


def test_who_is_wrong_in_a_race_is_left_out_of_it(made):
    assert row(made.speed(), "linear")[0] == "1.54 to 1.61"
    made.change_races(LINEAR, wrong)
    for page in (made.readme_race(), made.speed()):
        assert "Left out, as twofold was not within its contract's bound: linear" in unwrapped(page)
        assert LINEAR in unwrapped(page)
    assert row(made.readme_race(), "linear, forward")[1] == "1.61"
    assert row(made.speed(), "linear")[:3] == ["1.61", "1.57", "1.14 to 1.30"]


def test_who_is_wrong_in_every_race_has_empty_cells(made):
    for problem in (LINEAR, "R=16384 C=2048 F=8192 gelu"):
        for passes in ("forward", "backward"):
            made.change_races(problem, wrong, passes)
    assert row(made.readme_race(), "linear, forward")[1] == ""
    assert row(made.speed(), "linear") == [""] * 5


def test_a_race_that_twofold_did_not_finish_is_left_out(made):
    made.change_races(LINEAR, lambda race: race["contenders"].pop("twofold"))
    assert row(made.readme_race(), "linear, forward")[1] == "1.61"
    assert "Left out, as twofold did not run: linear" in made.speed()


def test_where_torch_did_not_run_there_is_no_ratio(made):
    def alone(race):
        del race["contenders"]["torch"]
        race["contenders"]["twofold"]["ratio"] = 1.0

    assert row(made.readme_race(), "softmax, forward")[1] == "0.34 to 0.69"
    made.change_races(SOFTMAX, alone)
    assert row(made.readme_race(), "softmax, forward")[1] == "0.66 to 0.69"
    assert row(made.speed(), "softmax")[:2] == ["0.66 to 0.69", "0.45 to 1.07"]
    for page in map(unwrapped, (made.readme_race(), made.speed())):
        assert "Without torch, which did not run: " in page
        assert f"softmax {SOFTMAX} bfloat16 forward" in page


def test_a_step_has_no_ratio_to_ourselves(made):
    def alone(found):
        for race in found["races"].values():
            for who in [who for who in race if who.startswith("PyTorch eager")]:
                del race[who]
            race["twofold, bfloat16"]["ratio"] = 1.0

    made.change("train_step", alone)
    title = "default, batch 64 × length 24"
    assert row(made.readme_race(), f"training step, {title}")[1] == ""
    assert row(made.speed(), f"{title} | twofold, bfloat16")[1] == ""


def test_torchs_time_is_that_of_the_quickest_of_its_ways(made):
    """A fused optimizer is one of them."""
    assert row(made.readme_race(), "optimizers, step") == ["6.21 to 7.53", "0.32 to 0.88"]
    assert row(made.speed(), "optimizers")[0] == "0.32 to 0.88"
    assert row("\n".join(made.speed_page.operator_by_operator()), "optimizers")[0] == "6.21 to 7.53"


def test_a_kernel_that_did_not_run_has_an_empty_cell(made):
    def without(who):
        def changed(found):
            for race in found["kernels"]:
                if race["head_dim"] == 128 and race["length"] == 512:
                    race["tera_operations_per_second"].pop(who, None)

        return changed

    made.change("attention_variants", without("torch cuDNN"))
    assert made.readme_race()
    assert row(made.speed(), "head_dim 128, length 512") == ["303", "", "465", "1.53", ""]
    assert row(made.attention(), "128 | full | 512")[-3:] == ["", "1.53", ""]
    made.change("attention_variants", without("Hopper 128 keys, 2 stages, early"))
    assert made.readme_race()
    assert row(made.speed(), "head_dim 128, length 512") == ["303", "", "", "", ""]
    assert "length 512, “128 keys, 2 stages, early” did not run" in made.speed()


def test_a_result_may_have_been_stopped_before_its_tiles(made):
    tile = "64 | full | 128×64, 8 warps, 3 stages"

    def without(found):
        for race in found["tiles"]:
            race["tera_operations_per_second"].pop("descriptors 128×64, 8 warps, 3 stages", None)

    made.change("attention_variants", without)
    assert row(made.attention_measured.copies(), tile) == ["429", "444", "", "373"]
    stopped = "attention_variants-NVIDIA-H200-2026-12-01"
    made.change("attention_variants", lambda found: found.pop("tiles"), stopped)
    assert row(made.attention_measured.copies(), tile) == ["429", "444", "", "373"]
    made.change("attention_variants", lambda found: found.pop("tiles"))
    assert made.attention_measured.copies() == "Not measured yet."


def test_a_newer_result_of_a_machine_replaces_what_it_has_of_an_older_one(made):
    def linear_alone(found):
        found["bench"]["races"] = [
            race for race in found["bench"]["races"]
            if race["operator"] == "linear" and race["pass"] == "forward"
        ]  # fmt: skip
        found["bench"]["ran_on"] |= {"date": "2026-12-01", "torch": "2.99.0"}
        found["bench"]["command"] = "twofold bench linear"
        for race in found["bench"]["races"]:
            race["contenders"]["twofold"]["median_ms"] /= 2

    made.change("bench", linear_alone, "bench-NVIDIA-H200-2026-12-01")
    assert row(made.readme_race(), "linear, forward")[1] == "0.77 to 0.80"
    assert row(made.speed(), "linear")[:3] == ["0.77 to 0.80", "0.73 to 0.79", "1.14 to 1.30"]
    assert row(made.speed(), "softmax")[0] == "0.34 to 0.69"
    for said in map(unwrapped, (made.readme_race(), made.speed())):
        assert "PyTorch 2.11.0" in said and "PyTorch 2.99.0" in said, "both are shown"
    assert "`twofold bench linear`, from `benchmarks/results/gpu/bench-NVIDIA" in made.speed()
    made.change("bench", lambda found: None, "bench-NVIDIA-H200-2026-12-02")
    assert "2.99.0" not in made.speed(), "nothing of it is shown any more"


def test_another_gpu_is_named_and_its_tables_stand_apart(made):
    def other(found):
        found.get("bench", found)["ran_on"]["gpu"] = "NVIDIA H100"

    alone = made.speed()
    for kind in ("bench", "train_step", "attention_variants"):
        made.change(kind, other, f"{kind}-NVIDIA-H100-2026-11-27")
    for page in (made.readme_race(), made.speed()):
        assert "NVIDIA H100; NVIDIA H200; all with driver" in unwrapped(page)
    for start in ("| linear |", "| head_dim 64, length 1024 |", "| BERT-base"):
        assert made.speed().count(start) == 2 * alone.count(start) > 0
    assert made.attention()


def test_each_machine_has_one_result_the_latest(made):
    made.change("train_step", lambda found: None, "train_step-NVIDIA-H200-2026-12-01")
    (found,) = made.committed.every("train_step", made.gpu)
    assert found[0].stem.endswith("2026-12-01")
    ran = [result["ran_on"] for _, result in made.committed.every("train_step")]
    assert len({(on["cpu"], on["blas"]) for on in ran}) == len(ran) > 1


def test_a_result_says_by_which_command_it_was_made(made):
    told = "python benchmarks/bench_inference.py --quick --save"
    assert "bench_inference.py`, whose result does not say with which options" in made.speed()
    made.change("inference", lambda found: found.update(command=told))
    assert f"`{told}`, from `benchmarks/results/gpu/inference" in made.speed()


def test_sizes_of_predictions_are_kept_apart(made):
    assert row(made.readme_race(), "prediction, default, 64 sentences")[0] == ""
    assert row(made.readme_race(), "prediction, default, 512 sentences")[1] == ""


def test_tiles_of_a_call_that_several_groups_have_timed_are_in_one_line(made):
    assert row(made.attention(), "4, 8, 4096, 256 | dk_dv")[1].startswith("32×64/8/4 6.475; ")
    ms = {"table": 2.0, "(64, 64, 4, 3, 0, 0)": 1.0}
    one = {"table": "(64, 64, 4, 2, 0, 0)", "median_ms": ms}
    call = "batch=1 heads=2 length=3 head_dim=4 causal=True dtype=bfloat16"
    groups = {"long": {"command": "python x.py", call: {"dq": one}}}
    made.change("attention_tuning", lambda found: found.update(groups=groups))
    assert row(made.attention(), "1, 2, 3, 4, causal | dq") == [
        "64×64/4/2 2.000",
        "64×64/4/3 1.000",
    ]
    assert "`python x.py`" in made.attention()
    del ms["table"]
    made.change("attention_tuning", lambda found: found.update(groups=groups))
    assert row(made.attention(), "1, 2, 3, 4, causal | dq")[0] == "64×64/4/2 did not run"


def test_gains_and_limits_are_those_of_the_results(made):
    early = row(made.attention_measured.changes(), "early | 128 | full")
    assert early[3:] == ["+0.3", "-0.4", "+3.3"]
    assert (
        row(made.attention_measured.changes(), "that grid over pairs | 128 | causal")[0] == "-8.7"
    )
    assert "799 TFLOP/s and 4.17 TB/s in" in made.attention_measured.limits()
    assert "765 TFLOP/s and 4.15 TB/s in" in made.attention_measured.limits()
