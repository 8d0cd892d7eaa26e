"""What a function means where its signature leaves it open, found by trial.

Examples are the order of the axes of q, how causal aligns fewer queries with more keys, whether
True in a mask shows or hides, and the eps of a norm that takes none. The least wrong meaning is
taken and reported; where all are wrong, the function is judged by the one with the smallest errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from twofold.core.verify import domains
from twofold.core.verify.contract import Finding
from twofold.core.verify.contract import judge as judge_case
from twofold.core.verify.foreign.orders import contiguous
from twofold.core.verify.foreign.plain import Handed
from twofold.core.verify.foreign.refusals import Refused, raised_in_library

if TYPE_CHECKING:
    from twofold.core.verify.foreign.subjects import Function

Way = TypeVar("Way")
Call = Callable[..., Any]
Observe = Callable[[str, Any], object]


# Values of fields that need no mention where an option is missing.
SAID_BY_NOTHING = {"causal": False, "activation": None}
UNPACKED = "to be judged so it must refuse more axes, as `M, D = q.shape` does"
DENSE = "it refuses their strides in this order, and is given contiguous tensors"


class _Tried(NamedTuple):
    """Indices of ways: the least wrong, the nearest, the first in which anything is computed."""

    best: int | None  # None if all are wrong
    nearest: int | None  # by size of error where all are wrong; None if none has a size
    size: float  # of the errors of the nearest
    computed: int | None  # None if nothing is computed
    refused: bool  # whether the function refused every case, in its own words
    right: bool  # whether nothing is wrong with the best
    in_library: bool  # whether a library it calls did, as torch.einsum refuses other axes


def find_out(function: Function, observe: Observe) -> None:
    """Find what a function means, and set it so; `observe` gets the purpose and each case first."""
    _arrange(function, observe)
    _hand(function, observe)
    _align(function, observe)
    _without(function, observe)
    _limit(function, observe)
    _agree(function, observe)
    _leave_out(function, observe)
    function.ever.clear()


def _arrange(function: Function, observe: Observe) -> None:
    """Find the order of the axes of the function's tensors, if unknown, and record it."""
    if not function.arranged and (function.entry.arranged or function.entry.fewer):
        _try_orders(function, observe)
    if function.arranged:
        function.found_out.append(f"its tensors are taken to be {function.arranged}")


def _try_orders(function: Function, observe: Observe) -> None:
    """Try orders of axes, and take the least wrong."""
    usual, case, ways = function.function, function.entry.arranged_case, function.ways
    arranged = {"": lambda call: call, **function.entry.arranged}
    what = "in which order its axes are"

    def take(call: Callable[..., Any]) -> None:
        function.function = call

    def tried(orders: Mapping[str, Callable[..., Any]]) -> _Tried:
        """Try orders; if all are wrong, also each with what missing options may stand for.

        If all orders are wrong, the nearest is taken, whichever option makes it the nearest.
        """

        def once() -> _Tried:
            calls = list(orders.values())
            return _least_wrong(function, calls, take, lambda call: case, what, observe)

        found = once()
        if found.best is None and not found.refused:
            for option, fields in _ways_without(function):
                function.without[option] = fields
                again = once()
                if again.right:
                    return again
                del function.without[option]
                found = again if again.best is None and again.size < found.size else found
        return found

    def settle(found: _Tried, orders: Mapping[str, Callable[..., Any]]) -> None:
        known = (found.best, found.nearest, found.computed)
        at = next((i for i in known if i is not None), None)
        function.arranged = "" if at is None else list(orders)[at]
        take(orders[function.arranged] if function.arranged else usual)

    orders = _in_every_way(arranged, ways)
    fewer = _in_every_way({n: order for n, (order, _) in function.entry.fewer.items()}, ways)
    fields = {_both(n, way): x for n, (_, x) in function.entry.fewer.items() for way in ways}
    found = tried(orders)
    if found.best is None and not found.refused:
        inside = {n: contiguous(call) for n, call in ways.items()}
        dense = _in_every_way(function.entry.arranged, inside)
        again = tried(dense)
        if again.right:
            settle(again, dense)
            function.found_out.append(DENSE)
            return
    of_fewer = tried(fewer) if found.best is None and fewer else None
    if of_fewer is not None and (found.refused or (found.in_library and of_fewer.right)):
        settle(of_fewer, fewer)
        function.always |= fields.get(function.arranged, {})
    else:  # errors with axes that it does not refuse are faults
        settle(found, orders)
        if of_fewer is not None and of_fewer.best is not None and of_fewer.right:
            words = f"with {list(fewer)[of_fewer.best]} it agrees in a case; {UNPACKED}"
            function.found_out.append(words)


def _in_every_way(
    orders: Mapping[str, Callable[[Call], Call]], ways: Mapping[str, Call]
) -> dict[str, Call]:
    """Return each order combined with each thing that a function may be, by the words for both."""
    return {
        _both(words, way): order(call)
        for way, call in ways.items()
        for words, order in orders.items()
    }


def _both(order: str, way: str) -> str:
    return ", ".join(filter(None, (order, way)))


def _align(function: Function, observe: Observe) -> None:
    """Find what the function's options mean; if none of the known meanings fits, it is wrong."""
    for option, ways in function.entry.meant.items():
        if option in function.missing:
            continue

        def take(fields: Mapping[str, Any], option: str = option) -> None:
            function.meant[option] = fields[option]

        tried = _least_wrong(function, ways, take, dict, f"what {option} means", observe)
        if tried.computed is None:
            del function.meant[option]  # it refuses: its meaning is not judged
            continue
        take(ways[tried.best or 0])
        known = " nor ".join(str(fields[option]) for fields in ways)
        said = f"{option} is taken to be {function.meant[option]}"
        unlike = f"{option} is neither {known} where keys are more than queries"
        function.found_out.append(unlike if tried.best is None else said)


def _hand(function: Function, observe: Observe) -> None:
    """Find what the tensors of the function's options say, such as True in a mask."""
    for option, ways in function.entry.handed.items():
        if option in function.missing:
            continue
        fields = function.entry.exercised[option][0]

        def take(way: str, option: str = option, ways: Mapping[str, Handed] = ways) -> None:
            function.handed[option] = ways[way]

        def asked(way: str, fields: Mapping[str, Any] = fields) -> Mapping[str, Any]:
            return fields

        words = list(ways)
        tried = _least_wrong(function, words, take, asked, f"what {option} says", observe)
        at = tried.computed if tried.best is None else tried.best
        if not at:
            del function.handed[option]  # it is the contract's own, or the function refuses
            continue
        take(words[at])
        function.found_out.append(f"{option} is taken to be {words[at]}")


def _without(function: Function, observe: Observe) -> None:
    """Find what the function does in place of options that it does not have."""
    for option, ways in function.entry.either.items():
        if option not in function.missing:
            continue

        def take(fields: Mapping[str, Any], option: str = option) -> None:
            function.without[option] = _of_option(function, option, fields)

        what = f"what it is without {option}"
        tried = _least_wrong(function, ways, take, dict, what, observe)
        if tried.best is None:
            del function.without[option]
            if option == "causal" and _sees_nothing_later(function, observe):
                take({"causal": True})
                function.found_out.append(
                    "it is causal without being asked: later keys change nothing"
                )
            elif option != "causal" and tried.nearest is not None:
                take(ways[tried.nearest])
                words = _unlike(function.without[option], ways)
                if tried.size == 0.0:  # the middle element of every output keeps its bound
                    words = _like(option, function.without[option])
                    words += ", whose bounds hold in most cases"
                function.found_out.append(words)
            continue
        take(ways[tried.best])
        found = function.without[option]
        if not any(x is SAID_BY_NOTHING.get(n, ...) for n, x in found.items()):
            function.found_out.append(_like(option, found))


def _limit(function: Function, observe: Observe) -> None:
    """Find what the function does without: features with which it raises, and without which not.

    If it computes something with a feature, and wrongly, that is wrong.
    """
    for words, (fields, limit) in function.entry.limits.items():
        cases = [function.fitting(function.case_type(**fields), d) for d in domains.DTYPES]
        if any(
            _computes(function, limit(case), observe) and not _computes(function, case, observe)
            for case in cases
        ):
            function.limits.append(limit)
            function.found_out.append(words)


def _agree(function: Function, observe: Observe) -> None:
    """Find what the function does instead of what ours do: what holds only if judged like that."""
    for words, (cases, instead) in function.entry.instead_of_ours.items():
        each = itertools.product(cases, domains.DTYPES)
        if any(_only_so(function, fields, dtype, instead, observe) for fields, dtype in each):
            function.found_out.append(words)


def _only_so(
    function: Function,
    fields: Mapping[str, Any],
    dtype: str,
    instead: Mapping[str, Any],
    observe: Observe,
) -> bool:
    """Return whether the function keeps a case's bounds only with `instead`; if so, set it so."""

    def keeps() -> bool:
        return _keeps(function, function.fitting(function.case_type(**fields), dtype), observe)

    if keeps():
        return False
    own = {name: function.always[name] for name in instead}
    function.always |= instead
    if keeps():
        return True
    function.always |= own
    return False


def _keeps(function: Function, case: Any, observe: Observe) -> bool:
    """Return whether the function keeps the bounds of its outputs, whatever its gradients are."""
    observe("to see what it does instead", case)
    try:
        found = judge_case(function.contract, function.side, case)
    except (Exception, SystemExit):
        return False
    return not any(f.fault for f in found if f.pass_ == "forward")


def _leave_out(function: Function, observe: Observe) -> None:
    """Find the one row of a table whose gradient is always 0, and record it, as it is wrong.

    The row of a padding_idx is such a row.
    """
    for table, fields in function.entry.tables.items():
        silent: list[set[int]] = []
        for seed in range(2):
            made = function.case_type(**fields, seed=seed)
            case = function.fitting(made, domains.DTYPES[0])
            observe("to see whose gradient is 0", case)
            given = function.contract.inputs(case)
            try:
                found = function.side.to_numpy(function.shown(function.side, case, given)[table])
                true = np.asarray(function.contract.truth(case, given)[table].value)
            except (Exception, SystemExit):
                return  # it has no gradient, or is wrong in another way
            lost = (found == 0).all(-1) & (true != 0).any(-1) if found.shape == true.shape else ()
            silent.append(set(map(int, np.flatnonzero(lost))))
        rows = set.intersection(*silent)
        if len(rows) == 1:
            said = f"the gradient of row {rows.pop()} is always 0: a padding_idx?"
            function.found_out.append(said)


def _computes(function: Function, case: Any, observe: Observe) -> bool:
    """Return whether the function computes anything for a case, right or wrong."""
    observe("to see whether it takes it", case)
    try:
        judge_case(function.contract, function.side, case)
    except (Exception, SystemExit):
        return False
    return True


def _like(option: str, fields: Mapping[str, Any]) -> str:
    """Say what the function is judged as without an option."""
    value = " and ".join(map(str, fields.values()))
    return f"without {option}, its {', '.join(fields)} is taken to be {value}"


def _unlike(fields: Mapping[str, Any], ways: Sequence[Mapping[str, Any]]) -> str:
    """Say what the function is judged as if nothing that it may be without an option is right."""
    known = ", ".join(" and ".join(str(way[n]) for n in fields) for way in ways)
    values = " and ".join(map(str, fields.values()))
    return f"its {' and '.join(fields)} is none of {known}; judged as {values}, the nearest"


def _sees_nothing_later(function: Function, observe: Observe) -> bool:
    """Return whether another last key changes the last query's output, and no other's.

    This detects a function that is always causal even if its values are wrong.
    """
    function.without["causal"] = {"causal": True}
    try:
        case = function.fitting(function.case_type(**function.entry.arranged_case), "float32")
        observe("to see whether it is causal", case)
        given = function.contract.inputs(case)
        other = {n: getattr(given, n).copy() for n in ("k", "v")}
        for x in other.values():
            x[..., -1, :] += 1.0
        first, second = (
            function.side.to_numpy(function.shown(function.side, case, one)["out"])
            for one in (given, given._replace(**other))
        )
    except (Exception, SystemExit):  # it may refuse, or fail in any way
        return False
    finally:
        del function.without["causal"]
    same = (first == second).all(axis=-1)  # (B, H, M)
    return bool(same[..., :-1].all() and not same[..., -1].any())


def _ways_without(function: Function) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield options that the function does not have, with what it may do without each."""
    for option, ways in function.entry.either.items():
        for fields in ways if option in function.missing else ():
            yield option, _of_option(function, option, fields)


def _of_option(function: Function, option: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of a case that an option sets."""
    return {n: fields[n] for n in function.entry.options[option]}


def _least_wrong(
    function: Function,
    ways: Sequence[Way],
    take: Callable[[Way], None],
    fields: Callable[[Way], Mapping[str, Any]],
    what: str,
    observe: Observe,
) -> _Tried:
    """Try cases with these fields, each in its way, until one is right in a precision.

    Ways that are equally wrong, as where every output has one element out of bounds, are told apart
    by the size of their errors.
    """
    best, nearest, computed, refused, in_library = None, None, None, True, True
    least = (1.0, np.inf)
    for dtype, (i, way) in itertools.product(domains.DTYPES, enumerate(ways)):
        take(way)
        case = function.fitting(function.case_type(**fields(way)), dtype)
        observe(f"to see {what}", case)
        try:
            findings = judge_case(function.contract, function.side, case)
        except Refused:
            continue
        except (Exception, SystemExit) as error:  # whatever its code raises: not its meaning
            refused, in_library = False, in_library and raised_in_library(error)
            continue
        refused = in_library = False
        computed = i if computed is None else computed
        wrong = sum(bool(f.fault) for f in findings) / len(findings), _size(findings)
        if wrong < least:
            nearest, least = i, wrong
            best = i if wrong[0] < 1.0 else None
        if least[0] == 0.0:
            break
    return _Tried(best, nearest, least[1], computed, refused, least[0] == 0.0, in_library)


def _size(findings: Sequence[Finding]) -> float:
    """Return the size of errors: log(error ÷ bound) of the median element, a mean over outputs.

    Not of the worst, which may be one element in the far tail of a gelu. Within the bound it is 0.
    """
    return float(np.mean([np.log(max(1.0, f.median)) for f in findings]))
