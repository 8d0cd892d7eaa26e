"""Commands that run in a process of their own."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from twofold.core import ops

by_triton_s_interpreter = pytest.mark.skipif(
    ops.cuda_available() or tuple(map(int, version("triton").split(".")[:2])) < (3, 8),
    reason="kernels are compiled, or this Triton's interpreter cannot do with this NumPy",
)


def python(*arguments, preexec_fn=None, **environment):
    """Run Python without Triton's interpreter, which the tests have turned on."""
    kept = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True,
        env=kept | environment, preexec_fn=preexec_fn,
    )  # fmt: skip


def twofold(*arguments, without=(), preexec_fn=None):
    """Run a command where these modules cannot be imported."""
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({without!r}))\n"
        "from twofold.core.cli import app\n"
        "app(sys.argv[1:])\n"
    )
    return python("-c", script, *arguments, preexec_fn=preexec_fn)
