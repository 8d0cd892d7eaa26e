"""Attention with all its options, as a custom torch operator with gradients of gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from twofold.adapters import sides
from twofold.adapters.arguments import autocast, read_seed, seed_tensor
from twofold.adapters.batches import one_by_one, refuse_batches, refuse_further
from twofold.adapters.custom import (
    LIBRARY,
    Operator,
    Tensors,
    apart,
    keep,
    kept,
    side_by_side,
    statistics_dtype,
    zeros,
)
from twofold.adapters.sides import Place
from twofold.reference.attention_scores import (
    BlockSize,
    Options,
    ScoreMod,
    Window,
    check_block_size,
    check_causal,
    check_window,
    pair,
)
from twofold.reference.rotary import Rotary, check_is_rotary

OPTIONS = (
    "float? softmax_scale, str causal, SymInt? left, SymInt? right, float? softcap, str score_mod, "
    "Tensor? alibi_slopes, Tensor? bias, Tensor? sinks, Tensor? mask, Tensor? key_lengths, "
    "float dropout_p, Tensor? seed, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, "
    "SymInt? max_seqlen_q, SymInt? max_seqlen_k, Tensor? cos, Tensor? sin, Tensor? k_cos, "
    "Tensor? k_sin, bool interleaved, Tensor? block_mask, SymInt? block_m, SymInt? block_n, "
    "bool allow_tf32"
)
ARGUMENTS = f"Tensor q, Tensor k, Tensor v, {OPTIONS}"
SCORE_MODS: dict[str, dict[str, ScoreMod]] = {}  # by name and side


def register_score_mod(name: str, **sides_: ScoreMod) -> None:
    """Give a function of the scores a name, since a torch operator cannot take the function itself.

    Args:
        name: to be passed to `attention`; a second registration replaces the first.
        sides_: `triton` (`@triton.jit` functions), `reference` (functions of NumPy arrays), or
            both.

    Raises:
        ValueError: another side is named.
    """
    for side in sides_:
        if side not in ("reference", "triton"):
            raise ValueError(f"{side} is no side; it must be reference or triton")
    SCORE_MODS[name] = sides_


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool | str = False,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: str = "",
    alibi_slopes: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    key_lengths: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    rotary: Rotary | None = None,
    block_mask: torch.Tensor | None = None,
    block_size: BlockSize | None = None,
    allow_tf32: bool = False,
    return_lse: bool = False,
) -> Any:
    """Gather, for every query, the values of the keys it attends to; twice differentiable.

    Arguments are those of `reference.attention.forward`, except that `score_mod` is a registered
    name and `seed`, a number or a tensor of one, is drawn by torch if None. q, k, v, bias and sinks
    have gradients, to which lse's contributes; second derivatives are available only if bias and
    sinks require no gradient. Under autocast q, k, v and bias are cast.

    Returns:
        out (B, H, M, D), and with `return_lse` also lse (B, H, M), float32 (float64 of float64).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    q, k, v, bias = autocast(q, k, v, bias)
    out, lse = OPERATOR(
        q, k, v,
        *listed(
            q, softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, bias, sinks,
            mask, key_lengths, dropout_p, seed, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
            max_seqlen_k, rotary, block_mask, block_size, allow_tf32,
        ),
    )  # fmt: skip
    return (out, lse) if return_lse else out


def listed(
    x: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool | str = False,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: str = "",
    alibi_slopes: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    key_lengths: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    rotary: Rotary | None = None,
    block_mask: torch.Tensor | None = None,
    block_size: BlockSize | None = None,
    allow_tf32: bool = False,
) -> tuple[Any, ...]:
    """Return the options of `attention` from x, in the order and with the types of `OPTIONS`."""
    if score_mod and score_mod not in SCORE_MODS:
        known = f", as are {', '.join(SCORE_MODS)}" if SCORE_MODS else " first; none is yet"
        raise ValueError(f"score_mod is {score_mod!r}; it must be registered{known}")
    check_causal(causal)
    check_window(window_size)
    check_is_rotary(rotary)
    if block_size is not None:
        check_block_size(block_size)
    left, right = window_size or (None, None)
    rows, columns = (None, None) if block_size is None else pair(block_size)
    return (
        softmax_scale, causal if isinstance(causal, str) else "bottom-right" if causal else "",
        left, right, softcap, score_mod, alibi_slopes, bias, sinks, mask, key_lengths, dropout_p,
        seed_tensor(dropout_p, seed, x), cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        *(rotary or Rotary(None, None)), block_mask, rows, columns, allow_tf32,
    )  # fmt: skip


def options(place: Place, a: SimpleNamespace) -> dict[str, Any]:
    """Return the options of a call as a side's `attention.forward` takes them."""
    more = {} if place.side.name == "reference" else {"allow_tf32": a.allow_tf32}
    name, turn = place.side.name, (a.cos, a.sin, a.k_cos, a.k_sin, a.interleaved)
    if a.score_mod and name not in SCORE_MODS[a.score_mod]:
        raise ValueError(f"score_mod is {a.score_mod!r}; it must be registered for {name}, too")
    window, block = (a.left, a.right), (a.block_m, a.block_n)
    return {
        "softmax_scale": a.softmax_scale,
        "causal": a.causal or False,
        "window_size": None if window == (None, None) else window,
        "softcap": a.softcap,
        "score_mod": SCORE_MODS[a.score_mod][name] if a.score_mod else None,
        "alibi_slopes": a.alibi_slopes,
        "bias": a.bias,
        "sinks": a.sinks,
        "mask": a.mask,
        "key_lengths": a.key_lengths,
        "dropout_p": a.dropout_p,
        "seed": read_seed(a.seed),
        "cu_seqlens_q": a.cu_seqlens_q,
        "cu_seqlens_k": a.cu_seqlens_k,
        "max_seqlen_q": a.max_seqlen_q,
        "max_seqlen_k": a.max_seqlen_k,
        "rotary": None if a.cos is None else Rotary(*turn),
        "block_mask": a.block_mask,
        "block_size": None if block == (None, None) else block,
        **more,
    }


def _forward(place: Place, a: SimpleNamespace, given: SimpleNamespace) -> Tensors:
    out, cache = place.side.attention.forward(given.q, given.k, given.v, **options(place, given))
    return place.take(out, a.q), place.take(cache.lse, a.q, statistics_dtype(a.q))


def _shapes(a: SimpleNamespace) -> Tensors:
    return side_by_side(a.q), a.q.new_empty(a.q.shape[:3], dtype=statistics_dtype(a.q))


def _cache(place: Place, given: SimpleNamespace, outputs: Sequence[Any]) -> Any:
    """Return backward's cache: for the kernels, of what was saved; in NumPy, recomputed."""
    how = options(place, given)
    if place.side.name == "reference":
        return place.side.attention.forward(given.q, given.k, given.v, **how)[1]
    how.pop("allow_tf32")
    (out, lse), made = outputs, Options(**how)
    scale = made.scale(given.q.shape[-1])
    return place.side.attention.Cache(
        given.q, given.k, given.v, out, lse, scale, made, given.allow_tf32
    )


def _backward(
    place: Place,
    a: SimpleNamespace,
    given: SimpleNamespace,
    outputs: Sequence[Any],
    grads: Sequence[Any],
) -> Mapping[str, Any]:
    cache = _cache(place, given, outputs)
    dout, dlse = grads
    found = place.side.attention.backward(
        place.give(dout), cache, place.give(dlse), of_bias="bias" in a.wanted
    )
    return {name: getattr(found, f"d{name}") for name in ("q", "k", "v", "bias", "sinks")}


OPERATOR = Operator(
    "attention",
    ARGUMENTS,
    2,
    forward=_forward,
    shapes=_shapes,
    alike=("q", "k", "v", "bias"),
    backward=_backward,
    differentiable=("q", "k", "v", "bias", "sinks"),
    read=lambda a: (0, 1),
    optional=(1,),  # backward is cheaper without it
    twice=True,
)


def _save_for_second(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grads, _, outputs, ctx.wanted, *args = inputs
    keep(ctx, args, [*outputs, *grads])


def _second(ctx: Any, seconds: Sequence[Any]) -> Any:
    args, (out, lse, dout, *rest) = kept(ctx)
    dlse = rest[0] if rest else None
    a = OPERATOR.named(args)
    asked = dict(zip(OPERATOR.names, ctx.needs_input_grad[4:], strict=True))
    for name in ("bias", "sinks"):
        if asked[name]:
            raise RuntimeError(
                f"{name} has a gradient; it must have none where gradients of gradients are taken"
            )
    given = dict(zip(OPERATOR.present(a, ctx.wanted), seconds, strict=True))
    ddq, ddk, ddv = (
        torch.zeros_like(getattr(a, name)) if given.get(name) is None else given[name]
        for name in ("q", "k", "v")
    )
    dq, dk, dv, ddout, *ddlse = SECOND(ddq, ddk, ddv, dout, dlse, out, lse, *args)
    by_name = {"q": dq, "k": dk, "v": dv}
    return (
        [ddout, *ddlse],
        None,
        [None, None],
        None,
        *(by_name.get(name) for name in OPERATOR.names),
    )


def _run_second(
    ddq: Any, ddk: Any, ddv: Any, dout: Any, dlse: Any, out: Any, lse: Any, *args: Any
) -> list[torch.Tensor]:
    a = OPERATOR.named(args)
    likes = (a.q, a.k, a.v, dout) if dlse is None else (a.q, a.k, a.v, dout, dlse)
    if not dout.numel():  # neither side takes an empty dout
        return zeros(likes)
    place = sides.of(a.q)
    with sides.current(a.q):
        cache = _cache(place, OPERATOR.given(place, a), (out, lse))
        given = (place.give(x) for x in (ddq, ddk, ddv, dout))
        found = place.side.attention_double_backward.backward(*given, cache, place.give(dlse))
    return apart(place.take(x, y).contiguous() for x, y in zip(found, likes, strict=False))


def _fake_second(
    ddq: Any, ddk: Any, ddv: Any, dout: Any, dlse: Any, out: Any, lse: Any, *args: Any
) -> list[torch.Tensor]:
    likes = [args[0], args[1], args[2], dout] + ([] if dlse is None else [dlse])
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in likes]


SECOND = torch.library.custom_op(
    "twofold::attention_double_backward",
    mutates_args=(),
    schema="(Tensor ddq, Tensor ddk, Tensor ddv, Tensor dout, Tensor? dlse, Tensor out, Tensor lse,"
    f" {ARGUMENTS}) -> Tensor[]",
)(_run_second)
SECOND.register_fake(_fake_second)
one_by_one(SECOND)
refuse_batches(LIBRARY, "attention_double_backward")
refuse_further(SECOND, "attention once or twice")
OPERATOR.backward_op.register_autograd(_second, setup_context=_save_for_second)
