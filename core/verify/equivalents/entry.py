"""What an entry of the list of equivalents is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from twofold.core.verify.mutation import Mutant

ANY = "*"

# (function, change) or (function, line, change)
Row = tuple[str, str] | tuple[str, str, str]


class Equivalent(NamedTuple):
    """A mutant, or a kind of mutants, and why its numbers are right."""

    file: str
    function: str
    text: str
    what: str
    reason: str

    def names(self, mutant: Mutant) -> bool:
        """Return whether this is the entry of a mutant."""
        pairs = zip(self[:4], (mutant.file, mutant.function, mutant.text, mutant.what), strict=True)
        return all(
            name == x or (name.endswith(ANY) and x.startswith(name[: -len(ANY)]))
            for name, x in pairs
        )


def of(file: str, reasons: Mapping[str, tuple[Row, ...]]) -> list[Equivalent]:
    """Return a file's entries, given by their reasons."""
    found = []
    for reason, rows in reasons.items():
        for function, *line, what in rows:
            found.append(Equivalent(file, function, line[0] if line else ANY, what, reason))
    return found
