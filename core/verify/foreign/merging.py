"""Merging partial attention as a plain call: f(outs, lses) -> out, or out and lse.

A part that attended nothing holds finite numbers, and every query has a part that attended
something. Functions of two parts, f(out, lse, out, lse), are taken as functions of exactly two
parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import Parameter
from typing import Any

import numpy as np

from twofold.core import ops
from twofold.core.verify.contract import Inapplicable
from twofold.core.verify.contracts import merge_attention_domain as domain
from twofold.core.verify.foreign.calls import Call, with_stale
from twofold.core.verify.foreign.kinds import Seen, parameters, showing, taking
from twofold.core.verify.foreign.plain import Plain
from twofold.core.verify.foreign.written import VARIADIC

TENSORS = ("outs", "lses")
OUTS, LSES = "sbhmd", "sbhm"  # parts, batch, heads, queries, head_dim


def inputs(case: domain.Case) -> domain.Inputs:
    """Return the contract's inputs, with finite parts, one of which counts for every query."""
    made, whole = domain.inputs(case), domain.inputs(replace(case, dead=0.0))
    counts = made.live | ~made.attends
    return whole._replace(lses=np.where(counts, whole.lses, -np.inf))


def call(side: ops.Side, case: domain.Case, given: domain.Inputs) -> Call:
    """Return merging as a plain call.

    Raises:
        Inapplicable: no part of a query attended anything.
    """
    if np.any((given.lses == -np.inf).all(0)):
        raise Inapplicable("a query of nothing that was attended is what its conventions make it")
    outs = with_stale(given.outs, given.live[..., None])
    tensors = {
        "outs": domain.place(side, outs, case.parts_dtype, case.layout, True),
        "lses": domain.place(side, _to_base(case, given.lses), case.lse_dtype, case.layout, True),
    }
    gradients = {"out": domain.place(side, given.dout, case.dtype, case.layout, False)}
    if given.dlse is not None:
        gradients["lse"] = domain.place(side, given.dlse, case.lse_dtype, case.layout, False)
    return Call(tensors, {}, gradients)


def _to_base(case: domain.Case, lses: domain.Array) -> domain.Array:
    return lses / np.log(2.0) if case.base_2 else lses


def narrowed(case: domain.Case, size: int | None) -> domain.Case:
    """Allow outs near the dtype's largest in float16 only."""
    case = case if size is None else replace(case, head_dim=size)
    largest = case.magnitude == "largest" and case.dtype != "float16"
    return replace(case, magnitude="huge") if largest else case


def small(case: domain.Case) -> domain.Case:
    """Cut down what is costly; properties use natural logarithms, and mostly all parts."""
    dead = case.dead if case.dead < 0.5 else 0.0
    return replace(domain.small(case), dead=dead, base_2=False)


def of_two(function: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    """Return a function of two parts as one of all parts that refuses more; others as they are.

    Each part's lse follows its out, unless names contain "lse". This is noted in `seen`.
    """
    taken = parameters(function)
    wanted = [n for n, p in taken.items() if p.default is p.empty and p.kind not in VARIADIC]
    if len(wanted) != 4 or any(taken[n].kind is Parameter.POSITIONAL_ONLY for n in wanted):
        return function
    lses = [n for n in wanted if "lse" in n.lower()]
    lses = lses if len(lses) == 2 else wanted[1::2]
    outs = [n for n in wanted if n not in lses]

    def both(given_outs: Any, given_lses: Any, **how: Any) -> Any:
        if len(given_outs) != 2:
            raise NotImplementedError("it merges two parts")
        # by index: views from unbind may not be written to, as the interpreter does
        given = {n: given_outs[i] for i, n in enumerate(outs)}
        given |= {n: given_lses[i] for i, n in enumerate(lses)}
        return function(**given, **how)

    words = " and ".join(f"{out} with {lse}" for out, lse in zip(outs, lses, strict=True))
    seen.said.append(f"it is called with two parts, {words}")
    return taking(both, TENSORS, [p for n, p in taken.items() if n not in wanted])


def in_order(
    function: Callable[..., Any], outs: str, lses: str, tokens: bool = False
) -> Callable[..., Any]:
    """Return a function of axes in these orders as one of the contract's order.

    If it takes `tokens`, the queries of all batches are one axis, which needs a copy: it is given
    contiguous tensors.
    """

    def turned(given_outs: Any, given_lses: Any, **options: Any) -> Any:
        batches = (given_outs.shape[1], given_outs.shape[3])
        found = function(
            _turned(given_outs, OUTS, outs, tokens), _turned(given_lses, LSES, lses, tokens),
            **options,
        )  # fmt: skip
        if not isinstance(found, tuple):
            return _back(found, outs, OUTS, tokens, batches)
        pairs = zip(found, (outs, lses), (OUTS, LSES), strict=False)
        return tuple(_back(x, own, usual, tokens, batches) for x, own, usual in pairs)

    return showing(turned, function)


def _turned(x: Any, usual: str, own: str, tokens: bool) -> Any:
    x = x.permute([usual.index(axis) for axis in own])
    return x.flatten(own.index("b"), own.index("m")).contiguous() if tokens else x


def _back(x: Any, own: str, usual: str, tokens: bool, batches: tuple[int, int]) -> Any:
    """Return an output, without parts, in the usual order; one with other axes as it is."""
    own, usual = own.replace("s", ""), usual.replace("s", "")
    if getattr(x, "ndim", 0) != len(own) - tokens:
        return x
    x = x.unflatten(own.index("b"), batches) if tokens else x
    return x.permute([own.index(axis) for axis in usual])


INSIDE = "outs (parts, batch, queries, heads, head_dim)"
TOKENS = "contiguous outs (parts, tokens, heads, head_dim)"
PARTS_INSIDE = "contiguous outs (tokens, parts, heads, head_dim), lses (tokens, parts, heads)"
PLAIN = Plain(
    call=call,
    shapes="outs (parts, batch, heads, queries, head_dim), lses (parts, batch, heads, queries); or "
    "f(out, lse, out, lse) of two parts",
    outputs=("out", "lse"),
    options={},
    always={"float32_parts": False, "tile": None, "base_2": False},
    pinned=(
        {"parts": 2, "heads": 3, "seqlen_q": 37, "head_dim": 64},
        {"parts": 17, "batch": 2, "seqlen_q": 5, "head_dim": 17, "dead": 0.3},
        {"parts": 2, "heads": 5, "seqlen_q": 67, "head_dim": 16, "dead": 0.3, "dlse": True},
        {"parts": 2, "seqlen_q": 3, "head_dim": 256, "lse_scale": 100.0},
    ),
    arranged={
        words: partial(in_order, outs=outs, lses=lses, tokens=tokens)
        for words, outs, lses, tokens in (
            (f"{INSIDE}, lses (parts, batch, heads, queries)", "sbmhd", "sbhm", False),
            (f"{INSIDE}, lses (parts, batch, queries, heads)", "sbmhd", "sbmh", False),
            (f"{TOKENS}, lses (parts, tokens, heads)", "sbmhd", "sbmh", True),
            (f"{TOKENS}, lses (parts, heads, tokens)", "sbmhd", "shbm", True),
            (PARTS_INSIDE, "bmshd", "bmsh", True),
        )
    },
    # A part that attended nothing has no weight to any base, and others have equal weights.
    arranged_case={
        "parts": 2,
        "batch": 3,
        "heads": 4,
        "seqlen_q": 5,
        "head_dim": 7,
        "lse_scale": 0.0,
        "dead": 0.3,
    },
    limits={
        "it merges two parts, and is judged where there are two": (
            {"parts": 3},
            lambda case: replace(case, parts=2),
        )
    },
    instead_of_ours={
        "its lses are to base 2, ours natural: judged so, and asked for no property": (
            ({"parts": 2},),
            {"base_2": True},
        )
    },
    together=("out", "lse"),
    outside={
        "out": "a query of which no part attended anything; what attended nothing and is not "
        "finite; an lse of +∞; but in float16, outputs near the largest number"
    },
    narrowed=narrowed,
    inputs=inputs,
    small=small,
    conventions=("nothing attended", "infinity is seen"),
)
