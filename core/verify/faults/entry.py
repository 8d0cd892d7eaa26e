"""What an entry of the catalogue of faults is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Row = tuple[str, str, str, *tuple[tuple[str, str], ...]]  # file, name, shipped, swaps


class Fault(NamedTuple):
    """One fault.

    Attributes:
        operator: whose contract has to see it.
        file: what it changes, "kernels/attention.py".
        name: what is wrong, in words.
        shipped: where such a fault shipped, "project#issue"; "" where it is told without a place.
        swaps: pairs (text, what stands there instead), in this order.
    """

    operator: str
    file: str
    name: str
    shipped: str
    swaps: tuple[tuple[str, str], ...]


def of(operator: str, rows: Iterable[Row]) -> list[Fault]:
    """Return an operator's entries; "{}" in a file's name is the operator."""
    return [
        Fault(operator, file.format(operator), name, shipped, tuple(swaps))
        for file, name, shipped, *swaps in rows
    ]
