"""The problems raced: an operator's shapes, the tensors of each, and what they cost.

A problem is a plain call, f(tensors…, options…) -> output or outputs, as in `verify.foreign.table`,
so that whatever can be judged can be raced.

`B` batch, `H` heads, `K` heads of keys, `M` queries, `N` keys, `D` head_dim, `R` rows, `C` columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from twofold.core.bench import costs
from twofold.core.bench.costs import Cost

TOKENS, HIDDEN = 16384, 2048  # of a batch for attention on a GPU
# Batch, heads, length, head_dim of classifiers.
SMALL = ((512, 12, 48, 64), (64, 12, 512, 64), (256, 12, 128, 64), (64, 16, 128, 128))


@dataclass(frozen=True)
class Problem:
    """One shape of one operator.

    Attributes:
        operator: its name.
        title: its sizes and options.
        dtype: of floating tensors.
        costs: the least that each pass must move and compute, by pass.
        make: returns the tensors in the order of the call, given a generator and a device.
        options: the other arguments of the call.
        size: the abscissa in a curve over sizes.
        curve: what it has in common with problems of other sizes on the same curve.
    """

    operator: str
    title: str
    dtype: str
    costs: Mapping[str, Cost]
    make: Callable[[torch.Generator, str], Mapping[str, torch.Tensor]]
    options: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0
    curve: str = ""

    @property
    def name(self) -> str:
        """Return a name that identifies the problem."""
        return f"{self.operator} {self.title} {self.dtype}"


def normal(draw: torch.Generator, device: str, dtype: str, *shape: int) -> torch.Tensor:
    """Draw normal numbers: powers of two or constants would cost less energy, and run faster."""
    made = torch.randn(shape, generator=draw, device=device, dtype=torch.float32)
    return made.to(getattr(torch, dtype))


def attention(
    B: int, H: int, K: int, M: int, N: int, D: int, dtype: str, causal: bool = False
) -> Problem:
    """Scaled dot-product attention of M queries and N keys."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        return {
            "q": normal(draw, device, dtype, B, H, M, D),
            "k": normal(draw, device, dtype, B, K, N, D),
            "v": normal(draw, device, dtype, B, K, N, D),
        }

    heads = f"{H}" if H == K else f"{H}/{K}"
    of = f"D={D}{' causal' if causal else ''}"
    title = f"B={B} H={heads} M={M} N={N} {of}"
    curve = of if M == N and H == K and B * N == TOKENS and H * D == HIDDEN else ""
    cost = costs.attention(B, H, K, M, N, D, _bytes(dtype), causal)
    return Problem("attention", title, dtype, cost, make, {"causal": causal}, N, curve)


def layer_norm(R: int, C: int, dtype: str, fused: bool = False) -> Problem:
    """Rows normalised; if fused, after dropout and the residual add."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        x = normal(draw, device, dtype, R, C)
        weight, bias = (normal(draw, device, dtype, C) for _ in range(2))
        made = {"x": x, "weight": weight, "bias": bias}
        return made | {"residual": normal(draw, device, dtype, R, C)} if fused else made

    cost = costs.layer_norm(R, C, _bytes(dtype), fused)
    of = f"C={C}{' residual+dropout' if fused else ''}"
    options = {"dropout_p": 0.1, "seed": 1} if fused else {"eps": 1e-5}
    return Problem("layer_norm", f"R={R} {of}", dtype, cost, make, options, R * C, of)


def rms_norm(R: int, C: int, dtype: str, fused: bool = False) -> Problem:
    """Rows divided by their root mean square; if fused, after the residual add."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        made = {
            "x": normal(draw, device, dtype, R, C),
            "weight": normal(draw, device, dtype, C),
        }
        return made | {"residual": normal(draw, device, dtype, R, C)} if fused else made

    cost = costs.rms_norm(R, C, _bytes(dtype), fused)
    of = f"C={C}{' residual' if fused else ''}"
    return Problem("rms_norm", f"R={R} {of}", dtype, cost, make, {"eps": 1e-6}, R * C, of)


def linear(R: int, C: int, F: int, dtype: str, activation: str | None = None) -> Problem:
    """A linear layer from C features to F."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        x, weight = normal(draw, device, dtype, R, C), normal(draw, device, dtype, F, C)
        return {"x": x, "weight": weight / C**0.5, "bias": normal(draw, device, dtype, F)}

    cost = costs.linear(R, C, F, _bytes(dtype), activation is not None)
    title = f"R={R} C={C} F={F}{f' {activation}' if activation else ''}"
    return Problem("linear", title, dtype, cost, make, {"activation": activation}, R * F)


def activation(n: int, dtype: str, kind: str = "gelu", bias: bool = False) -> Problem:
    """An activation of n elements, in rows of 1024; with `bias`, one is added first."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        made = {"x": normal(draw, device, dtype, n // 1024, 1024)}
        return made | {"bias": normal(draw, device, dtype, 1024)} if bias else made

    cost = costs.elementwise(n, _bytes(dtype))
    of = f"{'bias+' if bias else ''}{kind}"
    return Problem("activation", f"n={n} {of}", dtype, cost, make, {"kind": kind}, n, of)


def gated_activation(
    R: int, C: int, dtype: str, kind: str = "silu", packed: bool = False
) -> Problem:
    """A gate and what it multiplies, R rows of C columns: two tensors, or halves of one."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        if packed:
            gate, up = normal(draw, device, dtype, R, 2 * C).chunk(2, dim=-1)
        else:
            gate, up = (normal(draw, device, dtype, R, C) for _ in range(2))
        return {"gate": gate, "up": up}

    cost = costs.gated_activation(R * C, _bytes(dtype))
    of = f"C={C} {kind}{' packed' if packed else ''}"
    title = f"R={R} {of}"
    return Problem("gated_activation", title, dtype, cost, make, {"kind": kind}, R * C, of)


def softmax(R: int, C: int, dtype: str) -> Problem:
    """R rows of C columns."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        return {"x": normal(draw, device, dtype, R, C)}

    cost = costs.softmax(R * C, _bytes(dtype))
    return Problem("softmax", f"R={R} C={C}", dtype, cost, make, {}, R * C, f"C={C}")


def cross_entropy(R: int, C: int, dtype: str) -> Problem:
    """R rows of C classes."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        targets = torch.randint(C, (R,), generator=draw, device=device)
        return {"logits": normal(draw, device, dtype, R, C), "targets": targets}

    cost = costs.cross_entropy(R, C, _bytes(dtype))
    return Problem("softmax_cross_entropy", f"R={R} C={C}", dtype, cost, make, {}, R * C)


def rotary(B: int, H: int, L: int, D: int, dtype: str) -> Problem:
    """q and k, of H heads each, rotated."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        angle = torch.rand(L, D // 2, generator=draw, device=device) * 6.0
        q, k = (normal(draw, device, dtype, B, H, L, D) for _ in range(2))
        return {"q": q, "k": k, "cos": angle.cos(), "sin": angle.sin()}

    n = 2 * B * H * L * D
    cost = costs.rotary(n, _bytes(dtype))
    return Problem("rotary", f"B={B} H={H} L={L} D={D}", dtype, cost, make, {}, n, f"D={D}")


def embedding(places: int, rows: int, C: int, dtype: str) -> Problem:
    """Rows looked up, some of them often, as words are."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        spread = torch.rand(places, generator=draw, device=device) ** 4
        ids = (spread * rows).long().view(-1, min(places, 512))
        return {"ids": ids, "table": normal(draw, device, dtype, rows, C)}

    cost = costs.embedding(places, rows, C, _bytes(dtype))
    of = f"V={rows} C={C}"
    return Problem("embedding", f"places={places} {of}", dtype, cost, make, {}, places * C, of)


def positional_encoding(B: int, L: int, rows: int, C: int, dtype: str) -> Problem:
    """Rows looked up, and the rows of their positions added."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        ids = torch.randint(rows, (B, L), generator=draw, device=device)
        table = normal(draw, device, dtype, rows, C)
        return {"ids": ids, "table": table, "position_table": normal(draw, device, dtype, L, C)}

    cost = costs.positions(B * L, L, rows, C, _bytes(dtype))
    of = f"V={rows} C={C}"
    title = f"B={B} L={L} {of}"
    return Problem("positional_encoding", title, dtype, cost, make, {}, B * L * C, of)


def dropout(n: int, dtype: str) -> Problem:
    """n elements, a tenth of them dropped."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        return {"x": normal(draw, device, dtype, n // 1024, 1024)}

    cost = costs.dropout(n, _bytes(dtype))
    return Problem("dropout", f"n={n}", dtype, cost, make, {"p": 0.1, "seed": 1}, n, "p=0.1")


def adam(n: int) -> Problem:
    """A step of AdamW on n parameters."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        return {name: normal(draw, device, "float32", n) for name in ("params", "grads")}

    options = {"lr": 1e-4, "weight_decay": 0.01}
    return Problem("optimizers", f"n={n}", "float32", costs.adam(n), make, options, n, "AdamW")


def decode(B: int, H: int, K: int, N: int, D: int, dtype: str) -> Problem:
    """One new query for every sequence, with a full cache."""

    def make(draw: torch.Generator, device: str) -> dict[str, torch.Tensor]:
        q = normal(draw, device, dtype, B, H, 1, D)
        k, v = (normal(draw, device, dtype, B, K, N, D) for _ in range(2))
        lengths = torch.full((B,), N, dtype=torch.int32, device=device)
        return {"q": q, "k_cache": k, "v_cache": v, "key_lengths": lengths}

    cost = costs.decode(B, H, K, 1, N, D, _bytes(dtype))
    title = f"B={B} H={H}/{K} N={N} D={D}"
    return Problem("attention_decode", title, dtype, cost, make, {}, N)


def _bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def on_cpu() -> list[Problem]:
    """Return the problems raced on a CPU: sizes of a small classifier, in float32."""
    f = "float32"
    return [
        *(attention(64, 4, 4, L, L, 32, f) for L in (24, 48)),
        attention(8, 8, 8, 256, 256, 64, f),
        attention(4, 8, 8, 512, 512, 64, f, causal=True),
        *(layer_norm(R, C, f) for R, C in ((3072, 128), (2048, 384), (4096, 1024))),
        *(linear(R, C, F, f, a) for R, C, F, a in
          ((3072, 128, 512, "gelu"), (2048, 384, 1536, "gelu"), (2048, 384, 1152, None))),
        activation(2**20, f),
        activation(2**20, f, "relu"),
        activation(2**20, f, "silu"),
        activation(2**20, f, bias=True),
        gated_activation(1024, 1024, f),
        gated_activation(1024, 1024, f, packed=True),
        *(softmax(R, C, f) for R, C in ((12288, 48), (4096, 1024))),
        *(cross_entropy(R, C, f) for R, C in ((64, 8), (2048, 8192))),
        rotary(64, 4, 48, 32, f),
        rotary(8, 8, 256, 64, f),
        embedding(3072, 7000, 128, f),
        layer_norm(3072, 128, f, fused=True),
        *(rms_norm(R, C, f) for R, C in ((2048, 384), (4096, 1024))),
        rms_norm(2048, 384, f, fused=True),
        positional_encoding(64, 48, 7000, 128, f),
        dropout(2**20, f),
        adam(2**20),
        decode(4, 8, 2, 1024, 64, f),
    ]  # fmt: skip


def on_gpu() -> list[Problem]:
    """Return the problems raced on a GPU: attention of 16k tokens, the rest from 1 MB to 512 MB."""
    b = "bfloat16"
    # The most informative come first, here and below: time may run out.
    shapes = [(L, D, b) for D in (128, 64, 256) for L in (4096, 16384, 512, 8192, 1024, 2048)]
    shapes += [(4096, D, "float16") for D in (128, 64, 256)]
    found = [attention(B, H, H, L, L, D, b) for B, H, L, D in SMALL]
    for L, D, dtype in shapes:
        H = HIDDEN // D
        found += [attention(TOKENS // L, H, H, L, L, D, dtype, c) for c in (False, True)]
    found.append(attention(4, 64, 8, 4096, 4096, 128, b, causal=True))
    found += [cross_entropy(R, C, b) for R, C in ((8192, 8192), (4096, 32768), (2048, 131072))]
    found += [adam(n * 10**6) for n in (1, 10, 100)]
    found += [linear(16384, C, F, b, "gelu") for C, F in ((768, 3072), (2048, 8192))]
    for megabytes in (64, 512, 1, 16, 256, 4):
        n = megabytes * 2**20 // 2
        for C, fused in itertools.product((768, 4096), (False, True)):
            found += [norm(n // C, C, b, fused) for norm in (layer_norm, rms_norm)]
        found += [softmax(n // C, C, b) for C in (1024, 4096)]
        found += [dropout(n, b), positional_encoding(n // 2**18 or 1, 256, 32768, 1024, b)]
        length = min(n // 2048, 1024)  # with 16 heads of 64 features each in q and k
        found += [activation(n, b, bias=bias) for bias in (False, True)]
        found += [gated_activation(n // 8192, 8192, b, packed=packed) for packed in (False, True)]
        found.append(rotary(n // 2048 // length, 16, length, 64, b))
        found.append(embedding(n // 1024, 32768, 1024, b))
    found += [softmax(R, C, b) for R, C in ((2**22, 64), (8192, 32768), (2048, 131072))]
    found += [
        decode(B, 32, K, N, D, b)
        for B, K, N, D in (
            (1, 8, 131072, 128),
            (16, 8, 8192, 128),
            (64, 8, 2048, 128),
            (64, 32, 2048, 64),
        )
    ]
    return found
