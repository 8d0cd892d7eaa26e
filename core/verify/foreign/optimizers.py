"""A class of torch.optim as a plain call, and what it does that a function of arrays cannot.

A model has many parameters, in groups with options of their own, some at times without a gradient,
and a schedule changes the rate after the optimizer was made: properties say that each parameter is
stepped as if it were alone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from twofold.core.verify import claims
from twofold.core.verify.contract import Inapplicable, Property, Subject
from twofold.core.verify.foreign.kinds import parameters, taking
from twofold.core.verify.foreign.table import PLAIN
from twofold.core.verify.rounding import Approx

if TYPE_CHECKING:
    import torch

ALONE, APART, BESIDE, GROUPS, LATER = "", "apart", "beside", "groups", "later"
# How the coming calls hand the parameters to the optimizer.
_handed: ContextVar[str] = ContextVar("handed", default=ALONE)


def stepping(optimizer: Callable[..., Any]) -> Callable[..., Any]:
    """Return a class of torch.optim as f(params, grads, options…) -> params, a step for each row.

    Grads are (steps, n).
    """
    import torch

    taken = parameters(optimizer)
    betas = [n for n in ("beta1", "beta2") if "betas" in taken]

    def steps(params: torch.Tensor, grads: torch.Tensor, **options: Any) -> torch.Tensor:
        if betas:
            options["betas"] = tuple(options.pop(n) for n in betas)
        how, pieces = _handed.get(), 3 if _handed.get() == APART else 1
        held = [x.clone().requires_grad_() for x in params.detach().tensor_split(pieces)]
        idle = params.detach().clone().requires_grad_()
        stepped = _made(optimizer, how, held, idle, options)
        for grad in grads.detach():
            for x, part in zip(held, grad.tensor_split(pieces), strict=True):
                x.grad = part.clone()
            if how == GROUPS:
                idle.grad = grad.clone()
            stepped.step()
        if how == BESIDE and not torch.equal(idle, params):
            raise AssertionError("a parameter without a gradient was changed")
        return torch.cat([x.detach() for x in held])

    options = [o for o in PLAIN["optimizers"].options if o in taken or o in betas]
    named = [Parameter(o, Parameter.KEYWORD_ONLY) for o in options]
    return taking(steps, ("params", "grads"), named)


def _made(
    optimizer: Callable[..., Any],
    how: str,
    held: list[torch.Tensor],
    idle: torch.Tensor,
    options: Mapping[str, Any],
) -> Any:
    """Return the optimizer of the parameters held, and of the idle one besides, if there is one."""
    if how not in (ALONE, APART) and not hasattr(optimizer(held, **options), "param_groups"):
        raise Inapplicable("it has no param_groups, as torch's have")
    if how == BESIDE:
        return optimizer([idle, *held], **options)
    given = {n: options[n] for n in ("lr", "weight_decay") if n in options}
    other = {n: 0.5 * x + 0.25 for n, x in given.items()}
    if how == GROUPS:
        return optimizer([{"params": [idle], **other}, {"params": held}], **options)
    made = optimizer(held, **{**options, **(other if how == LATER else {})})
    for group in made.param_groups if how == LATER else ():
        group.update(given)
    return made


def is_one(implementation: Any) -> bool:
    """Return whether it is a class like torch.optim's, or a partial application of one."""
    import torch

    made = implementation.func if isinstance(implementation, functools.partial) else implementation
    if not isinstance(made, type) or issubclass(made, torch.nn.Module):
        return False
    own = callable(getattr(made, "step", None)) and next(iter(parameters(made)), "") == "params"
    return own or issubclass(made, torch.optim.Optimizer)


@contextlib.contextmanager
def _being(how: str) -> Iterator[None]:
    token = _handed.set(how)
    try:
        yield
    finally:
        _handed.reset(token)


def properties(
    inputs: Callable[[Any], Any], truth: Callable[[Any, Any], Mapping[str, Approx]]
) -> dict[str, Property]:
    """Return the properties of a class that has groups of parameters, as torch.optim's have.

    Args:
        inputs: the contract's.
        truth: the bounds of what the last call computed.
    """

    def held(subject: Subject, case: Any, how: str, what: str) -> None:
        given = inputs(case)
        with _being(how):
            found = subject.compute(case, given)
        claims.held(found, truth(case, given), what)

    def apart(subject: Subject, case: Any) -> None:
        """Parameters split into three tensors are stepped as in one, each tensor from step 1."""
        held(subject, case, APART, "in three tensors")

    def beside(subject: Subject, case: Any) -> None:
        """A parameter without a gradient stays as it is, and the one after it is stepped."""
        held(subject, case, BESIDE, "behind one whose gradient is None")

    def groups(subject: Subject, case: Any) -> None:
        """A second group of parameters has its own lr and weight_decay, not those of the first."""
        held(subject, case, GROUPS, "in a second group")

    def later(subject: Subject, case: Any) -> None:
        """The next step uses the lr and weight_decay that a schedule has written to a group."""
        held(subject, case, LATER, "with lr and weight_decay set in param_groups")

    return {
        "parameters apart": apart,
        "no gradient beside": beside,
        "groups apart": groups,
        "scheduled": later,
    }
