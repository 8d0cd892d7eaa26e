"""Foreign decoding functions: caches in one piece or in pages, one query or several."""

import torch
import triton
import triton.language as tl


def _rows(x, table, n):
    """Return one sequence's keys or values (n, heads, head_dim) from pages with heads inside."""
    size = x.shape[1]
    pages = table[: -(-n // size)].long()
    return x[pages].flatten(0, 1)[:n]


def _decoded(q, k, v, scale, causal=False):
    """Return attention for one sequence: q (M, H, D), k and v (N, K, D)."""
    (M, H, D), N = q.shape, len(k)
    k, v = (x.repeat_interleave(H // x.shape[1], 1).double() for x in (k, v))
    s = torch.einsum("mhd,nhd->hmn", q.double(), k) * (D**-0.5 if scale is None else scale)
    if causal:
        hidden = torch.ones(M, N, dtype=torch.bool).triu(1 + N - M)
        s = s.masked_fill(hidden, float("-inf"))
    return torch.einsum("hmn,nhd->mhd", torch.softmax(s, -1), v).to(q.dtype)


def with_cache(q, k_cache, v_cache, cache_seqlens=None, block_table=None, softmax_scale=None,
               causal=False):  # fmt: skip
    """Called as FlashAttention's: heads inside, and pages if there is a table."""
    outs = []
    for b in range(len(q)):
        room = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
        n = room if cache_seqlens is None else int(cache_seqlens[b])
        if block_table is None:
            k, v = k_cache[b, :n], v_cache[b, :n]
        else:
            k, v = (_rows(x, block_table[b], n) for x in (k_cache, v_cache))
        outs.append(_decoded(q[b], k, v, softmax_scale, causal))
    return torch.stack(outs)


def with_cache_of_heads(q, k_cache, v_cache, key_lengths):
    """Takes axes in the operator's own order."""
    return with_cache(*(x.transpose(1, 2) for x in (q, k_cache, v_cache)), key_lengths).transpose(
        1, 2
    )


def a_page_too_few(q, k_cache, v_cache, cache_seqlens, block_table):
    """Forgets a sequence's last page if it is full."""
    size = k_cache.shape[1]
    lengths = cache_seqlens - (cache_seqlens % size == 0).int() * size
    return with_cache(q, k_cache, v_cache, lengths.clamp(min=1), block_table)


@triton.jit
def _decode(q_ptr, k_ptr, v_ptr, out_ptr, lengths_ptr, table_ptr, scale, H, G, D, PAGES, PAGE,
            stride_kb, stride_kn, stride_kh, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
            SLACK: tl.constexpr):  # fmt: skip
    b, h = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths_ptr + b) + SLACK
    d, n = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    q = tl.load(q_ptr + (b * H + h) * D + d, mask=d < D, other=0.0).to(tl.float32) * scale
    top, total = float("-inf"), 0.0
    acc = tl.zeros((BLOCK_D,), tl.float32)
    for i in range(0, tl.cdiv(length, PAGE)):
        there = (n < PAGE) & (i * PAGE + n < length)
        at = tl.load(table_ptr + b * PAGES + i) * stride_kb + n[:, None] * stride_kn
        at += (h // G) * stride_kh + d
        mask = there[:, None] & (d < D)
        k = tl.load(k_ptr + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at, mask=mask, other=0.0).to(tl.float32)
        s = tl.where(there, tl.sum(q * k, 1), float("-inf"))
        larger = tl.maximum(top, tl.max(s, 0))
        old, p = tl.exp(top - larger), tl.exp(s - larger)
        acc, total = acc * old + tl.sum(p[:, None] * v, 0), total * old + tl.sum(p, 0)
        top = larger
    tl.store(out_ptr + (b * H + h) * D + d, acc / total, mask=d < D)


def _paged(query, key_cache, value_cache, block_tables, seq_lens, slack):
    B, H, D = query.shape
    query, key_cache, value_cache = (x.contiguous() for x in (query, key_cache, value_cache))
    out = torch.empty_like(query)
    _, page, heads, _ = key_cache.shape
    blocks = (triton.next_power_of_2(page), triton.next_power_of_2(D))
    _decode[(B, H)](
        query, key_cache, value_cache, out, seq_lens, block_tables, D**-0.5, H, H // heads, D,
        block_tables.shape[1], page, *key_cache.stride()[:3], *blocks, slack,
    )  # fmt: skip
    return out


def paged_attention(query, key_cache, value_cache, block_tables, seq_lens):
    """Takes one query for each sequence: (batch, heads, head_dim)."""
    return _paged(query, key_cache, value_cache, block_tables, seq_lens, 0)


def paged_attention_a_key_too_many(query, key_cache, value_cache, block_tables, seq_lens):
    return _paged(query, key_cache, value_cache, block_tables, seq_lens, 1)


def written_out(out, query, key_cache, value_cache, num_kv_heads, scale, block_tables, seq_lens,
                block_size, max_seq_len):  # fmt: skip
    """Called as vLLM's: it fills the `out` it is given, and is told sizes."""
    assert key_cache.shape[1:3] == (block_size, num_kv_heads) and seq_lens.max() == max_seq_len
    of = (x.unsqueeze(1) if x is query else x for x in (query, key_cache, value_cache))
    out.copy_(with_cache(*of, seq_lens, block_tables, scale)[:, 0])


def written_out_of_the_longest(out, query, key_cache, value_cache, num_kv_heads, scale,
                               block_tables, seq_lens, block_size, max_seq_len):  # fmt: skip
    """Takes every sequence to be as long as the longest."""
    lengths = torch.full_like(seq_lens, max_seq_len)
    written_out(out, query, key_cache, value_cache, num_kv_heads, scale, block_tables, lengths,
                block_size, max_seq_len)  # fmt: skip


def of_one_sequence(q, k, v, sm_scale=None):
    """Called as FlashInfer's: q (heads, head_dim), keys (seqlen, heads, head_dim)."""
    heads, d = q.shape
    return _decoded(q[None], k, v, sm_scale)[0]


def of_one_sequence_but_its_last_key(q, k, v, sm_scale=None):
    return of_one_sequence(q, k[: max(1, len(k) - 1)], v[: max(1, len(v) - 1)], sm_scale)


def packed(q, k, v, max_seqlen_q, cu_seqlens_q, max_seqlen_k, seqused_k, block_table,
           softmax_scale=None, causal=False, of=_decoded):  # fmt: skip
    """Called as vLLM's paged attention: the queries of all sequences are packed."""
    total, heads, d = q.shape
    out = torch.empty_like(q)
    for b, (first, last) in enumerate(cu_seqlens_q.unfold(0, 2, 1).tolist()):
        n = int(seqused_k[b])
        assert last - first <= max_seqlen_q and n <= max_seqlen_k
        keys, values = (_rows(x, block_table[b], n) for x in (k, v))
        out[first:last] = of(q[first:last], keys, values, softmax_scale, causal)
    return out


def packed_from_the_first(q, k, v, cu_seqlens_q, seqused_k, block_table, causal=False):
    """Aligns the causal diagonal with the first query and key, not the last."""

    def of(q, k, v, scale, causal):
        rows = (slice(0, 1 + i if causal else None) for i in range(len(q)))
        each = [_decoded(x[None], k[n], v[n], scale) for x, n in zip(q, rows, strict=True)]
        return torch.cat(each) if each else q

    return packed(q, k, v, len(q), cu_seqlens_q, 10**6, seqused_k, block_table, None, causal, of)


def _tabled(indptr, indices):
    """Return the page table that corresponds to a list of pages."""
    rows = [indices[a:b] for a, b in indptr.unfold(0, 2, 1).tolist()]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def of_listed_pages(q, paged_kv_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale=None):
    """Called as FlashInfer's: q (batch, heads, head_dim), cache (pages, 2, page_size, heads, d)."""
    _, _, page_size, _, d = paged_kv_cache.shape
    assert q.ndim == 3 and q.shape[2] == d
    lengths = (kv_indptr.diff() - 1) * page_size + kv_last_page_len
    k, v = paged_kv_cache.unbind(1)
    table = _tabled(kv_indptr, kv_indices)
    return with_cache(q[:, None], k, v, lengths, table, sm_scale)[:, 0]


def of_listed_pages_but_the_last_key(q, paged_kv_cache, kv_indptr, kv_indices, kv_last_page_len):
    last = (kv_last_page_len - 1).clamp(min=1)
    return of_listed_pages(q, paged_kv_cache, kv_indptr, kv_indices, last)


def of_one_cache(q, kv_cache, block_table, cache_seqlens):
    """Takes one cache (2, pages, page_size, heads, head_dim), as vLLM gives FlashAttention."""
    return with_cache(q, *kv_cache, cache_seqlens, block_table)


def of_slots(q, k_buffer, v_buffer, o, kv_indptr, kv_indices, sm_scale=None):
    """Called as SGLang's: a list of keys, caches (slots, heads, head_dim), and `o` to fill."""
    for b, (first, last) in enumerate(kv_indptr.unfold(0, 2, 1).tolist()):
        keys = kv_indices[first:last].long()
        o[b] = _decoded(q[b][None], k_buffer[keys], v_buffer[keys], sm_scale)[0]


def of_slots_from_the_second(q, k_buffer, v_buffer, o, kv_indptr, kv_indices):
    """Places every boundary between sequences a key late."""
    starts = kv_indptr + (kv_indptr > 0).int()
    starts[-1] = kv_indptr[-1]
    of_slots(q, k_buffer, v_buffer, o, torch.minimum(starts, kv_indptr[-1] - 1), kv_indices)
