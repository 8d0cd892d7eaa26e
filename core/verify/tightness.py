"""How much of each bound a kernel uses: |kernel − truth| / bound, element by element.

A bound that nothing can reach says little, and an infinite one nothing. So every operator is run in
every mode of input, on six shapes of its own (single elements, odd ones, ones that cross a tile,
and one where sums are long), in every precision, and the shares of each output are collected: their
median, their largest, and how many elements the bound did not decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from twofold.core.ops import Side
from twofold.core.verify import domains, report
from twofold.core.verify.contract import (
    certain_and_likely,
    computed,
    fitting,
    precision_name,
    shares,
)
from twofold.core.verify.rounding import Approx

Array = domains.Array

# What attention calls large is a score, whatever the size of q and k.
LOGITS = {"large": 10.0, "huge": 1000.0, "tiny": 1e-3}

SHAPES: dict[str, tuple[dict[str, Any], ...]] = {
    "attention": (
        {"seqlen_q": 1, "seqlen_k": 1, "head_dim": 1},
        {"batch": 2, "seqlen_q": 5, "seqlen_k": 7, "head_dim": 3, "mask": "MN"},
        {"heads": 2, "seqlen_q": 17, "seqlen_k": 16, "head_dim": 8, "causal": True, "dlse": True},
        {"seqlen_q": 33, "seqlen_k": 65, "head_dim": 31, "dropout_p": 0.25},
        {"batch": 2, "seqlen_q": 67, "seqlen_k": 130, "head_dim": 64, "key_lengths": True},
        {"seqlen_q": 129, "seqlen_k": 1000, "head_dim": 16},
    ),
    "attention_double_backward": (
        {"seqlen_q": 1, "seqlen_k": 1, "head_dim": 1, "dlse": True},
        {"batch": 2, "seqlen_q": 5, "seqlen_k": 7, "head_dim": 3, "mask": "MN"},
        {"heads": 2, "groups": 2, "seqlen_q": 17, "seqlen_k": 16, "causal": True, "dlse": True},
        {"seqlen_q": 33, "seqlen_k": 65, "head_dim": 31, "dropout_p": 0.25},
        {"batch": 2, "seqlen_q": 19, "seqlen_k": 37, "head_dim": 64, "key_lengths": True},
        {"seqlen_q": 17, "seqlen_k": 300, "head_dim": 16},
    ),
    "multi_head_attention": (
        {"heads": 1, "seqlen_q": 1, "head_dim": 1},
        {"seqlen_q": 5, "head_dim": 3, "biases": False},
        {"batch": 2, "seqlen_q": 9, "seqlen_k": 17, "mask": "MN"},
        {"heads": 3, "seqlen_q": 33, "head_dim": 12, "rotary": "half"},
        {"seqlen_q": 37, "seqlen_k": 67, "head_dim": 17, "dropout_p": 0.1, "key_lengths": True},
        {"seqlen_q": 150, "head_dim": 32, "causal": True},
    ),
    "merge_attention": (
        {"parts": 1, "heads": 1, "seqlen_q": 1, "head_dim": 1},
        {"parts": 2, "head_dim": 3, "dead": 0.3},
        {"parts": 5, "seqlen_q": 7, "head_dim": 31, "dlse": True, "layout": "heads inside"},
        {"parts": 17, "batch": 2, "seqlen_q": 9, "head_dim": 64, "lse_scale": 10.0},
        {"parts": 8, "seqlen_q": 16, "head_dim": 128, "float32_parts": True, "dlse": True},
        {"parts": 64, "batch": 3, "seqlen_q": 1, "head_dim": 100, "lse_scale": 1e4, "dlse": True},
    ),
    "attention_weights": (
        {"seqlen_q": 1, "seqlen_k": 1, "head_dim": 1},
        {"batch": 2, "seqlen_q": 5, "seqlen_k": 7, "head_dim": 3, "mask": "MN", "lse": "moved"},
        {"heads": 2, "groups": 2, "seqlen_q": 17, "seqlen_k": 16, "causal": True, "softcap": 2.0},
        {"seqlen_q": 33, "seqlen_k": 65, "head_dim": 31, "window_size": (9, 3), "alibi": "H"},
        {"batch": 2, "seqlen_q": 67, "seqlen_k": 130, "head_dim": 64, "key_lengths": True},
        {"seqlen_q": 1000, "seqlen_k": 129, "head_dim": 16},
    ),
    "attention_decode": (
        {"batch": 1, "heads": 1, "capacity": 1, "head_dim": 1, "full": True},
        {"capacity": 7, "head_dim": 3, "queries": 2, "causal": True},
        {"heads": 4, "groups": 2, "capacity": 33, "head_dim": 31, "split": 16, "page_size": 5},
        {"heads": 6, "groups": 3, "queries": 3, "capacity": 65, "sinks": True, "split": 32},
        {"batch": 3, "capacity": 130, "head_dim": 64, "window_size": (40, 0), "page_size": 16},
        {"batch": 1, "heads": 1, "capacity": 1000, "head_dim": 16, "split": 64, "full": True},
    ),
    "attention_fp8": (
        {"seqlen_q": 1, "seqlen_k": 1, "head_dim": 1},
        {"batch": 2, "seqlen_q": 5, "seqlen_k": 7, "head_dim": 3, "mask": "MN", "scales": "1H"},
        {"heads": 4, "groups": 2, "seqlen_q": 17, "seqlen_k": 16, "causal": True, "sinks": True},
        {"seqlen_q": 33, "seqlen_k": 65, "head_dim": 31, "window_size": (9, 3), "alibi": "H"},
        {"batch": 2, "seqlen_q": 67, "seqlen_k": 130, "head_dim": 64, "key_lengths": True},
        {"seqlen_q": 129, "seqlen_k": 1000, "head_dim": 16},
    ),
    "positional_encoding": (
        {"batch": 1, "length": 1, "rows": 1, "columns": 1, "positions": "none"},
        {"positions": "given", "spare_positions": 2},
        {"batch": 3, "length": 17, "columns": 31, "scale": 27.7, "positions": "constant"},
        {"batch": 5, "length": 9, "columns": 129, "dropout_p": 0.1, "scale": 8.0},
        {"batch": 2, "length": 64, "columns": 257, "spread": "distinct", "rows": 200},
        {"batch": 125, "length": 8, "columns": 16, "spread": "one", "scale": 5.5},
    ),
    "rotary": (
        {"heads": 1, "key_heads": 1, "length": 1, "head_dim": 2, "pairs": 1},
        {"heads": 3, "key_heads": 1, "length": 7, "head_dim": 5, "pairs": 2},
        {"length": 17, "head_dim": 16, "pairs": 8, "interleaved": True, "layout": "packed"},
        {"batch": 2, "length": 33, "head_dim": 31, "pairs": 15, "batched": True},
        {"length": 65, "head_dim": 64, "pairs": 32, "own_tables": True, "base": 500000.0},
        {"length": 128, "head_dim": 128, "pairs": 64, "first": 10**6},
    ),
    "layer_norm": (
        {"rows": 1, "columns": 1},
        {"rows": 3, "columns": 7},
        {"rows": 17, "columns": 64, "residual": True},
        {"rows": 37, "columns": 127, "residual": True, "dropout_p": 0.1, "stream_gradient": True},
        {"rows": 300, "columns": 33},
        {"rows": 16, "columns": 1031, "residual": True},
    ),
    "rms_norm": (
        {"rows": 1, "columns": 1},
        {"rows": 3, "columns": 7},
        {"rows": 17, "columns": 64, "residual": True},
        {"rows": 37, "columns": 127, "residual": True, "offset": 1.0, "stream_gradient": True},
        {"rows": 300, "columns": 33},
        {"rows": 16, "columns": 1031, "residual": True},
    ),
    "linear": (
        {"rows": 1, "features_in": 1, "features_out": 1},
        {"rows": 7, "features_in": 13, "features_out": 5, "bias": False},
        {"rows": 33, "features_in": 31, "features_out": 17, "activation": "relu"},
        {"batch": 2, "rows": 32, "features_in": 65, "features_out": 63, "activation": "gelu"},
        {"rows": 1000, "features_in": 17, "features_out": 20, "activation": "gelu_tanh"},
        {"rows": 40, "features_in": 1000, "features_out": 24},
    ),
    "activation": (
        {"rows": 1, "columns": 1},
        {"columns": 7},
        {"rows": 5, "columns": 13, "kind": "relu"},
        {"rows": 31, "columns": 33, "kind": "gelu_tanh", "bias": True},
        {"rows": 64, "columns": 65, "bias": True},
        {"rows": 100, "columns": 100, "kind": "gelu_tanh"},
    ),
    "gated_activation": (
        {"rows": 1, "columns": 1},
        {"columns": 7, "kind": "gelu"},
        {"rows": 5, "columns": 13, "kind": "relu"},
        {"rows": 31, "columns": 33, "packed": True},
        {"rows": 64, "columns": 65, "kind": "gelu_tanh"},
        {"rows": 7, "columns": 1031},
    ),
    "dropout": (
        {"rows": 1, "columns": 1, "dropout_p": 0.0},
        {"columns": 7},
        {"rows": 5, "columns": 13, "dropout_p": 0.5},
        {"rows": 31, "columns": 33, "dropout_p": 0.3},
        {"rows": 64, "columns": 65, "dropout_p": 1e-6},
        {"rows": 100, "columns": 100, "dropout_p": 0.9},
    ),
    "embedding": (
        {"batch": 1, "length": 1, "rows": 1, "columns": 1},
        {},
        {"batch": 3, "length": 17, "columns": 31, "rows": 20},
        {"length": 100, "columns": 129, "spread": "frequent"},
        {"length": 64, "columns": 257, "rows": 200, "spread": "distinct"},
        {"batch": 1, "length": 1000, "columns": 16, "spread": "one"},
    ),
    "pooling": (
        {"batch": 1, "length": 1, "features": 1, "kind": "mean"},
        {"kind": "first"},
        {"length": 17, "features": 31, "kind": "max"},
        {"batch": 3, "length": 33, "features": 65},
        {"length": 131, "features": 64, "kind": "mean"},
        {"batch": 2, "length": 1000, "features": 16, "full": True},
    ),
    "softmax": (
        {"rows": 1, "columns": 1},
        {"rows": 5, "columns": 7, "masked": True},
        {"rows": 67, "columns": 31},
        {"rows": 17, "columns": 129, "masked": True},
        {"rows": 300, "columns": 10},
        {"rows": 16, "columns": 1031},
    ),
    "softmax_cross_entropy": (
        {"rows": 1, "classes": 1},
        {"rows": 5, "classes": 7, "reduction": "none", "masked": True},
        {"rows": 17, "classes": 31, "label_smoothing": 0.1, "weight": True, "ignored": 0.3},
        {"rows": 37, "classes": 129, "probabilities": True},
        {"rows": 300, "classes": 10, "reduction": "sum"},
        {"rows": 16, "classes": 1000, "label_smoothing": 0.1},
    ),
    "optimizers": (
        {"numel": 1, "optimizer": "adam"},
        {"numel": 7, "optimizer": "momentum", "steps": 3, "weight_decay": 0.01},
        {"numel": 100, "optimizer": "nesterov", "steps": 4, "clip": 0.5},
        {"numel": 1025, "optimizer": "adagrad", "steps": 4, "eps": 1e-3},
        {"numel": 2049, "optimizer": "adam", "steps": 4, "first_step": 7, "weight_decay": 0.01},
        {"numel": 5000, "optimizer": "adamw", "steps": 4, "weight_decay": 0.1, "clip": 0.5},
    ),
}


@dataclass(frozen=True)
class Tightness:
    """The shares of one output in one precision over all modes and shapes.

    The deterministic bound comes first, then the probabilistic one (`rounding`); a share is
    |kernel − truth| / bound.

    Attributes:
        operator, pass_, output, precision: what was measured.
        elements: how many; `exact` of them have bound 0 or an infinite truth, and were exact.
        violations, likely_violations: how many were outside their bound.
        median, likely_median: median share of the elements a bound decides, without exact ones.
        worst, likely_worst: largest share.
        vacuous: fraction of the elements that neither bound decides.
        case: where the largest share of the deterministic bound occurred.
    """

    operator: str
    pass_: str
    output: str
    precision: str
    elements: int
    exact: int
    violations: int
    median: float
    worst: float
    likely_violations: int
    likely_median: float
    likely_worst: float
    vacuous: float
    case: str


@dataclass
class _Collected:
    """The shares of one output by both bounds, case after case."""

    pass_: str
    elements: int = 0
    exact: int = 0
    undecided: int = 0
    certain: list[Array] = field(default_factory=list)
    likely: list[Array] = field(default_factory=list)
    worst: float = -1.0
    case: Any = None

    def add(self, case: Any, output: Array, truth: Approx, likely: Approx) -> None:
        share, undecided = shares(output, truth)
        exact = (~np.isfinite(truth.value) | (truth.error == 0)) & (share == 0)
        decided = ~(undecided | exact)
        self.elements += share.size
        self.exact += int(exact.sum())
        self.undecided += int(undecided.sum())
        self.certain.append(share[decided].astype(np.float32))
        self.likely.append(shares(output, likely)[0][decided].astype(np.float32))
        if share.size and float(share.max()) > self.worst:
            self.worst, self.case = float(share.max()), case

    def summary(self, operator: str, output: str, precision: str) -> Tightness:
        certain, likely = np.concatenate(self.certain), np.concatenate(self.likely)
        (violations, median, worst), (likely_violations, likely_median, likely_worst) = (
            (int((x > 1).sum()), float(np.median(x)), float(x.max())) if x.size else (0, 0.0, 0.0)
            for x in (certain, likely)
        )
        return Tightness(
            operator=operator,
            pass_=self.pass_,
            output=output,
            precision=precision,
            elements=self.elements,
            exact=self.exact,
            violations=violations,
            median=median,
            worst=worst,
            likely_violations=likely_violations,
            likely_median=likely_median,
            likely_worst=likely_worst,
            vacuous=self.undecided / max(self.elements, 1),
            case=report.short(self.case),
        )


def cases(operator: str) -> Iterator[Any]:
    """Yield an operator's cases: each of its shapes in each mode and precision."""
    module = report.contract_module(operator)
    for dtype, allow_tf32 in getattr(module, "PRECISIONS", domains.PRECISIONS):
        base = module.Case(dtype=dtype)
        if allow_tf32 and not hasattr(base, "allow_tf32"):
            continue
        how: dict[str, Any] = {"allow_tf32": True} if allow_tf32 else {}
        for seed, shape in enumerate(SHAPES[operator]):
            for mode in domains.MAGNITUDES:
                if hasattr(base, "logits"):
                    how["logits"] = LOGITS.get(mode, 1.0)
                yield replace(base, **shape, **how, magnitude=mode, seed=seed)


def measure(operator: str, side: Side) -> list[Tightness]:
    """Run an operator's cases on a side and summarise each output's shares."""
    contract = report.contract(operator)
    found: dict[tuple[str, str], _Collected] = {}
    for case in dict.fromkeys(fitting(side, case) for case in cases(operator)):
        given = contract.inputs(case)
        outputs, _ = computed(contract, side, case, given)
        certain, likely = certain_and_likely(contract, side, case, given)
        for output, truth in certain.items():
            key = (output, precision_name(case))
            collected = found.setdefault(key, _Collected(contract.passes[output]))
            collected.add(case, outputs[output], truth, likely[output])
    return [c.summary(operator, *key) for key, c in found.items()]
