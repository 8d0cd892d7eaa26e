"""Attention whose masks mean something else than the contract's, or that is always causal."""

import torch

NOT = float("-inf")


def _attend(s, v):
    return (torch.softmax(s, -1) @ v.double()).to(v.dtype)


def _scores(q, k):
    return q.double() @ k.double().mT * q.shape[-1] ** -0.5


def hidden_where_true(q, k, v, mask=None):
    """True hides a key, as in torch's nn.MultiheadAttention."""
    s = _scores(q, k)
    return _attend(s if mask is None else s.masked_fill(mask, NOT), v)


def shown_where_one(q, k, v, mask=None):
    """1 shows a key, as in many tutorials."""
    s = _scores(q, k)
    return _attend(s if mask is None else s.masked_fill(mask == 0, NOT), v)


def added(q, k, v, mask=None):
    s = _scores(q, k)
    return _attend(s if mask is None else s + mask, v)


def padding_as_torch(q, k, v, key_padding_mask=None):
    s = _scores(q, k)
    if key_padding_mask is not None:
        batch, keys = key_padding_mask.shape
        s = s.masked_fill(key_padding_mask.view(batch, 1, 1, keys), NOT)
    return _attend(s, v)


def padding_as_flash(q, k, v, key_padding_mask):
    """Requires a mask, True where a key is attended to."""
    return padding_as_torch(q, k, v, ~key_padding_mask)


def padding_of_numbers(q, k, v, attention_mask=None):
    """Takes 1 for a token and 0 for padding, as Hugging Face's tokenizers make it."""
    if attention_mask is None:
        return padding_as_torch(q, k, v)
    return padding_as_torch(q, k, v, (1 - attention_mask).bool())


def padding_of_values_alone(q, k, v, key_padding_mask=None):
    """Zeroes hidden values, but leaves their keys the weight."""
    if key_padding_mask is not None:
        v = v.masked_fill(key_padding_mask[:, None, :, None], 0.0)
    return _attend(_scores(q, k), v)


def padding_of_the_first_batch(q, k, v, attention_mask=None):
    return padding_of_numbers(q, k, v, None if attention_mask is None else attention_mask[:1])


def hidden_but_the_last(q, k, v, mask=None):
    if mask is not None:
        mask = mask.clone()
        mask[..., -1] = False
    return hidden_where_true(q, k, v, mask)


def _causal(q, k, v, diagonal):
    s = _scores(q, k)
    later = torch.ones(s.shape[-2:], dtype=torch.bool).triu(diagonal)
    return _attend(s.masked_fill(later, NOT), v)


def always_causal(q, k, v):
    return _causal(q, k, v, 1)


def always_causal_and_grouped(q, k, v):
    return always_causal(q, *(x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v)))


def always_causal_at_the_bottom(q, k, v):
    return _causal(q, k, v, 1 + k.shape[2] - q.shape[2])


def always_causal_with_heads_inside(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return always_causal(q, k, v).transpose(1, 2)


def always_causal_without_scale(q, k, v):
    return always_causal(q * q.shape[-1] ** 0.5, k, v)


def always_causal_of_one_head(q, k, v):
    length, _ = q.shape
    assert len(k) == length
    return _causal(q[None, None], k[None, None], v[None, None], 1)[0, 0]


def always_causal_and_square(q, k, v):
    if q.shape != k.shape:
        raise ValueError("as many keys as queries")
    return _causal(q, k, v, 1)


def always_causal_but_itself(q, k, v):
    """No query sees its own key, except the first, which has no other."""
    s = _scores(q, k)
    later = torch.ones(s.shape[-2:], dtype=torch.bool).triu(0)
    later[0, 0] = False
    return _attend(s.masked_fill(later, NOT), v)
