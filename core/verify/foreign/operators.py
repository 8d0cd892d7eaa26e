"""Foreign objects with an operator's functions, called as ours are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from twofold.core import ops
from twofold.core.verify import disturbing
from twofold.core.verify.contract import Contract, Inapplicable, precision_name
from twofold.core.verify.foreign.refusals import refusals
from twofold.core.verify.report import contract_module

FUNCTIONS = {
    "optimizers": ("adam",),
    "attention_weights": ("weights", "received"),
    "attention_decode": ("forward",),
    "attention_fp8": ("forward", "quantize"),
    "attention_double_backward": ("backward",),
}
# Fields of cases that only our operators are tried on, with the values that others get.
OURS_ALONE = {"tile": None, "into": "", "unread": (), "keep": True}


def functions(operator: str) -> tuple[str, ...]:
    """Return the names of an operator's functions."""
    return FUNCTIONS.get(operator, ("forward", "backward"))


class Operator:
    """An object with the functions of an operator's module, such as a module of kernels.

    Its attributes are those of `Function`.
    """

    def __init__(self, implementation: Any, operator: str) -> None:
        self._implementation, self.name = implementation, operator
        self.side, module = ops.load("triton"), contract_module(operator)
        self.missing: list[str] = []
        self.ever: set[str] = set()
        self.unexercised: list[str] = []
        self.unpassed: list[str] = []
        self.implied: list[str] = []
        self.instead: set[str] = set()
        self.remarks: set[str] = set()
        self.absent: set[str] = set()
        self.long: list[Any] = []
        self.found_out: list[str] = []
        self.learns = True
        self._module_run = module.run
        self._wanted = functions(operator)
        parameters = inspect.signature(getattr(implementation, self._wanted[0])).parameters
        self._takes_tf32 = "allow_tf32" in parameters
        reference = getattr(ops.load("reference"), operator)
        self._gradients = getattr(reference, "Gradients", None)
        without_tiles = [self.fitting(c, precision_name(c)) for c in module.CONTRACT.pinned]
        self.contract: Contract = replace(
            module.CONTRACT, run=self._run, pinned=list(dict.fromkeys(without_tiles))
        )

    def fitting(self, case: Any, precision: str, size: int | None = None) -> Any:
        """Return the case in this precision, without what only our operators are tried on."""
        return in_precision(case, precision, OURS_ALONE)

    def find_out(self, observe: Callable[[str, Any], object] = lambda why, case: None) -> None:
        """Do nothing: an operator has every option."""

    def implying(self, option: str, precision: str) -> Any:
        """Return nothing: there is no such option."""

    def judged(self, case: Any) -> None:
        """Do nothing: an operator has every option."""

    def skips(self, case: Any) -> bool:
        """Return False: the cases are the operator's own."""
        return False

    def outside(self) -> list[str]:
        """Return nothing: the domain is the operator's own."""
        return []

    def shown(self, side: ops.Side, case: Any, given: Any) -> Mapping[str, Any]:
        """Return the outputs that properties know."""
        return self._run(side, case, given)

    def _run(self, side: ops.Side, case: Any, given: Any) -> Mapping[str, Any]:
        if self.fitting(case, precision_name(case)) != case:
            raise Inapplicable("there is no such case")
        with refusals():
            found: Mapping[str, Any] = self._module_run(_With(side, self), case, given)
        self.ever |= {n for n, x in found.items() if x is not None}
        return found

    def __getattr__(self, name: str) -> Any:
        """Return the implementation's function, without allow_tf32 if it does not take it."""
        theirs = getattr(self._implementation, name)
        if name not in self._wanted:
            return theirs

        def function(*args: Any, **how: Any) -> Any:
            if not self._takes_tf32:
                how.pop("allow_tf32", None)
            returned = theirs(*args, **how)
            return _named(returned, self._gradients) if name == "backward" else returned

        return function


class _With:
    """A side with one operator replaced by a foreign one."""

    def __init__(self, side: ops.Side, operator: Operator) -> None:
        self._side, self._theirs = side, operator

    def __getattr__(self, name: str) -> Any:
        own = name == self._theirs.name
        return disturbing.of(self._side, self._theirs) if own else getattr(self._side, name)


def _named(returned: Any, gradients: Any) -> Any:
    """Return what a backward returned, naming the gradients if it returned them in order."""
    if gradients is None or hasattr(returned, "_asdict"):
        return returned
    wanted = gradients._fields
    if isinstance(returned, Mapping) and set(returned) == set(wanted):
        return gradients(**returned)
    several = isinstance(returned, tuple | list)
    values = list(returned) if several else [returned]
    if len(values) == len(wanted) and not isinstance(returned, Mapping):
        return gradients(*values)
    what = f"{type(returned).__name__} of {len(values)}" if several else type(returned).__name__
    raise TypeError(
        f"backward returns a {what}; it must return {', '.join(wanted)}, "
        "in this order or by these names, None for what has no gradient"
    )


def in_precision(case: Any, precision: str, fields: Mapping[str, Any]) -> Any:
    """Return the case in this precision, with those of these fields that it has."""
    tf32 = precision == "tf32"
    fields = {**fields, "dtype": "float32" if tf32 else precision, "allow_tf32": tf32}
    return replace(case, **{n: x for n, x in fields.items() if hasattr(case, n)})
