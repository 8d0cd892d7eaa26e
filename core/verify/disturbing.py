"""Other calls between those of a case, to expose what an operator keeps from call to call.

An operator may keep buffers that it reuses, copies of weights, or tables, and be right as long as
each forward is followed by its own single backward. Models call it in other orders: weights are
trained in place, layers of the same shape take turns, a graph is traversed twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from twofold.core.ops import Side


def disturbed(side: Side) -> Side:
    """Return the side with other calls around every `forward` and `backward`, for one run.

    Before and after a forward comes one on other numbers in the same memory; a backward is followed
    by the backward of that other forward, and then repeated.
    """
    made = _Disturbed(**{f.name: getattr(side, f.name) for f in dataclasses.fields(side)})
    vars(made).update(inner=side, others={})
    return made


def of(side: Side, operator: Any) -> Any:
    """Return a foreign operator, with other calls around its own if the side makes them."""
    if not isinstance(side, _Disturbed):
        return operator
    return _Operator(operator, side.to_numpy, vars(side)["others"])


def around(side: Side, call: Callable[[], Any], given: Any) -> Any:
    """Return a call's result, with other calls around it if the side makes them."""
    if not isinstance(side, _Disturbed):
        return call()

    def other() -> Any:
        with other_numbers(given):
            return call()

    _tried(other)
    made = call()
    _tried(other)
    return made


class _Disturbed(Side):
    """A side whose operators are those of an `inner` side, wrapped in `_Operator`.

    `others` holds the caches of the other calls by the id of the call's own cache, kept with it.
    """

    def __getattr__(self, operator: str) -> Any:
        inner, others = (vars(self)[name] for name in ("inner", "others"))
        return _Operator(getattr(inner, operator), self.to_numpy, others)


class _Operator:
    """An operator's module, or a stand-in for one, with other calls around forward and backward."""

    def __init__(
        self,
        module: Any,
        to_numpy: Callable[[Any], np.ndarray[Any, Any]],
        others: dict[int, tuple[Any, Any]],
    ) -> None:
        self._module, self._to_numpy, self._others = module, to_numpy, others

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        def other() -> Any:
            with other_numbers((arguments, options)):
                return self._module.forward(*arguments, **options)

        _tried(other)
        made = self._module.forward(*arguments, **options)
        after = _tried(other)
        if isinstance(made, tuple) and isinstance(after, tuple):
            self._others[id(made[-1])] = (made[-1], after[-1])  # kept, so that no id is reused
        return made

    def backward(self, *arguments: Any, **options: Any) -> Any:
        gradients = self._module.backward(*arguments, **options)
        cache = next((a for a in arguments if id(a) in self._others), None)
        if cache is None or options.get("into") is not None:  # whose arrays may be the inputs
            return gradients
        other = tuple(self._others[id(cache)][1] if a is cache else a for a in arguments)
        was = self._numbers(gradients)
        _tried(lambda: self._module.backward(*other, **options))
        for before, now in zip(was, self._numbers(gradients), strict=True):
            if not np.array_equal(before, now, equal_nan=True):
                return gradients  # which the other call has written to
        again = _tried(lambda: self._module.backward(*arguments, **options))
        return gradients if again is None else again  # autograd may traverse a graph only once

    def _numbers(self, gradients: Any) -> list[np.ndarray[Any, Any]]:
        return [np.array(self._to_numpy(x)) for x in gradients if x is not None]


def _tried(call: Callable[[], Any]) -> Any:
    """Return the result of a call beside the case's own, None where it fails."""
    with contextlib.suppress(Exception):
        return call()


@contextlib.contextmanager
def other_numbers(given: Any) -> Iterator[None]:
    """Multiply floating arrays by −½ in their own memory, where they can be written."""
    held = []
    try:
        for x in _arrays(given):
            if not isinstance(x, np.ndarray):
                x = x.data  # autograd must not notice that what it saved for a backward has changed
            was = x.copy() if isinstance(x, np.ndarray) else x.clone()
            with contextlib.suppress(Exception):  # read-only, expanded, of 8 bits
                x *= -0.5
                held.append((x, was))
        yield
    finally:
        for x, was in reversed(held):  # an array passed twice was changed twice
            x[...] = was


def _arrays(given: Any) -> Iterator[Any]:
    """Yield the floating arrays in arguments, however they are nested."""
    if isinstance(given, dict):
        given = tuple(given.values())
    if isinstance(given, tuple | list):
        for x in given:
            yield from _arrays(x)
    elif isinstance(given, np.ndarray):
        if given.dtype.kind == "f":
            yield given
    elif hasattr(given, "is_floating_point") and given.is_floating_point():
        yield given
