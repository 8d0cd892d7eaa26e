"""Rotations that look angles up, as in serving engines, made plain calls.

Such a function takes positions (tokens,), query and key (tokens, heads · head_dim), head_size,
cos_sin_cache (positions, 2 · pairs), the cosines before the sines, and is_neox: whether the
features of a pair stand half a head apart. It overwrites query and key, or returns both.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter
from typing import Any

from twofold.core.verify.foreign.kinds import Seen, parameters, taking
from twofold.core.verify.foreign.written import writing_over

CALLED = {
    "positions": ("positions", "position_ids", "pos_ids"),
    "q": ("query", "q"),
    "k": ("key", "k"),
    "head_dim": ("head_size", "head_dim"),
    "cache": ("cos_sin_cache",),
    "neox": ("is_neox", "is_neox_style"),
}
WANTED = ("positions", "cache", "q", "k")
SHAPE = "q, k (tokens, heads · head_dim), cos beside sin in one cache that positions point into"
OF_POSITIONS = f"f({', '.join(x for own in CALLED.values() for x in own[:1])}) of {SHAPE}"


def looking_up(function: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    """Return a rotation that looks angles up as f(q, k, cos, sin); others as they are.

    The rows of its cache are those of cos and sin in reverse, with NaN between them. This is noted
    in `seen`.
    """
    import torch

    taken = parameters(function)
    names = {n: own for n, known in CALLED.items() for own in known if own in taken}
    if not names.keys() >= set(WANTED):
        return function
    ours = {own: n for n, own in names.items()}
    places = [ours.get(n, "") for n in taken]
    returning = writing_over(function, "rotary", places, seen.written)

    def plain(q: Any, k: Any, cos: Any, sin: Any, *, interleaved: bool = False, **how: Any) -> Any:
        batch, _, length, head_dim = q.shape
        rows = 2 * torch.arange(length, device=q.device).flip(0) + 1
        cache = cos.new_full((2 * length + 1, 2 * cos.shape[-1]), torch.nan)
        cache[rows] = torch.cat((cos, sin), -1)
        given = {
            "positions": rows.repeat(batch),
            "cache": cache,
            "q": q.transpose(1, 2).flatten(2).flatten(0, 1).contiguous(),
            "k": k.transpose(1, 2).flatten(2).flatten(0, 1).contiguous(),
            "head_dim": head_dim,
            "neox": not interleaved,
        }
        found = returning(**{own: given[n] for n, own in names.items()}, **how)
        if not isinstance(found, tuple):
            return found
        return tuple(x.unflatten(0, (batch, length)).unflatten(2, (-1, head_dim)).transpose(1, 2)
                     for x in found)  # fmt: skip

    seen.order = SHAPE
    option = Parameter("interleaved", Parameter.KEYWORD_ONLY, default=False)
    rest = [p for n, p in taken.items() if n not in ours]
    options = [option, *rest] if "neox" in names else rest
    return taking(plain, ("q", "k", "cos", "sin"), options)
