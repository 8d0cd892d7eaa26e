"""Memory layout: of new tensors, and of what attention reads, copied if it cannot address it."""

from __future__ import annotations

import torch

from twofold.kernels.attention_tiles import aligned
from twofold.kernels.precision import supported
from twofold.reference import checks

MOST_ROWS, MOST_FEATURES = 128, 512  # of any tile in the tables


def fresh(like: torch.Tensor) -> torch.Tensor:
    """Return a new tensor to write to, contiguous whatever the strides of `like`."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def side_by_side(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a new (B, H, M, D) with heads side by side, rows for an output projection."""
    B, H, M, D = shape
    return torch.empty_strided(shape, (M * H * D, D, H * D, 1), dtype=dtype, device=device)


def checked_into(
    into: checks.Into, **shapes: tuple[int, ...] | None
) -> tuple[torch.Tensor | None, ...]:
    """Return the tensors to write gradients of these names and shapes into; None for a new one.

    Raises:
        TypeError, ValueError: one has another shape, dtype or device, or has elements that share a
            place in memory, which several programs would write at once.
    """
    found = checks.into(into, **shapes)
    for name, x in zip(shapes, found, strict=True):
        if x is not None:
            supported(f"into's {name}", x)
            own = not checks.expanded(x.shape, x.stride())
            must = "without 0 where there are several elements"
            checks.require(own, f"into's {name}.stride()", x.stride(), must)
    return found


def copied_into(x: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
    """Return `into`, with x copied there if it was written elsewhere; x itself if that is None."""
    if into is None or into is x:
        return x
    return into.copy_(x)


def straight(into: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Return where kernels without strides write a gradient: `into` if contiguous, or a new one."""
    if into is None:
        return fresh(like)
    return into if into.is_contiguous() else fresh(into)


def written_in_tiles(into: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Return where a gradient (B, H, L, D) is written: `into`, unless its strides are too large."""
    return fresh(like) if into is None or _far(into) else into


def with_32bit_offsets(x: torch.Tensor) -> torch.Tensor:
    """Return x, (B, H, L, D), or a copy if its rows or features are too far apart."""
    return x.clone(memory_format=torch.contiguous_format) if _far(x) else x


def _far(x: torch.Tensor) -> bool:
    """Return whether rows or features are too far apart for 32-bit offsets within a tile.

    A 64-bit offset for each element would cost registers.
    """
    row, feature = x.stride()[-2:]
    return row * MOST_ROWS > 2**31 or feature * MOST_FEATURES > 2**31


def same_aligned_strides(*arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return arrays of one shape with the same, aligned strides: as they are, or copies."""
    arrays = tuple(with_32bit_offsets(x) for x in arrays)
    strides = arrays[0].stride()
    if strides[-1] == 1 and aligned(*strides) and all(x.stride() == strides for x in arrays):
        return arrays
    *outer, D = arrays[0].shape
    room = arrays[0].new_empty((len(arrays), *outer, -(-D // 16) * 16))[..., :D]
    for copy, x in zip(room, arrays, strict=True):
        copy.copy_(x.detach())
    return room.unbind()
