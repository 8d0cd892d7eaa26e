"""Small faults for a source file: a Python operator swapped, a mask lost, a term dropped.

A mutant differs from its file in one place and keeps every other character, so that line numbers
still hold. The places are nodes of the syntax tree of the chosen functions: their bodies, without
docstrings, annotations, raised exceptions, and whatever only tiles or schedules (`tl.arange`'s
bounds, `num_stages`).
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Chosen = Callable[[ast.FunctionDef], bool]

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
CALLS = {
    "tl.max": "tl.min",
    "tl.min": "tl.max",
    "tl.maximum": "tl.minimum",
    "tl.minimum": "tl.maximum",
    "tl.exp": "tl.exp2",
    "tl.exp2": "tl.exp",
    "tl.log": "tl.log2",
    "tl.log2": "tl.log",
    "tl.sum": "tl.max",
    "np.maximum": "np.minimum",
    "np.minimum": "np.maximum",
    "np.add": "np.subtract",
    "np.subtract": "np.add",
    "np.sin": "np.cos",
    "np.cos": "np.sin",
}
UNTOUCHED = {"other", "num_stages", "loop_unroll_factor", "eviction_policy", "cache_modifier"}


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        file: its path from the top of the repository: "kernels/rotary.py".
        function, line: where in the file.
        text: that line, stripped.
        kind: what is changed: "arithmetic", "comparison", "number", "mask", …
        what: the change, numbered where the line has several alike; with `file`, `function` and
            `text` it identifies the mutant for good.
        source: the file's text with the fault in it.
    """

    file: str
    function: str
    line: int
    text: str
    kind: str
    what: str
    source: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.what}"


def mutants(source: str, file: str, chosen: Chosen) -> list[Mutant]:
    """Return every mutant of those functions of a source text that `chosen` accepts."""
    lines, starts = source.splitlines(), _line_starts(source)
    raw, found = source.encode(), {}
    names: Counter[tuple[str, str, str]] = Counter()
    for function in ast.walk(ast.parse(source)):
        if not (isinstance(function, ast.FunctionDef) and chosen(function)):
            continue
        edits = _Edits()
        for statement in function.body:
            edits.visit(statement)
        for node, new, kind, what in edits.found:
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            patched = (raw[:begin] + new.encode() + raw[end:]).decode()
            if patched in found:
                continue
            text = lines[node.lineno - 1].strip()
            names[function.name, text, what] += 1
            if (nth := names[function.name, text, what]) > 1:
                what += f" ({nth})"
            found[patched] = Mutant(file, function.name, node.lineno, text, kind, what, patched)
    return list(found.values())


def jitted(function: ast.FunctionDef) -> bool:
    """Return whether a function is a kernel, or is called by one."""
    return any(ast.unparse(d).startswith("triton.jit") for d in function.decorator_list)


def differentiates(source: str, name: str = "backward") -> Chosen:
    """Return a test that accepts a file's function of this name and what it calls, but no checks.

    Where there is no such function, every one is accepted.
    """
    functions = {f.name: f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)}
    wanted, ahead = set(), [name] if name in functions else []
    if not ahead:
        ahead = [name for name in functions if not _checks(name)]
    while ahead:
        name = ahead.pop()
        wanted.add(name)
        names = {n.id for n in ast.walk(functions[name]) if isinstance(n, ast.Name)}
        ahead += [n for n in names & functions.keys() - wanted if not _checks(n)]
    return lambda function: function.name in wanted


def _checks(name: str) -> bool:
    return name.lstrip("_").startswith("check")


def _line_starts(source: str) -> list[int]:
    """Return the offset of every line in bytes, in which the syntax tree counts columns."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    return starts


class _Edits(ast.NodeVisitor):
    """Collects (node, its replacement, kind of change, description of the change)."""

    def __init__(self) -> None:
        self.found: list[tuple[ast.expr | ast.stmt, str, str, str]] = []

    def put(self, old: ast.expr | ast.stmt, new: ast.AST, kind: str, what: str = "") -> None:
        text = ast.unparse(new)
        what = what or f"{ast.unparse(old)} → {text}"
        compound = (ast.BinOp, ast.BoolOp, ast.Compare, ast.UnaryOp, ast.IfExp)
        self.found.append((old, f"({text})" if isinstance(new, compound) else text, kind, what))

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.generic_visit(node)
        for new in _swapped(node, node.op, "op"):
            self.put(node, new, "arithmetic")
        if isinstance(node.op, ast.Add | ast.Sub | ast.BitAnd):
            self.put(node, node.left, "operand")
        if isinstance(node.op, ast.Add | ast.BitAnd):
            self.put(node, node.right, "operand")

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.generic_visit(node)
        for new in _swapped(node, node.op, "op"):
            self.put(node, new, "logic")

    def visit_Compare(self, node: ast.Compare) -> None:
        self.generic_visit(node)
        for op in node.ops[:1]:
            for new in _swapped(node, op, "ops"):
                self.put(node, new, "comparison")

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self.generic_visit(node)
        self.put(node, node.operand, "sign")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        for new in _swapped(node, node.op, "op"):
            self.put(node, new, "arithmetic")
        self.put(node, ast.Assign([node.target], node.value, lineno=node.lineno), "operand")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        self.generic_visit(node)
        if not isinstance(node.test, ast.Compare | ast.UnaryOp):
            self.put(node.test, ast.UnaryOp(ast.Not(), node.test), "branch")

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit_If(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        x = node.value
        if type(x) is int:
            for changed in (x + 1, x - 1) if x else (1,):
                self.put(node, ast.Constant(changed), "number", f"{x} → {changed}")
        elif type(x) is float:
            float_ = x * 1.001 if x else 1.0
            self.put(node, ast.Constant(float_), "number", f"{x} → {float_}")

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in UNTOUCHED:
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_Expr(self, node: ast.Expr) -> None:
        self.generic_visit(node)
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "tl.store":
            self.put(node, ast.Pass(), "store", f"drop {ast.unparse(node)}")

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        if name == "tl.arange":
            return
        self.generic_visit(node)
        if name in CALLS:
            changed = ast.parse(CALLS[name], mode="eval").body
            new = ast.Call(changed, node.args, node.keywords)
            self.put(node, new, "call", f"{name} → {CALLS[name]}")
        if name == "tl.cdiv":
            self.put(node, ast.BinOp(node.args[0], ast.FloorDiv(), node.args[1]), "call")
        if name in ("tl.where", "np.where"):
            condition, yes, no = node.args
            new = ast.Call(node.func, [condition, no, yes], [])
            self.put(node, new, "branch", f"{name}: arguments swap")
        if name.endswith(".to") or name.endswith(".astype"):
            assert isinstance(node.func, ast.Attribute)
            how = ", ".join(ast.unparse(x) for x in node.args)
            what = f"drop .{node.func.attr}({how}) of {ast.unparse(node.func.value)}"
            self.put(node, node.func.value, "cast", what)
        if name in ("tl.load", "tl.store"):
            given = {k.arg for k in node.keywords}
            for lost in ({"other"}, {"mask", "other"}):
                if lost & given and not (len(lost) == 2 and "mask" not in given):
                    kept = [k for k in node.keywords if k.arg not in lost]
                    what = f"{ast.unparse(node)}: drop {' and '.join(sorted(lost & given))}"
                    self.put(node, ast.Call(node.func, node.args, kept), "mask", what)


def _swapped(node: ast.AST, op: ast.AST, attribute: str) -> Iterator[ast.AST]:
    """Yield the node with its operator swapped, if there is something to swap it for."""
    other = SWAPPED.get(type(op))
    if other is not None:
        new = copy.copy(node)
        first = [other(), *getattr(node, attribute)[1:]] if attribute == "ops" else other()
        setattr(new, attribute, first)
        yield new
