"""Functions that take sizes as numbers, such as solve(Q, K, V, output, M, N, d), as plain calls.

Such a function reads tensors as they stand in memory, row after row, so they are passed contiguous.
If it takes fewer sizes than tensors have axes, it is a function of fewer axes, and refuses more
(`plain.Plain.fewer`). A softmax may also take its axis, which is the last.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

from twofold.core.verify.foreign.kinds import Seen, parameters, showing
from twofold.core.verify.foreign.written import OUT, VARIADIC

# What each size may be called, in lower case.
LEADING = {
    "batch": ("b", "z", "bs", "batch", "batch_size"),
    "heads": ("h", "heads", "num_heads", "n_heads", "nheads"),
}
OF_ATTENTION = {
    **LEADING,
    "queries": ("m", "seqlen_q", "seq_len_q", "q_len"),
    "keys": ("n", "seqlen_k", "seqlen_kv", "seq_len_k", "seq_len_kv", "kv_len"),
    "length": ("l", "s", "t", "seqlen", "seq_len", "n_ctx"),
    "features": ("d", "d_k", "head_dim", "headdim", "head_size", "d_head"),
}
OF_ROWS = {
    "rows": ("m", "r", "rows", "n_rows", "num_rows", "num_tokens", "batch_size"),
    "columns": ("n", "c", "d", "cols", "n_cols", "num_cols", "columns", "hidden_size"),
    "elements": ("numel", "n_elements", "num_elements", "size"),
}
LAST = "the last axis"
BY_ELEMENT = ("activation", "gated_activation")
OF_CLASSES = {
    "rows": ("n", "m", "b", "r", "rows", "n_rows", "num_rows", "num_tokens", "batch_size"),
    "columns": ("c", "v", "cols", "n_cols", "num_classes", "n_classes", "classes", "vocab_size"),
}
SIZES = {  # by operator
    "attention": OF_ATTENTION,
    "softmax_cross_entropy": OF_CLASSES,
    "softmax": {**OF_ROWS, LAST: ("dim", "axis")},
    **dict.fromkeys(("layer_norm", "rms_norm", *BY_ELEMENT), OF_ROWS),
}


def told(function: Callable[..., Any], operator: str, seen: Seen) -> Callable[..., Any]:
    """Return a function that requires sizes as one that does not; others as they are.

    This is noted in `seen`.
    """
    import torch

    taken = parameters(function)
    names = _names(taken, operator)
    if not names or any(p.kind is Parameter.VAR_POSITIONAL for p in taken.values()):
        return function
    rest = [p for n, p in taken.items() if n not in names]
    any_strides = set(names.values()) == {LAST}
    measured = _of_attention if operator == "attention" else _of_rows

    def telling(*args: Any, **how: Any) -> Any:
        given = dict(zip((p.name for p in rest), args, strict=False)) | how
        tensors = {n: x for n, x in given.items() if isinstance(x, torch.Tensor)}
        sizes = measured([x for n, x in tensors.items() if n not in OUT], list(names.values()))
        kept = tensors if any_strides else OUT
        read = {n: x if n in kept else x.contiguous() for n, x in tensors.items()}
        found = function(**{**given, **read}, **{n: sizes[of] for n, of in names.items()})
        for n, x in read.items() if found is None else ():
            if x is not tensors[n]:  # it may have been overwritten
                tensors[n].detach().copy_(x.detach())
        return found

    are = ", ".join(f"{n} = {of}" for n, of in names.items())
    seen.said.append(f"it is told {are}{'' if any_strides else ', and given contiguous tensors'}")
    return showing(telling, inspect.Signature(rest))


def _names(taken: Mapping[str, Parameter], operator: str) -> dict[str, str]:
    """Return the names of the sizes that a function requires, and which size each is.

    A single lower-case letter that is not annotated as int may be a mask, a bias or a scale.
    """
    names = {
        n: size
        for n, p in taken.items()
        for size, called in SIZES.get(operator, {}).items()
        if n.lower() in called and p.kind not in VARIADIC
        if p.default is Parameter.empty or (size == LAST and p.default is None)
    }
    if len(names) == 1 and not any(map(_says_so, map(taken.get, names))):
        return {}
    if operator in BY_ELEMENT and list(names.values()) == ["columns"]:
        return dict.fromkeys(names, "elements")
    return names


def _says_so(parameter: Any) -> bool:
    """Return whether a parameter's name or annotation says that it is a number."""
    name, said = parameter.name, parameter.annotation
    return len(name) > 1 or name.isupper() or said in (int, "int")


def _of_attention(tensors: Sequence[Any], wanted: Sequence[str]) -> dict[str, int]:
    """Return the sizes of q, k, v, for as many axes as the function takes sizes of."""
    q, k, *_ = tensors
    leading = [size for size in LEADING if size in wanted]
    if q.ndim != 2 + len(leading):
        raise NotImplementedError(f"q has {q.ndim} axes, and it is told {', '.join(wanted)}")
    if not {"queries", "keys"} <= {*wanted} and q.shape[-2] != k.shape[-2]:
        raise NotImplementedError("queries are as many as keys, where one number says both")
    if q.shape[:-2] != k.shape[:-2]:
        raise NotImplementedError("heads share keys, where it is told of one number of heads")
    sizes = {"queries": q.shape[-2], "keys": k.shape[-2], "length": q.shape[-2]}
    return {**sizes, "features": q.shape[-1], **dict(zip(leading, q.shape, strict=False))}


def _of_rows(tensors: Sequence[Any], wanted: Sequence[str]) -> dict[str, int]:
    """Return the sizes of the first tensor, which has a single row if no row count is taken."""
    x = tensors[0]
    columns, elements = x.shape[-1], x.numel()
    if "columns" in wanted and "rows" not in wanted and columns != elements:
        raise NotImplementedError(f"x has {x.ndim} axes, and it is told of columns alone")
    return {"rows": elements // columns, "columns": columns, "elements": elements, LAST: -1}
