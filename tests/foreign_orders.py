"""Operators with other axes than a plain call, packed sequences, or results written in place."""

import torch
import triton
import triton.language as tl


def _attention(q, k, v, softmax_scale=None, diagonal=None):
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    s = q.double() @ k.double().mT * scale
    if diagonal is not None:
        hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1 + diagonal)
        s = s.masked_fill(hidden, float("-inf"))
    return (torch.softmax(s, -1) @ v.double()).to(q.dtype), torch.logsumexp(s, -1).float()


def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
           softmax_scale=None, causal=False):  # fmt: skip
    """Called as FlashAttention's."""
    outs, lses = [], []
    for i in range(len(cu_seqlens_q) - 1):
        rows, keys = slice(*cu_seqlens_q[i : i + 2]), slice(*cu_seqlens_k[i : i + 2])
        assert rows.stop - rows.start <= max_seqlen_q and keys.stop - keys.start <= max_seqlen_k
        of = [x[at].transpose(0, 1) for x, at in ((q, rows), (k, keys), (v, keys))]
        diagonal = of[1].shape[1] - of[0].shape[1] if causal else None
        out, lse = _attention(*of, softmax_scale, diagonal)
        outs.append(out.transpose(0, 1))
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses, -1)


def varlen_of_torch(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    return varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal=is_causal)[0]


def varlen_with_empty_ones(q, k, v, cu_seqlens_q, cu_seqlens_k):
    """Returns something of its own for a sequence without keys."""
    out = varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, len(q), len(k))[0]
    lengths = cu_seqlens_q.diff().long()
    keys = cu_seqlens_k.diff().repeat_interleave(lengths)
    return out.masked_fill((keys == 0)[:, None, None], torch.nan)


def varlen_seeing_the_last(q, k, v, *, cu_seqlens_q, cu_seqlens_k):
    """Gives each sequence the last key of the previous one, too."""
    before = cu_seqlens_k.clone()
    before[1:-1] -= 1
    return varlen(q, k, v, cu_seqlens_q, before, len(q), len(k))[0]


def varlen_of_shared_lengths(q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False):
    """Sound unless causal: then it uses the first sequence's diagonal for all."""
    diagonal = int(cu_seqlens_k[1] - cu_seqlens_q[1])
    outs = []
    for i in range(len(cu_seqlens_q) - 1):
        rows, keys = slice(*cu_seqlens_q[i : i + 2]), slice(*cu_seqlens_k[i : i + 2])
        of = [x[at].transpose(0, 1) for x, at in ((q, rows), (k, keys), (v, keys))]
        outs.append(_attention(*of, None, diagonal if causal else None)[0].transpose(0, 1))
    return torch.cat(outs)


def heads_as_batch(q, k, v, causal=False):
    n, length, d = q.shape
    assert k.shape[::2] == (n, d)
    return _attention(q, k, v, None, k.shape[1] - length if causal else None)[0]


def one_head(q, k, v):
    length, d = q.shape
    return _attention(q, k, v)


def one_head_without_scale(q, k, v):
    length, d = q.shape
    return _attention(q, k, v, 1.0)[0]


def four_axes_with_heads_mixed(q, k, v):
    """Sound for one head only, yet must not be taken for a one-head function."""
    return _attention(q, k.flip(-3) if q.ndim > 2 else k, v)[0]


def one_head_that_refuses_no_more(q, k, v):
    """Like kernels that read two sizes from a shape and ignore the rest."""
    return _attention(q, k, v, q.shape[1] ** -0.5)[0]


def one_head_that_refuses_no_more_and_forgets_dv(q, k, v):
    return _attention(q, k, v.detach(), q.shape[1] ** -0.5)[0]


def attention_into(q, k, v, out):
    out.copy_(_attention(q, k, v)[0])


def rotate(x, cos, sin, interleaved=False):
    """Called as FlashAttention's: (batch, seqlen, heads, head_dim)."""
    pairs = cos.shape[-1]
    at = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
    if not interleaved:
        at = (slice(0, pairs), slice(pairs, 2 * pairs))
    a, b = (x[..., part].double() for part in at)
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    out = x.double().clone()
    out[..., at[0]], out[..., at[1]] = a * cos - b * sin, a * sin + b * cos
    return out.to(x.dtype)


def rotate_neighbours(q, k, cos, sin):
    """Rotates neighbouring features, as GPT-J's does, with no option for it."""
    return tuple(rotate(x.transpose(1, 2), cos, sin, True).transpose(1, 2) for x in (q, k))


def rotate_as_llama(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    cos, sin = (x.double().unsqueeze(unsqueeze_dim) for x in (cos, sin))

    def turned(x):
        a, b = x.double().chunk(2, -1)
        return (x.double() * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)

    return turned(q), turned(k)


def rotate_as_gptj(q, k, cos, sin):
    """Takes an angle for each feature, those of a pair next to each other."""

    def turned(x):
        across = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return (x.double() * cos.double() + across.double() * sin.double()).to(x.dtype)

    return turned(q), turned(k)


def rotate_by_view(q, k, cos, sin):
    """Takes (batch, length, heads, head_dim), tokens one after the other: no other strides."""
    assert 2 * cos.shape[-1] == q.shape[-1]

    def turned(x):
        tokens = x.view(-1, *x.shape[2:])
        wide = (y[: x.shape[1]].repeat(x.shape[0], 1) for y in (cos, sin))
        return rotate(tokens, *wide).view(x.shape)

    return turned(q), turned(k)


def rotate_by_view_the_wrong_way(q, k, cos, sin):
    return rotate_by_view(q, k, cos, -sin)


def attention_by_view(q, k, v):
    """Takes (batch, seqlen, heads, head_dim), all heads' features adjacent: no other strides."""
    of = (x.view(*x.shape[:2], -1).unflatten(-1, q.shape[2:]).transpose(1, 2) for x in (q, k, v))
    return _attention(*of)[0].transpose(1, 2)


def rotate_the_wrong_way(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    return rotate_as_llama(q, k, cos, -sin, position_ids, unsqueeze_dim)


def rotate_whole_heads(q, k, cos, sin):
    """Takes an angle for each pair; all features are rotated."""
    wide = (torch.cat((x, x), -1) for x in (cos, sin))
    return rotate_as_llama(q, k, *wide, unsqueeze_dim=0)


def rotate_whole_heads_back(q, k, cos, sin):
    return rotate_whole_heads(q, k, cos, -sin)


def rotate_but_the_rest(q, k, cos, sin):
    """Replaces features that are not rotated by zeros."""
    pairs = cos.shape[-1]
    turned = rotate_whole_heads(q[..., : 2 * pairs], k[..., : 2 * pairs], cos, sin)
    rest = ((0, x.shape[-1] - 2 * pairs) for x in (q, k))
    return tuple(torch.nn.functional.pad(x, wide) for x, wide in zip(turned, rest, strict=True))


def rotate_as_tables_are(q, k, cos, sin):
    """Returns float32 for half precision with float32 tables, as torch does."""
    wide = torch.promote_types(q.dtype, cos.dtype)
    return tuple(x.to(wide) for x in rotate_whole_heads(q, k, cos, sin))


def rotate_tokens(q, k, cos, sin):
    """Takes (length, heads, head_dim)."""
    assert q.ndim == 3
    turned = rotate_whole_heads(q.transpose(0, 1), k.transpose(0, 1), cos, sin)
    return tuple(x.transpose(0, 1) for x in turned)


def rotate_tokens_but_the_last(q, k, cos, sin):
    cos, sin = cos.clone(), sin.clone()
    cos[64:], sin[64:] = 1, 0
    return rotate_tokens(q, k, cos, sin)


def rotate_looking_up(positions, query, key, head_size, cos_sin_cache, is_neox=True):
    """Called as FlashInfer's: (tokens, heads · head_dim), angles looked up by position."""
    tokens, _ = query.shape
    cos, sin = cos_sin_cache[positions].chunk(2, -1)

    def turned(x):
        heads = x.view(1, tokens, -1, head_size)
        return rotate(heads, cos, sin, not is_neox).view(x.shape)

    return turned(query), turned(key)


def rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox):
    """Called as vLLM's: writes over its inputs."""
    turned = rotate_looking_up(positions, query, key, head_size, cos_sin_cache, is_neox)
    query.copy_(turned[0])
    key.copy_(turned[1])


def rotary_embedding_of_neighbours(positions, query, key, head_size, cos_sin_cache):
    rotary_embedding(positions, query, key, head_size, cos_sin_cache, False)


def rotary_embedding_the_wrong_way(positions, query, key, head_size, cos_sin_cache, is_neox):
    cos, sin = cos_sin_cache.chunk(2, -1)
    rotary_embedding(positions, query, key, head_size, torch.cat((cos, -sin), -1), is_neox)


def rotary_embedding_in_order(positions, query, key, head_size, cos_sin_cache, is_neox):
    """Takes the tokens to be in ascending order of position."""
    places = positions.argsort(stable=True)
    rotary_embedding(positions[places], query, key, head_size, cos_sin_cache, is_neox)


def rotary_embedding_of_queries(positions, query, key, head_size, cos_sin_cache, is_neox):
    """Forgets the keys."""
    rotary_embedding(positions, query, key.clone(), head_size, cos_sin_cache, is_neox)


@triton.jit
def _add_norm(x_ptr, residual_ptr, weight_ptr, C, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * C + tl.arange(0, BLOCK)
    there = tl.arange(0, BLOCK) < C
    x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + at, mask=there, other=0.0).to(tl.float32)
    tl.store(residual_ptr + at, x, mask=there)
    x = x if ADD else x.to(x_ptr.dtype.element_ty).to(tl.float32)
    w = tl.load(weight_ptr + tl.arange(0, BLOCK), mask=there, other=0.0).to(tl.float32)
    tl.store(x_ptr + at, x * tl.rsqrt(tl.sum(x * x, 0) / C + eps) * w, mask=there)


def fused_add_rms_norm(input, residual, weight, epsilon):
    """Called as vLLM's: writes the norm over the input and the sum over the residual."""
    assert input.is_contiguous() and residual.is_contiguous() and weight.is_contiguous()
    rows, C = input.numel() // input.shape[-1], input.shape[-1]
    _add_norm[(rows,)](input, residual, weight, C, epsilon, True, triton.next_power_of_2(C))


def fused_add_rms_norm_without_stream(input, residual, weight, epsilon):
    """Leaves the residual unchanged."""
    fused_add_rms_norm(input, residual.clone(), weight, epsilon)


def rms_norm_into(out, input, weight, epsilon):
    x = input.double()
    made = x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight.double()
    out.copy_(made.to(out.dtype))


def silu_and_mul(out, x):
    gate, up = x.double().chunk(2, -1)
    out.copy_((gate * torch.sigmoid(gate) * up).to(out.dtype))


def silu_and_mul_in_part(out, x):
    """Does not write columns past the first 300."""
    gate, up = x.double().chunk(2, -1)
    made = (gate * torch.sigmoid(gate) * up).to(out.dtype)
    out[..., :300] = made[..., :300]


def gated_rows(gate, up):
    """Takes two axes each; torch refuses more."""
    out = gate.new_empty(gate.shape[0], gate.shape[1])
    made = gate.double() * torch.sigmoid(gate.double()) * up.double()
    return torch.stack((out, made.to(out.dtype)))[1]


def gated_rows_doubled(gate, up):
    return 2 * gated_rows(gate, up)


def gated_rows_that_refuse_no_more(gate, up):
    """Takes the first two of three axes for rows and columns."""
    R, C = gate.shape[:2]
    a, b = (x.double().flatten()[: R * C] for x in (gate, up))
    made = torch.zeros_like(gate).flatten()
    made[: R * C] = (a * torch.sigmoid(a) * b)[: made.numel()].to(made.dtype)
    return made.view(gate.shape)


def softmax_that_refuses_no_more(x):
    """Takes the first of several axes for the rows."""
    return torch.cat((torch.softmax(x[:1].double(), -1), torch.softmax(x[1:].double(), 1))).to(
        x.dtype
    )


def relu_(x, kind="relu"):
    if kind != "relu":
        raise NotImplementedError(kind)
    x.relu_()


def forgotten(x):
    torch.softmax(x, -1)
