"""Which lines ran, of NumPy functions and of interpreted kernels."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from twofold.core.verify import executed

SOURCE = """def f(a):
    x = g(
        a,
        1,
    )
    if (
        a
    ):
        return h(x)
    return x
"""


@pytest.mark.parametrize(
    ("line", "lines"),
    [(2, (2, 5)), (3, (2, 5)), (5, (2, 5)), (7, (6, 8)), (9, (9, 9)), (10, (10, 10))],
)
def test_a_line_belongs_to_its_innermost_statement_and_of_one_with_a_body_to_the_head(line, lines):
    assert executed.statement(SOURCE, line) == range(lines[0], lines[1] + 1)


def _line(path, text):
    """Return the number of a file's only line that begins with a text."""
    lines = [line.strip().startswith(text) for line in path.read_text().splitlines()]
    assert lines.count(True) == 1
    return lines.index(True) + 1


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("triton", ("if not INTERLEAVED:", "both = tl.arange(", "second = f + F")),
        ("reference", ("first, second = (", "turned *= across", "return np.cos(angle)")),
    ],
)
def test_lines_that_ran_are_collected_and_no_others(name, texts, interleaved, request):
    side = request.getfixturevalue(name)
    if side.device == "cuda":
        pytest.skip("nothing is interpreted on a GPU")
    folder = Path(import_module(side.package).__path__[0])
    q = side.asarray(np.ones((1, 1, 2, 4)), "float32")
    cos = side.asarray(np.ones((2, 2)), "float32")
    with executed.lines(folder, name == "triton") as lines:
        side.rotary.forward(q, q, cos, cos, interleaved=interleaved)
    ran = [
        (f"{folder.name}/rotary.py", _line(folder / "rotary.py", text)) in lines for text in texts
    ]
    assert ran == [True, *((interleaved, not interleaved) if name == "triton" else (True, False))]
    assert all((folder.parent / file).is_file() for file, _ in lines)
