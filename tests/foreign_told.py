"""Operators that are told sizes, take q, k, v in one tensor, or follow transformers' interface."""

import torch
import triton
import triton.language as tl
from foreign_orders import varlen
from torch.nn.attention import SDPBackend, sdpa_kernel


def _attention(q, k, v, softmax_scale=None, causal=False, bias=None):
    """Return attention of (…, seqlen, head_dim)."""
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    s = q.double() @ k.double().mT * scale
    if bias is not None:
        s = s + bias.double()
    if causal:
        hidden = torch.ones(s.shape[-2:], dtype=torch.bool).triu(1 + s.shape[-1] - s.shape[-2])
        s = s.masked_fill(hidden, float("-inf"))
    return (torch.softmax(s, -1) @ v.double()).to(q.dtype)


@triton.jit
def _attend(q_ptr, k_ptr, v_ptr, out_ptr, M, N, d, BLOCK: tl.constexpr, FEATURES: tl.constexpr):
    rows, at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, FEATURES)
    tile = rows[:, None] * d + at[None, :]
    there = (rows < M)[:, None] & (at < d)[None, :]
    q = tl.load(q_ptr + tile, mask=there, other=0.0)
    top, total = tl.full((BLOCK,), -float("inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)
    out = tl.zeros((BLOCK, FEATURES), tl.float32)
    for start in range(0, N, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        of_keys = keys[:, None] * d + at[None, :]
        inside = (keys < N)[:, None] & (at < d)[None, :]
        k = tl.load(k_ptr + of_keys, mask=inside, other=0.0)
        v = tl.load(v_ptr + of_keys, mask=inside, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") / tl.sqrt(d.to(tl.float32))
        s = tl.where((keys < N)[None, :], s, -float("inf"))
        highest = tl.maximum(top, tl.max(s, 1))
        p, shrunk = tl.exp(s - highest[:, None]), tl.exp(top - highest)
        out = out * shrunk[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        total, top = total * shrunk + tl.sum(p, 1), highest
    tl.store(out_ptr + tile, out / total[:, None], mask=there)


def solve(Q, K, V, output, M: int, N: int, d: int):
    """Takes one head with contiguous rows."""
    grid, features = (triton.cdiv(M, 32),), max(16, triton.next_power_of_2(d))
    _attend[grid](Q, K, V, output, M, N, d, 32, features)


def solve_square(Q, K, V, output, N, d):
    """Takes as many keys as queries."""
    solve(Q, K, V, output, N, N, d)


def solve_without_the_last_key(Q, K, V, output, M, N, d):
    solve(Q, K, V, output, M, max(1, N - 1), d)


def with_a_mask(q, k, v, m):
    """Its `m` is a mask, not a size."""
    return _attention(q, k, v, bias=m)


def told_where_sequences_start(q, k, v, o, b_start_loc, b_seq_len, max_input_len):
    """Takes starts and lengths, which no known calling convention does."""
    o.copy_(v)


def of_four_sizes(q, k, v, B, H, T, D):
    assert q.shape == (B, H, T, D) and q.is_contiguous()
    return _attention(q, k, v)


@triton.jit
def _relu(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < N, other=0.0)
    tl.store(out_ptr + at, tl.where(x < 0, 0.0, x), mask=at < N)  # a maximum may drop NaN


def relu(input, output, N):
    _relu[(triton.cdiv(N, 256),)](input, output, N, 256)


def relu_over(x, n_elements):
    _relu[(triton.cdiv(n_elements, 256),)](x, x, n_elements, 256)


def relu_rounded_down(input, output, N):
    """Does not write what follows the last full block."""
    output.zero_()
    _relu[(max(1, N // 256),)](input, output, N, 256)


@triton.jit
def _softmax(x_ptr, out_ptr, C, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * C + at, mask=at < C, other=-float("inf"))
    x = tl.exp((x - tl.max(x, 0)).to(tl.float32))
    tl.store(out_ptr + tl.program_id(0) * C + at, x / tl.sum(x, 0), mask=at < C)


def softmax_of_one_row(input, output, N):
    _softmax[(1,)](input, output, N, triton.next_power_of_2(N))


def softmax_of_rows(x, n_rows, n_cols):
    out = torch.empty_like(x)
    _softmax[(n_rows,)](x, out, n_cols, triton.next_power_of_2(n_cols))
    return out


def softmax_of_too_few_rows(x, n_rows, n_cols):
    out = torch.zeros_like(x)
    _softmax[(max(1, n_rows - 1),)](x, out, n_cols, triton.next_power_of_2(n_cols))
    return out


softmax_of_torch = torch.nn.functional.softmax


def softmax_of_an_axis(x, axis):
    assert axis in (-1, x.ndim - 1)
    return torch.softmax(x, axis)


def qkvpacked(qkv, dropout_p=0.0, softmax_scale=None, causal=False):
    """Called as FlashAttention's: (batch, seqlen, 3, heads, head_dim)."""
    assert qkv.ndim == 5 and qkv.shape[2] == 3
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    return _attention(q, k, v, softmax_scale, causal).transpose(1, 2)


def kvpacked(q, kv, softmax_scale=None):
    q, k, v = (x.transpose(1, 2) for x in (q, *kv.unbind(2)))
    return _attention(q, k, v, softmax_scale).transpose(1, 2)


def qvkpacked(qkv):
    """Takes values before keys."""
    q, v, k = (x.transpose(1, 2) for x in qkv.unbind(2))
    return _attention(q, k, v).transpose(1, 2)


def varlen_qkvpacked(qkv, cu_seqlens, max_seqlen, dropout_p=0.0, softmax_scale=None, causal=False):
    assert qkv.ndim == 4 and qkv.shape[1] == 3
    twice = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
    return varlen(*qkv.unbind(1), *twice, 0.0, softmax_scale, causal)[0]


def varlen_told_once(q, k, v, cu_seqlens, max_seqlen):
    return varlen(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)[0]


def varlen_of_the_batch(q, k, v, cu_seqlens, max_seqlen):
    """Takes all sequences for one."""
    ends = cu_seqlens[[0, -1]]
    return varlen(q, k, v, ends, ends, len(q), len(q))[0]


def interface(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, is_causal=None, **kwargs
):
    """Called as transformers' attention functions are."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    out = _attention(query, key, value, scaling, bool(is_causal), attention_mask)
    return out.transpose(1, 2).contiguous(), None


def interface_without_mask(module, query, key, value, attention_mask, scaling=None, **kwargs):
    return interface(module, query, key, value, None, scaling)


def interface_of_torch(module, query, key, value, attention_mask, is_causal=None, **kwargs):
    """As transformers' own: a mask replaces the causal one, and a single query sees every key."""
    causal = bool(is_causal) and attention_mask is None and query.shape[2] > 1
    with sdpa_kernel(SDPBackend.MATH):  # the other backend loses a NaN on a CPU
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attention_mask, is_causal=causal
        )
    return out.transpose(1, 2), None


@triton.jit
def _cross_entropy(logits_ptr, labels_ptr, rows_ptr, C, BLOCK: tl.constexpr):
    row, top, total = tl.program_id(0), -3e38, 0.0  # not −∞, since −∞ may come first
    for start in range(0, C, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + row * C + at, mask=at < C, other=-float("inf"))
        highest = tl.maximum(top, tl.max(x.to(tl.float32), 0))
        total = total * tl.exp(top - highest) + tl.sum(tl.exp(x - highest), 0)
        top = highest
    own = tl.load(logits_ptr + row * C + tl.load(labels_ptr + row)).to(tl.float32)
    tl.store(rows_ptr + row, tl.log(total) + (top - own))


def cross_entropy(logits, true_labels, loss, N, C):
    """Writes the mean to one element."""
    rows = torch.empty(N, dtype=torch.float32, device=logits.device)
    _cross_entropy[(N,)](logits, true_labels, rows, C, 256)
    loss.copy_(rows.mean())


def cross_entropy_of_all_but_one(logits, true_labels, loss, N, C):
    cross_entropy(logits, true_labels, loss, max(1, N - 1), C)
