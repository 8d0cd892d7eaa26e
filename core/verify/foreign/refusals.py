"""Tells what an implementation refuses from what it does wrong, and where in its code that is."""

from __future__ import annotations

import contextlib
import dis
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from twofold.core.verify.strict.memory import Fault, StaticAssertion, Unsupported

REFUSALS = (ValueError, AssertionError, NotImplementedError)
STATEMENTS = ("RAISE_VARARGS", "UNPACK_SEQUENCE")  # the second is `R, C = x.shape`: two axes only
# What torch's attention says when given both.
WORDS = "Explicit attn_mask should not be set when is_causal=True"
# A shape is never empty; what a missing backward would have saved is.
NOTHING = re.compile(r"not enough values to unpack \(expected \d+, got 0\)")
# What a deliberate RuntimeError says: Triton kernels usually say so of long rows.
TOO_MUCH = re.compile(r"\bexceed|(does not|doesn't|not|only) support", re.IGNORECASE)
_LIBRARIES = {"numpy", "torch"} | sys.stdlib_module_names - {"__main__"}
_NOT_THEIRS = _LIBRARIES | {"triton", "twofold"}


class Refused(Exception):
    """The implementation does not accept a case; the message is its own."""


@contextlib.contextmanager
def refusals(options: Iterable[Any] = ()) -> Iterator[None]:
    """Tell what an implementation refuses from what it does wrong.

    `options` are the values it is given by name: for one missing from a table of its own, it raises
    a KeyError.
    """
    outer = sys.exception()
    try:
        yield
    except Exception as error:
        causes = list(_causes(error, outer))
        faults = [e for e in causes if isinstance(e, Fault)]
        if faults:
            raise faults[0] from error
        unsaid = [e for e in causes if isinstance(e, StaticAssertion | Unsupported)]
        if unsaid or _unknown(causes[-1], options) or _meant(causes[-1]):
            cause = (unsaid or causes)[-1]
            raise Refused(f"{type(cause).__name__}: {cause}") from error
        raise


def where(error: BaseException, outer: BaseException | None = None) -> str:
    """Return the innermost line of the implementation's own code, "" if there is none.

    `outer` was being handled already when the implementation was called.
    """
    found = ""
    for cause in _causes(error, outer):
        for at in _frames(cause):
            if _package(at) not in _NOT_THEIRS:
                found = f"{Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}"
    return found


def raised_by(error: BaseException) -> str:
    """Return the package whose code raised it."""
    *_, innermost = _frames(error)
    return _package(innermost)


def raised_in_library(error: BaseException) -> bool:
    """Return whether a library's code raised it, as torch does for other shapes."""
    cause = list(_causes(error))[-1]
    return raised_by(cause) in _LIBRARIES or (
        raised_by(cause) not in _NOT_THEIRS and not _by_statement(cause)
    )


def _unknown(error: BaseException, options: Iterable[Any]) -> bool:
    words = [x for x in options if isinstance(x, str)]
    return isinstance(error, KeyError) and any(x in words for x in error.args)


def _meant(error: BaseException) -> bool:
    """Return whether it is deliberate: of `REFUSALS`, raised by a statement, not inside a library.

    Or a RuntimeError that says what there is too much of.

    NumPy and torch raise ValueError for shapes that do not match, which is the caller's fault.
    What Triton's language refuses, the compiler would refuse.
    """
    *_, innermost = _frames(error)
    if WORDS in str(error):
        return True
    if type(error) is RuntimeError and TOO_MUCH.search(str(error)):
        return _package(innermost) not in _NOT_THEIRS and _by_statement(error)
    if not isinstance(error, REFUSALS) or _package(innermost) in _LIBRARIES:
        return False
    if _module(innermost).startswith("triton.runtime"):  # a device_assert
        return False
    if NOTHING.fullmatch(str(error)):
        return False
    return _by_statement(error)


def _by_statement(error: BaseException) -> bool:
    """Return whether a Python statement raised it, and not something that it called."""
    *_, innermost = _frames(error)
    instruction = innermost.tb_frame.f_code.co_code[innermost.tb_lasti]
    return dis.opname[instruction] in STATEMENTS


def _causes(error: BaseException, outer: BaseException | None = None) -> Iterator[BaseException]:
    """Yield an exception and its causes: the interpreter wraps what a kernel raises.

    Exceptions made in C and never raised are skipped. `outer` is where to stop: Python makes the
    exception being handled the context of any raised meanwhile, as while a failure is shrunk.
    """
    seen: BaseException | None = error
    before: list[BaseException] = []
    while (
        seen is not None and seen is not outer and not any(seen is x for x in before)
    ):  # a `Fault` is its own cause
        if seen.__traceback__ is not None:
            yield seen
        before.append(seen)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _frames(error: BaseException) -> Iterator[TracebackType]:
    at = error.__traceback__
    while at is not None:
        yield at
        at = at.tb_next


def _module(at: TracebackType) -> str:
    return str(at.tb_frame.f_globals.get("__name__", ""))


def _package(at: TracebackType) -> str:
    return _module(at).partition(".")[0]
