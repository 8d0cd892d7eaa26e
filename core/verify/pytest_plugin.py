"""A pytest plugin: your Triton kernels in the strict interpreter, your operators under a contract.

    pytest --strict-triton              # or strict_triton = true in the configuration

runs every test of a project in the strict interpreter: kernels are interpreted on CPU tensors, and
whatever hardware leaves undefined or the compiler refuses fails the test with a message that names
kernel, line, program and tensor. For single tests, and alongside compiled kernels on a GPU:

    def test_kernel(strict_triton):     # the device: "cpu" in the interpreter, or "cuda"
        x = torch.randn(100, device=strict_triton)
        ...

    def test_my_attention(hold_to_contract):
        hold_to_contract(my_attention, "attention", dtypes=["float32", "bfloat16"])

Loading this file imports nothing but pytest; torch, triton, hypothesis and NumPy are imported by
the test that asks for them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from twofold.core.verify.foreign import Verdict

EXAMPLES = 20  # of a contract, unless a test says otherwise
TOO_LATE = (
    "Triton was imported before its interpreter was turned on, so that its functions are compiled; "
    "run pytest --strict-triton, put strict_triton = true into the configuration, or set "
    "TRITON_INTERPRET=1"
)
NO_DRIVER = "0 active drivers"  # what Triton says when a kernel is to be compiled without a GPU


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option, and the setting of the same name in a configuration file."""
    words = "run every test in twofold's strict interpreter of Triton kernels"
    group = parser.getgroup("twofold")
    group.addoption("--strict-triton", action="store_true", default=False, help=words)
    parser.addini("strict_triton", words, type="bool", default=False)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Turn Triton's interpreter on, if requested, before a conftest or a test imports Triton."""
    if early_config.known_args_namespace.strict_triton or early_config.getini("strict_triton"):
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Turn the interpreter on where a conftest has loaded this plugin."""
    if _asked(config):
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _every_test_strict(request: pytest.FixtureRequest) -> Iterator[None]:
    """Stay in the strict interpreter from the first test to the last, if requested."""
    with contextlib.ExitStack() as stack:
        if _asked(request.config):
            _enter(stack)
        yield


@pytest.fixture
def strict_triton() -> Iterator[str]:
    """Run the test's kernels in the strict interpreter where no GPU compiles them.

    Gives the device that tensors belong on: "cpu", or "cuda" where there is CUDA and
    TRITON_INTERPRET is not set. There kernels run compiled, and only the test's own checks apply.
    """
    with contextlib.ExitStack() as stack:
        yield _enter(stack)


@pytest.fixture
def hold_to_contract() -> Callable[..., Verdict]:
    """Give `hold_to_contract(function, op, *, examples, dtypes)`.

    It judges a function on torch tensors by an operator's contract, as `twofold verify
    module:function` does, and fails the test with its findings: each fault, the smallest case that
    has it, and a line that runs that case again. The verdict that it returns says in `taken` how
    the signature was understood, and in `notes` what was not judged and why.

    Args of the function given:
        function: such as `f(q, k, v, causal=False)`; see `twofold.core.verify.foreign`.
        op: the operator that it implements, such as "attention".
        examples: how many cases are drawn.
        dtypes: of "float32", "float16", "bfloat16" and "tf32"; all but the last by default.

    Raises:
        ValueError: there is no such operator or dtype.
    """

    def hold(
        function: Callable[..., Any] | str,
        op: str = "attention",
        *,
        examples: int = EXAMPLES,
        dtypes: Sequence[str] | None = None,
    ) -> Verdict:
        from twofold.core import ops
        from twofold.core.verify import foreign

        verdict = foreign.judge(function, op, examples, dtypes)
        if verdict.failures:
            if any(NO_DRIVER in failure for failure in verdict.failures) and not ops.interpreted():
                pytest.fail(TOO_LATE, pytrace=False)
            name = function if isinstance(function, str) else getattr(function, "__name__", "it")
            found = "\n".join((*verdict.taken, *foreign.digest(verdict)))
            pytest.fail(f"{name} leaves the contract of {op}:\n{found}", pytrace=False)
        return verdict

    return hold


def _asked(config: pytest.Config) -> bool:
    return bool(config.option.strict_triton or config.getini("strict_triton"))


def _enter(stack: contextlib.ExitStack) -> str:
    """Enter the strict interpreter where there is no GPU or interpreting was requested."""
    from twofold.core import ops
    from twofold.core.verify.peers import interpreted

    before = "triton" in sys.modules
    device = ops.triton_device()
    if device == "cpu":
        from twofold.core.verify.strict import strict_interpreter

        if before and not ops.interpreted():
            pytest.fail(TOO_LATE, pytrace=False)
        interpreted.prepare()
        stack.enter_context(strict_interpreter())
    return device
