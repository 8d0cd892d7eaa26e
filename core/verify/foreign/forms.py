"""Forms in which operators are written elsewhere, each brought to the plain call of a contract.

That is f(tensors…, options…) -> outputs, with the tensors in order. Accepted besides: a module that
holds its weight; a norm that takes `normalized_shape`, like torch's; a gated activation of gate and
up side by side in one tensor; a rotation of one tensor; tensors that are passed by name only, or
with options between them. Forms of attention alone are in `joined`, its packed sequences in
`packed`, caches of decoding in `pages`, merging of two parts in `merging`, a rotation that looks
angles up in `rotary`, a class of torch.optim in `optimizers`, one step of Adam in `steps`, sizes
passed as numbers in `sizes`, an output that is an argument in `written`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

from twofold.core.verify.foreign import (
    joined,
    kinds,
    merging,
    optimizers,
    packed,
    pages,
    rotary,
    sizes,
    steps,
)
from twofold.core.verify.foreign import written as foreign_written
from twofold.core.verify.foreign.kinds import Seen, parameters, showing, taking
from twofold.core.verify.foreign.plain import names_of
from twofold.core.verify.foreign.table import PLAIN, tensor_names

IN_ORDER = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
SHAPE = "normalized_shape"
# Options that are set on a module if it has a number or a string of that name.
KEPT = ("eps", "offset", "softmax_scale", "kind", "label_smoothing", "reduction", "ignore_index")
# What modules also keep of such a number: 1 minus it.
REST = {"smoothing": "confidence"}
# What tensors are called, in lower case; modules hold them by these names.
CALLED = {
    "x": ("x", "input", "hidden_states", "inp"),
    "weight": ("weight", "w", "gamma", "scale"),
    "bias": ("bias", "b", "beta"),
    "table": ("table", "weight", "embeddings"),
    "ids": ("ids", "input_ids", "indices", "input"),
    "q": ("q", "query"),
    "k": ("k", "key"),
    "v": ("v", "value"),
    "logits": ("logits", "input", "x"),
    "targets": ("targets", "target", "labels", "true_labels", "y"),
}


def plain(implementation: Any, operator: str, seen: Seen | None = None) -> Callable[..., Any]:
    """Return an implementation as a plain call of this operator; unknown forms stay as they are.

    `seen` notes what it is taken to be.

    Raises:
        TypeError: it cannot be called like this.
    """
    import torch

    seen = Seen() if seen is None else seen
    if operator == "optimizers" and optimizers.is_one(implementation):
        seen.has_groups = True
        return optimizers.stepping(implementation)
    implementation = kinds.made(implementation)
    function = kinds.plain(implementation)
    if operator not in PLAIN or not parameters(function):
        return function  # a builtin shows none
    seen.signature = str(inspect.signature(function))
    tensors = tensor_names(operator)
    if isinstance(implementation, torch.nn.Module):
        function = _of_what_it_holds(implementation, function, operator, tensors, seen)
    function = sizes.told(function, operator, seen)
    function = foreign_written.filling(function, operator, seen.written)
    if operator == "attention":
        function = joined.of_module(function, seen)
        function = joined.of_joined(function, seen)
        function = packed.of_packed(function, seen)
    if operator == "attention_decode":
        function = pages.of_one_cache(function, seen)
        seen.ways = {n: pages.of_listed(way, seen) for n, way in seen.ways.items()}
        function = pages.of_listed(function, seen)
    if operator == "optimizers":
        function = steps.of_one_step(function, seen)
    if operator == "merge_attention":
        function = merging.of_two(function, seen)
    if operator == "rotary":
        function = rotary.looking_up(function, seen)
        function = _one_at_a_time(function)
    function = _without_bias(function, operator, tensors, seen)
    function = _in_order(function, tensors, operator)
    function = foreign_written.writing_over(function, operator, tensors, seen.written)
    return _side_by_side(function) if operator == "gated_activation" else function


def _of_what_it_holds(
    module: Any, function: Callable[..., Any], operator: str, tensors: Sequence[str], seen: Seen
) -> Callable[..., Any]:
    """Return a module as a function that takes by name what the module holds, which is kept.

    The module does not hold what is None; `seen` notes what stays as it is.

    A norm made for one size is given the size at hand.
    """
    import torch

    taken = parameters(function)
    held = {
        n: own
        for n in tensors
        if n not in taken
        for own in reversed(CALLED.get(n, (n,)))
        if getattr(module, own, None) is not None
    }
    if not any(isinstance(getattr(module, own), torch.Tensor) for own in held.values()):
        held = {}
    unset = [n for n, _ in module.named_parameters() if n not in held.values()]
    asked = ", ".join(n for n in tensors[1:] if n not in (*taken, *held))
    if unset and asked:
        seen.said.append(f"its {', '.join(unset)} stay as they are: it has no {asked} by name")
    kept = {
        name: getattr(module, name)
        for option in KEPT
        if option in PLAIN[operator].options
        for name in names_of(option)
        if name not in taken and isinstance(getattr(module, name, ...), float | int | str | None)
    }
    if not held and not kept:
        return function
    replica = copy.deepcopy(module)
    for own in held.values():
        delattr(replica, own)  # so that a tensor that is no nn.Parameter can take its place

    def holding(*args: Any, **how: Any) -> Any:
        for name, own in held.items():
            setattr(replica, own, _dense(how.pop(name)))
        for name, value in kept.items():
            setattr(replica, name, how.pop(name, value))
            if hasattr(replica, rest := REST.get(name, "")):
                setattr(replica, rest, 1.0 - getattr(replica, name))
        if hasattr(replica, SHAPE):
            setattr(replica, SHAPE, replica.weight.shape)
        return replica(*args, **how)

    first = [p for p in taken.values() if p.kind is not Parameter.VAR_KEYWORD]
    added = [Parameter(n, Parameter.KEYWORD_ONLY) for n in held]
    added += [Parameter(n, Parameter.KEYWORD_ONLY, default=x) for n, x in kept.items()]
    return showing(holding, inspect.Signature([*first, *added]))


def _one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a rotation of one tensor, f(x, cos, sin), as one of q and k."""
    taken = parameters(function)
    wanted = [n for n, p in taken.items() if p.kind in IN_ORDER and p.default is p.empty]
    tables = ["cos" in name or "sin" in name for name in wanted]
    if tables != [False, True, True] or wanted != list(taken)[:3]:
        return function

    def both(q: Any, k: Any, cos: Any, sin: Any, **how: Any) -> Any:
        return function(q, cos, sin, **how), function(k, cos, sin, **how)

    rest = [p for n, p in taken.items() if n not in wanted]
    return taking(both, ("q", "k", "cos", "sin"), rest)


def _without_bias(
    function: Callable[..., Any], operator: str, tensors: Sequence[str], seen: Seen
) -> Callable[..., Any]:
    """Return a function that requires a bias the operator does not have as one given None."""
    taken = parameters(function)
    options = PLAIN[operator].called()
    if "bias" not in taken or taken["bias"].default is not Parameter.empty:
        return function
    variadic = any(p.kind in foreign_written.VARIADIC for p in taken.values())
    if variadic or "bias" in (*tensors, *options):
        return function
    rest = inspect.Signature([p for n, p in taken.items() if n != "bias"])

    def lacking(*args: Any, **how: Any) -> Any:
        given = {**rest.bind(*args, **how).arguments, "bias": None}
        return function(**{n: given[n] for n in taken if n in given})

    seen.said.append("its bias is None")
    return showing(lacking, rest)


def _in_order(
    function: Callable[..., Any], tensors: Sequence[str], operator: str
) -> Callable[..., Any]:
    """Return a function with its tensors in order, including those that it takes by name only.

    Options may come between them.

    A normalised shape is that of the last axis.
    """
    taken = parameters(function)
    alone = [n for n in tensors if n in taken and taken[n].kind is Parameter.KEYWORD_ONLY]
    options = PLAIN[operator].called()
    between = options.intersection(list(taken)[: len(tensors)])
    theirs = _by_name(tensors, taken)
    if not alone and SHAPE not in taken and not between and not theirs:
        return function
    others = (SHAPE, *options)
    places = (n for n, p in taken.items() if p.kind in IN_ORDER and n not in others)
    names = theirs or [n if n in alone else next(places, n) for n in tensors]
    names = [n for n in names if n in taken or n not in PLAIN[operator].may_lack]
    if not set(names) <= taken.keys():
        return function  # it lacks one

    def ordered(*args: Any, **how: Any) -> Any:
        if len(args) > len(names):
            raise NotImplementedError(f"it takes {', '.join(names)} alone")
        shape = {SHAPE: args[0].shape[-1:]} if SHAPE in taken else {}
        return function(**dict(zip(names, args, strict=False)), **shape, **how)

    first = [Parameter(n, Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    rest = [p for n, p in taken.items() if n not in (*names, SHAPE)]
    return showing(ordered, inspect.Signature([*first, *rest]))


def _dense(x: Any) -> Any:
    """Return a tensor contiguous, as a module would hold it."""
    return x if x is None else x.contiguous()


def _by_name(tensors: Sequence[str], taken: Mapping[str, Parameter]) -> list[str]:
    """Return what a function calls its tensors, if it takes them in another order by known names.

    The list is empty if a name is unknown: then they are given in order.
    """
    small = {n.lower(): n for n, p in taken.items() if p.kind in IN_ORDER}
    found = [[small[n] for n in CALLED.get(name, (name,)) if n in small] for name in tensors]
    if not all(found):
        return []
    names = [known[0] for known in found]
    in_order = [n for n in taken if n in names]
    return names if len(set(names)) == len(names) and names != in_order else []


def _side_by_side(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of one tensor holding both, gate first, as one of gate and up."""
    import torch

    taken = parameters(function)
    options = PLAIN["gated_activation"].called()
    known = [p for n, p in taken.items() if n not in options]
    wanted = [p for p in known if p.default is p.empty and p.kind is not Parameter.VAR_KEYWORD]
    if len(wanted) != 1 or wanted[0] is not known[0] or wanted[0].kind not in IN_ORDER:
        return function

    def of_both(gate: torch.Tensor, up: torch.Tensor, **how: Any) -> Any:
        return function(torch.cat((gate, up), -1), **how)

    rest = [p for n, p in taken.items() if n != wanted[0].name]
    return taking(of_both, ("gate", "up"), rest)
