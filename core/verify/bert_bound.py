"""How far BERT may be from its mathematics, one step at a time.

Carried through a whole model, a bound is worthless: every layer multiplies the errors of what it
reads by the norms of its weights, and attention takes their exponential. In float32 one layer is
enough: through one of MiniLM's, most bounds are infinite, and after its attention half alone they
are typically 10 to 16 % of the output. So each step of a layer is judged from what the step before
it stored, as it was stored: that is known exactly, whatever it ought to have been. The bound is
then that of one operator, or of a product and the residual that it is added to, typically 0.002 to
0.12 % of the output, and step by step it judges the whole.

`B` batch, `L` length, `E` features, `F` hidden features, `H` heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from twofold.core.model.config import ClassifierConfig
from twofold.core.verify import attention_bound
from twofold.core.verify.contracts.activation import activate
from twofold.core.verify.contracts.layer_norm import normalised
from twofold.core.verify.machines import Machine
from twofold.core.verify.rounding import Approx, Array, exact, matmul
from twofold.reference.multi_head_attention import join, split

Params = Mapping[str, Array]


class Layer(NamedTuple):
    """What a layer reads and what its steps store, each as the next one reads it."""

    x: Array  # (B, L, E)
    qkv: Array  # (B, L, 3E)
    heads: Array  # (B, L, E), side by side
    attended: Array  # (B, L, E), x plus what attention adds
    y: Array  # (B, L, E), `attended` normalised
    hidden: Array  # (B, L, F), after the activation
    fed: Array  # (B, L, E), y plus what the feed-forward adds
    out: Array  # (B, L, E), `fed` normalised


def embeddings(
    config: ClassifierConfig, params: Params, ids: Array, types: Array, on: Machine
) -> Approx:
    """Return the normalised sum of words, positions and token types, in any order, (B, L, E)."""
    words, kinds = params["embedding.table"][ids], params["types.table"][types]
    positions = np.broadcast_to(params["positions.table"][: ids.shape[1]], words.shape)
    total = exact(np.stack([words, positions, kinds]), on).sum(0)
    return _norm(config, params, "embedding.norm", total.stored()).returned()


def layer(
    config: ClassifierConfig, params: Params, n: int, found: Layer, lengths: Array, on: Machine
) -> dict[str, Approx]:
    """Return what each step of layer n makes of its stored input, by the step's name.

    Args:
        config: a BERT's.
        params: float64 arrays by name, as the model's dtype holds them.
        n: which layer.
        found: what an implementation read and stored there, in any dtype that `on` has.
        lengths: (B,), how many positions are not padding; bounds at the others mean nothing.
        on: the arithmetic.
    """
    (B, L, E), H = found.x.shape, config.num_heads
    attention, forward = f"layers.{n}.attention", f"layers.{n}.feed_forward"
    x, y, heads, hidden = (exact(a, on) for a in (found.x, found.y, found.heads, found.hidden))
    q, k, v = (exact(a, on) for a in split(found.qkv, H, H, H))
    live = np.broadcast_to(np.arange(L) < lengths[:, None, None, None], (B, H, L, L))
    call = attention_bound.Problem(q, k, v, live, np.ones(live.shape), (E // H) ** -0.5)
    truths = {
        "qkv": _linear(params, x, f"{attention}.w_qkv", f"{attention}.b_qkv"),
        "heads": attention_bound.forward(call).out.moved(join),
        "attended": x + _linear(params, heads, f"{attention}.w_out", f"{attention}.b_out").stored(),
        "y": _norm(config, params, f"{attention}.norm", exact(found.attended, on)),
        "hidden": _activated(config, _linear(params, y, f"{forward}.w_in", f"{forward}.b_in")),
        "fed": y + _linear(params, hidden, f"{forward}.w_out", f"{forward}.b_out").stored(),
        "out": _norm(config, params, f"{forward}.norm", exact(found.fed, on)),
    }
    return {name: truth.returned() for name, truth in truths.items()}


def logits(config: ClassifierConfig, params: Params, x: Array, on: Machine) -> Approx:
    """Return the logits that pooler and head make of the last layer's output, (B, L, E)."""
    pooled = _linear(params, exact(x[:, 0], on), "pooler.weight", "pooler.bias")
    return _linear(params, activate(pooled, "tanh").stored(), "head.weight", "head.bias").returned()


def _linear(params: Params, x: Approx, weight: str, bias: str) -> Approx:
    return matmul(x, exact(params[weight], x.on).mT) + exact(params[bias], x.on)


def _norm(config: ClassifierConfig, params: Params, name: str, h: Approx) -> Approx:
    xhat, _ = normalised(h, config.eps)
    return xhat * exact(params[f"{name}.weight"], h.on) + exact(params[f"{name}.bias"], h.on)


def _activated(config: ClassifierConfig, z: Approx) -> Approx:
    """Return the activation with its bound, whichever way its tanh form is written.

    In z·½(1 + tanh a), the usual form elsewhere, the sum cancels where a < 0: there the error is
    absolute, as in erf's form.
    """
    hidden = activate(z, config.activation)
    if config.activation != "gelu_tanh":
        return hidden
    cancelled = z.on.u_function * (np.abs(z.value) + z.error)
    return replace(hidden, error=hidden.error + cancelled)
