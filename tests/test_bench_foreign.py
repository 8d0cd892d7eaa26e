"""Races with foreign functions, and contenders that are wrong in a race."""

import collections
import json

import pytest
import torch
from small_races import CEILINGS, COST, SMALL, of_the_command, raced
from typer.testing import CliRunner

from twofold.core.bench import agreement, apart, contenders, plots, problems, races, torch_calls
from twofold.core.bench.contenders import Contender
from twofold.core.cli import app


def entering(*names):
    """Return torch, and functions of foreign_kernels as `--against` enters them."""
    device = of_the_command()[0]
    everyone = contenders.of("attention", device, [f"foreign_kernels:{name}" for name in names])
    return [c for c in everyone if c.name == "torch" or c.foreign]


def test_who_crashes_exits_or_hangs_is_left_out_and_the_others_run():
    device, listed = of_the_command()
    problem, later = [p for p in listed if p.operator == "attention"][:2]
    rivals = entering("ends_the_process", "exits", "hangs_at_some_size", "plain")
    with apart.Apart(device, limit=3.0) as trials:
        judge = races.Judge(trials)
        forward, backward = raced(problem, rivals, judge, device)
        with pytest.raises(apart.LeftOut, match=f"3 s, in {problem.title}$"):
            judge(rivals[3], later)
    for race in (forward, backward):
        assert set(race["contenders"]) == {"torch", "foreign_kernels:plain"}
        said = {name.partition(":")[2]: words for name, words in race["reasons"].items()}
        assert said["ends_the_process"] == "a case of the contract ended the process by SIGSEGV"
        assert said["exits"] == "a case of the contract ended the process with status 3"
        assert said["hangs_at_some_size"].startswith("the first call does not end within 3 s")
        assert race["wrong"] == [c.name for c in rivals[1:4]]


def test_interpreted_kernels_are_judged_and_not_timed():
    """Their accuracy is reported, too; on a GPU they are timed."""
    device, listed = of_the_command()
    if device == "cuda":
        pytest.skip("kernels are compiled")
    problem = next(p for p in listed if p.operator == "attention")
    sound, faulty = entering("sound", "no_rescale")[1:]
    with apart.Apart(device) as trials:
        with pytest.raises(apart.LeftOut, match="without a GPU, and there is nothing to time$"):
            trials.fault(sound, problem)
        with pytest.raises(apart.LeftOut, match="there is nothing to time; and out"):
            trials.fault(faulty, problem)


def test_who_crashes_or_fails_at_one_size_races_at_another():
    device, listed = of_the_command()
    _, fails, crashes = entering("fails_at_some_size", "crashes_at_some_size")
    sizes = [(p, int(p.title.split()[0][2:])) for p in listed if p.operator == "attention"]
    many = next(p for p, B in sizes if B > 8)
    few = next(p for p, B in sizes if B <= 8)
    with apart.Apart(device) as trials:
        for rival, error, words in (
            (fails, apart.LeftOut, "^RuntimeError: so many"),
            (crashes, apart.Ended, "^the first call ended the process by SIGSEGV"),
        ):
            with pytest.raises(error, match=words):
                trials.fault(rival, many)
            assert rival.name not in trials._trials, "its GPU may be unusable"
            assert trials.fault(rival, few) == ""


def test_every_case_of_the_contract_has_its_own_time():
    said = []

    def plain(q, k, v):
        said.append("called")
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    Contender("plain", plain).fault(SMALL["attention"], lambda: said.append("case"))
    assert said.count("case") > 1 and said[:3] == ["case", "called", "case"]


def test_who_is_wrong_has_no_ratio_and_is_nowhere_quickest():
    def figures(wrong, **times):
        return races._figures({n: [t] for n, t in times.items()}, COST, CEILINGS, {}, wrong)

    found = figures(["a"], torch=2e-3, a=1e-3, b=4e-3)
    assert {n: f.get("ratio") for n, f in found.items()} == {"torch": 1.0, "a": None, "b": 2.0}
    found = figures(["a"], a=1e-3, b=4e-3, c=8e-3)
    assert {n: f.get("ratio") for n, f in found.items()} == {"a": None, "b": 1.0, "c": 2.0}
    found = figures(["torch"], torch=2e-3, b=4e-3)
    assert {n: f.get("ratio") for n, f in found.items()} == {"torch": 1.0, "b": 2.0}
    assert set(plots._right({"contenders": figures(["a"], torch=1.0, a=1.0)})) == {"torch"}


def test_who_is_right_at_other_sizes_alone_is_wrong():
    def sometimes(q, k, v, causal=False):
        out = torch_calls.torch_attention(q, k, v, causal)
        return torch.cat((out[..., :-1, :], out[..., -1:, :] * (q.shape[0] < 7)), -2)

    assert races.Judge()(Contender("sometimes", sometimes), SMALL["attention"]) == ""
    problem = problems.attention(7, 2, 2, 5, 7, 8, "float32")
    rivals = [*contenders.of("attention", "cpu"), Contender("sometimes", sometimes)]
    for race in raced(problem, rivals, races.Judge()):
        assert race["wrong"] == ["sometimes"]
        assert race["reasons"]["sometimes"].startswith(
            "at this size 14 of 70 rows are not twofold's"
        )
        assert "ratio" not in race["contenders"]["sometimes"]


def test_outputs_agree_to_half_of_their_digits():
    problem = SMALL["softmax"]
    ours = torch.ones(5, 4)

    def said(theirs):
        return agreement.stray([theirs, torch.zeros(3)], [ours], problem)

    assert said(ours) == said(ours * (1 + 2.0**-13)) == ""
    assert "5 of 5 rows" in said(ours * (1 + 2.0**-11))
    for wrong, off in ((torch.nan, "nan"), (torch.inf, "inf"), (3.0, "2")):
        words = said(ours.clone().index_fill_(0, torch.tensor([2]), wrong))
        assert f"1 of 5 rows are not twofold's: one is off by {off} of its norm" in words
    assert "its shape at this size is (4, 5), twofold's (5, 4)" in said(ours.T)
    assert agreement.stray([torch.zeros(5, 4)], [torch.zeros(5, 4)], problem) == ""
    assert agreement.stray([torch.tensor(1.1)], [torch.tensor(1.0)], problem)
    assert agreement.stray([ours], [], problem) == "", "there is no second opinion"


def test_ways_to_compute_one_thing_agree_but_in_rows_of_rounding_errors():
    """Gradients have such rows; an output is compared without what is saved beside it."""
    ours, nothing = torch.ones(5, 4), torch.full((1, 4), 1e-8)
    with_noise, other_noise = (torch.cat([ours, x]) for x in (nothing, -nothing))
    problem = SMALL["softmax"]
    assert agreement.stray([other_noise], [with_noise], problem)
    gradients = collections.namedtuple("gradients", "dx dbias")
    calls = {
        "first": lambda: gradients(with_noise, None),
        "other": lambda: gradients(other_noise, None),
        "half": lambda: gradients(with_noise * torch.tensor([1, 1, 1, 1, 0.5, 1])[:, None], None),
        "output": lambda: (with_noise, ours),
        "shape": lambda: with_noise[1:],
    }
    found = agreement.unlike(calls, problem)
    assert list(found) == ["half", "shape"]
    assert "1 of 6 rows" in found["half"]


def test_options_are_given_by_the_names_that_a_function_has():
    """As verify does; options that are off are left out, one that is on and unknown is a reason."""
    given = []

    def likes_torch(
        query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False
    ):
        given.append((is_causal, enable_gqa))
        how = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        return torch_attention(query, key, value, attn_mask=attn_mask, **how)

    def insists(q, k, v, sm_scale):
        given.append(sm_scale)
        return torch_attention(q, k, v, scale=sm_scale)

    def plain(q, k, v):
        return torch_attention(q, k, v)

    def on_its_own_terms(q, k, v, causal=False):
        if q.shape[-1] == 16:
            raise ValueError("head_dim is 16")
        return torch_attention(q, k, v, is_causal=causal)

    torch_attention = torch.nn.functional.scaled_dot_product_attention
    rivals = [Contender(f.__name__, f) for f in (likes_torch, insists, plain, on_its_own_terms)]
    judge = races.Judge()
    full, shared, causal = (
        problems.attention(1, 2, K, 7, 7, 64, "float32", causal)
        for K, causal in ((2, False), (1, False), (2, True))
    )
    forward, _ = raced(full, rivals, judge)
    assert set(forward["contenders"]) == {c.name for c in rivals}
    assert given[-1] == 0.125 and (False, False) in given
    given.clear()
    raced(shared, rivals[:1], judge)
    assert set(given) == {(False, True)}
    forward, _ = raced(causal, rivals, judge)
    assert set(forward["contenders"]) == {"likes_torch", "on_its_own_terms"}
    assert forward["reasons"].keys() == {"insists", "plain"}
    assert forward["reasons"]["plain"].endswith("it does not take causal=True")
    assert given[-1] == (True, False)


@pytest.mark.parametrize(("name", "status"), [("ends_the_process", 1), ("plain", 0), ("halved", 1)])
def test_the_command_says_who_is_wrong(name, status, tmp_path):
    path, name = tmp_path / "result.json", f"foreign_kernels:{name}"
    said = CliRunner().invoke(
        app,
        ["bench", "attention", "--quick", "--json", str(path), "--plots", str(tmp_path),
         "--against", name],
    )  # fmt: skip
    assert said.exit_code == status, said.output
    assert ("WRONG" in said.output) == (name == "foreign_kernels:halved")
    for race in json.loads(path.read_text())["bench"]["races"]:
        assert race["wrong"] == [name] * status
        assert "ratio" not in race["contenders"].get(name, {}) or not status


def test_why_a_function_is_no_optimizer_that_races_is_said(tmp_path):
    path, name = tmp_path / "result.json", "foreign_kernels:plain"
    few = ["--quick", "--json", str(path), "--against", name]
    said = CliRunner().invoke(app, ["bench", "optimizers", *few])
    assert said.exit_code == 1, "it raced nowhere"
    assert f"optimizers: {name}: a race of optimizers is one of steps" in said.output
    assert f"twofold verify {name} --op optimizers judges it" in said.output
    (race,) = json.loads(path.read_text())["bench"]["races"]
    assert set(race["contenders"]) >= {"twofold", "torch"} and name in race["reasons"]


def test_a_residual_is_given_by_its_name_to_who_takes_one():
    def norm(x, weight, epsilon=1e-6, residual=None):
        h = x + residual
        return torch.nn.functional.rms_norm(h, h.shape[-1:], weight, epsilon), h

    def alone(x, weight):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-6)

    problem = SMALL["rms_norm fused"]
    tensors = problem.make(torch.Generator().manual_seed(0), "cpu")
    out, h = Contender("norm", norm).passes(problem, tensors)["forward"]()
    assert torch.equal(h, tensors["x"] + tensors["residual"]) and out.shape == h.shape
    with pytest.raises(NotImplementedError, match="^it does not take residual$"):
        Contender("alone", alone).passes(problem, tensors)
