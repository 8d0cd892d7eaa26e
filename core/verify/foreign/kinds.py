"""Whatever is given to be judged or raced, as a plain call: f(tensors…, options…) -> outputs."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

GIVEN = (
    "a function, an nn.Module (or its class, made without arguments), a class derived from "
    "torch.autograd.Function, of optimizers a class made of params that has step, or an object "
    "with forward and, for its own gradients, backward"
)

EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD


@dataclass
class Seen:
    """What was seen of a function while it was made a plain call.

    Attributes:
        order: the order of its tensors' axes, where that is known without trying.
        written: arguments that it was seen to write its output to.
        said: what else it is taken to be, in words.
        signature: its own, as its author wrote it.
        ways: what it may be where that is left open, by words; found by trial.
        fields: those that every case given to it has.
        has_groups: whether it is a class of torch.optim, whose parameter groups are tested.
    """

    order: str = ""
    signature: str = ""
    written: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    ways: dict[str, Callable[..., Any]] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    has_groups: bool = False


def plain(implementation: Any) -> Callable[..., Any]:
    """Return an implementation as a plain call, whose signature shows what it takes.

    If it is an object with only `forward`, that returns the output, or (output, cache).

    Raises:
        TypeError: it is nothing that can be called so.
    """
    import torch

    owner = getattr(implementation, "__self__", None)
    if getattr(implementation, "__name__", "") == "apply" and isinstance(owner, type):
        implementation = owner  # attention = _attention.apply, as in Triton's tutorial
    if isinstance(implementation, type):
        if issubclass(implementation, torch.autograd.Function):
            return _applied(implementation)
        made = f"an instance of it, such as name = {implementation.__name__}(…)"
        hint = made if issubclass(implementation, torch.nn.Module) else GIVEN
        raise TypeError(f"{_called(implementation)} is a class; it must be {hint}")
    if isinstance(implementation, torch.nn.Module):
        return showing(lambda *a, **how: implementation(*a, **how), implementation.forward)
    if callable(implementation):
        shown = None if parameters(implementation) else _documented(implementation)
        taken: Callable[..., Any] = implementation
        return showing(taken, shown) if shown else taken
    if callable(forward := getattr(implementation, "forward", None)):
        return showing(functools.partial(_output, forward), forward)
    raise TypeError(f"{_called(implementation)} cannot be called; it must be {GIVEN}")


def made(implementation: Any) -> Any:
    """Return an instance of a module class that needs no arguments; anything else as it is."""
    import torch

    if not isinstance(implementation, type) or not issubclass(implementation, torch.nn.Module):
        return implementation
    wanted = [
        p
        for p in parameters(implementation).values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return implementation if wanted else implementation()


def is_operator(implementation: Any, functions: tuple[str, ...]) -> bool:
    """Return whether an object has all functions of an operator's module.

    Modules and functions of torch have ones of the same names that mean something else.
    """
    import torch

    kind = implementation if isinstance(implementation, type) else type(implementation)
    if issubclass(kind, torch.nn.Module | torch.autograd.Function):
        return False
    return all(callable(getattr(implementation, name, None)) for name in functions)


def _applied(function: Any) -> Callable[..., Any]:
    """Return `function.apply` with the signature of its forward, without the context."""
    import torch

    base = torch.autograd.Function
    if function.forward is base.forward:
        raise TypeError(f"{_called(function)} has no forward; it must have one")
    signature = inspect.signature(function.forward)
    if function.setup_context is base.setup_context:
        _context, *taken = signature.parameters.values()
        signature = signature.replace(parameters=taken)

    def applied(*args: Any, **how: Any) -> Any:
        bound = signature.bind(*args, **how)
        bound.apply_defaults()  # apply takes no keyword arguments
        return function.apply(*bound.args)

    return showing(applied, signature)


def _documented(builtin: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature that a builtin's docstring begins with, as those of torch do."""
    name, docs = getattr(builtin, "__name__", ""), builtin.__doc__ or ""
    found = re.match(rf"\s*{re.escape(name)}(\(.*?\))\s*->", docs, re.DOTALL) if name else None
    try:
        (made,) = ast.parse(f"def function{found[1]}: ...").body if found else [None]
    except SyntaxError:
        return None
    if not isinstance(made, ast.FunctionDef):
        return None
    named = made.args.kwonlyargs
    places = [*made.args.posonlyargs, *made.args.args]
    defaults = [None] * (len(places) - len(made.args.defaults)) + made.args.defaults
    return inspect.Signature(
        [
            inspect.Parameter(
                arg.arg,
                inspect.Parameter.KEYWORD_ONLY if arg in named else EITHER,
                default=inspect.Parameter.empty if value is None else ast.literal_eval(value),
            )
            for arg, value in zip(
                (*places, *named), (*defaults, *made.args.kw_defaults), strict=True
            )
        ]
    )


def _output(forward: Callable[..., Any], *args: Any, **how: Any) -> Any:
    """Return what forward returns, without its cache."""
    import torch

    found = forward(*args, **how)
    with_cache = isinstance(found, tuple) and len(found) == 2
    return found[0] if with_cache and not isinstance(found[1], torch.Tensor) else found


def showing(
    call: Callable[..., Any], shown: Callable[..., Any] | inspect.Signature
) -> Callable[..., Any]:
    """Return a call that shows this signature, or this function's."""
    signature = shown if isinstance(shown, inspect.Signature) else inspect.signature(shown)

    def function(*args: Any, **how: Any) -> Any:
        return call(*args, **how)

    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def taking(
    call: Callable[..., Any], tensors: Iterable[str], rest: Iterable[inspect.Parameter]
) -> Callable[..., Any]:
    """Return a call that shows tensors of these names in order, and the rest by name only."""
    places = [inspect.Parameter(name, EITHER) for name in tensors]
    named = [
        p if p.kind is p.VAR_KEYWORD else p.replace(kind=p.KEYWORD_ONLY)
        for p in rest
        if p.kind is not p.VAR_POSITIONAL
    ]
    return showing(call, inspect.Signature([*places, *named]))


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return a function's parameters; a builtin shows none."""
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}


def _called(implementation: Any) -> str:
    if isinstance(implementation, type):
        return implementation.__qualname__
    words = repr(implementation)
    return words if len(words) < 80 else f"a {type(implementation).__qualname__}"
