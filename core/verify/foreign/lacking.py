"""Tensors that a function may lack, such as a bias: it is judged with ones that change nothing."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from inspect import Parameter
from typing import Any

import numpy as np

from twofold.core.verify.foreign.plain import Plain
from twofold.core.verify.foreign.table import tensor_names
from twofold.core.verify.foreign.written import VARIADIC


def lacking(
    operator: str,
    names: Iterable[str],
    taken: Mapping[str, Parameter],
    options: Container[str],
) -> Iterator[tuple[str, bool]]:
    """Yield those of these tensors that a function lacks or requires, and whether it lacks each.

    `options` are the options that it has. A tensor with a default is neither; a function whose
    parameters are unknown, or any number, may be given anything.
    """
    places = [p for p in taken.values() if p.kind not in VARIADIC]
    if not taken or any(p.kind is p.VAR_POSITIONAL for p in taken.values()):
        return
    for name in names:
        at = tensor_names(operator).index(name)
        own = places[at] if at < len(places) else None
        if own is None or own.default is own.empty or own.name in options:
            yield name, own is None or own.name in options


def without(entry: Plain, given: Any, names: Iterable[str]) -> Any:
    """Return inputs with these tensors replaced by values that change nothing."""
    changed = {
        n: np.full_like(getattr(given, n), entry.neutral[n][0]) for n in names if n in entry.neutral
    }
    return given._replace(**changed) if changed else given


def unlike(entry: Plain, given: Any, names: Iterable[str]) -> set[str]:
    """Return outputs that these tensors, to which properties may give any values, would change."""
    outputs: set[str] = set()
    for name in names:
        value, depend = entry.neutral.get(name, (0.0, ()))
        if depend and np.any(getattr(given, name) != value):
            outputs.update(depend)
    return outputs
