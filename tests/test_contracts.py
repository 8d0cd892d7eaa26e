"""Every operator's contract, on both sides, and how judging treats outputs."""

import dataclasses
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from twofold.core import ops
from twofold.core.verify import report
from twofold.core.verify.contract import (
    PROPERTY,
    Contract,
    Finding,
    Inapplicable,
    Subject,
    Violation,
    check_properties,
    compare,
    computed,
    fitting,
    hold,
    judge,
    judge_pinned,
    precision_name,
    same_bits,
    subject,
    truths,
)
from twofold.core.verify.contracts import linear
from twofold.core.verify.processes import processes
from twofold.core.verify.rounding import exact, machine
from twofold.core.verify.search import LEAST, drawn, search, some_properties

ops.triton_device()  # before a contract imports the kernels' tile tables
CONTRACTS = {name: report.contract(name) for name in ops.OPERATORS}
PINNED = [
    pytest.param(name, case, id=f"{name}-{i}-{precision_name(case)}")
    for name, contract in CONTRACTS.items()
    for i, case in enumerate(contract.pinned)
]


@pytest.mark.parametrize("operator", ops.OPERATORS)
@given(data=st.data())
def test_a_kernel_keeps_its_contract(triton, operator, data):
    contract = CONTRACTS[operator]
    hold(contract, triton, data.draw(contract.cases), data.draw(some_properties(contract)))


@pytest.mark.parametrize(("operator", "case"), PINNED)
def test_a_kernel_keeps_its_contract_with_every_tile(triton, operator, case):
    hold(CONTRACTS[operator], triton, case, ())


@pytest.mark.parametrize("operator", ops.OPERATORS)
@given(data=st.data())
def test_the_reference_in_float32_keeps_the_contract(reference, operator, data):
    contract = CONTRACTS[operator]
    hold(contract, reference, fitting(reference, data.draw(contract.cases)))


@pytest.mark.parametrize("operator", ops.OPERATORS)
@given(data=st.data())
def test_the_reference_in_float64_keeps_its_bound(reference, operator, data):
    case = fitting(reference, data.draw(CONTRACTS[operator].cases))
    findings = judge(CONTRACTS[operator], reference, dataclasses.replace(case, dtype="float64"))
    assert not [f for f in findings if f.fault]


@pytest.mark.parametrize("operator", ops.OPERATORS)
@given(data=st.data())
def test_the_reference_in_float16_keeps_the_bound_of_kernels(reference, operator, data):
    """It computes float16 in float32 and rounds at the end, as they do."""
    case = fitting(reference, data.draw(CONTRACTS[operator].cases))
    fields = {"dtype": "float16", "float32_parts": False}  # as merging gives them back in another
    if getattr(case, "into", ""):
        fields["into"] = "own"
    fields = {name: x for name, x in fields.items() if hasattr(case, name)}
    with np.errstate(over="ignore", invalid="ignore"):  # what float16 does not hold is ∞
        findings = judge(CONTRACTS[operator], reference, dataclasses.replace(case, **fields))
    assert not [f for f in findings if f.fault]


@pytest.mark.parametrize("operand", ["x", "weight"])
def test_the_reference_multiplies_in_full_which_a_kernel_need_not(reference, operand):
    """Clearing an operand's last two bits errs by more than float32 and less than tf32x3."""

    def run(side, case, given):
        bits = getattr(given, operand).astype(np.float32).view(np.uint32) & np.uint32(0xFFFFFFFC)
        cut = bits.view(np.float32).astype(np.float64)
        return CONTRACTS["linear"].run(side, case, given._replace(**{operand: cut}))

    cut = dataclasses.replace(CONTRACTS["linear"], run=run)
    case = linear.Case("float32", rows=9, features_in=1, bias=False)
    given = cut.inputs(case)
    assert any(f.output == "out" and f.fault for f in judge(cut, reference, case))
    outputs, _ = computed(cut, reference, case, given)
    for name, bound in truths(cut, case, given).items():
        assert compare(name, outputs[name], bound)[2] == ""


@dataclasses.dataclass(frozen=True)
class Case:
    """One number, doubled."""

    dtype: str = "float32"
    x: float = 1.0


def doubling(run, **more):
    """Return the contract of doubling, run by `run`."""

    def truth(case, given):
        return {"out": exact(2 * given, machine(case.dtype))}

    return Contract(
        operator="doubling",
        cases=st.just(Case()),
        inputs=lambda case: np.full(3, case.x),
        run=lambda side, case, given: {"out": run(side.asarray(given))},
        truth=truth,
        passes={"out": "forward"},
        **more,
    )


def written(x):
    y = 2 * x
    x[1] = 7
    return y


FAULTS = {
    "out[0] is 3": lambda x: 3 * x,
    "out has shape (2,)": lambda x: (2 * x)[:2],
    "input 0 of shape (3,) was written to": written,
    "out[0] is nan": lambda x: 2 * np.where(x == x[0], np.nan, x),
}


@pytest.mark.parametrize("words", FAULTS)
def test_what_is_wrong_is_named(reference, words):
    assert not [f for f in judge(doubling(lambda x: 2 * x), reference, Case()) if f.fault]
    given = np.ones(3)
    contract = dataclasses.replace(doubling(FAULTS[words]), inputs=lambda case: given)
    with pytest.raises(Violation, match=re.escape(words)):
        hold(contract, reference, Case())
    assert given.tolist() == [1, 1, 1]  # for which the truth is computed


def raising(x):
    if x[0] > 2:
        raise IndexError("no such row")
    return 2 * x


def test_what_is_raised_is_a_finding_and_where(reference):
    """In a pinned case, in a drawn one (which ends the search), and in a property."""

    def asks(subject, case):
        subject.compute(case, np.full(3, 9.0))

    cases = st.builds(Case, x=st.sampled_from([1.0, 3.0]))
    contract = doubling(raising, pinned=[Case(x=5.0)])
    contract = dataclasses.replace(contract, cases=cases)
    words = "IndexError: no such row (at "
    for found, x in ((judge_pinned(contract, reference), 5), (search(contract, reference, 9), 3)):
        (fault,) = [f for f in found if f.fault]
        assert words in fault.fault and fault.case.x == x and fault.share == np.inf
    contract = dataclasses.replace(contract, properties={"asks": asks})
    (found,) = check_properties(contract, subject(contract, reference), Case(), ["asks"])
    assert words in found.fault and __file__ in found.fault
    with pytest.raises(Violation, match="no such row") as violation:
        hold(contract, reference, Case(x=3.0))
    assert isinstance(violation.value.__cause__, IndexError)
    assert report.summarise(judge_pinned(contract, reference))[0].faults


def test_findings_become_rows_of_a_pass_and_a_precision():
    def finding(x, share, *figures, pass_="forward", dtype="float32", output="out", fault=""):
        median, vacuous, likely = figures or (0.0, 0.0, 0.0)
        case = Case(x=x)
        return Finding("op", pass_, output, dtype, case, share, median, vacuous, fault, likely)

    found = [
        finding(2.0, 0.2, 0.1, 0.5, 0.3),
        finding(3.0, 0.9, 0.3, 0.0, 0.1),
        *(finding(3.0, 0.4, 0.8, 0.1, 0.2, output="lse", fault="is off") for _ in range(2)),
        finding(4.0, 0.0, dtype="float16"),
        finding(5.0, 0.5, pass_="backward"),
        finding(6.0, 0.0, pass_=PROPERTY, output="holding"),
        finding(7.0, np.inf, pass_=PROPERTY, output="asked", dtype="float16", fault="breaks"),
    ]
    rows = report.summarise(found)
    assert [(r.pass_, r.precision, r.cases, r.case) for r in rows] == [
        ("forward", "float32", 2, "x=3.0"), ("forward", "float16", 1, "x=4.0"),
        ("backward", "float32", 1, "x=5.0"), (PROPERTY, "float32", 1, "x=6.0"),
        (PROPERTY, "float16", 1, "x=7.0"),
    ]  # fmt: skip
    first = rows[0]
    assert (first.share, first.output, first.likely) == (0.9, "out", 0.3)
    assert first.median == pytest.approx(0.55) and first.vacuous == pytest.approx(0.175)
    assert first.faults == (f"is off — {Case(x=3.0)}",)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(report.table(rows))
    assert [" ".join(line.split()) for line in console.export_text().splitlines()[1:]] == [
        "op forward float32 2 FAIL 0.900 0.300 0.5500 17.5% out: x=3.0",
        "op forward float16 1 0.000 0.000 0.0000 0.0% out: x=4.0",
        "op backward float32 1 0.500 0.000 0.0000 0.0% out: x=5.0",
        "op property float32 1 holds",
        "op property float16 1 FAIL asked: x=7.0",
    ]
    assert report.short(dataclasses.replace(Case(), dtype="float16")) == ""


def test_what_fails_in_some_runs_alone_is_a_finding(reference):
    count = iter(range(1000))
    contract = doubling(lambda x: 2 * x + (next(count) == 3))
    contract = dataclasses.replace(contract, cases=st.builds(Case, x=st.floats(1, 2)))
    assert any("out[0] is" in f.fault for f in search(contract, reference, 20))


def test_every_property_is_asked_and_of_the_cases_that_are_drawn(reference):
    asked = {}

    def claim(name):
        return lambda subject, case: asked.setdefault(name, []).append(case)

    names = [f"claim {i}" for i in range(30)]
    contract = doubling(lambda x: 2 * x, properties={name: claim(name) for name in names})
    contract = dataclasses.replace(contract, cases=st.builds(Case, x=st.floats(1, 2)))
    found = search(contract, reference, 5)
    assert all(len(asked[name]) >= LEAST for name in names)
    judged = [f.case for f in found if f.pass_ != PROPERTY]
    assert judged == drawn(contract, 5)


def test_who_left_an_output_unwritten_is_said(triton):
    if triton.device == "cuda":
        pytest.skip("a GPU does not tell")
    import torch

    def run(side, case, given):
        return {"out": torch.empty(3)}

    contract = dataclasses.replace(doubling(None), run=run)
    (found,) = judge(contract, triton, Case())
    assert "3 of 3 elements were written by no program" in found.fault


def test_infinities_and_nan_must_stand_where_the_truth_has_them(reference):
    contract = doubling(lambda x: 2 * x)
    for x in (np.inf, -np.inf, np.nan):
        assert not [f for f in judge(contract, reference, Case(x=x)) if f.fault]
        wrong = doubling(lambda x: np.full_like(x, 5.0))
        assert [f for f in judge(wrong, reference, Case(x=x)) if f.fault]


def test_a_property_that_does_not_apply_is_left_out_and_one_that_breaks_is_named(reference):
    def asks_for_more(subject, case):
        subject.compute(case, np.ones(3))["lse"]

    def breaks(subject, case):
        assert subject.compute(case, np.ones(3))["out"][0] == 3, "two is not three"

    contract = doubling(lambda x: 2 * x, properties={"more": asks_for_more, "three": breaks})
    found = check_properties(contract, subject(contract, reference), Case())
    general = {"same bits again": False, "other calls between": False}
    assert {f.output: bool(f.fault) for f in found} == {"three": True, **general}
    assert all(f.pass_ == PROPERTY for f in found)
    (fault,) = [f.fault for f in found if f.fault]
    assert fault.startswith("property 'three': two is not three")
    with pytest.raises(Inapplicable, match="there is no lse"):
        asks_for_more(subject(contract, reference), Case())


def test_properties_have_the_bounds_of_who_is_judged(reference):
    def full(subject, case):
        on = machine("float32")
        assert on.u_product == on.u_sum == on.u

    contract = doubling(lambda x: 2 * x, properties={"full": full})
    ours = subject(contract, reference)
    others = Subject(ours.name, ours.compute)
    for judged, fault in ((ours, False), (others, True)):
        (found,) = check_properties(contract, judged, Case(), ("full",))
        assert bool(found.fault) == fault


def test_what_differs_from_run_to_run_is_seen(reference):
    count = iter(range(10))
    contract = doubling(lambda x: 2 * x + next(count))
    (finding,) = check_properties(contract, subject(contract, reference), Case())
    assert "computed again" in finding.fault


def test_bits_are_compared_with_nan_in_mind():
    x = np.array([1.0, np.nan])
    same_bits({"out": x}, {"out": x.copy()}, "here")
    with pytest.raises(AssertionError, match="out differs here"):
        same_bits({"out": x}, {"out": np.array([1.0, 2.0])}, "here")


def test_other_processes_judge_pinned_cases_alike(side):
    alone = report.verify("layer_norm", side, 1)
    with processes(side, 2) as pool:
        assert report.verify("layer_norm", side, 1, pool) == alone
