"""The pytest plugin, as another project would use it: each test is a pytest run."""

import importlib.metadata
import os
import re
import subprocess
import sys

import pytest
from outside import twofold
from test_readme import program

from twofold.core import ops

PLUGIN = "twofold.core.verify.pytest_plugin"
INTERPRETED = ops.triton_device() == "cpu"
KERNELS = """
import torch
import triton
import triton.language as tl


@triton.jit
def copy(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(y_ptr + i, x, mask=i < n)


def call(n):
    x, y = torch.ones(n), torch.empty(n)
    copy[(triton.cdiv(n, 8),)](x, y, n, BLOCK=8)
    assert y.equal(x)
"""


# What the README's tests judge, and how little of the contract is enough here.
MINE = """
import functools

import pytest

def my_attention(q, k, v):
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


@triton.jit
def my_kernel(x_ptr, n):
    i = tl.arange(0, 128)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(x_ptr + i, -x, mask=i < n)


@pytest.fixture
def hold_to_contract(hold_to_contract):
    return functools.partial(hold_to_contract, examples=1, dtypes=["float32"])


"""


@pytest.fixture
def run(tmp_path):
    """Run pytest on files, without this run's settings; return counts of outcomes and the output.

    If the package is installed, the plugin is loaded anyway, else from PYTHONPATH.
    """

    def run(*options, **files):
        for name, text in files.items():
            suffix = ".ini" if name == "pytest" else ".py"
            (tmp_path / f"{name}{suffix}").write_text(text)
        installed = importlib.metadata.entry_points(group="pytest11", name="twofold")
        load = [] if installed else ["-p", PLUGIN]
        env = {n: x for n, x in os.environ.items() if n != "TRITON_INTERPRET"}
        if path := env.get("PYTHONPATH"):  # pytest runs in another folder
            env["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *load, *options]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        counts = re.findall(r"(\d+) (passed|failed|error)", done.stdout.splitlines()[-1])
        return {name: int(number) for number, name in counts}, done.stdout

    return run


def test_every_test_is_strict_where_asked(run):
    tests = KERNELS + "\ndef test_sound():\n    call(16)\n\ndef test_at_fault():\n    call(12)\n"
    for options, files in (
        (["--strict-triton"], {}),
        ([], {"pytest": "[pytest]\nstrict_triton = true\n"}),
    ):
        counts, said = run(*options, test_it=tests, **files)
        assert counts == {"passed": 1, "failed": 1}, said
        assert (
            f"test_it.py:{line_of(tests, 'tl.load')}, program (1, 0, 0): load from x_ptr of shape "
            "(12,) and strides (1,) out of bounds: 4 of 8 unmasked lanes, the first at element 12"
        ) in said and "copy, " in said


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")
def test_a_single_test_is_strict_where_it_asks(run):
    counts, said = run(
        "--import-mode=importlib",
        my_kernels=KERNELS,
        test_it="def test_sound(strict_triton):\n"
        "    assert strict_triton == 'cpu'\n"
        "    import my_kernels\n"
        "    my_kernels.call(16)\n"
        "\n"
        "def test_at_fault(strict_triton):\n"
        "    import my_kernels\n"
        "    my_kernels.call(12)\n",
        pytest="[pytest]\npythonpath = .\n",
    )
    assert counts == {"passed": 1, "failed": 1}, said
    assert "load from x_ptr of shape (12,)" in said


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")
def test_triton_imported_too_early_is_said(run):
    counts, said = run(test_it=KERNELS + "\ndef test_it(strict_triton):\n    call(16)\n")
    assert counts == {"error": 1}, said
    assert "Triton was imported before its interpreter was turned on" in said
    assert "pytest --strict-triton" in said


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")
def test_a_kernel_that_is_compiled_too_early_is_not_called_wrong(run):
    counts, said = run(
        test_it=KERNELS + "\ndef gelu(x):\n    call(16)\n    return x\n"
        "\ndef test_it(hold_to_contract):\n    hold_to_contract(gelu, 'activation', examples=1)\n"
    )
    assert counts == {"failed": 1}, said
    assert "Triton was imported before its interpreter was turned on" in said
    assert "leaves the contract" not in said


def test_a_function_is_held_to_a_contract(run):
    counts, said = run(
        test_it="import torch\n"
        "\n"
        "def gelu(x):\n"
        "    return x * (0.5 * (1 + torch.erf(x * 0.5**0.5)))\n"
        "\n"
        "def gelu_by_tanh(x):\n"
        "    return torch.nn.functional.gelu(x, approximate='tanh')\n"
        "\n"
        "def test_holds(hold_to_contract):\n"
        "    verdict = hold_to_contract(gelu, 'activation', examples=3, dtypes=['float32'])\n"
        "    assert verdict.rows and not verdict.failures\n"
        "\n"
        "def test_does_not(hold_to_contract):\n"
        "    hold_to_contract(gelu_by_tanh, 'activation', examples=3, dtypes=['float32'])\n"
        "\n"
        "def test_unknown(hold_to_contract):\n"
        "    hold_to_contract(gelu, 'dropout')\n",
    )
    assert counts == {"passed": 1, "failed": 2}, said
    assert "gelu_by_tanh leaves the contract of activation:\n" in said
    assert "its kind is taken to be gelu_tanh, whose bounds hold in most cases" in said
    assert "\nout, dx exceed their bounds" in said
    assert "it must be" in said and re.search(r"foreign.again\(.*dtype='float32'", said)
    assert "'dropout'; it must be one of" in said


def test_loading_it_imports_nothing(run, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other plugins import what they like
    counts, said = run(
        "-p",
        PLUGIN,
        test_it="import sys\n"
        "\n"
        "def test_it():\n"
        f"    assert {PLUGIN!r} in sys.modules\n"
        "    assert not {'numpy', 'torch', 'triton', 'hypothesis'} & set(sys.modules)\n",
    )
    assert counts == {"passed": 1}, said


def test_nothing_is_judged_without_asserts(run, monkeypatch):
    """Properties consist of asserts."""
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    words = "python's assert is turned off, by -O or PYTHONOPTIMIZE; it must be on where"
    for command in (["verify", "softmax"], ["verify", "--help"]):
        done = twofold(*command)
        assert done.returncode == 2, done.stdout
        assert f"error: {words}" in " ".join(done.stderr.split())
    counts, said = run(
        test_it="def test_it(hold_to_contract):\n    hold_to_contract(abs, 'activation')\n"
    )
    assert counts == {"failed": 1} and words in said


def line_of(source, text):
    (number,) = [i for i, line in enumerate(source.splitlines(), 1) if text in line]
    return number


def test_the_readmes_tests_run(run):
    counts, said = run("--strict-triton", test_it=KERNELS + MINE + program("strict_triton"))
    assert counts == {"passed": 2}, said
