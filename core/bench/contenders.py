"""The contenders: twofold, PyTorch, other libraries, anyone's function; and whether each may race.

What can be timed as a plain call is first judged as one (`verify.foreign`), on the contract's
pinned cases in the problem's dtype. The peers are those of `twofold verify peers`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from twofold.core import ops
from twofold.core.bench.problems import Problem
from twofold.core.bench.torch_calls import OF_TORCH
from twofold.core.verify import report
from twofold.core.verify.contract import Finding, Inapplicable, fitting
from twofold.core.verify.contract import judge as judged
from twofold.core.verify.foreign import imports, kinds, refusals, subjects
from twofold.core.verify.foreign.forms import plain
from twofold.core.verify.foreign.plain import own_names
from twofold.core.verify.foreign.table import PLAIN
from twofold.core.verify.peers.table import PEERS

TWOFOLD = "twofold"
TORCH = "torch"
Passes = Mapping[str, Callable[[], object]]  # by name
BOTH = "forward and backward"
JUDGED = 2  # cases judged of a contender that takes seconds to compile for each


@dataclass(frozen=True)
class Contender:
    """One contender in a race.

    Attributes:
        name: its name in tables.
        function: a plain call, differentiated by autograd; None for the operators of a side.
        side: the side whose operators race, called without autograd; None for a function.
        named: whether the function takes tensors and options by the operators' names for them.
        compiles: whether torch.compile compiles it again for every shape.
        missing: why it cannot race here, "" if it can.
        foreign: whether it is the user's, not known here, and tried in a separate process.
        seen: what was found out about it when it was made a plain call.
    """

    name: str
    function: Callable[..., Any] | None = None
    side: ops.Side | None = None
    named: bool = False
    compiles: bool = False
    missing: str = ""
    foreign: bool = False
    seen: kinds.Seen = field(default_factory=kinds.Seen)

    def passes(self, problem: Problem, tensors: Mapping[str, torch.Tensor]) -> Passes:
        """Return a call without arguments for each pass; those that the problem names are timed.

        Raises:
            NotImplementedError: it has no call that could be compared.
        """
        if self.seen.written:
            to = ", ".join(self.seen.written)
            raise NotImplementedError(f"it writes to {to}; races want it returned, in new memory")
        if problem.operator == "optimizers":
            return {"step": _step(self.name, self.side, problem, tensors)}
        if self.side is not None:
            return _of_side(self.side, problem, tensors)
        assert self.function is not None
        return _of_function(self.function, self.named, problem, tensors)

    def outputs(self, problem: Problem, passes: Passes) -> list[torch.Tensor]:
        """Return what forward computes, an empty list if there is no forward."""
        if "forward" not in passes:
            return []
        found: Any = passes["forward"]()
        if self.side is not None and hasattr(getattr(self.side, problem.operator), "backward"):
            found, _ = found
        return [torch.as_tensor(x) for x in (found if isinstance(found, tuple) else (found,))]

    def fault(self, problem: Problem, observe: Callable[[], object] = lambda: None) -> str:
        """Judge by the operator's contract in the problem's dtype; return the fault, "" if none.

        `observe` is called before every case of a plain call.
        """
        if self.side is not None:
            contract = report.contract(problem.operator)
            case = next(c for c in contract.pinned if c.dtype == problem.dtype)
            return _first(judged(contract, self.side, fitting(self.side, case)))
        if problem.operator not in PLAIN or self.function is None:
            return ""  # it cannot be judged as a plain call
        subject = subjects.subject(self.function, problem.operator)
        subject.find_out(lambda why, case: observe())
        arranged = isinstance(subject, subjects.Function) and subject.arranged
        if order := self.seen.order or arranged:
            return f"it takes {order}; races give {PLAIN[problem.operator].shapes}"
        pinned = subject.contract.pinned[: JUDGED if self.compiles else None]
        for case in (subject.fitting(case, problem.dtype) for case in pinned):
            if subject.skips(case):
                continue
            observe()
            with contextlib.suppress(refusals.Refused, Inapplicable):
                if fault := _first(judged(subject.contract, subject.side, case)):
                    return fault
        return ""


def _first(findings: Sequence[Finding]) -> str:
    return next((f.fault for f in findings if f.fault), "")


def _of_function(
    function: Callable[..., Any],
    named: bool,
    problem: Problem,
    tensors: Mapping[str, torch.Tensor],
) -> Passes:
    learns = any("backward" in name for name in problem.costs)
    leaves = {
        n: x.detach().requires_grad_() if learns and n in LEARNED else x for n, x in tensors.items()
    }
    having = [x for x in leaves.values() if x.requires_grad]
    positional: list[torch.Tensor] = []
    if named:
        options = {**leaves, **problem.options}
    else:
        positional = [x for n, x in leaves.items() if n not in _optional(problem)]
        options = _named_as_in(function, problem, leaves)

    def forward() -> Any:
        return function(*positional, **options)

    # Making the gradients of the outputs is not timed.
    whole = forward()
    outputs = whole if isinstance(whole, tuple) else (whole,)
    grads = [torch.randn_like(y) if y.dim() else torch.ones_like(y) for y in outputs]

    def backward() -> None:
        if not outputs[0].requires_grad:
            raise NotImplementedError("it has no backward")
        torch.autograd.grad(outputs, having, grads, retain_graph=True)

    def both() -> None:
        found = forward()
        made = found if isinstance(found, tuple) else (found,)
        torch.autograd.grad(made, having, grads)

    return {"forward": forward, "backward": backward, BOTH: both}


def _optional(problem: Problem) -> Mapping[str, Mapping[str, Any]]:
    """Return the options that a plain call may lack, with what it is then judged as."""
    return PLAIN[problem.operator].options if problem.operator in PLAIN else {}


def _named_as_in(
    function: Callable[..., Any], problem: Problem, tensors: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Return a problem's options by the function's names for them, without those that are off.

    They include tensors that functions may lack, such as a residual. An option is off if its value
    is the one that `foreign.table` has for functions without it. A function that requires a scale
    is given it; one that can be told that heads are shared is told.

    Raises:
        NotImplementedError: the function does not take an option that is on.
    """
    nothing = inspect.Parameter.empty
    taken = kinds.parameters(function)
    without = _optional(problem)
    optional = {n: x for n, x in tensors.items() if n in without}
    names = own_names(taken, (*problem.options, *optional, "softmax_scale"))
    if missing := [n for n in optional if n not in names]:
        raise NotImplementedError(f"it does not take {missing[0]}")
    found: dict[str, Any] = {names[n]: x for n, x in optional.items()}
    for option, value in problem.options.items():
        if option in names:
            found[names[option]] = value
        elif without.get(option, {}).get(option, nothing) != value:
            raise NotImplementedError(f"it does not take {option}={value!r}")
    if problem.operator == "attention":
        q, k = tensors["q"], tensors["k"]
        scale = names.get("softmax_scale")
        if scale is not None and taken[scale].default is nothing:
            found[scale] = q.shape[-1] ** -0.5
        if q.shape[1] != k.shape[1] and "enable_gqa" in taken:
            found["enable_gqa"] = True
    return found


# Tensors that have gradients: cos and sin have none on either side.
LEARNED = (
    "q", "k", "v", "x", "weight", "bias", "residual", "logits", "table", "position_table",
    "gate", "up",
)  # fmt: skip


def _of_side(side: ops.Side, problem: Problem, tensors: Mapping[str, torch.Tensor]) -> Passes:
    operator = getattr(side, problem.operator)
    given = {n: x.numpy() if side.name == "reference" else x for n, x in tensors.items()}

    def forward() -> Any:
        return operator.forward(**given, **problem.options)

    if not hasattr(operator, "backward"):
        return {"forward": forward}
    outputs, cache = forward()
    made = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [side.asarray(torch.randn(tuple(y.shape)), str(problem.dtype)) for y in made]

    def backward() -> Any:
        return operator.backward(*grads, cache)

    def both() -> Any:
        _, kept = forward()
        return operator.backward(*grads, kept)

    return {"forward": forward, "backward": backward, BOTH: both}


def _step(
    name: str, side: ops.Side | None, problem: Problem, tensors: Mapping[str, torch.Tensor]
) -> Callable[[], object]:
    """Return a step of AdamW, a side's or torch's."""
    params = tensors["params"].clone()
    if side is None:
        parameter = torch.nn.Parameter(params)
        parameter.grad = tensors["grads"]
        how: dict[str, Any] = {
            "fused": name == FUSED,
            "capturable": name == COMPILED and params.is_cuda,
        }
        optimizer = torch.optim.AdamW([parameter], **how, **problem.options)
        return torch.compile(optimizer.step) if name == COMPILED else optimizer.step
    buffers = [params, tensors["grads"], torch.zeros_like(params), torch.zeros_like(params)]
    given = [x.numpy() if side.name == "reference" else x for x in buffers]
    return lambda: side.optimizers.adam(*given, step=1, **problem.options)


FUSED, COMPILED = "torch, fused", "torch.compile"


def of(operator: str, device: str, against: Sequence[str] = ()) -> Iterator[Contender]:
    """Yield the contenders for an operator on a device: twofold first, then torch.

    Args:
        operator: its name.
        device: "cpu" or "cuda".
        against: further functions, "module:function".

    Raises:
        ValueError, TypeError: one of `against` cannot be imported, or made a plain call.
    """
    if device == "cpu":
        yield Contender(TWOFOLD, side=ops.load("reference"))
    else:
        yield Contender(TWOFOLD, side=ops.load("triton"))
        if (adapter := _adapter(operator)) is not None:
            yield Contender(f"{TWOFOLD} through torch's autograd", adapter, named=True)
    if operator == "optimizers":
        yield from (Contender(name) for name in (TORCH, FUSED))  # `_step` builds them
        if device == "cuda":
            yield Contender(COMPILED, compiles=True)
        yield from (Contender(name, missing=_no_step(name), foreign=True) for name in against)
        return
    yield Contender(TORCH, OF_TORCH[operator], named=True)
    if device == "cuda":
        compiled = torch.compile(OF_TORCH[operator], dynamic=False)
        yield Contender(COMPILED, compiled, named=True, compiles=True)
        yield from _peers(operator)
        if operator == "attention":
            from twofold.core.bench import baseline

            yield Contender("a first Triton kernel", baseline.attention)
    for name in against:
        yield rival(name, imports.load(name), operator)


def rival(name: str, implementation: Any, operator: str) -> Contender:
    """Return anyone's implementation as a contender, made a plain call.

    Raises:
        TypeError: it cannot be made a plain call.
    """
    seen = kinds.Seen()
    return Contender(name, plain(implementation, operator, seen), foreign=True, seen=seen)


def _no_step(name: str) -> str:
    """Say why a function cannot race as an optimizer, and what can be done with it."""
    return (
        "a race of optimizers is one of steps, which keep their moments and write in place; a "
        "function (params, grads, …) -> params does neither, so that those of torch.optim and "
        f"twofold's race alone; twofold verify {name} --op optimizers judges it"
    )


def forget() -> None:
    """Reset torch.compile.

    After eight shapes of a function it would silently go on uncompiled, and from the second on it
    may compile for any shape instead of the one at hand.
    """
    torch.compiler.reset()


def _adapter(operator: str) -> Callable[..., Any] | None:
    """Return the operator's torch adapter, None if it has none."""
    own = operator in ("attention", "rms_norm", "gated_activation")
    file = operator if own else "layers"
    name = {"softmax_cross_entropy": "cross_entropy"}.get(operator, operator)
    return getattr(importlib.import_module(f"twofold.adapters.{file}"), name, None)


def _peers(operator: str) -> Iterator[Contender]:
    """Yield peers that race, then those that do not, grouped by reason."""
    missing: dict[str, list[str]] = {}
    for peer in PEERS:
        if peer.operator != operator or peer.name == "flex":
            continue
        if peer.distribution == "torch" and operator != "attention":
            continue  # it is already in the race
        if reason := peer.missing():
            missing.setdefault(reason, []).append(peer.name)
            continue
        try:
            module, function = peer.target.split(":")
            made = getattr(importlib.import_module(module), function)
            yield Contender(peer.name, made, compiles="compiled" in peer.name)
        except Exception as error:  # any, from the peer's code
            missing.setdefault(f"{type(error).__name__}: {error}", []).append(peer.name)
    for reason, names in missing.items():
        yield Contender(", ".join(names), missing=reason)
