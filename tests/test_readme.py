"""The README's figures and code are those of the results and the sources."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


def test_the_readme_is_what_its_script_writes():
    script = ROOT / "benchmarks" / "readme.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_s_operators_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (code,) = [block for block in blocks if "load(" in block and "ops.attention" in block]
    x = np.random.default_rng(0).standard_normal((4, 1, 2, 3, 4))
    names = dict(zip(("q", "k", "v", "dout"), x, strict=True))
    exec(code, names)
    assert names["dq"].shape == names["dv"].shape == x[0].shape
