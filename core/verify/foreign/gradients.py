"""The gradients of a plain call, and whether autograd knows of the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNTOLD = (
    "its kernels write where autograd cannot see, so that gradients are only those of torch's own "
    "operations: launch kernels in torch.no_grad, or in a torch.autograd.Function"
)
NOTHING = "backward gives None, or no output depends on it"


def gradients(
    roots: Mapping[str, Any],
    leaves: Mapping[str, Any],
    of_roots: Mapping[str, Any],
    twice: bool = False,
) -> tuple[dict[str, Any], set[str]]:
    """Return the leaves' gradients by name, NaN for those that are None, and the names of these.

    Args:
        roots, leaves: outputs and inputs that require a gradient.
        of_roots: the gradients of the outputs.
        twice: whether to run backward again, and return the second run's gradients.
    """
    import torch

    wanted = [of_roots[n].to(x.dtype) for n, x in roots.items()]

    def back() -> tuple[Any, ...]:
        return torch.autograd.grad(
            list(roots.values()),
            list(leaves.values()),
            wanted,
            allow_unused=True,
            retain_graph=twice,
        )

    of_leaves = back()
    if twice:
        of_leaves = back()
    found = {f"d{n}": d for n, d in zip(leaves, of_leaves, strict=True)}
    absent = {n for n, d in found.items() if d is None}
    made = {f"d{n}": torch.full_like(x, torch.nan) for n, x in leaves.items() if f"d{n}" in absent}
    return {**found, **made}, absent


def are_told(roots: Mapping[str, Any]) -> bool:
    """Return whether autograd sees a custom function between outputs and inputs."""
    import torch

    own = torch.autograd.function.BackwardCFunction
    nodes, seen = [x.grad_fn for x in roots.values()], set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, own):
            return True
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [after for after, _ in node.next_functions]
    return False
