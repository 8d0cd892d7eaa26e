"""The two sublayers of an encoder: self-attention and feed-forward.

Each names its parameters, runs on views of the flat buffer, and writes its gradients into views of
another, so that the buffer an optimizer reads is complete once backward is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from twofold.core.model.config import ClassifierConfig
from twofold.core.model.seeds import drop
from twofold.core.ops import Side

Views = Mapping[str, Any]


class Pass(NamedTuple):
    """What all layers see of one batch.

    Attributes:
        lengths: (B,), positions at or after them are padding.
        rotary: (cos, sin, interleaved) or None.
        seeds: of the dropout masks by site; None where nothing is dropped.
        states: a list to which each layer's output is appended, or None.
        first_only: only the first position of the last layer is read, so that only it attends
            there. For post-norm layers without rotary positions.
        keep: whether what backward needs is kept. If not, a layer's arrays reuse the memory of the
            layer before: it is in the CPU's cache, and the process already has its pages.
    """

    lengths: Any
    rotary: tuple[Any, Any, bool] | None = None
    seeds: Sequence[Any] | None = None
    states: list[Any] | None = None
    first_only: bool = False
    keep: bool = True


class Sublayer(Protocol):
    """What a residual connection goes around: (B, L, d_model) in and out."""

    @property
    def name(self) -> str:
        """What the names of its parameters begin with."""

    @property
    def output_site(self) -> int:
        """Where its output drops out."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters by name."""

    def forward(self, x: Any, params: Views, batch: Pass) -> tuple[Any, Any]:
        """Return the output and the cache."""

    def backward(self, dout: Any, cache: Any, grads: Views, of_x: bool = True) -> Any:
        """Write the parameters' gradients into `grads`; return the input's, None if not `of_x`."""


@dataclass(frozen=True)
class SelfAttention:
    """Multi-head self-attention over the positions that are not padding."""

    name: str
    config: ClassifierConfig
    ops: Side
    weights_site: int
    output_site: int
    last: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters by name."""
        E = self.config.d_model
        return {
            f"{self.name}.w_qkv": (3 * E, E),
            f"{self.name}.b_qkv": (3 * E,),
            f"{self.name}.w_out": (E, E),
            f"{self.name}.b_out": (E,),
        }

    def forward(self, x: Any, params: Views, batch: Pass) -> tuple[Any, Any]:
        """Return the output, of the first position alone if only that attends, and the cache."""
        queries, context = (x[:, :1], x) if self.last and batch.first_only else (x, None)
        out, cache = self.ops.multi_head_attention.forward(
            queries,
            *(params[name] for name in self.shapes()),
            num_heads=self.config.num_heads,
            context=context,
            key_lengths=batch.lengths,
            rotary=batch.rotary,
            **drop(self.config.attention_dropout, batch.seeds, self.weights_site),
        )
        return out, cache

    def backward(self, dout: Any, cache: Any, grads: Views, of_x: bool = True) -> Any:
        """Write the parameters' gradients into `grads`; return the input's, None if not `of_x`."""
        into = [grads[name] for name in self.shapes()]
        read = {"of_x": of_x, "of_context": of_x}
        g = self.ops.multi_head_attention.backward(dout, cache, into=into, **read)
        if g.dcontext is None:
            return g.dx
        g.dcontext[:, :1] += g.dx
        return g.dcontext


@dataclass(frozen=True)
class FeedForward:
    """Two linear layers, the first with the activation in its epilogue."""

    name: str
    config: ClassifierConfig
    ops: Side
    hidden_site: int
    output_site: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters by name."""
        E, F = self.config.d_model, self.config.d_ff
        return {
            f"{self.name}.w_in": (F, E),
            f"{self.name}.b_in": (F,),
            f"{self.name}.w_out": (E, F),
            f"{self.name}.b_out": (E,),
        }

    def forward(self, x: Any, params: Views, batch: Pass) -> tuple[Any, Any]:
        """Return the output and the cache."""
        w_in, b_in, w_out, b_out = (params[name] for name in self.shapes())
        hidden, cache_in = self.ops.linear.forward(
            x, w_in, b_in, self.config.activation, keep=batch.keep
        )
        cache_drop = None
        if dropped := drop(self.config.hidden_dropout, batch.seeds, self.hidden_site):
            hidden, cache_drop = self.ops.dropout.forward(hidden, *dropped.values())
        out, cache_out = self.ops.linear.forward(hidden, w_out, b_out)
        return out, (cache_in, cache_drop, cache_out)

    def backward(self, dout: Any, cache: Any, grads: Views, of_x: bool = True) -> Any:
        """Write the parameters' gradients into `grads`; return the input's, None if not `of_x`."""
        cache_in, cache_drop, cache_out = cache
        w_in, b_in, w_out, b_out = (grads[name] for name in self.shapes())
        dhidden = self.ops.linear.backward(dout, cache_out, into=(w_out, b_out)).dx
        if cache_drop is not None:
            dhidden = self.ops.dropout.backward(dhidden, cache_drop).dx
        return self.ops.linear.backward(dhidden, cache_in, of_x=of_x, into=(w_in, b_in)).dx
