"""Foreign pooling functions: with lengths or a mask, of one kind or of all."""

import torch


def pool(x, lengths, kind="mean"):
    """Called like the operator itself."""
    places = torch.arange(x.shape[1]) < lengths[:, None]
    return pool_masked(x, places, kind)


def pool_masked(x, mask, kind):
    mean = (x * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    top = x.masked_fill(~mask[..., None], float("-inf")).amax(1)
    if kind == "mean_max":
        return torch.cat((mean, top), -1)
    return {"first": x[:, 0], "mean": mean, "max": top}[kind]


def mean_pooling(token_embeddings, attention_mask):
    """As sentence-transformers': the mask is 1 where a token counts."""
    weights = attention_mask.unsqueeze(-1).expand(token_embeddings.size()).float()
    return (token_embeddings * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def max_pooling(x, attention_mask):
    """Sets padding to −∞; its mask holds numbers."""
    hidden = (1 - attention_mask)[..., None].bool()
    return torch.max(x.masked_fill(hidden, float("-inf")), 1)[0]


def average_pool(last_hidden_states, attention_mask):
    """As E5's, whose mask is True where a token counts."""
    kept = last_hidden_states.masked_fill(~attention_mask[..., None], 0.0)
    return kept.sum(1) / attention_mask.sum(1)[..., None]


def mean_but_padding(x, padding_mask):
    return average_pool(x, ~padding_mask)


def weighted(x, weights):
    """Takes a mask of numbers, which weights the rows of x."""
    return torch.bmm(weights[:, None], x)[:, 0] / weights.sum(1, keepdim=True)


def first(x, mask):
    return x[:, 0]


def mean_of_all(x):
    """Ignores that there is padding."""
    return x.mean(1)


def mean_over_padding(x, attention_mask):
    """Sums what counts, but divides by the length with padding."""
    return (x * attention_mask[..., None]).sum(1) / x.shape[1]


def mean_that_forgets_the_mask(x, attention_mask):
    return x.mean(1)


def max_of_zeros(x, attention_mask):
    """Sets padding to 0, which exceeds negative values."""
    return (x * attention_mask[..., None]).amax(1)


def mean_one_too_many(x, lengths):
    return pool(x, (lengths + 1).clamp(max=x.shape[1]))
