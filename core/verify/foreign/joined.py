"""Attention that takes its tensors differently: in one tensor, or after the module that calls it.

- q, k, v side by side, as `qkv` (batch, seqlen, 3, heads, head_dim), or k and v, as `kv`
  (batch, seqlen, 2, heads, head_dim); of packed sequences (total, 3, heads, head_dim).
- Hugging Face's attention interface: (module, query, key, value, attention_mask, …) of
  (batch, heads, seqlen, head_dim), whose output has heads inside. The mask is additive; if there is
  one, nothing else hides keys, and a single query is the last, which sees every key.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter
from types import SimpleNamespace
from typing import Any

from twofold.core.verify.foreign.kinds import Seen, parameters, taking
from twofold.core.verify.foreign.orders import heads_inside, heads_outside
from twofold.core.verify.foreign.packed import TENSORS, of_packed
from twofold.core.verify.foreign.plain import names_of

JOINED = {"qkv": "qkv (…, 3, heads, head_dim)", "kv": "kv (…, 2, heads, head_dim)"}
OF_MODULE = "(module, q, k, v, attention_mask), the output (batch, seqlen, heads, head_dim)"


def of_joined(function: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    """Return a function of q, k, v, or k, v, in one tensor as a plain call; others as they are.

    This is noted in `seen`.
    """
    import torch

    taken = parameters(function)
    names = list(taken)
    at = next((i for i, joined in enumerate(JOINED) if names[i : i + 1] == [joined]), None)
    if at is None:
        return function

    def apart(q: Any, k: Any, v: Any, **options: Any) -> Any:
        if at == 0 and q.shape != k.shape:
            raise NotImplementedError("queries and keys are of one shape, where they are joined")
        alone, joined = [q, k, v][:at], [q, k, v][at:]
        return function(*alone, torch.stack(joined, dim=-3), **options)

    call = taking(apart, TENSORS, list(taken.values())[at + 1 :])
    packed = of_packed(call, seen)
    seen.order = JOINED[names[at]] if packed is call else f"{JOINED[names[at]]} of {seen.order}"
    return heads_inside(call) if packed is call else packed


def of_module(function: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    """Return a function with Hugging Face's interface as a plain call; others as they are.

    This is noted in `seen`.
    """
    taken = parameters(function)
    module, *rest = [*taken, ""]
    if module != "module" or "attention_mask" not in rest:
        return function
    tensors = rest[:3]

    def plain(q: Any, k: Any, v: Any, *, bias: Any = None, **options: Any) -> Any:
        if any(map(options.get, names_of("causal"))) and (bias is not None or q.shape[2] == 1):
            raise NotImplementedError("with a mask, or one query, nothing is causal beside it")
        caller = SimpleNamespace(
            training=False,
            is_causal=False,
            layer_idx=0,
            head_dim=q.shape[-1],
            num_key_value_groups=q.shape[1] // k.shape[1],
        )
        return heads_outside(function(caller, q, k, v, attention_mask=bias, **options))

    seen.order = OF_MODULE
    bias = Parameter("bias", Parameter.KEYWORD_ONLY, default=None)
    named = [p for n, p in taken.items() if n not in (module, "attention_mask", *tensors)]
    return taking(plain, TENSORS, [bias, *named])
