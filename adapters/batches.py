"""What operators that return gradients do under vmap, and when they are differentiated again."""

from __future__ import annotations

from typing import Any

import torch


def one_by_one(op: Any) -> None:
    """Let an operator that returns a list run under vmap, called once for each batch element."""

    def picked(x: Any, axis: Any, i: int) -> Any:
        if isinstance(x, (list, tuple)):
            axes = [None] * len(x) if axis is None else axis
            return [picked(y, d, i) for y, d in zip(x, axes, strict=True)]
        return x if axis is None else x.select(axis, i)

    def mapped(info: Any, axes: Any, *args: Any) -> Any:
        each = [
            op(*(picked(x, d, i) for x, d in zip(args, axes, strict=True)))
            for i in range(info.batch_size)
        ]
        found = [torch.stack(of_all) for of_all in zip(*each, strict=True)]
        return found, [0] * len(found)

    op.register_vmap(mapped)


def refuse_further(op: Any, must: str) -> None:
    """Let an operator raise an explained error if it is differentiated."""

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"a gradient is differentiated again; it must be that of {must}")

    op.register_autograd(refuse)


def refuse_batches(library: torch.library.Library, name: str) -> None:
    """Let an operator raise an explained error under the vmap of `is_grads_batched` and `jacobian`.

    That vmap does not support operators that return a list.
    """

    def refuse(*args: Any) -> Any:
        must = "it must be one by one, or by torch.func.vmap of torch.autograd.grad"
        raise RuntimeError(f"twofold::{name} is asked for gradients in batches; {must}")

    library.impl(name, refuse, "Batched")
