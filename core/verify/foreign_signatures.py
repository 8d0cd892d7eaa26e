"""The calls that are looked for of each operator, read from the tables that make them."""

from __future__ import annotations

from collections.abc import Iterator

from twofold.core import ops
from twofold.core.verify.foreign_attention import JOINED, OF_MODULE
from twofold.core.verify.foreign_operators import functions
from twofold.core.verify.foreign_packed import OPTION, SHAPE, Sequences
from twofold.core.verify.foreign_plain import names_of
from twofold.core.verify.foreign_table import PLAIN, tensor_names


def calls() -> Iterator[tuple[str, str]]:
    """Yield operators and what they are taken as: a plain call, or an object alone."""
    objects: dict[str, list[str]] = {}
    for operator in ops.OPERATORS:
        wanted = " and ".join(functions(operator))
        if operator not in PLAIN:
            objects.setdefault(wanted, []).append(operator)
            continue
        plain = PLAIN[operator]
        options = ["|".join(names_of(option)) for option in plain.options if option != OPTION]
        takes = ", ".join((*tensor_names(operator), *(f"{option}=…" for option in options)))
        gives = ", ".join(
            f"{o}|{plain.instead[o]}" if o in plain.instead else o for o in plain.outputs
        )
        call = f"f({takes}) -> {gives} of {plain.shapes}"
        orders = [*plain.arranged, *plain.fewer]
        if OPTION in plain.options:
            orders.append(f"{SHAPE} and {', '.join(Sequences._fields)}, or cu_seqlens, max_seqlen")
        if operator == "attention":
            orders += [*JOINED.values(), OF_MODULE]
        others = f"; or {'; '.join(orders)}" if orders else ""
        yield operator, f"{call}{others}; or an object with {wanted}"
    for wanted, operators in objects.items():
        yield ", ".join(operators), f"an object with {wanted}"
