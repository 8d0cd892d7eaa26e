"""A peer: a function of another library, judged as an operator of ours."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from twofold.core import ops
from twofold.core.verify.domains import DTYPES
from twofold.core.verify.foreign import CLAIMED

IN_TF32 = ("tf32", "float16", "bfloat16")  # for a kernel whose float32 products are tf32


def installed(distribution: str) -> str:
    """Return the installed version of a package, "" if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class Peer:
    """A function of another library, wrapped in the call that a contract judges.

    Attributes:
        name: its name in the tables.
        operator: whose contract it is held to.
        function: "file:function" in this folder.
        distribution: the package that it is from, as `pip install` names it.
        what: the function's name in its library.
        precisions: those that it is judged in.
        cuda: whether it runs only on CUDA.
        cost: it gets one in so many of the cases.
        claimed: cases for each property and precision.
    """

    name: str
    operator: str
    function: str
    distribution: str
    what: str
    precisions: tuple[str, ...] = DTYPES
    cuda: bool = False
    cost: int = 1
    claimed: int = CLAIMED

    @property
    def target(self) -> str:
        """Return the function as "module:function"."""
        return f"{__package__}.{self.function}"

    def version(self) -> str:
        """Return the installed version, "" if there is none."""
        return installed(self.distribution)

    def missing(self) -> str:
        """Say why the peer cannot be judged on this machine, "" if it can."""
        if not self.version():
            return f"{self.distribution} is not installed"
        return "needs CUDA" if self.cuda and not ops.cuda_available() else ""
