"""Fixtures: the two sides. Without CUDA the kernels run in Triton's interpreter, made strict."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

from twofold.core import ops
from twofold.core.verify.strict import strict_interpreter

# Triton reads TRITON_INTERPRET when it is imported, which a test module may do.
ops.triton_device()
# Under `pytest -n`, each process has one thread, and so have those that it starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    threadpool_limits(1)

settings.register_profile(
    "twofold",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("TWOFOLD_EXAMPLES", "25")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("twofold")


@pytest.fixture(scope="session", autouse=True)
def no_launch_but_strict() -> Iterator[Callable[..., None]]:
    """Refuse to interpret a kernel outside the strict interpreter, whose own launch replaces this.

    So no test can use Triton's plain interpreter by accident. The fixture's value launches a kernel
    as if outside.
    """
    from triton.runtime.interpreter import GridExecutor

    def refuse(executor: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"{executor.fn.__name__} was launched outside the strict interpreter")

    def outside(launch: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GridExecutor, "__call__", refuse)
            launch(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridExecutor, "__call__", refuse)
        yield outside


@pytest.fixture(scope="session")
def reference() -> ops.Side:
    """The NumPy side."""
    return ops.load("reference")


@pytest.fixture(scope="session")
def triton() -> Iterator[ops.Side]:
    """The Triton side: compiled where CUDA is, in the strict interpreter elsewhere."""
    side = ops.load("triton")
    if side.device == "cuda":
        yield side
    else:
        with strict_interpreter():
            yield side


@pytest.fixture(params=["reference", "triton"])
def side(request: pytest.FixtureRequest) -> ops.Side:
    """Each side in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def interpreted(triton: ops.Side) -> ops.Side:
    """The Triton side for tests about the interpreter, which are skipped where there is CUDA.

    With TRITON_INTERPRET=1 they run there, too.
    """
    if triton.device == "cuda":
        pytest.skip("kernels, and Triton's own functions in them, are compiled here")
    return triton


@pytest.fixture
def both_refuse(reference: ops.Side, triton: ops.Side) -> Callable[..., None]:
    """Check that both sides refuse a call with the same words, given their beginning.

    `arguments` go by name; NumPy arrays among them, and in named tuples, are placed on each side.
    """

    def check(
        operator: str,
        arguments: dict[str, Any],
        error: type[Exception],
        words: str,
        function: str = "forward",
    ) -> None:
        said = []
        for side in (reference, triton):
            placed = {name: _placed(side, x) for name, x in arguments.items()}
            with pytest.raises(error) as refusal:
                getattr(getattr(side, operator), function)(**placed)
            said.append(str(refusal.value))
        assert said[0].startswith(words), said[0]
        assert said[0] == said[1]

    return check


def _placed(side: ops.Side, x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return side.asarray(x)
    return x._make(_placed(side, y) for y in x) if hasattr(x, "_make") else x


@pytest.fixture
def strict():
    """Run programs in order, so that it is known which one meets the fault."""
    with strict_interpreter(shuffle=False):
        yield


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the files beside the tests, which hold the functions judged, importable."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
