"""PyTorch's attention: each backend of scaled_dot_product_attention, and FlexAttention.

A backend that does not accept a case raises RuntimeError, which is turned into a refusal here.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

# What scaled_dot_product_attention says if the requested backend has no kernel for a case.
REFUSALS = ("No available kernel", "No viable backend")


def _scaled_dot_product(backend: SDPBackend) -> Callable[..., Any]:
    def attention(
        q: Any, k: Any, v: Any, softmax_scale: Any = None, causal: bool = False, mask: Any = None
    ) -> Any:
        """Compute softmax(q·kᵀ·scale)·v with one backend."""
        if causal and mask is not None:
            raise NotImplementedError("it takes a mask or is_causal, not both")
        with sdpa_kernel(backend), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning for each backend that was not requested
            try:
                return functional.scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=mask,
                    is_causal=causal,
                    scale=softmax_scale,
                    enable_gqa=_shared(q, k),
                )
            except RuntimeError as refusal:
                if any(words in str(refusal) for words in REFUSALS):
                    raise NotImplementedError(str(refusal).splitlines()[0]) from None
                raise

    return attention


math = _scaled_dot_product(SDPBackend.MATH)
flash = _scaled_dot_product(SDPBackend.FLASH_ATTENTION)
efficient = _scaled_dot_product(SDPBackend.EFFICIENT_ATTENTION)
cudnn = _scaled_dot_product(SDPBackend.CUDNN_ATTENTION)


def flex(
    q: Any, k: Any, v: Any, softmax_scale: Any = None, causal: bool = False, mask: Any = None
) -> Any:
    """Run FlexAttention uncompiled: without torch.compile it is not fused, and warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out, aux = flex_attention(
            _input(q),
            _input(k),
            _input(v),
            block_mask=_block_mask(q, k, causal, mask),
            scale=softmax_scale,
            enable_gqa=_shared(q, k),
            return_aux=AuxRequest(lse=True),
        )
    return out, aux.lse


def flex_compiled(
    q: Any, k: Any, v: Any, softmax_scale: Any = None, causal: bool = False, mask: Any = None
) -> Any:
    """Run FlexAttention compiled; on a CPU that is C++, without the log-sum-exp."""
    with torch._dynamo.config.patch(recompile_limit=1000, fail_on_recompile_limit_hit=True):
        return _compiled(
            _input(q),
            _input(k),
            _input(v),
            block_mask=_block_mask(q, k, causal, mask),
            scale=softmax_scale,
            enable_gqa=_shared(q, k),
        )


_compiled = torch.compile(flex_attention)  # compiles again, for dynamic sizes, when a size changes


def _shared(q: Any, k: Any) -> bool:
    """Return whether several heads of queries share one head of keys."""
    return bool(q.shape[1] != k.shape[1])


def _input(x: Any) -> Any:
    """Detach tensors except on CUDA: on a CPU FlexAttention refuses inputs that need gradients."""
    return x if x.is_cuda else x.detach()


def _block_mask(q: Any, k: Any, causal: bool, mask: Any) -> Any:
    if not causal and mask is None:
        return None
    (B, H, M, _), N = q.shape, k.shape[2]
    if causal and M != N:
        raise NotImplementedError("what causal means is said by its mask, which is made here")
    if mask is None:
        return _causal_mask(M, N, q.device)
    every = mask.expand(B, H, M, N)

    def live(b: Any, h: Any, i: Any, j: Any) -> Any:
        before = i >= j if causal else j >= 0
        return before & every[b, h, i, j]

    return create_block_mask(live, B, H, M, N, device=q.device)


@functools.lru_cache(maxsize=64)
def _causal_mask(M: int, N: int, device: Any) -> Any:
    """Return the mask, made once: a model makes one for all layers, so it is not timed."""
    return create_block_mask(lambda b, h, i, j: i >= j, None, None, M, N, device=device)
