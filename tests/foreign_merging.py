"""Foreign merging of partial attention: all parts or two, tokens or batches, base e or 2."""

import torch
import triton
import triton.language as tl


def merged(outs, lses):
    """Takes axes in the operator's own order."""
    top = lses.max(0).values
    p = torch.exp(lses - top)
    total = p.sum(0)
    return ((p / total)[..., None] * outs).sum(0).to(outs.dtype), top + torch.log(total)


def merged_without_maximum(outs, lses):
    p = torch.exp(lses)
    total = p.sum(0)
    return ((p / total)[..., None] * outs).sum(0).to(outs.dtype), torch.log(total)


def merged_alone(outs, lses):
    """Returns no lse."""
    return merged(outs, lses)[0]


def merge_states(v, s):
    """Called as FlashInfer's, with (tokens, parts, heads, head_dim)."""
    tokens, _, heads, d = v.shape
    assert s.shape[::2] == (tokens, heads)
    out, lse = merge_in_base_2(v.transpose(0, 1), s.transpose(0, 1))
    return out, lse


def merge_in_base_2(outs, lses):
    top = lses.amax(0)
    p = torch.exp2(lses - top)
    return ((p / p.sum(0))[..., None] * outs).sum(0).to(outs.dtype), top + torch.log2(p.sum(0))


def merge_state(v_a, s_a, v_b, s_b):
    """Called as FlashInfer's: base 2, (tokens, heads, head_dim) and (tokens, heads)."""
    if v_a.ndim != 3:
        raise ValueError("v_a must be (tokens, heads, head_dim)")
    return merge_in_base_2(torch.stack((v_a, v_b)), torch.stack((s_a, s_b)))


def merge_state_of_one_base_each(v_a, s_a, v_b, s_b):
    """Computes weights to base 2 and the lse to base e."""
    return merge_state(v_a, s_a, v_b, s_b)[0], merge_by_name(v_a, v_b, s_a, s_b)[1]


def merge_by_name(out_a, out_b, lse_a, lse_b):
    return merged(torch.stack((out_a, out_b)), torch.stack((lse_a, lse_b)))


def merge_attn_states(output, prefix_output, prefix_lse, suffix_output, suffix_lse,
                      output_lse=None):  # fmt: skip
    """Called as vLLM's: (tokens, heads, head_dim), (heads, tokens), and outputs to fill."""
    tokens, heads, d = prefix_output.shape
    assert prefix_lse.shape == suffix_lse.shape == (heads, tokens)
    of_parts = torch.stack((prefix_output, suffix_output))
    out, lse = merged(of_parts, torch.stack((prefix_lse, suffix_lse)).mT)
    output.copy_(out)
    if output_lse is not None:
        output_lse.copy_(lse.mT)


@triton.jit
def _merge(out_ptr, out_lse_ptr, a_ptr, lse_a_ptr, b_ptr, lse_b_ptr, D, BLOCK: tl.constexpr):
    token, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    at = head * tl.num_programs(0) + token
    lse_a, lse_b = tl.load(lse_a_ptr + at), tl.load(lse_b_ptr + at)
    top = tl.maximum(lse_a, lse_b)
    a, b = tl.exp(lse_a - top), tl.exp(lse_b - top)
    tl.store(out_lse_ptr + at, top + tl.log(a + b))
    d = tl.arange(0, BLOCK)
    places = (token * heads + head) * D + d
    of_a = tl.load(a_ptr + places, mask=d < D, other=0.0)
    of_b = tl.load(b_ptr + places, mask=d < D, other=0.0)
    tl.store(out_ptr + places, of_a * (a / (a + b)) + of_b * (b / (a + b)), mask=d < D)


def merge_attn_states_of_any_shape(output, prefix_output, prefix_lse, suffix_output, suffix_lse,
                                   output_lse):  # fmt: skip
    """Its kernel reads three sizes and ignores strides, as vLLM's does."""
    sizes = prefix_output.shape
    _merge[(sizes[0], sizes[1])](
        output, output_lse, prefix_output, prefix_lse, suffix_output, suffix_lse, sizes[2],
        triton.next_power_of_2(sizes[2]),
    )  # fmt: skip


def merge_attn_states_the_other_way(output, prefix_output, prefix_lse, suffix_output, suffix_lse):
    merge_attn_states(output, suffix_output, prefix_lse, prefix_output, suffix_lse)


def merge_attn_states_of_a_larger_sum(output, prefix_output, prefix_lse, suffix_output, suffix_lse,
                                      output_lse):  # fmt: skip
    merge_attn_states(output, prefix_output, prefix_lse, suffix_output, suffix_lse, output_lse)
    output_lse += 1e-3


def with_heads_inside(out, lse, block_out, block_lse):
    """As ring attention's: out (batch, queries, heads, head_dim), lse (batch, heads, queries)."""
    outs, lses = torch.stack((out, block_out)), torch.stack((lse, block_lse))
    return merged(outs, lses.mT)[0], merged(outs, lses.mT)[1].mT
