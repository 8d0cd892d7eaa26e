"""Foreign kernels: sound ones pass, every planted fault is caught and named."""

import json
import re
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from twofold.core.cli import app
from twofold.core.verify import foreign
from twofold.core.verify.contract import Violation
from twofold.core.verify.foreign import apart, trial
from twofold.core.verify.foreign import cases as foreign_cases
from twofold.core.verify.foreign.refusals import Refused, refusals
from twofold.core.verify.foreign.table import PLAIN
from twofold.core.verify.report import contract_module
from twofold.core.verify.strict.memory import Fault

pytestmark = pytest.mark.usefixtures("importable")

EXAMPLES = 12


def judge(name, operator="attention", dtypes=("float32",)):
    return foreign.judge(f"foreign_kernels:{name}", operator, EXAMPLES, dtypes)


SOUND = {
    "torch_attention": ("attention", {"forward", "backward"}),
    "layer_norm": ("layer_norm", {"forward", "backward"}),
    "cross_entropy": ("softmax_cross_entropy", {"forward", "backward"}),
    "gelu": ("activation", {"forward", "backward"}),
    "swiglu": ("gated_activation", {"forward", "backward"}),
}
FAULTS = {
    "no_rescale": ("attention", "forward float32 out: out["),
    "no_scale": ("attention", "forward float32 out: out["),
    "causal_off_by_one": ("attention", "forward float32 out: out["),
    "unmasked_lanes": ("attention", "forward float32 out: out["),
    "out_of_bounds": ("attention", "forward float32 out: Fault: _attention"),
    "not_normalised": ("attention", "forward float32 out: out["),
    "wrong_gradient": ("attention", "backward float32 dq: dq["),
    "with_wrong_lse": ("attention", "forward float32 lse: lse["),
    "crashes": ("attention", "forward float32 out: RuntimeError"),
    "layer_norm_without_eps": ("layer_norm", "forward float32 out: out["),
    "cross_entropy_always_mean": ("softmax_cross_entropy", "forward float32 loss: loss"),
    "gelu_by_tanh": ("activation", "forward float32 out: out["),
}


def test_a_sound_kernel_passes():
    found = judge("sound", dtypes=("float32", "float16", "bfloat16"))
    assert found.failures == []
    assert {(row.pass_, row.precision) for row in found.rows} == {
        ("forward", dtype) for dtype in ("float32", "float16", "bfloat16")
    }
    said = "\n".join(found.notes)
    assert "takes none of them: mask, key_lengths" in said and "forward only" in said
    assert "not computed: lse" in said and re.search(r"refused \d+ cases.*head_dim is", said)


@pytest.mark.parametrize("name", SOUND)
def test_torch_passes(name):
    operator, passes = SOUND[name]
    found = judge(name, operator)
    assert found.failures == []
    assert {row.pass_ for row in found.rows} == passes


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_comes_again(request, name):
    if name == "out_of_bounds":  # on a GPU it reads whatever is there, or ends the process
        request.getfixturevalue("interpreted")
    operator, words = FAULTS[name]
    found = judge(name, operator)
    assert found.failures and found.failures[0].startswith(words), found.failures
    line = found.failures[-1].splitlines()[-1].strip()
    with pytest.raises(Violation):
        eval(line, {"foreign": foreign})


CROSS = "softmax_cross_entropy"
PINNED = {
    "ignores_window": ("attention", "forward float32 out: out["),
    "groups_of_one_batch": ("attention", "forward float32 out: out["),
    "groups_in_turn": ("attention", "forward float32 out: out["),
    "second_tile_is_late": ("attention", "forward float32 out: out["),
    "layer_norm_of_one_tile": ("layer_norm", "backward float32 dweight: dweight["),
    "cross_entropy_counts_all": ("softmax_cross_entropy", "forward float32 loss: loss"),
}


@pytest.mark.parametrize("name", PINNED)
def test_pinned_cases_alone_find_it(name):
    operator, words = PINNED[name]
    found = foreign.judge(f"foreign_kernels:{name}", operator, 0, ["float32"], claimed=0)
    assert found.failures and found.failures[0].startswith(words), found.failures


@pytest.mark.parametrize("operator", PLAIN)
def test_pinned_cases_set_every_option(operator):
    plain, case = PLAIN[operator], contract_module(operator).Case()
    for option, unset in plain.options.items():
        cases = [vars(case) | dict(c) for c in (*plain.pinned, *plain.exercised.get(option, ()))]
        assert any(c[name] != x for c in cases for name, x in unset.items()), option


def test_what_the_domain_leaves_out_is_said():
    def notes(name, operator="attention"):
        found = foreign.judge(f"foreign_kernels:{name}", operator, 0, ["float32"], claimed=0)
        return [*found.taken, *found.notes]

    said = notes("groups_from_shapes")
    assert "grouped heads judged, though it takes no enable_gqa" in said
    assert "never passed: dropout_p" in said
    said = notes("torch_attention")
    assert "grouped heads not judged: add enable_gqa=…" in said
    (outside,) = (note for note in said if note.startswith("not in the domain: "))
    assert "a query without keys" in outside and "causal" not in outside
    assert "causal is taken to be top-left" in said
    assert "window" not in outside and "lse" not in outside
    assert any("a mean of no rows" in note for note in notes("cross_entropy_of_counted", CROSS))


def test_an_option_that_no_case_set_is_named():
    found = foreign.judge("foreign_kernels:refuses_windows", "attention", 4, ["float32"], claimed=0)
    assert "never exercised: window_size" in found.notes


def test_the_case_is_shrunk():
    failure = judge("no_rescale").failures[0]
    assert "seqlen_k=17" in failure and "seqlen_q=1," in failure  # a second block, and no more


def test_an_object_with_forward_and_backward_is_an_operator():
    found = judge("Norm", "layer_norm")
    assert found.failures == [] and {r.pass_ for r in found.rows} == {"forward", "backward"}
    assert {c.outcome for c in found.claims} <= {foreign.HOLDS, foreign.BITS}


def test_properties_of_a_sound_and_of_a_faulty_kernel():
    found = {c.name: c.outcome for c in judge("torch_attention").claims}
    assert found["single key"] == found["slopes"] == found["gradient sums"] == foreign.HOLDS
    assert found["other tiles"] == found["merged parts"] == foreign.UNSAID
    claims = {c.name: c for c in judge("no_rescale").claims}
    assert claims["saturation"].outcome == foreign.FAILS
    with pytest.raises(Violation, match="out"):
        eval(claims["saturation"].again, {"foreign": foreign})


def test_what_a_case_leaves_at_none_is_the_functions_default():
    found = judge("with_defaults_of_its_own")
    assert found.failures == [] and not any("never exercised" in note for note in found.notes)


def test_an_accident_in_a_library_is_no_refusal():
    (failure, *_) = judge("fails_in_numpy").failures
    assert "ValueError: could not broadcast" in failure
    assert re.search(r"\(at foreign_kernels.py:\d+\)", failure)


def test_what_is_handled_meanwhile_is_no_cause_of_a_refusal():
    try:
        raise Fault("of the case that is made smaller")
    except Fault:
        with pytest.raises(Refused, match="no such head_dim"), refusals():
            raise ValueError("no such head_dim")  # noqa: B904


def test_who_refuses_most_is_told():
    found = foreign.judge("foreign_kernels:of_full_tiles", "attention", 6, ["float32"], claimed=0)
    assert any(re.match(r"mostly refused.*: \d+ of \d+ cases", note) for note in found.notes)


def test_a_dtype_that_conventions_differ_about_is_a_note():
    found = judge("cross_entropy_in_float32", CROSS, ("float16",))
    assert found.failures == []
    assert "loss is float32 where logits is float16; both are usual" in found.notes


def test_an_autotuned_kernel_is_judged():
    assert judge("autotuned_softmax", "softmax").failures == []


BAD = {
    "in_float64": "TypeError: the output out is float64; it must be float32, as the argument q is",
    "returns_a_list": "TypeError: it returns list; it must return a tensor",
    "of_another_shape": "out has shape (1, 1, 1, 1); it must be (1, 1, 2, 1)",
    "writes_to_its_inputs": "input 2 of shape (1, 1, 1, 1) was written to",
}


def test_lse_is_float32():
    failures = judge("lse_in_half", dtypes=("float16",)).failures
    assert "lse is float16; it must be float32" in failures[0]


@pytest.mark.parametrize("name", ["with_weights", "with_weights_in_half"])
def test_weights_are_told_from_lse_and_judged_as_weights(name):
    found = foreign.judge(
        f"foreign_given:{name}", "attention", 30, ["float32", "float16"], claimed=2
    )
    assert found.failures == []
    assert not any("weights" in note and "not judged" in note for note in found.notes)
    half = "weights is float32 where q is float16; both are usual" in found.notes
    assert half == (name == "with_weights")


def test_weights_that_are_wrong_are_named():
    found = foreign.judge(
        "foreign_given:with_weights_before_the_mask", "attention", 0, ["float32"], claimed=0
    )
    assert {f.name for f in found.found} == {"weights"}
    assert "weights[" in found.failures[0] and re.search(
        "causal=(True|.top-left)", found.failures[0]
    )


def test_an_lse_of_another_shape_is_an_lse():
    found = foreign.judge(
        "foreign_given:with_lse_of_an_axis_too_many", "attention", EXAMPLES, ["float32"]
    )
    assert re.search(r"lse has shape \(1, 1, 1, 1\); it must be \(1, 1, 1\)", found.failures[0])


@pytest.mark.parametrize("name", BAD)
def test_what_a_function_must_not_do_is_named(name):
    assert any(BAD[name] in failure for failure in judge(name).failures), judge(name).failures


def test_another_signature_is_refused():
    with pytest.raises(TypeError, match=r"takes \(q, k\); it must take \(q, k, v\), and any of"):
        judge("two_arguments")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hangs", "it does not end within 6 s"),
        ("ends_the_process", "it ended the process by SIGSEGV"),
        ("two_arguments", "it must take (q, k, v)"),
        ("nothing", "has no function 'nothing'"),
    ],
)
def test_whatever_happens_in_another_process_is_a_line(name, words):
    found = apart.judge(f"foreign_kernels:{name}", "attention", 3, ["float32"], limit=6.0)
    (failure,) = found.failures
    assert words in failure
    assert ("foreign.again(" in failure) == (name in ("hangs", "ends_the_process"))


def test_who_is_slow_is_judged_as_far_as_there_is_time(monkeypatch):
    """By a clock on which every case takes a second and nothing else takes time."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    for module in (foreign, trial, foreign_cases):
        monkeypatch.setattr(module, "time", clock)

    def timed(method):
        def in_a_second(*how):
            clock.now += 1.0
            return method(*how)

        return in_a_second

    for name in ("bound", "claim"):
        method = getattr(trial.Trial, name)
        monkeypatch.setattr(trial.Trial, name, timed(method))
    dtypes = ["float32", "tf32"]
    found = foreign.judge("foreign_kernels:torch_attention", "attention", 60, dtypes, seconds=60)
    assert found.failures == [] and found.rows
    said = (
        r"[1-9]\d* of 30 drawn cases, ([1-9]\d* of \d+ pinned cases, )?[1-9]\d* of \d+ properties"
    )
    assert re.fullmatch(f"float32: {said}; tf32: {said}", found.unasked), found.unasked
    asked = [[c.name for c in found.claims if c.precision == p and c.cases] for p in dtypes]
    assert asked[0] and asked[1] and not set(asked[0]) & set(asked[1])  # others in each
    assert {c.outcome for c in found.claims} >= {foreign.HOLDS, foreign.UNASKED}
    found = foreign.judge("foreign_kernels:gelu_by_tanh", "activation", 60, seconds=30)
    assert re.match(r"out(, dx)? exceeds? (its|their) bounds?", foreign.digest(found)[0])


def test_nothing_but_refusals_is_a_failure():
    found = judge("refuses")
    assert found.failures == ["every case was refused"] and found.rows == [] and found.unjudged


def test_what_computes_nothing_is_not_judged_and_it_is_said_what_it_raises(interpreted):
    def of_another_axis(x):
        return x.softmax(7)

    found = foreign.judge(of_another_axis, "softmax", 6, ["float32"], claimed=1)
    assert found.unjudged and "IndexError: Dimension out of range" in foreign.digest(found)[1]
    assert not judge("out_of_bounds").unjudged  # a fault of its own, wherever it is
    assert not judge("no_scale").unjudged


def test_the_command(tmp_path):
    def call(*arguments):
        found = CliRunner().invoke(app, ["verify", *arguments])
        assert "Traceback" not in found.output
        return found.exit_code, found.output

    status, said = call("foreign_kernels:refuses", "--examples", "3")
    assert status == 2 and "not judged: foreign_kernels:refuses" in said
    result = tmp_path / "result.json"
    few = ["--dtype", "float32", "--examples", "3", "--json", str(result)]
    status, said = call("foreign_kernels:gelu", "--op", "activation", *few)
    assert status == 0 and "FAIL" not in said
    status, said = call("foreign_kernels:gelu_by_tanh", "--op", "activation", *few)
    assert status == 1 and "FAIL" in said and "foreign.again(" in said
    assert json.loads(result.read_text())["foreign_kernels:gelu_by_tanh"]["failures"]
    status, said = call("foreign_kernels:torch_attention", "--seconds", "1", "--json", str(result))
    assert (
        status == 0 and "holds" in said and "stopped by --seconds; not checked: float32: " in said
    )
    assert json.loads(result.read_text())["foreign_kernels:torch_attention"]["complete"] is False


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nowhere:f", "attention"), "'nowhere:f' cannot be imported"),
        (("foreign_kernels:nothing", "attention"), "module 'foreign_kernels' has no function"),
        (("foreign_kernels:gelu", "dropout"), "--op is 'dropout'"),
    ],
)
def test_what_is_missing_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        foreign.judge(*arguments, 1)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="--dtype is 'int8'"):
        judge("gelu", "activation", ("int8",))
    with pytest.raises(ValueError, match="--dtype is 'tf32'; activation has"):
        judge("gelu", "activation", ("tf32",))
