"""Fixtures: the two sides. Without CUDA the kernels run in Triton's interpreter, made strict."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from twofold.core import ops

settings.register_profile(
    "twofold",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("TWOFOLD_EXAMPLES", "25")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("twofold")


@pytest.fixture(scope="session")
def reference() -> ops.Side:
    """The NumPy side."""
    return ops.load("reference")


@pytest.fixture(scope="session")
def triton() -> Iterator[ops.Side]:
    """The Triton side: compiled where CUDA is, in the strict interpreter elsewhere."""
    yield ops.load("triton")
