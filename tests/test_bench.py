"""Races: what is counted, what is timed, and that a failing contender stops no other."""

import json

import numpy as np
import pytest
import torch
from small_races import CEILINGS, COST, SMALL, of_the_command, raced
from typer.testing import CliRunner

from twofold.core.bench import (
    baseline,
    contenders,
    costs,
    machine,
    plots,
    problems,
    races,
    timing,
    torch_calls,
)
from twofold.core.bench.contenders import Contender
from twofold.core.cli import app


@pytest.mark.parametrize("name", SMALL)
def test_every_contender_runs_every_pass(name):
    problem = SMALL[name]
    found = raced(problem, list(contenders.of(problem.operator, "cpu")), races.Judge())
    assert [race["pass"] for race in found] == list(problem.costs)
    for race in found:
        assert {"twofold", "torch"} <= set(race["contenders"])
        assert race["contenders"]["torch"]["ratio"] == 1.0
        assert all(f["calls"] >= timing.FEWEST for f in race["contenders"].values())
        assert not {"twofold"} & set(race["reasons"])
        assert not any("at this size" in words for words in race["reasons"].values())


@pytest.mark.parametrize(
    ("problem", "ours"),
    [
        (problems.attention(1, 2, 2, 7, 7, 16, "float32", causal=True),
         {"twofold", "twofold through torch's autograd", "a first Triton kernel"}),
        (SMALL["layer_norm fused"], {"twofold", "twofold through torch's autograd"}),
        (SMALL["rms_norm fused"], {"twofold", "twofold through torch's autograd"}),
        (SMALL["optimizers"], {"twofold", "torch, fused"}),
    ],
    ids=lambda x: x.operator if isinstance(x, problems.Problem) else "",
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method.:DeprecationWarning")  # torch.compile
def test_contenders_of_a_gpu_run(problem, ours, triton):
    """Except those that compile and other libraries'; on a CPU as a rehearsal, interpreted."""
    of_gpu = [c for c in contenders.of(problem.operator, "cuda") if not c.compiles]
    rivals = [c for c in of_gpu if c.name in ours | {"torch"}]
    for race in raced(problem, rivals, races.Judge(), triton.device):
        forward_alone = {"a first Triton kernel"} if race["pass"] == "backward" else set()
        assert ours - forward_alone <= set(race["contenders"]), race["reasons"]


def test_the_first_kernel_keeps_the_contract_in_the_dtypes_it_races_in(triton):
    first = Contender("a first Triton kernel", baseline.attention)
    for dtype in ("bfloat16", "float16"):
        assert first.fault(problems.attention(1, 2, 2, 7, 7, 16, dtype)) == ""


def test_what_every_side_and_torch_compute_is_the_same():
    """A race is between contenders that do the same: outputs agree within float32's accuracy."""
    for problem in SMALL.values():
        if problem.operator in ("dropout", "optimizers") or "dropout" in problem.title:
            continue  # other random numbers, or nothing returned
        tensors = problem.make(torch.Generator().manual_seed(0), "cpu")
        ours, theirs = (
            rival.passes(problem, tensors) for rival in contenders.of(problem.operator, "cpu")
        )
        name = next(iter(problem.costs))
        if name != "forward":
            continue
        first, second = ours[name](), theirs[name]()
        first = first if problem.operator == "attention_decode" else first[0]
        for x, y in zip(_all(first), _all(second), strict=False):
            assert x.shape == y.shape
            assert np.abs(x - y).max() <= 2.0**-18 * max(np.abs(y).max(), 1)


def _all(found):
    return [np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in _tuple(found)]


def _tuple(found):
    return found if isinstance(found, tuple) else (found,)


def test_one_who_fails_is_named_and_the_others_run():
    def broken(x, weight, bias, eps=1e-5):
        raise RuntimeError("no such luck")

    def constant(x, weight, bias, eps=1e-5):
        return x * 0.0

    rivals = [
        Contender("torch", torch_calls.torch_layer_norm, named=True),
        Contender("broken", broken),
        Contender("constant", constant),
        Contender("away", missing="it is not installed"),
    ]
    forward, backward = raced(SMALL["layer_norm"], rivals, races.Judge())
    assert set(forward["contenders"]) == {"torch", "constant"}
    assert set(forward["reasons"]) == {"broken", "constant", "away"}
    assert "no such luck" in forward["reasons"]["broken"]
    assert "it must be" in forward["reasons"]["constant"]
    assert forward["reasons"]["away"] == "it is not installed"
    assert set(backward["contenders"]) == {"torch"}, "constant has no gradient of weight"


def test_figures_follow_from_times():
    found = races._figures({"torch": [2e-3] * 3, "a": [1e-3] * 3}, COST, CEILINGS, {})
    assert found["a"] == pytest.approx(
        {
            "median_ms": 1.0, "p20_ms": 1.0, "p80_ms": 1.0, "calls": 3, "ratio": 0.5,
            "giga_bytes_per_second": 10.0, "tera_operations_per_second": 0.05, "share": 1.0,
        }
    )  # fmt: skip
    assert found["torch"]["share"] == pytest.approx(0.5)


def test_problems_for_a_gpu_can_be_made_small():
    """Shapes fit together: each problem is made on the CPU if it is small enough."""
    made = 0
    for problem in problems.on_gpu():
        if all(cost.bytes < 2**23 for cost in problem.costs.values()):
            problem.make(torch.Generator().manual_seed(0), "cpu")
            made += 1
    assert made >= 5
    operators = {problem.operator for problem in problems.on_gpu()}
    assert operators == {problem.operator for problem in problems.on_cpu()}


def test_the_command_writes_and_draws(tmp_path):
    path, another = tmp_path / "result.json", "twofold.core.bench.torch_calls:torch_layer_norm"
    said = CliRunner().invoke(
        app,
        ["bench", "layer_norm", "--quick", "--json", str(path), "--plots", str(tmp_path / "p"),
         "--against", another],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    found = json.loads(path.read_text())["bench"]
    assert found["ran_on"]["numpy"] == np.__version__
    assert "--against" in found["command"]
    everyone = {c.name for c in contenders.of("layer_norm", of_the_command()[0], [another])}
    for race in found["races"]:  # on a CPU these three are all
        assert {"twofold", "torch", another} <= set(race["contenders"]) <= everyone
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["ratios.png", "roofline.png"]


def test_speed_is_drawn_over_sizes_that_share_a_curve(tmp_path):
    many = [problems.layer_norm(rows, 8, "float32") for rows in (3, 9, 5)]
    many += [problems.layer_norm(3, 8, "float32", fused=True), problems.softmax(3, 7, "float32")]
    found = [
        race
        for problem in many
        for race in raced(problem, list(contenders.of(problem.operator, "cpu")))
    ]
    curves = plots._curves(found, "layer_norm")
    sizes = {of: [race["size"] for race in curve] for of, curve in curves.items()}
    of = ("C=8 float32, forward", "C=8 float32, backward")
    assert sizes == dict.fromkeys(of, [24, 40, 72]), "one point alone is no curve"
    result = {"ran_on": machine.ran_on(1, "cpu"), "ceilings": CEILINGS._asdict(), "races": found}
    drawn = [path.name for path in plots.draw(result, tmp_path)]
    assert drawn == ["ratios.png", "roofline.png", "speed-layer_norm.png"]


def test_lengths_of_a_race_on_a_gpu_lie_on_curves():
    lengths = {}
    for problem in problems.on_gpu():
        if problem.operator == "attention" and problem.curve:
            lengths.setdefault((problem.curve, problem.dtype), []).append(problem.size)
    assert len(lengths) == 12  # three head_dims, causal and not, two dtypes
    assert all(len(set(sizes)) == len(sizes) for sizes in lengths.values())
    assert sorted(lengths["D=128 causal", "bfloat16"]) == [2**n for n in range(9, 15)]


def test_what_there_is_no_time_for_is_named(tmp_path):
    """Operators take turns, so that the last is raced for as long as the first."""
    path = tmp_path / "result.json"
    said = CliRunner().invoke(
        app, ["bench", "softmax", "dropout", "--limit", "0", "--json", str(path)]
    )
    assert said.exit_code == 0, said.output
    found = json.loads(path.read_text())["bench"]
    listed = [p.name for p in of_the_command()[1] if p.operator in ("softmax", "dropout")]
    assert sorted(found["left"]) == sorted(listed) and "races" not in found
    assert [name.split()[0] for name in found["left"][:3]] == ["softmax", "dropout", "softmax"]
    assert all(name in " ".join(said.output.split()) for name in listed)


def test_a_compiled_contender_is_compiled_for_every_shape():
    """After eight shapes, torch.compile silently runs uncompiled."""
    compiled: list[tuple[int, ...]] = []

    def backend(module, inputs):
        compiled.append(tuple(inputs[0].shape))
        return module.forward

    function = torch.compile(torch_calls.torch_softmax, dynamic=False, backend=backend)
    rival = Contender("compiled", function, named=True, compiles=True)
    plain = Contender("plain", torch_calls.torch_softmax, named=True)
    problem_sizes = range(3, 14)
    for C in problem_sizes:
        raced(problems.softmax(3, C, "float32"), [plain, rival])
    assert {shape[-1] for shape in compiled} == set(problem_sizes)


def test_the_command_predicts_without_a_gpu(tmp_path):
    path = tmp_path / "least.json"
    arguments = ["bench", "softmax_cross_entropy", "--predict", "sm_90a", "--json", str(path)]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    cost = costs.cross_entropy(8192, 8192, 2)["forward and backward"]
    assert f"{machine.PUBLISHED['sm_90a'][1].least(cost) * 1e3:.4f}" in said.output
    assert "H100 SXM, published" in said.output and "nothing was measured" in said.output
    least = json.loads(path.read_text())["predict"]["passes"]
    assert least[0]["operations"] == cost.operations


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pooling"], "operator is 'pooling'; it must be one of attention, "),
        (["--predict", "sm_75"], "--predict is 'sm_75'; it must be one of sm_80"),
        (["--predict", "H200", "--growth"], "--growth is given; it must not be beside --predict"),
        (["linear", "--growth"], "operators is given; it must not be beside --growth"),
        (["layer_norm", "--quick", "--against", "no_such:thing"], "'no_such:thing' cannot be"),
    ],
)
def test_the_command_refuses(arguments, words):
    said = CliRunner().invoke(app, ["bench", *arguments])
    assert said.exit_code == 2
    assert words in " ".join(said.stderr.split())


def test_peers_that_are_not_there_are_listed(monkeypatch):
    monkeypatch.setattr("twofold.core.verify.peers.peer.Peer.version", lambda self: "")
    found = list(contenders._peers("layer_norm"))
    assert found and all("is not installed" in rival.missing for rival in found)


def test_sides_are_not_kept_busy_by_each_other():
    """Rounds rotate, and each contender is timed as often as the others."""
    times = timing.race({name: [lambda: None] for name in "abc"}, "cpu", 0.0)
    assert {len(taken) for taken in times.values()} == {timing.FEWEST}


def test_settings_of_torch_that_a_contender_changes_are_set_back():
    """They are global: seven threads would change every contender's times."""
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()

    def selfish(x):
        torch.set_num_threads(threads + 1)
        torch.set_grad_enabled(False)
        return x.softmax(-1)

    seen = []

    def modest(x):
        seen.append((torch.get_num_threads(), torch.is_grad_enabled()))
        return x.softmax(-1)

    found = raced(SMALL["softmax"], [Contender("selfish", selfish), Contender("modest", modest)])
    assert set(seen) == {(threads, grad)}
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)
    words = "it changes the number of threads and whether gradients are made for all"
    assert words in found[0]["reasons"]["selfish"]


@pytest.mark.parametrize("good", [0, 1, timing.WARMUP + 3])
def test_who_raises_is_out_of_the_race_with_the_reason(good):
    """Whether in warm-up or a later round; the others are timed as before."""
    made, lost = [], {}

    def fails():
        if len(made) >= good:
            raise MemoryError("no more")
        made.append(0)

    calls = {"a": [lambda: None], "b": [fails], "c": [lambda: None]}
    times = timing.race(calls, "cpu", 0.0, lost)
    assert lost == {"b": "MemoryError: no more"} and list(times) == ["a", "c"]
    assert {len(taken) for taken in times.values()} == {timing.FEWEST}
    with pytest.raises(MemoryError):
        timing.race(calls, "cpu", 0.0)


def test_a_processor_without_a_number_is_told_by_family_and_model():
    lines = [
        "processor : 0",
        "cpu family : 25",
        "model\t\t: 17",
        "model name : AMD EPYC",
        "",
        "model : 1",
    ]
    assert machine.processor("\n".join(lines)) == "AMD EPYC, family 25 model 17"
    lines[3] = "model name : AMD EPYC 9654 96-Core Processor"
    assert machine.processor("\n".join(lines)) == "AMD EPYC 9654 96-Core Processor"
    assert machine.processor("model name : Cortex") == "Cortex" and machine.processor("") == ""


def test_a_result_says_what_multiplies():
    assert machine.ran_on(1, "cpu")["blas"].strip()
    rates = machine.product_rates(0.0)
    assert rates.keys() == {"NumPy", "PyTorch"} and min(rates.values()) > 0
