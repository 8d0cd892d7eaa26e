"""Settings from a file or a program: every field must have its declared type."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from twofold.reference import checks

KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
    "bool": (bool,),
}


def check_kinds(settings: Any) -> None:
    """Raise unless every field of a dataclass has its declared type and floats are finite.

    Raises:
        TypeError, ValueError: naming the field, what it was and what it must be.
    """
    for field in dataclasses.fields(settings):
        kind, value = str(field.type), getattr(settings, field.name)
        if not isinstance(value, KINDS[kind]) or isinstance(value, bool) != (kind == "bool"):
            was = type(value).__name__
            raise TypeError(f"{field.name} is a {was}; it must be of type {kind}")
        if isinstance(value, float):
            checks.require(math.isfinite(value), field.name, value, "finite")
