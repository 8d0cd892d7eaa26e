"""What can be judged besides functions: torch's modules and functions, objects with forward."""

import re

import pytest
from typer.testing import CliRunner

from twofold.core import ops
from twofold.core.bench import contenders
from twofold.core.cli import app
from twofold.core.verify import foreign, report
from twofold.core.verify.foreign import packed as foreign_packed
from twofold.core.verify.foreign.plain import names_of
from twofold.core.verify.foreign.table import PLAIN

pytestmark = pytest.mark.usefixtures("importable")


def judge(name, operator="attention"):
    return foreign.judge(f"foreign_given:{name}", operator, 9, ["float32"], claimed=1)


TAKEN = {
    "module": {"forward", "backward"},
    "Attention": {"forward", "backward"},  # its class, which takes no arguments
    "Applied": {"forward", "backward"},
    "only_forward": {"forward", "backward"},  # its output is differentiated, as a function's is
    "with_cache": {"forward", "backward"},
}


@pytest.mark.parametrize("name", TAKEN)
def test_it_is_judged_as_a_function(name):
    found = judge(name)
    assert found.failures == []
    assert {row.pass_ for row in found.rows} == TAKEN[name]
    causal = name != "with_cache"
    assert any("none of them: softmax_scale, mask" in note for note in found.notes) == causal


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("module_without_scale", "backward float32 dq: dq["),
        ("WrongWithContext", "backward float32 dq: dq["),
    ],
)
def test_its_faults_are_found(name, words):
    assert judge(name).failures[0].startswith(words)


@pytest.mark.parametrize(
    ("name", "operator", "words"),
    [
        ("OfOneSize", "attention", r"OfOneSize is a class; it must be an instance of it, such as"),
        ("SimpleNamespace", "attention", "SimpleNamespace is a class; it must be a function, an"),
        ("NoForward", "attention", "NoForward has no forward; it must have one"),
        ("nothing_to_call", "attention", r"cannot be called; it must be a function, an nn.Module"),
        ("torch_norm", "attention", r"takes \(input.*\).*; it must take \(q, k, v\)"),
    ],
)
def test_what_cannot_be_taken_is_named_and_what_may_be(name, operator, words):
    with pytest.raises(TypeError, match=words):
        judge(name, operator)


def test_an_operator_that_is_no_plain_call_needs_both():
    takes = "as dropout an object with forward and backward can be taken"
    with pytest.raises(TypeError, match=f"has no function 'backward'; {takes}"):
        judge("only_forward", "dropout")
    with pytest.raises(ValueError, match=f"for a plain function .{takes}"):
        judge("plain", "dropout")


def test_they_race_too():
    names = [f"foreign_given:{name}" for name in ("module", "Applied")]
    rivals = [c for c in contenders.of("attention", "cpu", names) if c.foreign]
    assert [c.name for c in rivals] == names and all(callable(c.function) for c in rivals)


@pytest.mark.parametrize("command", [["verify"], ["verify", "function"], ["verify", "m:f"]])
def test_the_help_lists_every_call_of_the_table(command):
    said = CliRunner().invoke(app, [*command, "--help"]).output
    assert "  softmax: f(x) -> out of x (…, columns)\n    or (columns,)\n    or an object" in said
    assert "\n  rotary: f(q, k, cos, sin, interleaved=…) -> q, k of q, k (" in said
    assert "\n    or f(positions, query, key, head_size, cos_sin_cache, is_neox) of q, k (" in said
    begun = re.split(r"\n  (?=\w)", said)
    for operator in ops.OPERATORS:
        (one,) = (x for x in begun if operator in re.split(", |: ", x.split(": ")[0]))
        plain = PLAIN.get(operator)
        assert ("f(" in one) == (plain is not None), one
        for option in plain.options if plain else ():
            packed = option == foreign_packed.OPTION  # given under other names
            said_as = foreign_packed.Sequences._fields if packed else names_of(option)
            assert all(name in one for name in said_as)
        for order in (*plain.arranged, *plain.fewer) if plain else ():
            assert f"\n    or {order}\n" in one


@pytest.mark.parametrize("operator", PLAIN)
def test_what_nobody_is_held_to_are_properties(operator):
    assert set(PLAIN[operator].conventions) <= report.contract(operator).claims().keys()
