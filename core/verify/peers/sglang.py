"""SGLang's Triton kernels for serving: those that are also operators here.

They are forward only, write to arrays they are given, and assume that the last axis of their
tensors is contiguous. Products of float32 are in tf32, Triton's default, except in the plain
decoding kernel, which has no matrix product.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch

from twofold.core.verify.peers import interpreted

interpreted.prepare()

SPLITS = 8  # at most, of a sequence's keys, its server's default
LEAST_HEAD_DIM = 16  # that a matrix product accepts


def _kernels_alone() -> None:
    """Make the kernels' modules importable where the server's dependencies are missing.

    They ask one module of the server which GPU there is. It imports all that serving needs; if that
    is missing, these answers, equal to its own except on AMD, stand in.
    """
    ops = "sglang.kernels.ops"
    of_kernels = (ops, f"{ops}.activation", f"{ops}.attention", f"{ops}.layernorm")
    for package in ("sglang", "sglang.srt", "sglang.kernels", *of_kernels):
        interpreted.bare(package)
    try:
        import sglang.srt.utils  # noqa: F401
    except ImportError:
        utils: Any = ModuleType("sglang.srt.utils")
        utils.is_cuda = lambda: torch.cuda.is_available() and torch.version.cuda is not None
        utils.is_hip = utils.is_gfx95_supported = utils.is_gfx1250_supported = lambda: False
        utils.get_device_core_count = lambda device_id=0: 0  # called only on AMD
        sys.modules[utils.__name__] = utils


_kernels_alone()

from sglang.kernels.ops.activation.gelu_and_mul_triton import gelu_and_mul_triton  # noqa: E402
from sglang.kernels.ops.attention.decode_attention import (  # noqa: E402
    decode_attention_fwd_grouped,
    decode_attention_fwd_normal,
)
from sglang.kernels.ops.attention.extend_attention import (  # noqa: E402
    extend_attention_fwd,
    extend_attention_fwd_unified,
)
from sglang.kernels.ops.attention.merge_state import merge_state_triton  # noqa: E402
from sglang.kernels.ops.attention.prefill_attention import context_attention_fwd  # noqa: E402
from sglang.kernels.ops.attention.rotary_triton import (  # noqa: E402
    triton_ernie45_rope_fused_inplace,
    triton_mrope_fused,
)
from sglang.kernels.ops.attention.verify_splitkv import VerifySplitKV  # noqa: E402
from sglang.kernels.ops.layernorm.fused_rmsnorm import fused_rmsnorm  # noqa: E402
from sglang.kernels.ops.layernorm.minimax_m3_rmsnorm import (  # noqa: E402
    gemma_fused_add_rmsnorm,
    gemma_rmsnorm,
)


def decode(
    q: Any,
    k_buffer: Any,
    v_buffer: Any,
    kv_indptr: Any,
    kv_indices: Any,
    softmax_scale: float,
    softcap: float = 0.0,
    sinks: Any = None,
) -> Any:
    """Decode with the plain kernel, which has a head of keys for each head of queries."""
    if q.shape[1] != k_buffer.shape[1]:
        raise NotImplementedError("where heads share keys its other kernel is taken")
    how = (softmax_scale, softcap, sinks)
    return _decode(decode_attention_fwd_normal, q, k_buffer, v_buffer, kv_indptr, kv_indices, *how)


def decode_grouped(
    q: Any,
    k_buffer: Any,
    v_buffer: Any,
    kv_indptr: Any,
    kv_indices: Any,
    softmax_scale: float,
    softcap: float = 0.0,
    sinks: Any = None,
    enable_gqa: bool = False,
) -> Any:
    """Decode with the kernel for heads that share keys, which also takes heads that share none."""
    if q.shape[2] < LEAST_HEAD_DIM:
        raise NotImplementedError(f"head_dim below {LEAST_HEAD_DIM}")
    how = (softmax_scale, softcap, sinks)
    return _decode(decode_attention_fwd_grouped, q, k_buffer, v_buffer, kv_indptr, kv_indices, *how)


def prefill(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens: Any,
    max_seqlen: int,
    softmax_scale: float | None = None,
    causal: bool = False,
    enable_gqa: bool = False,
) -> Any:
    """Compute softmax(q·kᵀ·scale)·v of sequences that have as many keys as queries."""
    if q.shape[2] < LEAST_HEAD_DIM:
        raise NotImplementedError(f"head_dim below {LEAST_HEAD_DIM}")
    q, k, v = _dense(q, k, v)
    out = torch.full_like(q, torch.nan, memory_format=torch.contiguous_format)
    starts, lengths = cu_seqlens[:-1].clone(), cu_seqlens.diff()
    how = {"is_causal": causal, "sm_scale": softmax_scale}
    context_attention_fwd(q, k, v, out, starts, lengths, max_seqlen, **how)
    return out


def extend(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    key_lengths: Any,
    block_table: Any,
    softmax_scale: float,
    causal: bool = False,
    window_size: Any = None,
    softcap: float = 0.0,
    sinks: Any = None,
    cu_seqlens_q: Any = None,
    enable_gqa: bool = False,
) -> Any:
    """Attend from new queries to earlier keys in pages, and to their own keys passed separately."""
    of = _Extended(q, k_cache, v_cache, key_lengths, block_table, cu_seqlens_q)
    (causal, window), (sinks,) = _window(window_size, causal), _dense(sinks)
    extend_attention_fwd(
        of.q, of.k[of.new], of.v[of.new], of.out, of.k, of.v, of.starts, _starts(of.prefixes),
        of.slots[of.is_prefix], None, causal, None, of.longest, 1.0, 1.0, softmax_scale, softcap,
        sliding_window_size=window, sinks=sinks,
    )  # fmt: skip
    return of.out.view(q.shape)


def extend_unified(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    key_lengths: Any,
    block_table: Any,
    softmax_scale: float,
    causal: bool = False,
    window_size: Any = None,
    softcap: float = 0.0,
    sinks: Any = None,
    cu_seqlens_q: Any = None,
    enable_gqa: bool = False,
) -> Any:
    """Attend from new queries to keys all in pages, as its server does for reproducible bits."""
    of = _Extended(q, k_cache, v_cache, key_lengths, block_table, cu_seqlens_q)
    (causal, window), (sinks,) = _window(window_size, causal), _dense(sinks)
    extend_attention_fwd_unified(
        of.q, of.out, of.k, of.v, 1.0, 1.0, of.starts, _starts(of.lengths), of.slots, of.prefixes,
        of.longest, None, None, softmax_scale, softcap, causal, window, sinks,
    )  # fmt: skip
    return of.out.view(q.shape)


def verify(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    key_lengths: Any,
    block_table: Any,
    softmax_scale: float,
    causal: bool = False,
    enable_gqa: bool = False,
) -> Any:
    """Attend from equally many new queries per sequence, as in speculation, with a split prefix.

    Its memory for splits is uninitialised, and read where a split has no keys; here it is 0.
    """
    of = _Extended(q, k_cache, v_cache, key_lengths, block_table, None)
    if not causal and of.longest > 1:
        raise NotImplementedError("it is causal")
    sizes = (len(q), q.shape[2], of.k.shape[1], q.shape[3], of.v.shape[2], of.longest)
    kernels = VerifySplitKV(*sizes, device=q.device)
    kernels.att_out.zero_()
    of_new, starts = (of.k[of.new], of.v[of.new]), (of.starts, _starts(of.prefixes))
    slots = of.slots[of.is_prefix]
    kernels(of.q, *of_new, of.k, of.v, *starts, slots, softmax_scale, of.out)
    return of.out.view(q.shape)


def verify_with_prefix(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    key_lengths: Any,
    block_table: Any,
    softmax_scale: float,
    causal: bool = False,
    enable_gqa: bool = False,
) -> Any:
    """Do as `verify` does, where every sequence has keys before the new queries."""
    if (key_lengths <= q.shape[1]).any():
        raise NotImplementedError("every sequence has a prefix")
    return verify(q, k_cache, v_cache, key_lengths, block_table, softmax_scale, causal)


def merge(prefix_output: Any, prefix_lse: Any, suffix_output: Any, suffix_lse: Any) -> Any:
    """Merge two parts (tokens, heads, head_dim) with their lse (tokens, heads)."""
    parts = (prefix_output, prefix_lse, suffix_output, suffix_lse)
    if prefix_output.ndim != 3 or not all(x.is_contiguous() for x in parts):
        raise NotImplementedError("parts are (tokens, heads, head_dim), and contiguous")
    return merge_state_triton(*parts)


def rms_norm(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """Divide contiguous rows by their root mean square."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return fused_rmsnorm(rows, weight.contiguous(), eps).view(x.shape)


def rms_norm_of_gemma(x: Any, weight: Any, eps: float = 1e-6, residual: Any = None) -> Any:
    """Divide the rows, or their sum with a residual, by their root mean square; gains are w + 1."""
    if residual is None:
        return gemma_rmsnorm(x, weight.contiguous(), eps)
    return gemma_fused_add_rmsnorm(x, residual, weight.contiguous(), eps)


def geglu(gate: Any, up: Any, kind: str) -> Any:
    """Compute GEGLU of one tensor holding both."""
    if kind != "gelu":
        raise NotImplementedError("it is gelu")
    both = torch.cat((gate, up), dim=-1).flatten(0, -2)
    out, _ = gelu_and_mul_triton(both)
    return out.view(gate.shape)


def rotary(
    positions: Any, query: Any, key: Any, head_size: int, cos_sin_cache: Any, is_neox: bool
) -> None:
    """Rotate by three equal positions, as for text, in sections."""
    _rotate(positions, query, key, head_size, cos_sin_cache, is_neox, False)


def rotary_interleaved(
    positions: Any, query: Any, key: Any, head_size: int, cos_sin_cache: Any, is_neox: bool
) -> None:
    """Rotate by three equal positions, interleaved."""
    _rotate(positions, query, key, head_size, cos_sin_cache, is_neox, True)


def rotary_interleaved_of_full_blocks(
    positions: Any, query: Any, key: Any, head_size: int, cos_sin_cache: Any, is_neox: bool
) -> None:
    """Rotate by three equal positions, interleaved, heads that leave no lane masked."""
    if head_size & (head_size - 1) or head_size != cos_sin_cache.shape[1]:
        raise NotImplementedError("of heads that fill a block")
    rotary_interleaved(positions, query, key, head_size, cos_sin_cache, is_neox)


def rotary_of_ernie(
    positions: Any, query: Any, key: Any, head_size: int, cos_sin_cache: Any, is_neox: bool
) -> None:
    """Rotate by three equal positions, two of them interleaved."""
    section, cache, (rows, columns) = _of_positions(positions, cos_sin_cache)
    how = (cache, rows, section[::-1], head_size, columns, is_neox)
    triton_ernie45_rope_fused_inplace(query, key, *how)


def _rotate(
    positions: Any, query: Any, key: Any, head_size: int, cos_sin_cache: Any, *how: bool
) -> None:
    is_neox, in_turns = how
    section, cache, (rows, columns) = _of_positions(positions, cos_sin_cache)
    triton_mrope_fused(
        query, key, cache, rows, section, head_size, columns, in_turns, False, is_neox, None
    )


def _of_positions(positions: Any, cache: Any) -> tuple[list[int], Any, tuple[Any, int]]:
    """Return how many pairs each position turns, the cache as far as used, and both sizes."""
    pairs = cache.shape[1] // 2
    section = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
    return section, cache[: positions.max() + 1], (positions.expand(3, -1), cache.shape[1])


def _decode(
    attention: Any,
    q: Any,
    k_buffer: Any,
    v_buffer: Any,
    kv_indptr: Any,
    kv_indices: Any,
    softmax_scale: float,
    softcap: float,
    sinks: Any,
) -> Any:
    """Decode with the keys of each sequence split differently, into 8 to 1 parts."""
    q, k_buffer, v_buffer, sinks = _dense(q, k_buffer, v_buffer, sinks)
    (batch, heads, _), head_dim = q.shape, v_buffer.shape[2]
    out = q.new_full((batch, heads, head_dim), torch.nan)
    parts = q.new_full((batch, heads, SPLITS, head_dim), torch.nan, dtype=torch.float32)
    lses = q.new_full((batch, heads, SPLITS), torch.nan, dtype=torch.float32)
    splits = SPLITS - torch.arange(batch, device=q.device, dtype=torch.int32) % SPLITS
    attention(
        q, k_buffer, v_buffer, out, kv_indptr, kv_indices.long(), parts, lses, splits, SPLITS,
        softmax_scale, 1.0, logit_cap=softcap, sinks=sinks,
    )  # fmt: skip
    return out


class _Extended:
    """The arguments of both extension kernels, from a cache in pages (pages, page_size, heads, D).

    Queries are (batch, queries, heads, D), or packed. The last keys of a sequence, as many as it
    has queries, were computed with them: they follow its prefix, and are `new` in the cache.
    """

    def __init__(
        self, q: Any, k_cache: Any, v_cache: Any, key_lengths: Any, block_table: Any, starts: Any
    ) -> None:
        if block_table is None or q.ndim != (4 if starts is None else 3):
            raise NotImplementedError("queries are (batch, queries, heads, head_dim), or packed")
        if q.shape[-1] < LEAST_HEAD_DIM:
            raise NotImplementedError(f"head_dim below {LEAST_HEAD_DIM}")
        q, k_cache, v_cache = _dense(q, k_cache, v_cache)
        counts = torch.full_like(key_lengths, q.shape[1]) if starts is None else starts.diff()
        if (counts > key_lengths).any():
            raise NotImplementedError("the keys of all queries are in the cache")
        page_size = k_cache.shape[1]
        within = torch.arange(page_size, device=q.device)
        slots = (block_table.long()[..., None] * page_size + within).flatten(1)
        place = torch.arange(slots.shape[1], device=q.device)
        there = place < key_lengths[:, None]
        before = place < (key_lengths - counts)[:, None]
        self.lengths, self.prefixes = key_lengths, key_lengths - counts
        self.starts, self.longest = _starts(counts), int(counts.max())
        self.slots, self.is_prefix = slots[there], before[there]
        self.new = self.slots[~self.is_prefix]
        self.q = q.reshape(-1, *q.shape[-2:])
        self.k, self.v = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
        self.out = torch.full_like(self.q, torch.nan, memory_format=torch.contiguous_format)


def _starts(counts: Any) -> Any:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()


def _window(window_size: Any, causal: bool) -> tuple[bool, int]:
    """Return whether attention is causal and how far a query looks, −1 for any distance.

    If it is not causal, that is to both sides.
    """
    if window_size is None:
        return causal, -1
    left, right = window_size
    causal = causal or right == 0
    if not left or not (causal or left == right):
        raise NotImplementedError("a window is causal, or as wide to both sides, and not of 0")
    return causal, int(left)


def _dense(*tensors: Any) -> tuple[Any, ...]:
    """Return tensors with a contiguous last axis, as its server passes them; None stays None."""
    return tuple(x if x is None or x.stride(-1) == 1 else x.contiguous() for x in tensors)
