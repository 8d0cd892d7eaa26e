"""Pages with figures from committed results, which a script writes, or checks to be up to date."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

WIDTH = 120


def filled(page: Path, sections: Mapping[str, Callable[[], str]]) -> str:
    """Return a page with the text between each section's markers replaced."""
    text = page.read_text()
    for name, write in sections.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{page.name} has no section <!-- {name} --> … <!-- end -->")
        content = write()
        text = pattern.sub(lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text)
    return text


def wrapped(sentences: str, indent: str = "") -> str:
    """Return sentences wrapped as wide as hand-written lines, all but the first indented."""
    return textwrap.fill(
        sentences,
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def put(page: Path, written: str, script: str) -> None:
    """Write a page; with `--check`, exit with status 1 if that would change anything."""
    if "--check" in sys.argv:
        is_so = page.exists() and page.read_text() == written
        sys.exit(0 if is_so else f"{page.name} is not what benchmarks/{Path(script).name} writes")
    page.write_text(written)
