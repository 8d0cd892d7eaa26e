"""Foreign implementations, made to compute what a contract needs.

A `Function` is a plain call on torch tensors, an `Operator` an object with the functions of an
operator's module (`forward`, `backward`, …) and their arguments.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core import ops
from twofold.core.verify import disturbing, domains
from twofold.core.verify.contract import Contract, Inapplicable, precision_name
from twofold.core.verify.foreign import gradients as foreign_gradients
from twofold.core.verify.foreign import lacking as foreign_lacking
from twofold.core.verify.foreign import learning as foreign_learning
from twofold.core.verify.foreign import meanings, optimizers, packed
from twofold.core.verify.foreign.calls import Call
from twofold.core.verify.foreign.forms import plain
from twofold.core.verify.foreign.kinds import Seen, is_operator, parameters
from twofold.core.verify.foreign.operators import Operator, functions, in_precision
from twofold.core.verify.foreign.plain import Handed, dtypes_told, own_names
from twofold.core.verify.foreign.refusals import refusals
from twofold.core.verify.foreign.table import PLAIN
from twofold.core.verify.foreign.written import VARIADIC
from twofold.core.verify.report import contract_module
from twofold.core.verify.rounding import Approx
from twofold.core.verify.strict import launches
from twofold.reference.activation import KINDS

GRADIENTS = ("dout", "dh", "dloss", "dq_out", "dk_out")  # outputs' gradients, among the inputs
FAR_AWAY = "offsets past 2³¹ not judged: that is for interpreted kernels, where there are addresses"


def subject(implementation: Any, operator: str) -> Function | Operator:
    """Return an implementation as a `Function` or an `Operator`.

    Raises:
        ValueError: nothing of its kind can be judged as this operator.
        TypeError: it cannot be called and lacks the operator's functions, or takes other arguments.
    """
    ops.check_operator("--op", operator)
    wanted = functions(operator)
    if is_operator(implementation, wanted):
        return Operator(implementation, operator)
    if operator not in PLAIN:
        takes = f"as {operator} an object with {' and '.join(wanted)} can be taken"
        missing = [n for n in wanted if not callable(getattr(implementation, n, None))]
        if 0 < len(missing) < len(wanted):
            raise TypeError(f"{implementation!r} has no function {missing[0]!r}; {takes}")
        known = ", ".join(PLAIN)
        raise ValueError(
            f"--op is {operator!r}; it must be one of {known} for a plain function ({takes})"
        )
    seen = Seen()
    return Function(plain(implementation, operator, seen), operator, seen)


class Function:
    """A plain call, f(tensors…, options…) -> output or outputs, differentiated by autograd.

    Attributes:
        function, entry, operator: what is called, how (`table`), and as what.
        contract: the operator's, restricted to what a plain call can compute.
        case_type: of its cases.
        side: where its tensors live.
        missing: options that it does not have.
        ever: outputs and gradients that it ever computed.
        unexercised: options that it has and no judged case has set.
        unpassed: parameters that it has and that are never passed.
        remarks: permitted differences from ours.
        found_out: what it was found to mean, in words.
        implied: options that it does not have and may do without.
        instead: outputs that the contract does not have.
        without: fields of cases, by missing options, as they were found out.
        meant: values of options that it has, as they were found out.
        handed: what tensors of options say, as was found out.
        arranged: the order of its axes, if not the usual one.
        ways: what it may be called as where that is left open, by words.
        limits: functions that bring a case into the domain without a feature, as was found out.
        always: the values that fields of cases have.
        long: cases that are run in one precision.
        absent: gradients of the last call that are None.
        learns, learning: whether any output ever required a gradient; which inputs now do.
    """

    def __init__(self, function: Callable[..., Any], operator: str, seen: Seen) -> None:
        self.function, self.entry, self.operator = function, PLAIN[operator], operator
        self.side, module = ops.load("triton"), contract_module(operator)
        self.case_type = module.Case
        self.without: dict[str, Mapping[str, Any]] = {}
        self.meant: dict[str, Any] = {}
        self.handed: dict[str, Handed] = {}
        self.limits: list[Callable[[Any], Any]] = []
        self.arranged, self.found_out = seen.order, list(seen.said)
        self.ways = seen.ways or {"": function}
        self.learns, self.learning = False, foreign_learning.Learning()
        taken = parameters(function)
        self._names = own_names(taken, (*self.entry.options, *self.entry.told))
        self.missing = [o for o in self.entry.options if o not in self._names]
        self.ever, self.absent, self.remarks = set[str](), set[str](), set[str]()
        self.unexercised = [o for o in self._names if o not in self.entry.told]
        self.always = {**self.entry.always, **seen.fields}
        self._insisted = {
            option: fields
            for option, fields in self.entry.insisted.items()
            if option in self._names
            and taken[self._names[option]].default is inspect.Parameter.empty
        }
        self._lacking = self._optional(taken)
        self.implied = [option for option in self.entry.implied if option in self.missing]
        self._computed: set[str] = set()  # by the last call
        self._launches, self._shapes = 0, dict[str, tuple[int, ...]]()  # as outputs must be
        self.instead = set(self.entry.instead.values())
        self._inputs = self.entry.inputs or module.CONTRACT.inputs
        self._module_truth = module.truth
        self.contract = self._contract(module.CONTRACT, taken, seen)
        self.long = [module.Case(**fields) for fields in self.entry.long]
        self.unpassed = self._check_signature(module.Case(), seen)

    def _contract(
        self, ours: Contract, taken: Mapping[str, inspect.Parameter], seen: Seen
    ) -> Contract:
        """Return the operator's contract of what the function can be asked for."""
        spared = {*self.entry.conventions, *self._spared(taken)}
        claims = {n: p for n, p in ours.properties.items() if n not in spared}
        claims |= foreign_learning.properties(self.learning, self._given_of, self._truth)
        if seen.has_groups:
            claims |= optimizers.properties(self._given_of, self._truth)
        unknown = {f"d{x}" for x in self._lacking}
        passes = {
            n: p
            for n, p in ours.passes.items()
            if n not in unknown and (p == "backward" or n in self.entry.outputs)
        }
        return replace(
            ours,
            inputs=self._given_of,
            run=self._run,
            truth=self._truth,
            passes={**passes, **dict.fromkeys(self.instead, "forward")},
            pinned=[self.case_type(**fields) for fields in self._pinned()],
            properties=claims,
            small=self.entry.small or ours.small,
            in_place=False,
        )

    def find_out(self, observe: meanings.Observe = lambda why, case: None) -> None:
        """Find what the function means where its signature leaves it open, and judge it as such.

        `observe` is called with the purpose and each case before it is tried.
        """
        meanings.find_out(self, observe)

    def shown(self, side: ops.Side, case: Any, given: Any) -> dict[str, Any]:
        """Return the outputs that properties know."""
        found = self._run(side, case, given)
        for name, shape in self._shapes.items():
            if name in found and tuple(found[name].shape) != shape:
                was = tuple(found[name].shape)
                raise AssertionError(f"{name} has shape {was}; it must be {shape}")
        unknown = self.instead | foreign_lacking.unlike(self.entry, given, self._lacking)
        return {n: x for n, x in found.items() if n not in unknown}

    def _optional(self, taken: Mapping[str, inspect.Parameter]) -> list[str]:
        """Return tensors that it lacks; cases never have these, and always those it requires."""
        named, options = self.entry.may_lack, self._names.values()
        known = dict(foreign_lacking.lacking(self.operator, named, taken, options))
        for name, lacks in known.items():
            without, given = self.entry.optional.get(name, ({}, {}))
            self.always |= without if lacks else given
        names = [name for name, lacks in known.items() if lacks]
        self.remarks |= {f"it takes no {name}, and is judged without" for name in names}
        return names

    def _spared(self, taken: Mapping[str, inspect.Parameter]) -> Iterator[str]:
        """Yield properties of another value than an option's default, noting it."""
        for option, (value, name) in self.entry.spared.items():
            if option in self._names and taken[self._names[option]].default != value:
                why = f"its {self._names[option]} is not {value:g} by default"
                self.remarks.add(f"'{name}' not checked: {why}")
                yield name

    def _call(self, side: ops.Side, case: Any, given: Any) -> Call:
        """Return a case as the call that the function gets."""
        call = self.entry.call(side, case, given)
        for option in self.implied:
            if option in self.entry.unsaid:
                call = self.entry.unsaid[option](call)
        return call._replace(
            tensors={n: x for n, x in call.tensors.items() if n not in self._lacking}
        )

    def _given_of(self, case: Any) -> Any:
        """Return a case's inputs; expanded gradients are those of a sum, all elements equal."""
        made = foreign_lacking.without(self.entry, self._inputs(case), self._lacking)
        if getattr(case, "layout", "") != domains.EXPANDED:
            return made
        gradients = {n: getattr(made, n) for n in GRADIENTS if getattr(made, n, None) is not None}
        return made._replace(**{n: np.full_like(x, x.flat[0]) for n, x in gradients.items()})

    def _truth(self, case: Any, given: Any) -> dict[str, Approx]:
        """Return the bounds of the outputs that were computed."""
        truth = {**self._module_truth(case, given)}
        if self.instead & self._computed:
            truth |= self.entry.truth(case, given)
        return {n: x for n, x in truth.items() if n in self._computed}

    def fitting(self, case: Any, precision: str, size: int | None = None) -> Any:
        """Return the case in this precision, without what the function does not accept.

        `size` is a head_dim that more functions accept than an arbitrary one.
        """
        fields = dict(self.always)
        for option in self.missing:
            fields |= self.without.get(option, self.entry.options[option])
        for option, given in self._insisted.items():
            if all(getattr(case, n) == x for n, x in self.entry.options[option].items()):
                fields |= given
        for option in self.entry.meant.keys() - set(self.missing):
            fields[option] = self.meant.get(option, True) if getattr(case, option) else False
        for option, handed in self.handed.items():
            if any(getattr(case, n) != x for n, x in self.entry.options[option].items()):
                fields |= handed.fields
        case = self.entry.narrowed(in_precision(case, precision, fields), size)
        for limit in self.limits:
            case = limit(case)
        return case

    def implying(self, option: str, precision: str) -> Any:
        """Return a case with an option of `implied`, which the function is not passed."""
        case = self.case_type(**self.entry.implied[option])
        own = {n: getattr(case, n) for n in self.entry.options[option]}
        return replace(self.fitting(case, precision), **own)

    def judged(self, case: Any) -> None:
        """Record which options a case has set."""
        unset = self.entry.options
        self.unexercised = [
            o for o in self.unexercised if all(getattr(case, n) == x for n, x in unset[o].items())
        ]

    def skips(self, case: Any) -> bool:
        """Return whether the case has far offsets, which only test interpreted kernels.

        Other code may copy the memory between, which is large and untouched so far.
        """
        far = getattr(case, "layout", "") in domains.FAR
        if far and not self._launches:
            self.remarks.add(FAR_AWAY)
        return far and not self._launches

    def _pinned(self) -> list[Mapping[str, Any]]:
        is_there = self.side.device == "cpu" and domains.far_is_there()
        if self.entry.far and not is_there:
            self.remarks.add(FAR_AWAY)
        return self.entry.always_run(self._names, is_there, "layout" in vars(self.case_type()))

    def outside(self) -> list[str]:
        """Return what the domain leaves out although the function could be given it."""
        means = {*self._names, *self.ever} - self.meant.keys()
        said = [x for name, x in self.entry.outside.items() if name in means]
        known = {*self.meant.items(), *((n, way.get(n)) for n, way in self.without.items())}
        said += [x for meaning, x in self.entry.beyond.items() if meaning in known]
        return list(dict.fromkeys(said))

    def _check_signature(self, case: Any, seen: Seen) -> list[str]:
        """Refuse a function that cannot be called; return the parameters that are never passed."""
        try:
            signature = inspect.signature(self.function)
        except ValueError:  # a builtin has no signature
            return []
        call = self._call(self.side, case, self.contract.inputs(case))
        options = {self._names[n]: None for n in call.options if n in self._names}
        try:
            given = signature.bind(*call.tensors, **options).arguments
        except TypeError as error:
            takes = f"({', '.join(call.tensors)})"
            if named := [o for o in self.entry.options if o != packed.OPTION]:
                takes += f", and any of {', '.join(named)}"
            words = f"the function takes {seen.signature or signature}"
            words += "".join(f", {name} taken for the output" for name in seen.written)
            words += f"; it must take {takes}, or be wrapped so: {self.entry.shapes}"
            raise TypeError(words) from error
        places = (p for p in signature.parameters.values() if p.kind not in VARIADIC)
        return [p.name for p in places if p.name not in given]

    def _run(self, side: ops.Side, case: Any, given: Any) -> dict[str, Any]:
        """Call the function, and its gradient where there is one."""
        precision = precision_name(case)
        implied = [self.implying(option, precision) for option in self.implied]
        if self.fitting(case, precision) != case and case not in implied:
            raise Inapplicable("the function takes no such case")
        call = self._call(side, case, given)
        learned = {n: x for n, x in call.options.items() if n in self.entry.learned}
        tensors = self.learning.leaves({**call.tensors, **learned})
        leaves = {n: x for n, x in tensors.items() if x is not None and x.requires_grad}
        learned = {n: tensors.pop(n) for n in learned}
        options = self._given(call._replace(options={**call.options, **learned}))
        before, self.absent = self._launches, set()
        with self.learning.grad_mode(), refusals(options.values()), self._counting():
            returned = disturbing.around(
                side,
                lambda: self.function(*tensors.values(), **options),
                (*tensors.values(), options),
            )
            found = self.entry.by_name(returned, tensors)
            self.remarks.update(dtypes_told(found, tensors, self.entry.any_dtype))
            self._shapes = {n: tuple(x.shape) for n, x in call.gradients.items()}
            self.learns |= any(x.requires_grad for x in found.values())
            roots = self._roots(case, call, found)
            if roots:
                gradients, self.absent = foreign_gradients.gradients(
                    roots, leaves, call.gradients, self.learning.twice
                )
                found |= gradients
        if roots and self._launches > before and not foreign_gradients.are_told(roots):
            self.remarks.add(foreign_gradients.UNTOLD)
        found = {n: x for n, x in found.items() if n in self.contract.passes}
        self._computed = set(found)
        self.ever |= self._computed
        return found

    def _roots(self, case: Any, call: Call, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs from which gradients go back.

        Raises:
            Inapplicable: the case has a gradient that is not the function's to take.
        """
        roots = {
            n: x
            for n, x in found.items()
            if n in call.gradients and x.requires_grad and x.shape == call.gradients[n].shape
        }
        if getattr(case, "stream_gradient", False) and not self._is_fused(roots):
            raise Inapplicable("the stream's gradient is not the function's to add")
        if roots and any(n in call.gradients and n not in roots for n in self.entry.together):
            raise Inapplicable("an output that is not there, or learns nothing, has a gradient")
        return roots

    def _is_fused(self, roots: Mapping[str, Any]) -> bool:
        """Return whether one backward takes the gradients of both the norm and its stream.

        If autograd adds them, it adds rounded ones, which is not the function's doing.
        """
        if not {"out", "h"} <= roots.keys():
            return False
        fused = roots["out"].grad_fn is roots["h"].grad_fn
        if not fused:
            self.remarks.add("the stream's own gradient not judged: autograd adds it")
        return fused

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        """Count the kernels that are interpreted in this context."""
        interpreted = self.side.device == "cpu"
        before = launches() if interpreted else 0
        try:
            yield
        finally:
            self._launches += launches() - before if interpreted else 0

    def _given(self, call: Call) -> dict[str, Any]:
        """Return the options by the function's names; one that is None is left to its default.

        If the default is a number, None cannot be meant, and the call's value is passed.
        """
        given = {self._names[n]: x for n, x in call.options.items() if n in self._names}
        values = {self._names[n]: x for n, x in call.values.items() if n in self._names}
        first = next(iter(call.tensors.values()))
        for option, handed in self.handed.items():
            for told in (given, values):
                if (x := told.get(name := self._names[option])) is not None:
                    told[name] = handed.change(x, first)
        defaults = {n: inspect.signature(self.function).parameters[n].default for n in given}
        for name, default in defaults.items():
            if given[name] is None and name in values and default is not None:
                given[name] = values[name]
            elif given[name] is None and default in KINDS:
                continue  # its default is not what it does without the option
            elif given[name] is None and default is not inspect.Parameter.empty:
                del given[name]
            elif isinstance(default, tuple) and isinstance(given[name], tuple):
                pairs = zip(given[name], default, strict=True)  # such as −1 for no limit
                given[name] = tuple(d if x is None else x for x, d in pairs)
        return given
