"""`attn_implementation="twofold"` for the models of `transformers`.

    from twofold.adapters import hugging_face

    hugging_face.register()
    model = AutoModel.from_pretrained("…", attn_implementation="twofold")

Masks are made as for torch's attention: there is none where a model is causal and nothing is
padded, unless its layers may not say whether they are causal, as in models without support for
torch's attention. A model with its own attention that never asks for a mask (DeBERTa, XLNet, FNet,
ProphetNet) does not see the setting, and uses its own attention. Falcon and GPT-Neo look the name
up in tables of their own, and cannot be built with it: they raise a KeyError.
"""

from __future__ import annotations

import inspect
import re
import sys
from types import ModuleType
from typing import Any

import torch

from twofold.adapters import sides
from twofold.adapters.attention import attention
from twofold.adapters.functional import mask_and_bias, wide
from twofold.adapters.given import masks

NAME = "twofold"
SKIPS = ("allow_is_causal_skip", "allow_is_bidirectional_skip")  # omit masks that say nothing
# Tensors that layers pass on, and whose meaning is already in the mask or in q and k.
HARMLESS = (
    "position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q",
    "max_length_k", "cu_seqlens", "max_seqlen", "position_embeddings", "token_type_ids",
    "padding_mask", "input_ids", "labels",
)  # fmt: skip


def register(name: str = NAME) -> None:
    """Register the kernels with `transformers` as an attention implementation.

    Raises:
        ModuleNotFoundError: `transformers` is not installed.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def mask(*args: Any, config: Any = None, **how: Any) -> torch.Tensor | None:
        model = _modeling(config)
        _refuse_a_model_of_its_own_attention(model, config, name)
        if not _says_causal(model):
            how |= dict.fromkeys(SKIPS, False)
        made: torch.Tensor | None = sdpa_mask(*args, config=config, **how)
        return made

    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, mask)


def _modeling(config: Any) -> ModuleType | None:
    """Return the module that defines a config's models, if it is imported."""
    return sys.modules.get(type(config).__module__.replace(".configuration_", ".modeling_"))


def _says_causal(model: ModuleType | None) -> bool:
    """Return whether layers are known to say that they are causal if no mask does.

    To use torch's attention they must. Others may too, as in gpt-oss, whose sinks torch's lacks.
    """
    from transformers import PreTrainedModel

    kinds = () if model is None else vars(model).values()
    own = [x for x in kinds if isinstance(x, type) and issubclass(x, PreTrainedModel)]
    supporting = [getattr(x, "_supports_sdpa", False) for x in own if x is not PreTrainedModel]
    if supporting and all(supporting):
        return True
    try:
        source = "" if model is None else inspect.getsource(model)
    except OSError:  # its source cannot be read
        return False
    return re.search(r"\bis_causal\s*=\s*True\b", source) is not None


def _refuse_a_model_of_its_own_attention(model: ModuleType | None, config: Any, name: str) -> None:
    """Raise for models that ask for a mask but use their own attention, which would add it."""
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
    """Attend, called as an attention implementation of `transformers`.

    A sliding window is in the mask; heads that share keys need no argument.

    Args:
        module: the layer, whose `is_causal` is used if none is given.
        query: (B, H, M, D).
        key, value: (B, K, N, D) and (B, K, N, V).
        attention_mask: None, True where a query may attend, or floating and added to the scores;
            broadcastable to (B, H, M, N) once cut off at N.
        dropout: probability of dropping a weight.
        scaling: of the products; 1/√D by default.
        is_causal: used only without a mask and with more than one query, which are then the first.
        softcap: caps the scores (Gemma 2).
        s_aux: sinks (H,) (gpt-oss).
        position_bias: added to the scores (T5).
        kwargs: what other implementations take, such as `sliding_window`. Tensors not in
            `HARMLESS` would change the result (`sinks`, `indices`, …), and are refused.

    Returns:
        (B, M, H, V), and None for the weights, which are never computed; a warning says so if a
        model asks for them.

    Raises:
        ValueError: a tensor was given by a name that is unknown here.
    """
    for name, x in kwargs.items():
        if name not in HARMLESS and isinstance(x, torch.Tensor):
            must = "it must be None: attn_implementation='eager' or 'sdpa' may know of it"
            raise ValueError(f"{name} is a tensor {tuple(x.shape)}; {must}")
    if kwargs.get("output_attentions"):
        sides.say_once(
            "output_attentions is True; it must be False with twofold, which returns no weights: "
            "attn_implementation='eager' does"
        )
    M, N, V = query.shape[2], key.shape[2], value.shape[-1]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    seen = None if attention_mask is None else attention_mask[..., :N]
    masks(query, "query", attention_mask=seen)
    mask, bias = mask_and_bias(seen, query.dtype)
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
