"""Other orders of axes, each brought to that of the operator's plain call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twofold.core.verify.foreign.kinds import showing

Call = Callable[..., Any]


def contiguous(function: Call) -> Call:
    """Return a function that refuses other strides, as .view does, as one of any strides."""

    def dense(*tensors: Any, **options: Any) -> Any:
        return function(*(x.contiguous() for x in tensors), **options)

    return showing(dense, function)


def heads_inside(function: Call) -> Call:
    """Return a function of (batch, seqlen, heads, head_dim) as one of the contract's order."""

    def turned(q: Any, k: Any, v: Any, **options: Any) -> Any:
        return heads_outside(function(*(x.transpose(1, 2) for x in (q, k, v)), **options))

    return showing(turned, function)


def heads_outside(found: Any) -> Any:
    """Return outputs, the first one (batch, seqlen, heads, head_dim), in the usual order."""
    out, *rest = found if isinstance(found, tuple) else (found,)
    out = out.transpose(1, 2) if getattr(out, "ndim", 0) == 4 else out
    return (out, *rest) if isinstance(found, tuple) else out


def heads_as_batch(function: Call) -> Call:
    """Return a function of (batch · heads, seqlen, head_dim) as one of the contract's order."""

    def flat(q: Any, k: Any, v: Any, **options: Any) -> Any:
        _of_one_head(q, k, options)
        found = function(*(x.flatten(0, 1) for x in (q, k, v)), **options)
        return each_output(found, lambda x: x.unflatten(0, q.shape[:2]))

    return showing(flat, function)


def one_head(function: Call) -> Call:
    """Return a function of (seqlen, head_dim) as one of the contract's order."""

    def each(q: Any, k: Any, v: Any, **options: Any) -> Any:
        _of_one_head(q, k, options)
        q_, k_, v_ = (x.flatten(0, 1) for x in (q, k, v))
        # by index: views from unbind may not be written to, as the interpreter does
        found = [function(q_[i], k_[i], v_[i], **options) for i in range(len(q_))]
        return each_output(stacked(found), lambda x: x.unflatten(0, q.shape[:2]))

    return showing(each, function)


def each_row(function: Call) -> Call:
    """Return a function of (columns,) as one of rows."""
    import torch

    def each(x: Any, **options: Any) -> Any:
        rows = x.flatten(0, -2)
        made = [function(rows[i], **options) for i in range(len(rows))]
        return torch.stack(made).reshape(x.shape)

    return showing(each, function)


def _of_one_head(q: Any, k: Any, options: Mapping[str, Any]) -> None:
    """Refuse heads that share keys, and tensors of options, whose head is unknown."""
    if q.shape[1] != k.shape[1]:
        raise NotImplementedError("heads share keys, where each is a call of its own")
    for name, value in options.items():
        if hasattr(value, "shape"):
            raise NotImplementedError(f"{name} is a tensor, where each head is a call of its own")


def each_output(found: Any, change: Callable[[Any], Any]) -> Any:
    """Return an output, or all of a tuple except those that are None, changed."""
    if isinstance(found, tuple):
        return tuple(None if x is None else change(x) for x in found)
    return change(found)


def stacked(found: Sequence[Any]) -> Any:
    """Return the output of several calls, or all of a tuple, as that of one; None stays None."""
    import torch

    if isinstance(found[0], tuple):
        return tuple(stacked(x) for x in zip(*found, strict=True))
    return None if found[0] is None else torch.stack(tuple(found))


def weight_of_columns(function: Call) -> Call:
    """Return x·W + b, W being (in, out), as a function of the contract's weight."""

    def turned(x: Any, weight: Any, *bias: Any, **options: Any) -> Any:
        return function(x, weight.mT, *bias, **options)

    return showing(turned, function)


def rows_alone(function: Call, tensors: int = 1) -> Call:
    """Return a function whose first tensors are (rows, columns) as one of any leading axes."""

    def flat(*given: Any, **options: Any) -> Any:
        rows = (x.flatten(0, -2) for x in given[:tensors])
        found = function(*rows, *given[tensors:], **options)
        return each_output(found, lambda y: y.unflatten(0, given[0].shape[:-1]))

    return showing(flat, function)


def up_before_gate(function: Call) -> Call:
    """Return a function of up and gate as one of gate and up."""

    def turned(gate: Any, up: Any, **options: Any) -> Any:
        return function(up, gate, **options)

    return showing(turned, function)


def rotary_heads_inside(function: Call) -> Call:
    """Return a rotation of (batch, length, heads, head_dim) as one of the contract's order."""

    def turned(q: Any, k: Any, cos: Any, sin: Any, **options: Any) -> Any:
        found = function(q.transpose(1, 2), k.transpose(1, 2), cos, sin, **options)
        return each_output(found, lambda x: x.transpose(1, 2))

    return showing(turned, function)


def rotary_tokens(function: Call) -> Call:
    """Return a rotation of (length, heads, head_dim), a sequence each, as one of batches."""

    def each(q: Any, k: Any, cos: Any, sin: Any, **options: Any) -> Any:
        found = [
            function(a.transpose(0, 1), b.transpose(0, 1), cos, sin, **options)
            for a, b in zip(q, k, strict=True)
        ]
        if not all(isinstance(one, tuple) for one in found):
            raise TypeError(f"it returns {type(found[0]).__name__}; it must return q and k")
        return each_output(stacked(found), lambda x: x.transpose(1, 2))

    return showing(each, function)


def tables_of_features(function: Call, *, batches: bool = False, beside: bool = False) -> Call:
    """Return a rotation with cos and sin per feature, (length, head_dim), as the usual one.

    Those of a pair stand half a head apart, or `beside` each other; there is one table, or one for
    each of `batches`. All features are rotated: a case with unpaired features is refused.
    """

    def doubled(q: Any, k: Any, cos: Any, sin: Any, **options: Any) -> Any:
        wide = (_of_features(x, q, beside) for x in (cos, sin))
        given = (x.expand(q.shape[0], -1, -1) if batches else x for x in wide)
        return function(q, k, *given, **options)

    return showing(doubled, function)


def _of_features(table: Any, q: Any, beside: bool) -> Any:
    """Return a table (length, head_dim) made from that of pairs."""
    if 2 * table.shape[-1] != q.shape[-1]:
        raise NotImplementedError("some features are not turned, where cos and sin are of each")
    return table.repeat_interleave(2, -1) if beside else table.repeat(1, 2)
