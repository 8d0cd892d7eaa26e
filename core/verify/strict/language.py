"""Triton's language as the interpreter runs it: set up once, and as strict as the compiler's.

Triton is imported here: see `builder`.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import operator
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter
from triton.runtime.interpreter import ASTTransformer, TensorHandle

from twofold.core.verify.strict.hints import HINTS
from twofold.core.verify.strict.memory import StaticAssertion

# Frames of these files are not the kernel's.
MACHINERY = (
    os.path.dirname(triton.__file__),
    os.path.dirname(np.__file__),
    os.path.dirname(__file__),
)
# For a constant and a tensor, in this order, the compiler calls the tensor's operator.
_OPERATORS = tuple(
    f"__{name}__"
    for name in (
        "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor",
        "lshift", "rshift", "lt", "le", "gt", "ge", "eq", "ne",
    )
)  # fmt: skip
# Functions as rewritten by `Rewriting`; Triton keeps its own besides.
REWRITTEN: dict[Callable[..., Any], Callable[..., Any]] = {}


class Language:
    """Triton's language, pointed at the interpreter once instead of at every call.

    The interpreter replaces some two hundred members of `triton.language` at each launch and again
    at each call of a jitted function, `tl.sum` and `tl.zeros` among them: most of its running time.
    """

    def __init__(self) -> None:
        self._scopes: list[Any] = []
        self._aliases: list[tuple[dict[str, Any], str, Any]] = []
        self._known: set[Any] = set()
        self._modules: set[tuple[bool, bool]] = set()

    def patch(self, fn: Any) -> None:
        """Patch the modules that a function refers to, and members that it imported by name."""
        if fn in self._known:
            return
        self._known.add(fn)
        self._patch_modules(fn)
        for name, x in [*fn.__globals__.items()]:
            if (new := _replaced(x)) is not x:
                self._aliases.append((fn.__globals__, name, x))
                fn.__globals__[name] = new

    def _patch_modules(self, fn: Any) -> None:
        values = [x for x in fn.__globals__.values() if inspect.ismodule(x)]
        modules = (tl in values, tl.core in values)
        if modules in self._modules:
            return
        self._modules.add(modules)
        scope = interpreter._patch_lang(fn)
        # Triton 3.6 takes int() of an array with an axis, which NumPy no longer allows.
        scope.set_attr(tl.tensor, "__index__", lambda self: int(self.handle.data.item()))
        scope.set_attr(tl.tensor, "__bool__", _truth)
        scope.set_attr(tl.tensor, "__repr__", _shown)
        scope.set_attr(tl.tensor, "__str__", _shown)
        for name in _OPERATORS:
            scope.set_attr(tl.constexpr, name, _of_constant(name, getattr(tl.constexpr, name)))
        for language in (tl, tl.core):
            scope.set_attr(language, "static_assert", _static_assert)
            scope.set_attr(language, "range", loop)
            for name, hint in HINTS.items():
                scope.set_attr(language, name, hint)
        for stub in vars(libdevice).values():
            if inspect.isfunction(stub):  # by its code: kernels import it under other names
                scope.set_attr(stub, "__code__", _no_libdevice.__code__)
        self._scopes.append(scope)

    def restore(self) -> None:
        """Undo all patches."""
        while self._aliases:
            known, name, x = self._aliases.pop()
            known[name] = x
        while self._scopes:
            self._scopes.pop().restore()


class Rewriting(ASTTransformer):  # type: ignore[misc]  # Triton has no types
    """Rewrites a kernel's source as the interpreter does; and makes loops count in typed numbers.

    What the compiler does not support is refused only where it is reached, as it may stand in a
    branch that a constant rules out, which the compiler skips.
    """

    # Names in the interpreter's `semantic`, which every kernel sees.
    LOOP = "strict_loop"
    LINE = "strict_line"
    REFUSED = "strict_refused"
    GLOBAL = "strict_global"
    DECIDED = "strict_decided"
    JOINED = "strict_joined"
    NEGATED = "strict_negated"

    def __init__(self) -> None:
        self._own: set[str] = set()  # the function's own names
        self._kept = 0  # how many operands of `and` and `or` have been named
        self._loops = 0  # how many are around the statement

    def visit(self, node: ast.AST) -> Any:
        """Precede every statement of a block by a note of its line."""
        node = super().visit(node)
        if isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.While):
            node.body = self._noted(node.body)
            if not isinstance(node, ast.FunctionDef):
                node.orelse = self._noted(node.orelse)
        return node

    def _noted(self, block: list[ast.stmt]) -> list[ast.stmt]:
        return [x for s in block for x in (_at(s, ast.Expr(_call(self.LINE))), s)]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:  # noqa: D102
        names = {x.id for x in ast.walk(node) if isinstance(x, ast.Name) and _is_stored(x)}
        self._own = names | {x.arg for x in ast.walk(node) if isinstance(x, ast.arg)}
        self._loops = 0
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:  # noqa: D102
        value, node.value = self.visit(node.value), ast.Constant(None)
        wrapped: ast.Assign = super().visit_Assign(node)
        assert isinstance(wrapped.value, ast.Call)
        wrapped.value.args[0] = value  # visited once: Triton 3.6 never visits it, 3.9 does
        return wrapped

    def visit_For(self, node: ast.For) -> ast.AST:  # noqa: D102
        call, unrolled = node.iter, False
        if isinstance(call, ast.Call):
            unrolled = ast.unparse(call.func).endswith("static_range")
            if isinstance(call.func, ast.Name) and call.func.id == "range":
                call.func = ast.copy_location(_call(self.LOOP).func, call.func)
        return self._in_loop(node, not unrolled)

    def visit_While(self, node: ast.While) -> ast.AST:  # noqa: D102
        return self._in_loop(node, True)

    def _in_loop(self, node: ast.AST, counts: bool) -> ast.AST:
        self._loops += counts
        visited: ast.AST = self.generic_visit(node)
        self._loops -= counts
        return visited

    def visit_Break(self, node: ast.Break) -> ast.AST:  # noqa: D102
        return self._refused(node, "break")

    def visit_Continue(self, node: ast.Continue) -> ast.AST:  # noqa: D102
        return self._refused(node, "continue")

    def visit_Return(self, node: ast.Return) -> ast.AST:  # noqa: D102
        if self._loops:
            return self._refused(node, "return inside a loop")
        visited: ast.AST = self.generic_visit(node)
        return visited

    def _refused(self, node: ast.stmt, what: str) -> ast.AST:
        return _at(node, ast.Expr(_call(self.REFUSED, ast.Constant(what))))

    def visit_Name(self, node: ast.Name) -> ast.AST:  # noqa: D102
        if _is_stored(node) or node.id in self._own:
            return node
        return ast.copy_location(_call(self.GLOBAL, ast.Constant(node.id), node), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: D102
        function = node.func  # a plain name may be global
        visited: ast.Call = self.generic_visit(node)
        if isinstance(function, ast.Name):
            visited.func = function
        return visited

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:  # noqa: D102
        visited: ast.AST = self.generic_visit(node)
        assert isinstance(visited, ast.BoolOp)
        every = ast.Constant(isinstance(visited.op, ast.And))
        found, *others = visited.values
        for other in others:
            self._kept += 1
            name = f"strict_operand_{self._kept}"
            kept = ast.NamedExpr(ast.Name(name, ast.Store()), found)
            found = ast.IfExp(
                _call(self.DECIDED, every, kept),
                ast.Name(name, ast.Load()),
                _call(self.JOINED, every, ast.Name(name, ast.Load()), other),
            )
        return ast.copy_location(found, node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:  # noqa: D102
        visited: ast.AST = self.generic_visit(node)
        if not isinstance(node.op, ast.Not):
            return visited
        return ast.copy_location(_call(self.NEGATED, node.operand), node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:  # noqa: D102
        return node if isinstance(node.value, ast.Name) else self.generic_visit(node)  # of a module


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    semantic = ast.Name("interpreter_semantic", ast.Load())
    return ast.Call(ast.Attribute(semantic, name, ast.Load()), list(arguments), [])


def _is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _is_block(x: Any) -> bool:
    return isinstance(x, tl.tensor) and bool(x.type.is_block())


def decided(every: bool, first: Any) -> bool:
    """Return whether the first operand of `and` (if `every`), or of `or`, decides the result."""
    return not _is_block(first) and bool(first) is not every


def joined(every: bool, first: Any, second: Any) -> Any:
    """Return `and` (if `every`), or `or`, of an operand that does not decide and the next one.

    For blocks the compiler works elementwise, and warns that & and | are meant.
    """
    if not _is_block(first) and not _is_block(second):
        return second
    if not isinstance(first, tl.tensor):
        return second
    if not isinstance(second, tl.tensor):
        return first if bool(second) is every else second
    return first.logical_and(second) if every else first.logical_or(second)


def negated(x: Any) -> Any:
    """Return `not x`, elementwise for a block."""
    return x.__not__() if _is_block(x) else not x


def refused(what: str) -> None:
    """Refuse what the compiler does not support."""
    raise SyntaxError(f"the compiler has no {what}")


def known_global(name: str, value: Any) -> Any:
    """Return a global variable that a kernel reads, if the compiler allows it."""
    plain = isinstance(value, int | float | str | list | dict) or type(value) is tuple
    if plain and not triton.knobs.compilation.allow_non_constexpr_globals:
        raise NameError(f"a kernel may read the global variable {name} only as a tl.constexpr")
    return value


def _at(place: ast.stmt, new: ast.stmt) -> ast.stmt:
    """Return a copy of a statement, placed at the first line of another."""
    new = copy.deepcopy(new)
    for node in ast.walk(new):
        if isinstance(node, ast.expr | ast.stmt):
            node.lineno = node.end_lineno = place.lineno
            node.col_offset = node.end_col_offset = place.col_offset
    return new


def loop(arg1: Any, arg2: Any = None, step: Any = None, *_: Any, **__: Any) -> Iterator[Any]:
    """Act like `range` and `tl.range` in a compiled kernel: count in the type of the bounds.

    The interpreter counts in Python integers, which never wrap, and become 32 bits wide when they
    meet a block even if the bounds have 64.
    """
    semantic = interpreter.interpreter_semantic
    start, end = (0, arg1) if arg2 is None else (arg1, arg2)
    bounds = [semantic.to_tensor(x) for x in (start, end, 1 if step is None else step)]
    if not all(x.dtype.is_int() for x in bounds) or any(x.type.is_block() for x in bounds):
        types = ", ".join(str(x.type) for x in bounds)
        raise TypeError(f"a loop's bounds and step are scalar integers, not {types}")
    dtype = functools.reduce(semantic.integer_promote_impl, (x.dtype for x in bounds))
    numpy_dtype = interpreter._get_np_dtype(dtype)
    for i in range(*(int(x) for x in bounds)):
        yield tl.tensor(TensorHandle(np.array([i], numpy_dtype), dtype), dtype)


def _replaced(x: Any) -> Any:
    """Return the replacement of a member of the language that a module has under its own name.

    Examples are `cast = tl.cast`, and functions of a libdevice that was imported again.
    """
    name, module = getattr(x, "__name__", ""), str(getattr(x, "__module__", ""))
    if not inspect.isfunction(x) or not module.startswith("triton.language"):
        return x
    if module.endswith(".libdevice"):
        return getattr(libdevice, name, x)
    return getattr(tl, name, x) if tl.core.is_builtin(x) else x


def _truth(x: Any) -> bool:
    """Return whether a tensor of one element is true; for more, only Triton's own code may ask."""
    data = x.handle.data
    asked_by = sys._getframe(1).f_code.co_filename
    if data.size != 1 and not asked_by.startswith(MACHINERY):
        raise ValueError(f"a block of shape {data.shape} is no condition of if or while")
    return bool(data.all()) if data.size == 1 else True


def _shown(x: Any) -> str:
    """Return a tensor's elements if a kernel prints them, and its type for what Triton raises.

    So a fault has the same words whatever the elements are.
    """
    asked_by = sys._getframe(1).f_code.co_filename
    return str(x.type) if asked_by.startswith(MACHINERY) else str(x.handle.data)


def _of_constant(name: str, plain: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return an operator of `tl.constexpr` whose result with a tensor is not made a constant."""
    by_value = getattr(operator, name)

    def operation(self: Any, other: Any) -> Any:
        return by_value(self.value, other) if isinstance(other, tl.tensor) else plain(self, other)

    return operation


def _static_assert(condition: Any, message: str = "", _semantic: Any = None) -> None:
    if not condition:
        raise StaticAssertion(message)


def _no_libdevice(*_: Any, **__: Any) -> None:
    raise NotImplementedError("Triton's interpreter has nothing of libdevice")
