"""What a contract is, and how a side is judged by it.

A contract says, for every case in an operator's domain, what the outputs are (the *truth*) and how
far a kernel may be from them (the *bound*). Judging compares element by element: NaN and infinities
must be where the truth has them, everything else must be within its bound; elements that the bound
cannot decide, because it is infinite, are counted.

Beside the truth a contract has properties: claims about any correct implementation, which see only
its outputs for given inputs (`Subject`). So they apply to either side, to anyone's function
(`foreign`), and at sizes at which no truth could be computed.
"""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify.disturbing import disturbed
from twofold.core.verify.domains import in_one_layout
from twofold.core.verify.machines import full_products
from twofold.core.verify.rounding import Approx, chance, probabilistic
from twofold.core.verify.watching import Watched, unwritten, unwritten_memory_is_nan

Array = np.ndarray[Any, np.dtype[Any]]

if not __debug__:  # without asserts, what is wrong would hold
    raise ImportError(
        "python's assert is turned off, by -O or PYTHONOPTIMIZE; it must be on where anything is "
        "judged: properties are made of it"
    )


@dataclass(frozen=True)
class Contract:
    """One operator's contract.

    Attributes:
        operator: its name.
        cases: strategy of cases: frozen dataclasses of plain numbers and names with a field
            `dtype`.
        inputs: makes a case's inputs, float64 arrays that its dtype holds exactly.
        run: computes all outputs of (side, case, inputs), forward and backward, by name. It places
            its inputs with `side.asarray` (or `domains.place`), so that they can be watched.
        truth: the same outputs of (case, inputs) with their bounds, in float64.
        passes: the pass each output belongs to, "forward" or "backward".
        pinned: cases that are always run, such as one for each entry of the tile table.
        properties: further claims by name; each raises AssertionError where a case breaks it.
        small: cuts a case down to a size at which properties cost little.
        in_place: whether the operator may change its inputs.
        compiled: cases whose kernels `twofold verify compile` compiles, where not the pinned ones.
        usual: further cases that are compiled: 16 divides their sizes, as it does in most models,
            so that the compiler makes accesses wider.
        unsupported: why a target has no such kernels, by the target's name.
    """

    operator: str
    cases: st.SearchStrategy[Any]
    inputs: Callable[[Any], Any]
    run: Callable[[Side, Any, Any], Mapping[str, Any]]
    truth: Callable[[Any, Any], Mapping[str, Approx]]
    passes: Mapping[str, str]
    pinned: Sequence[Any] = ()
    properties: Mapping[str, Property] = field(default_factory=dict)
    small: Callable[[Any], Any] = lambda case: case
    in_place: bool = False
    compiled: Sequence[Any] = ()
    usual: Sequence[Any] = ()
    unsupported: Mapping[str, str] = field(default_factory=dict)

    def of_properties(self, case: Any) -> Any:
        """Return the case as properties take it: small, and with all arrays in one layout."""
        return in_one_layout(self.small(case))

    def claims(self) -> dict[str, Property]:
        """Return the contract's own properties and those that every operator has."""

        def same_bits_again(subject: Subject, case: Any) -> None:
            """Nothing but the inputs decides: computed twice, the same bits."""
            given = self.inputs(case)
            same_bits(subject.compute(case, given), subject.compute(case, given), "computed again")

        def other_calls_between(subject: Subject, case: Any) -> None:
            """Nothing is kept from call to call: others in between change no bit."""
            if subject.disturbed is None:
                raise Inapplicable("no other calls can be made in between")
            given = self.inputs(case)
            alone, beside = (
                compute(case, given) for compute in (subject.compute, subject.disturbed)
            )
            try:
                same_bits(alone, beside, "where other calls are made in between")
            except Bits as broken:
                try:
                    for _ in range(2):  # interpreted programs are in one order every other time
                        same_bits(alone, subject.compute(case, given), "computed again")
                except Bits:
                    raise Inapplicable("it has other bits every time") from None
                raise AssertionError(str(broken)) from None

        general = {"same bits again": same_bits_again, "other calls between": other_calls_between}
        return {**self.properties, **general}


class Inapplicable(Exception):
    """A property needs something an implementation does not have: an option, or an output."""


class Outputs(dict[str, Array]):
    """What was computed, by name; asking for anything else raises `Inapplicable`."""

    def __missing__(self, name: str) -> Array:
        raise Inapplicable(f"there is no {name}")


@dataclass(frozen=True)
class Subject:
    """An implementation as a property sees it.

    Attributes:
        name: "reference", "triton", or the name of a foreign function.
        compute: the outputs of (case, inputs), forward and backward.
        full_products: whether bounds are those of `machines.full_products`.
        disturbed: the same with other calls made in between (`disturbing`).
    """

    name: str
    compute: Callable[[Any, Any], Outputs]
    full_products: bool = False
    disturbed: Callable[[Any, Any], Outputs] | None = None


class Bits(AssertionError):
    """Two results differ that come from the same operations in the same order."""


def same_bits(first: Mapping[str, Array], second: Mapping[str, Array], what: str) -> None:
    """Raise `Bits` unless every output is the same, bit for bit (NaN is NaN)."""
    for name in first.keys() & second.keys():
        if not np.array_equal(first[name], second[name], equal_nan=True):
            raise Bits(f"{name} differs {what}")


# Takes the subject and a case; raises AssertionError, or `Inapplicable`.
Property = Callable[[Subject, Any], None]
PROPERTY = "property"  # in place of the pass, in a property's finding


@dataclass(frozen=True)
class Finding:
    """The result for one output of one case, or for one property (`pass_` is PROPERTY).

    `share` is the largest |computed − truth| / bound over the elements that the bound decides,
    `median` the median of them; `vacuous` is the share of elements that it does not decide; `fault`
    says what is wrong, "" if nothing is; `likely` is the largest share of the probabilistic bound.
    """

    operator: str
    pass_: str
    output: str
    dtype: str
    case: Any
    share: float
    median: float
    vacuous: float
    fault: str = ""
    likely: float = 0.0


class Violation(AssertionError):
    """A side broke its contract; carries the findings that say where."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = [f for f in findings if f.fault]
        super().__init__("\n".join(f"{f.operator}: {f.fault}\n  {f.case}" for f in self.findings))


def shares(computed: Array, truth: Approx) -> tuple[Array, Array]:
    """Return |computed − truth| / bound of every element, and where the bound does not decide.

    The share is 0 or ∞ where the truth is NaN or infinite, and 0 where nothing is decided.
    """
    value, error = np.asarray(truth.value), np.asarray(truth.error)
    computed = computed.astype(np.float64)
    finite = np.isfinite(value)
    special = ~finite & ~((computed == value) | (np.isnan(computed) & np.isnan(value)))
    undecided = finite & ~(error < np.inf)  # infinite, or NaN where infinities met
    with np.errstate(all="ignore"):
        distance = np.abs(computed - value)
        distance = np.where(np.isnan(distance), np.inf, distance)
        share = np.where(distance == 0, 0.0, distance / error)
    share = np.where(special, np.inf, np.where(finite & ~undecided, share, 0.0))
    return share, undecided


def compare(name: str, computed: Array, truth: Approx) -> tuple[float, float, str, float]:
    """Return (worst share of the bound, vacuous fraction, fault or "", median share)."""
    value, error = np.asarray(truth.value), np.asarray(truth.error)
    if computed.shape != value.shape:
        return np.inf, 0.0, f"{name} has shape {computed.shape}; it must be {value.shape}", np.inf
    if computed.size == 0:
        return 0.0, 0.0, "", 0.0
    share, undecided = shares(computed, truth)
    finite = np.isfinite(value)
    worst = np.unravel_index(np.argmax(share), share.shape)
    fault = ""
    if share[worst] > 1:
        at = tuple(int(i) for i in worst)
        fault = (
            f"{name}{list(at)} is {computed[worst]:.9g}; it must be {value[worst]:.9g} "
            f"± {error[worst]:.3g} ({int((share > 1).sum())} of {share.size} elements are out)"
        )
        if truth.on.confidence is not None:
            fault += (
                f" by the probabilistic bound, which fails with probability {chance(truth.on):.0e}"
            )
    decided = share[finite & ~undecided]
    median = float(np.median(decided)) if decided.size else 0.0
    return float(share[worst]), float(undecided.mean()), fault, median


def subject(contract: Contract, side: Side) -> Subject:
    """Return a side as properties see it."""

    def compute(case: Any, given: Any, how: Callable[[Side], Side] = lambda side: side) -> Outputs:
        if fitting(side, case) != case:
            raise Inapplicable(f"the {side.name} side has no such case")
        found = contract.run(how(Watched(side).side), case, given)
        # Copies, as the next call may write to the same memory.
        return Outputs({n: np.array(side.to_numpy(x)) for n, x in found.items() if x is not None})

    between = None if contract.in_place else functools.partial(compute, how=disturbed)
    return Subject(side.name, compute, side.name == "reference", between)


def computed(
    contract: Contract, side: Side, case: Any, given: Any
) -> tuple[dict[str, Array], dict[str, str]]:
    """Run one case on a side; return its outputs, and what is wrong with memory, both by name.

    Memory that was allocated and never written is NaN, and wrong in an output; so are "inputs" that
    were written to.
    """
    with unwritten_memory_is_nan(side):
        watched = Watched(side)
        found = contract.run(watched.side, case, given)
        wrong = {name: unwritten(side, x) for name, x in found.items()}
    if not contract.in_place:
        wrong["inputs"] = watched.fault()
    outputs = {name: side.to_numpy(x) for name, x in found.items() if x is not None}
    return outputs, {name: fault for name, fault in wrong.items() if fault}


def truths(contract: Contract, case: Any, given: Any) -> Mapping[str, Approx]:
    """Return every output of a case with its bound."""
    with np.errstate(all="ignore"):  # where a bound is infinite, ∞ − ∞ and 0·∞ are expected
        return contract.truth(case, given)


def certain_and_likely(
    contract: Contract, side: Side, case: Any, given: Any
) -> tuple[Mapping[str, Approx], Mapping[str, Approx]]:
    """Return every output of a case on a side with both its bounds."""
    with full_products(side.name == "reference"):
        certain = truths(contract, case, given)
        with probabilistic():
            return certain, truths(contract, case, given)


def judge(contract: Contract, side: Side, case: Any) -> list[Finding]:
    """Run one case on a side and compare every output with the truth, by both its bounds.

    A violation of the probabilistic bound alone is reported as such: at fault is the kernel, or the
    assumption that its casts are independent (`rounding`). For an output with unwritten elements,
    the finding says what left them unwritten, where that is known.
    """
    given = contract.inputs(case)
    outputs, wrong = computed(contract, side, case, given)
    bounds, likely_bounds = certain_and_likely(contract, side, case, given)
    findings = []
    for name, truth in bounds.items():
        share, vacuous, fault, median = compare(name, outputs[name], truth)
        likely, _, likely_fault, _ = compare(name, outputs[name], likely_bounds[name])
        findings.append(
            Finding(
                contract.operator,
                contract.passes[name],
                name,
                precision_name(case),
                case,
                share,
                median,
                vacuous,
                wrong.pop(name, "") or fault or likely_fault,
                likely,
            )
        )
    for name in sorted(outputs.keys() - bounds.keys()):
        fault = f"{name} was computed; it must be None"
        findings.append(dataclasses.replace(findings[0], output=name, fault=fault))
    for name, fault in wrong.items():
        findings.append(dataclasses.replace(findings[0], output=name, fault=fault))
    return findings


def raised(contract: Contract, case: Any, error: Exception) -> Finding:
    """Return the finding that an operator raised an exception, which no case should cause."""
    pass_, output = next(iter(contract.passes.values())), next(iter(contract.passes))
    return Finding(
        contract.operator, pass_, output, precision_name(case), case, np.inf, np.inf, 0.0,
        _said(error),
    )  # fmt: skip


def _said(error: Exception) -> str:
    """Return what was raised, and where; a `Fault` of the strict interpreter says where itself."""
    if isinstance(error, AssertionError):
        return str(error)
    *_, at = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} (at {at.filename}:{at.lineno})"


def check_properties(
    contract: Contract, judged: Subject, case: Any, names: Iterable[str] | None = None
) -> list[Finding]:
    """Check the properties of these names, or all; those that do not apply are left out."""
    findings, claims = [], contract.claims()
    for name in claims if names is None else dict.fromkeys(names):
        fault = ""
        try:
            with full_products(judged.full_products), np.errstate(all="ignore"):  # as for the truth
                claims[name](judged, case)
        except Inapplicable:
            continue
        except Exception as broken:
            fault = f"property {name!r}: {_said(broken)}"
        share = np.inf if fault else 0.0
        findings.append(
            Finding(
                contract.operator, PROPERTY, name, precision_name(case), case, share, share, 0.0,
                fault,
            )
        )  # fmt: skip
    return findings


def hold(
    contract: Contract, side: Side, case: Any, properties: Iterable[str] | None = None
) -> list[Finding]:
    """Judge one case, check its properties, and raise `Violation` where the contract is broken.

    `properties` names those to check, by default all.
    """
    try:
        findings = judge(contract, side, case)
    except Exception as error:
        raise Violation([raised(contract, case, error)]) from error
    judged, small = subject(contract, side), contract.of_properties(case)
    findings += check_properties(contract, judged, small, properties)
    if any(f.fault for f in findings):
        raise Violation(findings)
    return findings


def judge_pinned(
    contract: Contract, side: Side, numbers: Iterable[int] | None = None
) -> list[Finding]:
    """Judge the pinned cases of these numbers, or all."""
    found = []
    for number in range(len(contract.pinned)) if numbers is None else numbers:
        case = fitting(side, contract.pinned[number])
        try:
            found += judge(contract, side, case)
        except Exception as error:
            found.append(raised(contract, case, error))
    return found


def fitting(side: Side, case: Any) -> Any:
    """Return the case as a side can run it: the reference has only float32, no tiles, no parts."""
    if side.name != "reference":
        return case
    fields = {"dtype": "float32", "tile": None, "split": None, "allow_tf32": False}
    return dataclasses.replace(case, **{n: x for n, x in fields.items() if hasattr(case, n)})


def precision_name(case: Any) -> str:
    """Return a case's precision as the tables show it: its dtype, or "tf32"."""
    return "tf32" if getattr(case, "allow_tf32", False) else str(case.dtype)
