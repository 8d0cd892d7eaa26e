"""Properties of a plain call under autograd: results do not depend on which inputs learn.

In training every input has a gradient, and functions are judged that way. In prediction none has,
and frozen weights or the first layer's input have none; there functions take other paths: they save
nothing, skip a product, or return gradients in other places.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from twofold.core.verify import claims
from twofold.core.verify.contract import Inapplicable, Property, Subject
from twofold.core.verify.rounding import Approx


@dataclass
class Learning:
    """Which inputs of the next calls are to learn.

    Attributes:
        alone: the only tensor that learns, "" for all.
        nobody: whether there is no gradient at all, as in `torch.no_grad`.
        twice: whether backward runs through its graph a second time, whose gradients are taken.
    """

    alone: str = ""
    nobody: bool = False
    twice: bool = False

    def leaves(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tensors, requiring a gradient where they are to learn; None stays None."""
        return {n: x if x is None else self._leaf(n, x) for n, x in tensors.items()}

    def grad_mode(self) -> Any:
        """Return the context in which the function is called."""
        import torch

        return torch.set_grad_enabled(not self.nobody)

    def _leaf(self, name: str, x: Any) -> Any:
        if not x.is_floating_point():
            return x
        return x.detach().requires_grad_(not self.nobody and self.alone in ("", name))

    @contextlib.contextmanager
    def being(self, **how: Any) -> Iterator[None]:
        """Let the inputs of calls in this context learn as `how` says."""
        before = {**vars(self)}
        vars(self).update(how)
        try:
            yield
        finally:
            vars(self).update(before)


def properties(
    learning: Learning,
    inputs: Callable[[Any], Any],
    truth: Callable[[Any, Any], Mapping[str, Approx]],
) -> dict[str, Property]:
    """Return the properties.

    Args:
        learning: says which inputs the function's calls are to let learn.
        inputs: the contract's.
        truth: the bounds of what the last call computed.
    """

    def held(subject: Subject, case: Any, given: Any, what: str, **how: Any) -> None:
        """Hold results to their bounds where they differ from those judged, in which all learn."""
        usual = subject.compute(case, given)
        with learning.being(**how):
            found = subject.compute(case, given)
        same = {n for n in found.keys() & usual.keys() if np.array_equal(found[n], usual[n], True)}
        claims.held({n: x for n, x in found.items() if n not in same}, truth(case, given), what)

    def gradients(subject: Subject, case: Any, given: Any) -> list[str]:
        """Return the names of tensors that have a gradient when all learn."""
        found = subject.compute(case, given)
        learned = [n[1:] for n in found if n[:1] == "d" and not np.isnan(found[n]).all()]
        if not learned:
            raise Inapplicable("it has no gradients")
        return learned

    def nobody_learns(subject: Subject, case: Any) -> None:
        """Where no gradient is wanted (as in torch.no_grad), outputs stay within their bounds."""
        held(subject, case, inputs(case), "in torch.no_grad", nobody=True)

    def one_learns(subject: Subject, case: Any) -> None:
        """Where one input learns and the others are frozen, its gradient stays within its bound."""
        given = inputs(case)
        for name in gradients(subject, case, given):
            held(subject, case, given, f"where {name} alone requires a gradient", alone=name)

    def back_again(subject: Subject, case: Any) -> None:
        """A second backward through a kept graph (retain_graph) gives the same gradients."""
        given = inputs(case)
        gradients(subject, case, given)
        try:
            held(subject, case, given, "of a second backward through one graph", twice=True)
        except RuntimeError as error:
            raise Inapplicable("it says that its graph is gone through but once") from error

    return {"nobody learns": nobody_learns, "one learns": one_learns, "back again": back_again}
