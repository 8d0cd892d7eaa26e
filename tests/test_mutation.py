"""Mutants: which small faults are planted."""

import pytest

from twofold.core.verify import mutation

KERNEL = '''
@triton.jit
def kernel(x_ptr, n, BLOCK: tl.constexpr = 2):
    """1 + 1."""
    at: tl.int64 = tl.arange(0, BLOCK)
    inside = (at < n) & (at > 2)  # μ
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.max(x - 1.5, axis=0)
    total += tl.where(inside, x * 3, 0.0)
    if BLOCK:
        tl.store(x_ptr, total / n, mask=inside)


def launch(x):
    return x + 1
'''


def changes(what):
    """Return the changed lines of KERNEL's mutants of the kind `what`."""
    before, found = KERNEL.splitlines(), []
    for mutant in mutation.mutants(KERNEL, "kernels/x.py", mutation.jitted):
        if mutant.what == what:
            after = mutant.source.splitlines()
            assert len(before) == len(after)
            (pair,) = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            assert pair[0] == before[mutant.line - 1] and pair[0].strip() == mutant.text
            found.append(pair[1].strip())
    return found


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("at < n → at <= n", "inside = ((at <= n)) & (at > 2)  # μ"),
        ("at > 2 → at >= 2", "inside = (at < n) & ((at >= 2))  # μ"),
        ("(at < n) & (at > 2) → at > 2", "inside = (at > 2)  # μ"),
        ("(at < n) & (at > 2) → (at < n) | (at > 2)", "inside = ((at < n) | (at > 2))  # μ"),
        ("2 → 3", "inside = (at < n) & (at > 3)  # μ"),
        ("2 → 1", "inside = (at < n) & (at > 1)  # μ"),
        (
            "tl.load(x_ptr + at, mask=inside, other=0.0): drop other",
            "x = tl.load(x_ptr + at, mask=inside).to(tl.float32)",
        ),
        (
            "drop .to(tl.float32) of tl.load(x_ptr + at, mask=inside, other=0.0)",
            "x = tl.load(x_ptr + at, mask=inside, other=0.0)",
        ),
        ("tl.max → tl.min", "total = tl.min(x - 1.5, axis=0)"),
        ("x - 1.5 → x", "total = tl.max(x, axis=0)"),
        ("0 → 1", "total = tl.max(x - 1.5, axis=1)"),
        ("x * 3 → x / 3", "total += tl.where(inside, (x / 3), 0.0)"),
        ("tl.where: arguments swap", "total += tl.where(inside, 0.0, x * 3)"),
        ("total / n → total * n", "tl.store(x_ptr, (total * n), mask=inside)"),
        ("tl.store(x_ptr, total / n, mask=inside): drop mask", "tl.store(x_ptr, total / n)"),
        ("drop tl.store(x_ptr, total / n, mask=inside)", "pass"),
        ("BLOCK → not BLOCK", "if (not BLOCK):"),
    ],
)
def test_a_mutant_changes_what_it_says_and_nothing_else(what, line):
    assert changes(what) == [line]


def test_only_bodies_of_the_functions_asked_for_change():
    found = mutation.mutants(KERNEL, "kernels/x.py", mutation.jitted)
    assert {m.function for m in found} == {"kernel"}
    assert not {m.text for m in found} & {'"""1 + 1."""', "at: tl.int64 = tl.arange(0, BLOCK)"}
    assert len({(m.function, m.text, m.what) for m in found}) == len(found)
    for mutant in found:
        compile(mutant.source, mutant.file, "exec")


def test_backward_functions_are_found_with_what_they_call():
    source = "def check(x): 1\ndef f(x): 2\ndef g(x): return f(x)\ndef backward(x): check(f(x))"
    taken = mutation.mutants(source + "\ndef h(): 3", "reference/x.py", lambda f: True)
    assert {m.function for m in taken} == {"check", "f", "h"}
    taken = mutation.mutants(
        source + "\ndef h(): 3", "reference/x.py", mutation.differentiates(source)
    )
    assert {m.function for m in taken} == {"f"}


def test_another_function_than_backward_can_be_asked_for():
    source = "def _check(x): 1\ndef f(x): 2\ndef forward(x): _check(f(x)); 3\ndef backward(x): 4"
    taken = mutation.mutants(source, "reference/x.py", mutation.differentiates(source, "forward"))
    assert {m.function for m in taken} == {"f", "forward"}


def test_every_mutant_has_a_kind():
    kinds = {m.what: m.kind for m in mutation.mutants(KERNEL, "kernels/x.py", mutation.jitted)}
    assert kinds["at < n → at <= n"] == "comparison" and kinds["2 → 3"] == "number"
    assert kinds["tl.max → tl.min"] == "call" and kinds["x * 3 → x / 3"] == "arithmetic"
    assert kinds["BLOCK → not BLOCK"] == "branch" and all(kinds.values())
