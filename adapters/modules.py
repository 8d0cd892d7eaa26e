"""torch's modules with our operators inside: the same constructors, state and results.

`B` batch, `H` heads, `M` queries, `N` keys, `E` features, `D` head_dim.
"""

from __future__ import annotations

from typing import Any

import torch

from twofold.adapters.arguments import without_autocast
from twofold.adapters.attention import attention
from twofold.adapters.custom import statistics_dtype
from twofold.adapters.functional import mask_and_bias
from twofold.adapters.given import alike, masks, tensors
from twofold.adapters.layers import layer_norm, linear
from twofold.adapters.rms_norm import rms_norm
from twofold.reference import checks


class MultiheadAttention(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` without the M×N matrix, unless weights are needed.

    For a query that may attend to nothing, attention gives zeros; torch's gives NaN. Empty and
    nested tensors are left to torch.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from the query to the key; arguments and results are torch's.

        Weights, if needed, are those before dropout, and are computed by torch. If they are not and
        no key is padding, `is_causal` is trusted and the mask is not read. If the module adds keys
        of its own (`add_bias_kv`, `add_zero_attn`), the mask is read, and all queries attend to the
        added keys; torch would trust the hint, and treat the added keys as the last ones.

        Raises:
            RuntimeError: `is_causal` without a mask, as in torch.
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        tensors(query=query, key=key, value=value)
        if any(_left_to_torch(x) for x in (query, key, value)):
            return super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
        if is_causal and attn_mask is None:
            raise RuntimeError("attn_mask is None; it must be given with is_causal")
        self._check(query=query, key=key, value=value)
        fits, must = value.shape[:-1] == key.shape[:-1], (*key.shape[:-1], self.vdim)
        checks.require(fits, "value.shape", tuple(value.shape), f"{must}, as key's")
        masks(query, "query", key_padding_mask=key_padding_mask, attn_mask=attn_mask)
        batched = query.dim() == 3
        same = key is query and value is key

        def batch_first(x: torch.Tensor) -> torch.Tensor:
            if not batched:
                return x[None]
            return x if self.batch_first else x.transpose(0, 1)

        given = batch_first(query)
        inputs = (given,) * 3 if same else (given, batch_first(key), batch_first(value))
        q, k, v = (self._heads(x) for x in self._projected(*inputs))  # (B, H, L, D)
        k, v, more = self._with_own_keys(k, v)
        (B, H, M, D), N = q.shape, k.shape[2]
        hinted = is_causal and not need_weights and key_padding_mask is None and not more
        causal = "top-left" if hinted else False
        L = N - more  # keys given by the caller
        padding = attends = None
        if key_padding_mask is not None:
            checks.shape("key_padding_mask", key_padding_mask, (B, L) if batched else (L,))
            padding = key_padding_mask.reshape(B, 1, 1, L)
        if attn_mask is not None and not causal:
            each = attn_mask.dim() == 3
            checks.shape("attn_mask", attn_mask, (B * H, M, L) if each else (M, L))
            attends = attn_mask.reshape(B, H, M, L) if each else attn_mask
        mask, bias = _merged(q.dtype, more, padding, attends)
        dropout_p = self.dropout if self.training else 0.0
        heads_out = attention(q, k, v, causal=causal, mask=mask, bias=bias, dropout_p=dropout_p)
        joined = heads_out.transpose(1, 2).reshape(B, M, H * D)
        out = linear(joined, self.out_proj.weight, self.out_proj.bias)
        weights = None
        if need_weights:
            weights = _weights(q, k, mask, bias)
            weights = weights.mean(1) if average_attn_weights else weights
        if not batched:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _check(self, **given: torch.Tensor) -> None:
        """Refuse tensors that do not fit the weights, or the axes and batch of the first one."""
        own = "in_proj_weight" if self._qkv_same_embed_dim else "q_proj_weight"
        alike(**{own: getattr(self, own)}, **given)
        name_first, first = next(iter(given.items()))
        checks.require(first.dim() in (2, 3), f"{name_first}.dim()", first.dim(), "2 or 3")
        batch = None if first.dim() == 2 else 0 if self.batch_first else 1
        widths = (self.embed_dim, self.kdim, self.vdim)
        for (name, x), width in zip(given.items(), widths, strict=False):
            checks.require(
                x.dim() == first.dim(), f"{name}.dim()", x.dim(), f"that of {name_first}"
            )
            checks.require(x.shape[-1] == width, f"{name}.shape", tuple(x.shape), f"(…, {width})")
            if batch is not None:
                was, must = x.shape[batch], first.shape[batch]
                where = f"{name}.shape[{batch}]"
                checks.require(was == must, where, was, f"that of {name_first}, {must}")

    def _projected(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return q, k and v, (B, L, E), by one product if they have the same input."""
        bias = self.in_proj_bias
        if self._qkv_same_embed_dim and inputs[0] is inputs[1] is inputs[2]:
            return linear(inputs[0], self.in_proj_weight, bias).chunk(3, dim=-1)
        weights = (
            self.in_proj_weight.chunk(3)
            if self._qkv_same_embed_dim
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        return tuple(linear(*parts) for parts in zip(inputs, weights, biases, strict=True))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """View (B, L, E) as (B, H, L, D)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _with_own_keys(
        self, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Append the keys of `add_bias_kv` and `add_zero_attn`; return also how many they are."""
        more = 0
        if self.bias_k is not None and self.bias_v is not None:
            own = (self._heads(x.to(k.dtype)) for x in (self.bias_k, self.bias_v))  # (1, H, 1, D)
            k, v = (
                torch.cat((x, y.expand(len(x), -1, -1, -1)), dim=2)
                for x, y in zip((k, v), own, strict=True)
            )
            more += 1
        if self.add_zero_attn:
            k, v = (torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (k, v))
            more += 1
        return k, v, more


def _left_to_torch(x: torch.Tensor) -> bool:
    """Return whether our operators do not take a tensor."""
    return x.is_nested or x.numel() == 0


def _merged(dtype: torch.dtype, more: int, *several: torch.Tensor | None) -> tuple[Any, Any]:
    """Merge torch's masks into one mask, True where a query may attend, and one bias.

    torch's masks are True where a query may not attend, or are added to the scores. They do not
    cover the last `more` keys, to which all queries may attend.
    """
    mask = bias = None
    for given in several:
        barred, added = mask_and_bias(given, dtype)
        if barred is not None:
            seen = ~torch.nn.functional.pad(barred, (0, more))
            mask = seen if mask is None else mask & seen
        if added is not None:
            added = torch.nn.functional.pad(added, (0, more))
            bias = added if bias is None else bias + added
    return mask, bias


def _weights(q: torch.Tensor, k: torch.Tensor, mask: Any, bias: Any) -> torch.Tensor:
    """Return the weights (B, H, M, N), in the dtype of q; rows without a key are 0.

    All is computed in float32 (float64 for float64): scores could overflow float16, and in bfloat16
    they would be too inaccurate for an exponential.
    """
    wide = statistics_dtype(q)
    with without_autocast(q):
        s = (q.to(wide) * q.shape[-1] ** -0.5) @ k.to(wide).mT
    s = s if bias is None else s + bias
    if mask is not None:
        s = s.masked_fill(~mask, -torch.inf)
    empty = (s == -torch.inf).all(-1, keepdim=True)  # softmax and its gradient are NaN there
    return s.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0).to(q.dtype)


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer`: residual, dropout and norm are one launch each.

    A submodule that was replaced or has hooks is called as it is, with nothing fused; a subclass
    with its own `_sa_block` or `_ff_block` gets torch's forward, which calls them. Empty and nested
    tensors are left to torch, and so are all batches with padding in a
    `torch.nn.TransformerEncoder` in evaluation mode, unless `enable_nested_tensor` is False.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Same attributes, new class: a new module would draw from the random generator again.
        self.self_attn.__class__ = MultiheadAttention

    def forward(
        self,
        src: torch.Tensor,
        src_mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Attend and feed forward; arguments and results are torch's."""
        tensors(src=src)
        if _left_to_torch(src) or self._has_own_blocks():
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        masks(src, "src", src_mask=src_mask, src_key_padding_mask=src_key_padding_mask)
        as_it_is = not self.norm_first or _as_made(self.norm1, torch.nn.LayerNorm)
        if type(self.self_attn) is MultiheadAttention and as_it_is:  # it gets a tensor like src
            self.self_attn._check(src=src)

        def attended(x: torch.Tensor) -> torch.Tensor:
            return self.self_attn(
                x,
                x,
                x,
                attn_mask=src_mask,
                key_padding_mask=src_key_padding_mask,
                need_weights=False,
                is_causal=is_causal,
            )[0]

        if not self.norm_first:
            x = self._normed(self.norm1, attended(src), src, self.dropout1)[0]
            return self._normed(self.norm2, self._fed(x), x, self.dropout2)[0]
        x = self._normed(self.norm1, src)[0]
        x, stream = self._normed(self.norm2, attended(x), src, self.dropout1)
        return stream + self.dropout2(self._fed(x))

    def _has_own_blocks(self) -> bool:
        """Return whether a subclass overrides one of the methods that torch's forward calls."""
        torchs = torch.nn.TransformerEncoderLayer
        return any(
            getattr(type(self), name) is not getattr(torchs, name) or name in vars(self)
            for name in ("_sa_block", "_ff_block")
        )

    def _normed(
        self,
        norm: Any,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        dropout: Any = None,
    ) -> Any:
        """Return the norm of residual + dropout(x), and the sum itself."""
        fused, p = _as_made(norm, torch.nn.LayerNorm) and norm.weight is not None, 0.0
        fused = fused and len(norm.normalized_shape) == 1
        if dropout is not None:
            if fused and _as_made(dropout, torch.nn.Dropout):
                p = dropout.p if dropout.training else 0.0
            else:
                x = dropout(x)
        if not fused:
            stream = x if residual is None else residual + x
            return norm(stream), stream
        bias = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
        y, stream = layer_norm(
            x,
            norm.weight,
            bias,
            residual=residual,
            dropout_p=p,
            eps=norm.eps,
            return_stream=True,
        )
        # Under autocast norms are in float32; the sum has the dtype of its terms.
        own = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
        return y, stream.to(own)

    def _fed(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feed-forward of x, before the last dropout."""
        first, kind = self.linear1, _activation(self.activation)
        if kind is not None and _as_made(first, torch.nn.Linear):
            hidden = linear(x, first.weight, first.bias, kind)
        else:
            hidden = self.activation(_linear(first, x))
        return _linear(self.linear2, self.dropout(hidden))


class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """`torch.nn.TransformerDecoderLayer` with our self-attention and cross-attention.

    Norms, dropout and feed-forward are torch's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for part in (self.self_attn, self.multihead_attn):
            part.__class__ = MultiheadAttention  # as in `TransformerEncoderLayer`


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm`; several axes are flattened to one, and without a weight the gain is 1.

    As in torch, an eps of None is the machine epsilon of the dtype computed in: float32, or float64
    for float64. The weight must have the dtype of the input. Empty and nested tensors are left to
    torch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.eps is not None:
            checks.positive("eps", self.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Divide by the root mean square over the last axes, those of `normalized_shape`.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        tensors(x=x)
        if _left_to_torch(x):
            return super().forward(x)
        axes = len(self.normalized_shape)
        expected = f"(…, {', '.join(map(str, self.normalized_shape))})"
        fits = tuple(x.shape[-axes:]) == self.normalized_shape
        checks.require(fits, "x.shape", tuple(x.shape), expected)
        rows = x.flatten(-axes)
        weight = x.new_ones(rows.shape[-1]) if self.weight is None else self.weight.flatten()
        eps = torch.finfo(statistics_dtype(x)).eps if self.eps is None else self.eps
        return rms_norm(rows, weight, eps=eps).reshape(x.shape)


def _as_made(module: Any, kind: type[torch.nn.Module]) -> bool:
    """Return whether a module is torch's own, without hooks or another forward."""
    if type(module) is not kind or "forward" in vars(module):
        return False
    hooks = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    of_all = torch.nn.modules.module
    return not any(
        getattr(module, f"_{name}") or getattr(of_all, f"_global_{name}") for name in hooks
    )


def _linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    if _as_made(module, torch.nn.Linear):
        return linear(x, module.weight, module.bias)
    return module(x)


def _activation(function: Any) -> str | None:
    """Return the name of an activation that the product's epilogue supports, otherwise None."""
    if function is torch.nn.functional.relu or _as_made(function, torch.nn.ReLU):
        return "relu"
    if _as_made(function, torch.nn.GELU):
        return "gelu_tanh" if function.approximate == "tanh" else "gelu"
    if function is torch.nn.functional.silu or _as_made(function, torch.nn.SiLU):
        return "silu"
    return "gelu" if function is torch.nn.functional.gelu else None
