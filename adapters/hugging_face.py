"""`attn_implementation="twofold"` for the models of `transformers`.

    from twofold.adapters import hugging_face

    hugging_face.register()
    model = AutoModel.from_pretrained("…", attn_implementation="twofold")

Masks are made as for torch's attention: none where a model is causal and nothing is padded.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from twofold.adapters import sides
from twofold.adapters.attention import attention
from twofold.adapters.functional import mask_and_bias, wide

NAME = "twofold"


def register(name: str = NAME) -> None:
    """Make the kernels known to `transformers` as an attention implementation.

    Raises:
        ModuleNotFoundError: `transformers` is not installed.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def mask(*args: Any, config: Any = None, **how: Any) -> torch.Tensor | None:
        _refuse_models_of_their_own_attention(config, name)
        made: torch.Tensor | None = sdpa_mask(*args, config=config, **how)
        return made

    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, mask)


def _refuse_models_of_their_own_attention(config: Any, name: str) -> None:
    """Raise for models that ask for a mask and then attend by themselves, which would add it."""
    place = type(config).__module__.replace(".configuration_", ".modeling_")
    model = sys.modules.get(place)
    if model is not None and not hasattr(model, "ALL_ATTENTION_FUNCTIONS"):
        kind = getattr(config, "model_type", type(config).__name__)
        must = "it must be 'eager': the model has no other attention than its own"
        raise ValueError(f"attn_implementation is {name!r} for {kind}; {must}")


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, as a model of `transformers` asks for it.

    A sliding window is in the mask; heads that share keys need no argument.

    Args:
        module: the layer; `is_causal` is its own where it is not given.
        query: (B, H, M, D).
        key, value: (B, K, N, D) and (B, K, N, V).
        attention_mask: None, True where a query may attend, or floating and added to the scores;
            broadcastable to (B, H, M, N) after what passes N is cut off.
        dropout: probability of dropping a weight.
        scaling: of the products; 1/√D by default.
        is_causal: looked at without a mask and with more than one query, which are then the first.
        softcap: caps the scores (Gemma 2).
        s_aux: sinks (H,) (gpt-oss).
        position_bias: added to the scores (T5).
        kwargs: what other implementations take, `sliding_window` among it.

    Returns:
        (B, M, H, V), and None for the weights, which are never made; a warning says so where a
        model asks for them.
    """
    if kwargs.get("output_attentions"):
        sides.say_once(
            "output_attentions is True; it must be False with twofold, which returns no weights: "
            "attn_implementation='eager' does"
        )
    M, N, V = query.shape[2], key.shape[2], value.shape[-1]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    seen = None if attention_mask is None else attention_mask[..., :N]
    mask, bias = mask_and_bias("attention_mask", seen, query.dtype)
    if position_bias is not None:
        moved = position_bias.to(query.dtype)
        bias = moved if bias is None else bias + moved
    width = max(query.shape[-1], V)
    out = attention(
        wide(query, width),
        wide(key, width),
        wide(value, width),
        softmax_scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        causal="top-left" if causal and attention_mask is None and M > 1 else False,
        softcap=softcap,
        sinks=s_aux,
        mask=mask,
        bias=bias,
        dropout_p=dropout,
    )
    return out[..., :V].transpose(1, 2).contiguous(), None
