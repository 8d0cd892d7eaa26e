"""The calls that are accepted for each operator, read from the tables that make them."""

from __future__ import annotations

from collections.abc import Iterator

from twofold.core import ops
from twofold.core.verify.foreign.joined import JOINED, OF_MODULE
from twofold.core.verify.foreign.operators import functions
from twofold.core.verify.foreign.packed import OPTION, SHAPE, Sequences
from twofold.core.verify.foreign.plain import names_of
from twofold.core.verify.foreign.rotary import OF_POSITIONS
from twofold.core.verify.foreign.table import PLAIN, tensor_names

ALSO = (
    "Also handled: an argument that the output is written to (out, output, …), output written over "
    "the input, sizes passed as numbers (M, N, d, n_rows, …), and weights held by a module."
)


def calls() -> Iterator[tuple[str, str, list[str]]]:
    """Yield operators, how each is taken (a plain call, or only an object), and further forms."""
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
        orders = [*plain.arranged, *plain.fewer]
        if operator == "attention":
            starts = f"{', '.join(Sequences._fields)}, or cu_seqlens, max_seqlen"
            orders += [f"{SHAPE} and {starts}", *JOINED.values(), OF_MODULE]
        if operator == "rotary":
            orders.append(OF_POSITIONS)
        yield (
            operator,
            f"f({takes}) -> {gives} of {plain.shapes}",
            [*orders, f"an object with {wanted}"],
        )
    for wanted, operators in objects.items():
        yield ", ".join(operators), f"an object with {wanted}", []
