"""The encoder: attention and feed-forward, each in a residual with a layer norm before or after.

Layer norm is fused with the dropout and the residual add before it, so it sits *between* two
sublayers: it takes what one adds to the stream and returns what the next one reads.

    pre-norm    h₀ = x,  y₀ = norm₀(h₀);   hᵢ₊₁ = hᵢ + dropout(subᵢ(yᵢ)),  yᵢ₊₁ = normᵢ₊₁(hᵢ₊₁)
    post-norm   y₀ = x;                    hᵢ₊₁ = yᵢ + dropout(subᵢ(yᵢ)),  yᵢ₊₁ = normᵢ(hᵢ₊₁)

Backward, from the last to the first; f′(d) is the gradient of f's input, given d, that of its
output:

    pre-norm    dhᵢ = dhᵢ₊₁ + normᵢ′(dyᵢ),  dyᵢ₋₁ = subᵢ₋₁′(dropout′(dhᵢ));  dx = dh₀
    post-norm   dhᵢ₊₁ = normᵢ′(dyᵢ₊₁),      dyᵢ = dhᵢ₊₁ + subᵢ′(dropout′(dhᵢ₊₁));  dx = dy₀

Pre-norm (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture") has one norm
more than sublayers and a residual stream hᵢ that no norm interrupts; post-norm is Vaswani et al.
2017.

`B` batch, `L` length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from twofold.core.model.config import SITES_PER_LAYER, ClassifierConfig
from twofold.core.model.layers import FeedForward, Pass, SelfAttention, Sublayer, Views
from twofold.core.model.seeds import drop
from twofold.core.ops import Side


class Cache(NamedTuple):
    """The caches of the norms and of the sublayers, in the order of the forward pass."""

    norms: list[Any]
    sublayers: list[Any]


class Encoder:
    """`config.num_layers` layers over (B, L, d_model).

    Dropout sites are numbered from `first_site`: attention weights, attention's output,
    hidden features, feed-forward's output, layer by layer.
    """

    def __init__(self, config: ClassifierConfig, ops: Side, first_site: int = 0) -> None:
        self.config, self.ops = config, ops
        self.sublayers: list[Sublayer] = []
        for n in range(config.num_layers):
            site = first_site + SITES_PER_LAYER * n
            self.sublayers += [
                SelfAttention(
                    f"layers.{n}.attention", config, ops, site, site + 1, n + 1 == config.num_layers
                ),
                FeedForward(f"layers.{n}.feed_forward", config, ops, site + 2, site + 3),
            ]
        self.norms = [f"{sublayer.name}.norm" for sublayer in self.sublayers]
        if config.norm == "pre":
            self.norms.append("final.norm")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters by name."""
        shapes = {n: s for sublayer in self.sublayers for n, s in sublayer.shapes().items()}
        for norm in self.norms:
            shapes |= dict.fromkeys((f"{norm}.weight", f"{norm}.bias"), (self.config.d_model,))
        return shapes

    def forward(self, x: Any, params: Views, batch: Pass) -> tuple[Any, Cache]:
        """Return the output of the last norm, (B, L, d_model), and the cache.

        L is 1 with `batch.first_only`, and the cache is empty without `batch.keep`.
        """
        cache = Cache([], [])
        if self.config.norm == "pre":
            stream, site = None, -1
            for k, norm in enumerate(self.norms):
                x, stream = self._norm(norm, x, stream, site, params, batch, cache)
                self._hand_on(k, x, batch)
                sublayer = None if k == len(self.sublayers) else self.sublayers[k]
                if sublayer is not None:
                    x = self._added(sublayer, x, params, batch, cache)
                    site = sublayer.output_site
        else:
            for k, (norm, sublayer) in enumerate(zip(self.norms, self.sublayers, strict=True)):
                added = self._added(sublayer, x, params, batch, cache)
                x = x[:, : added.shape[1]]
                x, _ = self._norm(norm, added, x, sublayer.output_site, params, batch, cache)
                self._hand_on(k + 1, x, batch)
        return x, cache

    def backward(self, dy: Any, cache: Cache, grads: Views, of_x: bool = True) -> Any:
        """Write the parameters' gradients into `grads` and return the input's.

        Layers are frozen from below: backward ends at the first whose parameters `grads` does not
        name, and returns None. Without `of_x` the input's gradient is not needed.
        """
        if self.config.norm == "pre":
            dh = None
            for k in reversed(range(len(self.norms))):
                if k < len(self.sublayers) and not self._learns(k, grads):
                    return None
                dadded, dh = self._norm_backward(k, dy, dh, cache, grads)
                if k > 0 and self._learns(k - 1, grads):
                    sublayer = self.sublayers[k - 1]
                    dy = sublayer.backward(dadded, cache.sublayers[k - 1], grads)
            return dadded
        for k in reversed(range(len(self.norms))):
            if not self._learns(k, grads):
                return None
            dadded, dh = self._norm_backward(k, dy, None, cache, grads)
            below = self._learns(k - 1, grads) if k > 0 else of_x
            dy = self.sublayers[k].backward(dadded, cache.sublayers[k], grads, below)
            if below:
                dy[:, : dh.shape[1]] += dh
        return dy

    @staticmethod
    def _hand_on(passed: int, x: Any, batch: Pass) -> None:
        """At a layer's end, two sublayers on, give what the next reads to whoever asked for it."""
        if batch.states is not None and passed > 0 and passed % 2 == 0:
            batch.states.append(x)

    def _learns(self, k: int, grads: Views) -> bool:
        """Return whether gradients of a sublayer, and of the norm named after it, are asked for."""
        return f"{self.norms[k]}.weight" in grads

    @staticmethod
    def _added(sublayer: Sublayer, x: Any, params: Views, batch: Pass, cache: Cache) -> Any:
        """Return what a sublayer adds to the stream."""
        out, sublayer_cache = sublayer.forward(x, params, batch)
        if batch.keep:
            cache.sublayers.append(sublayer_cache)
        return out

    def _norm(
        self, name: str, x: Any, residual: Any, site: int, params: Views, batch: Pass, cache: Cache
    ) -> tuple[Any, Any]:
        """Return the normalised sum and the sum itself, residual + dropout(x)."""
        dropped = {} if residual is None else drop(self.config.dropout, batch.seeds, site)
        y, norm_cache = self.ops.layer_norm.forward(
            x,
            params[f"{name}.weight"],
            params[f"{name}.bias"],
            residual=residual,
            eps=self.config.eps,
            **dropped,
        )
        if batch.keep:
            cache.norms.append(norm_cache)
        return y, norm_cache.h

    def _norm_backward(
        self, k: int, dy: Any, dh: Any, cache: Cache, grads: Views
    ) -> tuple[Any, Any]:
        """Return the gradients of what was added and of what it was added to.

        `dh` is what reaches the sum of both past the norm, if anything does.
        """
        into = [grads[f"{self.norms[k]}.{name}"] for name in ("weight", "bias")]
        g = self.ops.layer_norm.backward(dy, cache.norms[k], dh, into=into)
        return g.dx, g.dresidual
