"""A peer: a function of another library, judged as an operator of ours."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from twofold.core import ops
from twofold.core.verify.domains import DTYPES
from twofold.core.verify.foreign import CLAIMED

IN_TF32 = ("tf32", "float16", "bfloat16")  # of a kernel whose float32 products are tf32


def installed(distribution: str) -> str:
    """Return the installed version of a package, "" if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class Peer:
    """A function of another library, behind the call that a contract judges.

    Attributes:
        name: how the tables call it.
        operator: whose contract it is held to.
        function: "file:function" in this folder.
        distribution: the package that it is from, as `pip install` names it.
        what: the function as its library knows it.
        precisions: those that it is judged in.
        cuda: whether it runs on CUDA alone.
        cost: its share of the cases is one in so many.
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
        """Say why it cannot be judged on this machine, "" if it can."""
        if not self.version():
            return f"{self.distribution} is not installed"
        return "needs CUDA" if self.cuda and not ops.cuda_available() else ""
