"""How far BERT may be from its mathematics, one layer at a time.

Through a whole model a bound is worth nothing: every layer multiplies the errors of what it reads
by the norms of its weights. Through one layer whose input is known exactly it is worth something,
and layer after layer it judges the whole: what layer n makes of an input is off by no more than
`layer` says, whoever computes it. It is the chain of the operators' own bounds, each kernel's
result cast before the next reads it.

`B` batch, `L` length, `E` features, `H` heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from twofold.core.model.config import ClassifierConfig
from twofold.core.verify import attention_bound
from twofold.core.verify.contracts.activation import activate
from twofold.core.verify.contracts.layer_norm import normalised
from twofold.core.verify.machines import Machine
from twofold.core.verify.rounding import Approx, Array, exact, matmul

Params = Mapping[str, Array]


def embeddings(
    config: ClassifierConfig, params: Params, ids: Array, types: Array, on: Machine
) -> Approx:
    """Return the normalised sum of what ids, positions and token types stand for, (B, L, E)."""
    words, kinds = params["embedding.table"][ids], params["types.table"][types]
    positions = np.broadcast_to(params["positions.table"][: ids.shape[1]], words.shape)
    total = (exact(words, on) + exact(positions, on)).stored() + exact(kinds, on)
    return _norm(config, params, "embedding.norm", total.stored()).returned()


def layer(
    config: ClassifierConfig, params: Params, n: int, x: Array, lengths: Array, on: Machine
) -> Approx:
    """Return what layer n makes of x, (B, L, E) float64, of which `lengths` positions count."""
    B, L, E = x.shape
    H = config.num_heads
    attention, forward = f"layers.{n}.attention", f"layers.{n}.feed_forward"
    rows = exact(x, on).reshape(B * L, E)
    # attention of every head
    packed = _linear(params, rows, f"{attention}.w_qkv", f"{attention}.b_qkv").stored()
    q, k, v = (
        packed[:, part * E : (part + 1) * E].moved(
            lambda a: a.reshape(B, L, H, E // H).swapaxes(1, 2)
        )
        for part in range(3)
    )
    live = np.broadcast_to(np.arange(L) < lengths[:, None, None, None], (B, H, L, L))
    call = attention_bound.Problem(q, k, v, live, np.ones(live.shape), (E // H) ** -0.5)
    heads = attention_bound.forward(call).out.moved(lambda a: a.swapaxes(1, 2).reshape(B * L, E))
    added = _linear(params, heads, f"{attention}.w_out", f"{attention}.b_out").stored()
    rows = _norm(config, params, f"{attention}.norm", (rows + added).stored()).stored()
    # feed-forward
    z = _linear(params, rows, f"{forward}.w_in", f"{forward}.b_in")
    hidden = activate(z, config.activation).stored()
    added = _linear(params, hidden, f"{forward}.w_out", f"{forward}.b_out").stored()
    out = _norm(config, params, f"{forward}.norm", (rows + added).stored())
    return out.reshape(B, L, E).returned()


def logits(config: ClassifierConfig, params: Params, x: Array, on: Machine) -> Approx:
    """Return what pooler and head make of the last layer's x, (B, L, E)."""
    pooled = _linear(params, exact(x[:, 0], on), "pooler.weight", "pooler.bias")
    return _linear(params, activate(pooled, "tanh").stored(), "head.weight", "head.bias").returned()


def _linear(params: Params, x: Approx, weight: str, bias: str) -> Approx:
    return matmul(x, exact(params[weight], x.on).mT) + exact(params[bias], x.on)


def _norm(config: ClassifierConfig, params: Params, name: str, h: Approx) -> Approx:
    xhat, _ = normalised(h, config.eps)
    return xhat * exact(params[f"{name}.weight"], h.on) + exact(params[f"{name}.bias"], h.on)
