"""A Triton whose interpreter has changed is refused, and what is missing is named."""

import os
import subprocess
import sys

import pytest
import triton
from triton.runtime import interpreter

from twofold.core.verify.strict import strict_interpreter, versions


def test_this_triton_will_do_inside_and_outside():
    versions.check()
    with strict_interpreter(), strict_interpreter():
        versions.check()


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.delattr(interpreter.GridExecutor, "_init_args_hst")
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", lambda self, x, y, acc: None)
    with pytest.raises(ImportError) as refusal, strict_interpreter():
        pass
    assert str(refusal.value) == (
        f"the strict interpreter does not know Triton {triton.__version__}; it was tried with "
        f"{versions.TESTED}. Missing: "
        "triton.runtime.interpreter.GridExecutor._init_args_hst; "
        "triton.runtime.interpreter.InterpreterBuilder.create_dot that begins with "
        "(self, a, b, d, input_precision)"
    )


def test_the_command_says_so_without_a_stack_trace():
    script = (
        "from twofold.core import ops\n"
        "ops.triton_device()\n"
        "import sys\n"
        "from triton.runtime import interpreter\n"
        "del interpreter.InterpreterBuilder.create_gather\n"
        "from twofold.core.cli import main\n"
        "sys.argv = ['twofold', 'verify', 'pooling']\n"
        "main()\n"
    )
    env = {**os.environ, "TRITON_INTERPRET": "1"}  # with CUDA, too
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "InterpreterBuilder.create_gather\n" in done.stderr
