"""What is shown first of a wrong function: each fault once, where, and how to reproduce it."""

import json
import math
import re
from dataclasses import dataclass

import pytest
import torch
from typer.testing import CliRunner

from twofold.core.cli import app
from twofold.core.verify import foreign
from twofold.core.verify.contract import Violation
from twofold.core.verify.foreign import apart
from twofold.core.verify.foreign import cases as foreign_cases
from twofold.core.verify.foreign.verdict import FAR_OFF

pytestmark = pytest.mark.usefixtures("importable")

SCREEN = 25  # lines


@dataclass(frozen=True)
class Case:
    rows: int = 4
    columns: int = 4
    window: tuple[int, int] | None = None
    layout: str = "contiguous"
    seed: int = 0


def shared(smallest, fails, cases):
    return foreign_cases.common({c: {"out"} if fails(c) else set() for c in cases}, "out", smallest)


def test_what_failing_cases_have_in_common_is_said():
    cases = [
        Case(rows, columns, window)
        for rows in range(1, 12)
        for columns in (1, 4, 130, 260)
        for window in (None, (1, 2), (2, 3), (0, 7))
    ]
    found = shared(Case(window=(1, 2)), lambda c: c.window, cases)
    assert found == "132 of 176 cases fail this way, all with window given; none that holds has"
    right = [Case(rows, 4, (9, 9)) for rows in range(1, 12)]  # given, and no failure
    found = shared(Case(window=(1, 2)), lambda c: c.window and c.window != (9, 9), cases + right)
    assert found.endswith("all with window given; so have 11 of the 55 that hold")
    found = shared(Case(rows=3), lambda c: c.rows % 2 and c.rows > 2, cases)
    assert re.search(
        "all with rows (odd and rows ≥ 3|≥ 3 and rows odd); none that holds has", found
    )
    found = shared(Case(columns=130), lambda c: c.columns > 64 and c.rows > 1, cases)
    assert found.endswith("all with columns ≥ 130; so have 8 of the 96 that hold")
    assert shared(Case(), lambda c: True, cases) == "all 176 cases fail this way"
    assert shared(Case(), lambda c: False, cases) == ""


def test_the_largest_of_each_size_is_said():
    cases = {Case(3, 7, seed=100), Case(5, 2, window=(9, 9)), Case(4, 4)}
    assert foreign_cases.largest(cases) == "rows 5, columns 7"
    assert foreign_cases.largest(set()) == ""


def test_what_holds_is_shown_with_the_largest_sizes():
    said = CliRunner().invoke(
        app, ["verify", "foreign_forms:side_by_side", "--op", "gated_activation", "--examples", "9"]
    )
    assert said.exit_code == 0 and "columns 4099" in said.output.splitlines()[1]


def test_what_may_be_chance_is_not_said():
    cases = [
        Case(rows, window=w, seed=s) for rows in (3, 5) for w in (None, (1, 1)) for s in (0, 1)
    ]
    found = shared(Case(3, window=(1, 1)), lambda c: c == Case(3, window=(1, 1)), cases)
    assert found == "1 of 8 cases fail this way"


def test_a_smaller_case_that_fails_is_found():
    asked = []

    def fails(case):
        asked.append(case)
        return case if case.rows > 16 and case.window else None

    found = foreign_cases.smaller(Case(259, 37, (3, 0), "padded", 7), fails, 10.0)
    assert found == Case(17, 1, (3, 0), "contiguous", 7) and len(asked) < 30
    assert foreign_cases.smaller(Case(259, window=(3, 0)), fails, 0.0).rows == 259


def digest(name, examples=30, dtypes=("float32", "bfloat16"), claimed=2):
    found = foreign.judge(f"foreign_kernels:{name}", "attention", examples, dtypes, claimed=claimed)
    return foreign.digest(found), found


def test_a_crash_is_one_fault_whatever_it_breaks():
    said, found = digest("crashes_where_odd")
    assert len(found.failures) > 20 and len(said) < 9
    assert said[0] == "it raises (float32, bfloat16)"
    assert re.fullmatch(r"  RuntimeError: 1 is odd \(at foreign_kernels.py:\d+\)", said[1])
    assert "seqlen_q=1, seqlen_k=1" in said[2]
    assert "all with seqlen_q odd; none that holds has" in said[4]
    assert re.match(r"  \d+ properties fail this way: single key, ", said[5])


def test_outputs_of_one_case_are_one_fault():
    said, _ = digest("ignores_window", examples=240, claimed=0, dtypes=["float32"])
    assert len(said) == 6 and said[0] == "out, dq, dk, dv exceed their bounds (float32)"
    assert re.search(r"it must be \S+ ± \S+ \(.*\), [\d,.]+ times its bound$", said[1])
    assert re.match(r"  with it, dq by \S+ times its bound, dk by ", said[2])
    assert "window_size given" in said[5]


def softmax_that_doubles_or_is_nan(x):
    return torch.softmax(x.float(), -1).to(x.dtype) * (torch.nan if x.element_size() == 2 else 2)


def softmax_in_steps(x):
    """Rounds its sum to the dtype of x."""
    p = (x - x.amax(-1, keepdim=True)).exp()
    return p / p.sum(-1, keepdim=True)


def gelu_by_tanh(x):
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + torch.tanh(u))


def test_what_is_no_number_in_one_precision_hides_no_number_of_another():
    found = foreign.judge(softmax_that_doubles_or_is_nan, "softmax", 30, claimed=0)
    said = [line for line in foreign.digest(found) if "exceed" in line]
    where = {re.search(r"\((.*)\)", line)[1] for line in said}
    assert {"float32", "float16, bfloat16"} <= where and len(where) == 2


def test_the_precision_that_holds_is_said():
    found = foreign.judge(softmax_in_steps, "softmax", 30, claimed=0)
    (said,) = (line for line in foreign.digest(found) if "float32" in line)
    assert re.fullmatch(r"float32 is within its bounds in all \d\d cases", said)


def test_of_what_is_wrong_in_its_tail_alone_the_kind_is_known():
    found = foreign.judge(gelu_by_tanh, "activation", 30, ["float32"], claimed=0)
    said = "without kind, its kind is taken to be gelu_tanh"
    assert found.found and found.taken[0].startswith(said)


def test_inputs_are_counted_in_the_order_of_the_call():
    def rms_norm(x, weight, eps=1e-6):
        with torch.no_grad():
            weight += 1
        return x

    said = "\n".join(foreign.digest(foreign.judge(rms_norm, "rms_norm", 6, ["float32"], claimed=0)))
    assert "input 1 of shape" in said and "input 0 of" not in said


def test_a_pinned_case_is_made_smaller():
    said, _ = digest("second_tile_is_late", examples=0, claimed=0, dtypes=["float32"])
    assert (
        said[3]
        == "  smallest case found: float32, seqlen_q=129, seqlen_k=129, head_dim=1, causal=True"
    )


def test_the_line_shows_it_again():
    said, _ = digest("ignores_window", claimed=0, dtypes=["float32"])
    (line,) = (line for line in said if line.startswith("  again: "))
    program = re.fullmatch(r'  again: python -c "(.*)"', line).group(1)
    with pytest.raises(Violation):
        exec(program)


def test_properties_alone_say_what_they_mean():
    one = foreign.Failure(
        "property",
        "single key",
        "float32",
        "out is off",
        float("inf"),
        False,
        "",
        "foreign.again('m:f')",
        "so it is",
    )
    claims = [
        foreign.Claim("single key", "float32", "fails", 1),
        foreign.Claim("a", "", "holds", 1),
    ]
    said = foreign.digest(foreign.Verdict(found=[one], claims=claims))
    assert said[:3] == [
        "of the properties, 1 fail and 1 hold",
        "property 'single key' (float32): out is off",
        "  it means: so it is",
    ]
    assert said[3].startswith("  again: python -c ")


def test_what_was_found_before_the_process_ended_is_kept():
    name = "foreign_kernels:wrong_and_then_ends_the_process"
    found = apart.judge(name, "attention", 0, ["float32"], claimed=0)
    assert "ended the process by SIGSEGV" in found.failures[0]
    said = foreign.digest(found)
    assert said[0] == "it ended the process by SIGSEGV" and "again: python -c" in said[1]


def test_the_first_screen_and_everything(tmp_path):
    result = tmp_path / "result.json"

    def call(*more):
        name = "foreign_kernels:crashes_where_odd"
        few = ["--examples", "30", "--json", str(result)]
        done = CliRunner().invoke(app, ["verify", name, *few, *more])
        assert done.exit_code == 1
        return done.output.splitlines()

    said = call()
    assert len(said) <= SCREEN, said
    first = "\n".join(said[:7])
    for words in (
        "FAIL foreign_kernels:crashes_where_odd",
        "is odd",
        "seqlen_q=1",
        "again: python",
    ):
        assert words in first
    kept = json.loads(result.read_text())["foreign_kernels:crashes_where_odd"]
    assert (
        len(kept["failures"]) > SCREEN
        and kept["summary"][0] == "it raises (float32, float16, bfloat16)"
    )
    everything = "\n".join(call("--all"))
    assert all(failure.splitlines()[0] in everything for failure in kept["failures"])
    assert "single key" in everything and "worst/bound" in everything


def test_what_fails_elsewhere_is_shown_too_and_first_what_is_far_off():
    found = foreign.judge(
        "foreign_forms:norm_in_half", "rms_norm", 9, ["float32", "float16"], claimed=1
    )
    words = "\n".join(foreign.digest(found))
    assert "out[0, 300] is -0; it must be" in words.replace(" 0;", " -0;")
    assert re.search(r"smallest case found: float32, rows=1, columns=301, rounded=True\n", words)
    halves = [f for f in found.found if f.precision == "float16"]
    assert {f.name for f in halves} >= {"out", "dx", "dweight"}
    assert max(f.share for f in halves) >= FAR_OFF
