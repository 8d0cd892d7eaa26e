"""Functions of one Adam step, step(param, grad, exp_avg, exp_avg_sq, step, lr, …), as plain calls.

Such a function overwrites the parameters and the moments, or returns all three. It is called for
every row of gradients, with float32 moments that are 0 at first and step numbers that begin at 1.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter
from typing import Any

from twofold.core.verify.foreign.kinds import Seen, parameters, taking

CALLED = {
    "params": ("param", "params", "p", "parameter"),
    "grad": ("grad", "grads", "g", "gradient"),
    "mean": ("exp_avg", "m", "exp_avgs"),
    "square": ("exp_avg_sq", "v", "exp_avg_sqs"),
    "step": ("step", "t", "steps"),
}
OPTIONS = {
    "lr": ("lr", "learning_rate"),
    "beta1": ("beta1", "b1"),
    "beta2": ("beta2", "b2"),
    "eps": ("eps", "epsilon"),
    "weight_decay": ("weight_decay", "wd"),
}


def of_one_step(function: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    """Return a function of one step as f(params, grads, options…) -> params; others as they are.

    This is noted in `seen`.
    """
    import torch

    taken = parameters(function)
    names = {n: next((own for own in known if own in taken), "") for n, known in CALLED.items()}
    if not all(names.values()):
        return function
    theirs = {o: own for o, known in OPTIONS.items() for own in known if own in taken}

    def steps(params: Any, grads: Any, **options: Any) -> Any:
        held = {"params": params.detach().clone()}
        held |= {n: torch.zeros_like(params, dtype=torch.float32) for n in ("mean", "square")}
        told = {theirs[o]: x for o, x in options.items()}
        for number, grad in enumerate(grads.detach(), 1):
            given = {**held, "grad": grad.clone(), "step": number}
            found = function(**{own: given[n] for n, own in names.items()}, **told)
            if isinstance(found, tuple) and len(found) == len(held):
                held = dict(zip(held, found, strict=True))
        return held["params"]

    are = ", ".join(names.values())
    seen.said.append(f"it is called with {are} for each step, moments of 0 in float32 at first")
    return taking(
        steps, ("params", "grads"), [Parameter(o, Parameter.KEYWORD_ONLY) for o in theirs]
    )
