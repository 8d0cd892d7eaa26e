"""Functions that write their results into tensors they are given, as plain calls.

The result goes into an argument such as `out`, or overwrites the input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any

from twofold.core.verify.foreign.kinds import parameters, showing
from twofold.core.verify.foreign.plain import names_of

OUT = ("out", "output", "result", "o")
LOSS = ("loss", *OUT)  # of one element
LSE = ("output_lse", "out_lse", "lse_out")  # besides the output, shaped like the second tensor
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
LARGEST = 2**28  # bytes that are copied
# Operators whose only output is shaped like their first tensor, and what others overwrite.
LIKE_FIRST = (
    "attention", "attention_decode", "merge_attention", "layer_norm", "rms_norm", "softmax",
    "activation", "gated_activation",
)  # fmt: skip
OVER = {
    "layer_norm": ("x", "residual"),
    "rms_norm": ("x", "residual"),
    "softmax": ("x",),
    "activation": ("x",),
    "rotary": ("q", "k"),
}


def filling(function: Callable[..., Any], operator: str, written: list[str]) -> Callable[..., Any]:
    """Return a function that is given where to write its output as one that returns it.

    For gate and up in one tensor the output has half of the columns, and a loss is one element. If
    two parts are merged, the lse may be written, too. `written` notes the arguments.
    """
    import torch

    taken, is_loss = parameters(function), operator == "softmax_cross_entropy"
    known = LOSS if is_loss else OUT if operator in LIKE_FIRST else ()
    outs = [n for n in known if n in taken and taken[n].default is Parameter.empty]
    if not outs:
        return function
    out, merges = outs[0], operator == "merge_attention"
    lses = [n for n in LSE if merges and n in taken]
    rest = [p for n, p in taken.items() if n not in (out, *lses) and p.kind not in VARIADIC]
    wanted = [p for p in rest if p.default is p.empty]
    if merges and len(wanted) != 4:  # `out` may be a part's
        return function
    written.extend((out, *lses))
    halves = operator == "gated_activation" and len(wanted) == 1
    signature = inspect.Signature(rest)

    def filled(*args: Any, **how: Any) -> Any:
        bound = signature.bind(*args, **how)
        x, *others = bound.arguments.values()
        columns = x.shape[-1] // 2 if halves else x.shape[-1]
        shape = (1,) if is_loss else (*x.shape[:-1], columns)
        made = torch.full(shape, torch.nan, dtype=x.dtype, device=x.device)
        beside = {n: torch.full_like(others[0], torch.nan) for n in lses}
        given = {**bound.arguments, **beside, out: made}
        function(**{n: given[n] for n in taken if n in given})
        return (made, *beside.values()) if beside else made[0] if is_loss else made

    return showing(filled, signature)


def writing_over(
    function: Callable[..., Any], operator: str, tensors: Sequence[str], written: list[str]
) -> Callable[..., Any]:
    """Return a function as one that returns what it wrote over its input, if it returns nothing.

    A case in which it does neither counts as refused, until it has once written something;
    `written` notes what it overwrote.
    """
    import torch

    taken = parameters(function)
    if operator not in OVER or not taken:
        return function
    places = dict(zip(tensors, taken, strict=False))
    known = (n for name in OVER[operator] for n in (places.get(name, ""), *names_of(name)))
    theirs = list(dict.fromkeys(n for n in known if n in taken))
    returned: list[bool] = []  # whether it ever did

    def returning(*args: Any, **how: Any) -> Any:
        if returned:
            return function(*args, **how)
        given = dict(zip(taken, args, strict=False)) | how
        over = {n: _copy(given[n]) for n in theirs if given.get(n) is not None}
        bare = {n: over.get(n, _detached(x)) for n, x in given.items()}
        found = function(*[*bare.values()][: len(args)], **{n: bare[n] for n in how})
        if found is not None:
            returned.append(True)
            return function(*args, **how)
        written.extend(
            n for n, x in over.items() if n not in written and not torch.equal(x, given[n])
        )
        if not written:
            raise NotImplementedError(f"it returns nothing, and {', '.join(over)} stays as it was")
        return tuple(over.values()) if len(over) > 1 else next(iter(over.values()))

    return showing(returning, function)


def _copy(x: Any) -> Any:
    """Return a copy with the strides of x, unless that would take too much memory."""
    import torch

    if x.untyped_storage().nbytes() > LARGEST:
        raise NotImplementedError("offsets past 2³¹ would be written over")
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(
        x.detach()
    )


def _detached(x: Any) -> Any:
    return x.detach() if hasattr(x, "detach") else x
