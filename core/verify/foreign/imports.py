"""Imports what "module:function" names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from twofold.core.verify.peers import interpreted


def load(name: str) -> Any:
    """Import "module:function", also from the current folder.

    Raises:
        ValueError: there is no such module or function, or it cannot be imported.
    """
    interpreted.prepare()  # before the module imports Triton, or what its kernels call
    module_name, _, function_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module's code raises
        words = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name!r} cannot be imported: {words}") from error
    if not hasattr(module, function_name):
        raise ValueError(f"module {module_name!r} has no function {function_name!r}")
    return getattr(module, function_name)
