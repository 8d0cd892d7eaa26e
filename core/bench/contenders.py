"""Who races: twofold, PyTorch, other libraries, anyone's function; and whether each may.

What can be timed as a plain call is judged as one (`verify.foreign`): the contract's pinned cases
in the problem's dtype, before it is timed. The peers are those of `twofold verify peers`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from twofold.core import ops
from twofold.core.bench.problems import Problem
from twofold.core.verify import foreign_subjects, report
from twofold.core.verify.contract import Finding, fitting
from twofold.core.verify.contract import judge as judged
from twofold.core.verify.peers.table import PEERS

TWOFOLD = "twofold"
TORCH = "torch"
Passes = Mapping[str, Callable[[], object]]  # by name
BOTH = "forward and backward"


@dataclass(frozen=True)
class Contender:
    """One of those that race.

    Attributes:
        name: how tables call it.
        function: a plain call, differentiated by autograd; None for the operators of a side.
        side: those, called without autograd.
        missing: why it cannot race here, "" if it can.
    """

    name: str
    function: Callable[..., Any] | None = None
    side: ops.Side | None = None
    missing: str = ""

    def passes(self, problem: Problem, tensors: Mapping[str, torch.Tensor]) -> Passes:
        """Return what is timed: a call without arguments for each pass of the problem."""
        if self.side is not None:
            found = _of_side(self.side, problem, tensors)
        else:
            assert self.function is not None
            found = _of_function(self.function, problem, tensors)
        return {name: found[name] for name in problem.costs}

    def fault(self, problem: Problem) -> str:
        """Judge it by the operator's contract in the problem's dtype; "" if it holds."""
        if self.side is not None:
            contract = report.contract(problem.operator)
            case = fitting(self.side, contract.pinned[0])
            return _first(judged(contract, self.side, case))
        subject = foreign_subjects.subject(self.function, problem.operator)
        cases = (subject.fitting(case, problem.dtype) for case in subject.contract.pinned)
        for case in cases:
            if fault := _first(judged(subject.contract, subject.side, case)):
                return fault
        return ""


def _first(findings: Sequence[Finding]) -> str:
    return next((f.fault for f in findings if f.fault), "")


def _of_function(
    function: Callable[..., Any], problem: Problem, tensors: Mapping[str, torch.Tensor]
) -> Passes:
    leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in tensors.values()]
    having = [x for n, x in zip(tensors, leaves, strict=True) if x.requires_grad and n in LEARNED]

    def forward() -> Any:
        return function(*leaves, **problem.options)

    # Which gradients are given is no part of what is timed.
    whole = forward()
    outputs = whole if isinstance(whole, tuple) else (whole,)
    grads = [torch.randn_like(y) if y.dim() else torch.ones_like(y) for y in outputs]

    def backward() -> None:
        if not outputs[0].requires_grad:
            raise NotImplementedError("it has no backward")
        torch.autograd.grad(outputs, having, grads, retain_graph=True)

    def both() -> None:
        found = forward()
        made = found if isinstance(found, tuple) else (found,)
        torch.autograd.grad(made, having, grads)

    return {"forward": forward, "backward": backward, BOTH: both}


# Tensors that have a gradient: cos and sin have none on either side.
LEARNED = ("q", "k", "v", "x", "weight", "bias", "logits", "table")


def _of_side(side: ops.Side, problem: Problem, tensors: Mapping[str, torch.Tensor]) -> Passes:
    operator = getattr(side, problem.operator)
    given = [x.numpy() if side.name == "reference" else x for x in tensors.values()]
    options = {n: x for n, x in problem.options.items() if n != "enable_gqa"}

    def forward() -> Any:
        return operator.forward(*given, **options)

    outputs, cache = forward()
    made = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [side.asarray(torch.randn(tuple(y.shape)), str(problem.dtype)) for y in made]

    def backward() -> Any:
        return operator.backward(*grads, cache)

    def both() -> Any:
        _, kept = forward()
        return operator.backward(*grads, kept)

    return {"forward": forward, "backward": backward, BOTH: both}


def torch_attention(
    q: Any,
    k: Any,
    v: Any,
    causal: bool = False,
    enable_gqa: bool = False,
    softmax_scale: Any = None,
) -> Any:
    """torch's attention, the backend its own choice."""
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=enable_gqa, scale=softmax_scale
    )


def torch_layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """torch's layer norm."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def torch_linear(x: Any, weight: Any, bias: Any, activation: str | None = None) -> Any:
    """torch's linear layer, and the activation behind it."""
    out = F.linear(x, weight, bias)
    return out if activation is None else torch_activation(out, activation)


def torch_activation(x: Any, kind: str = "gelu") -> Any:
    """torch's activations."""
    if kind == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def torch_cross_entropy(logits: Any, targets: Any) -> Any:
    """torch's softmax with cross-entropy."""
    return F.cross_entropy(logits, targets)


def torch_embedding(ids: Any, table: Any) -> Any:
    """torch's look-up."""
    return F.embedding(ids, table)


def torch_rotary(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    """Rotary positions as models of torch write them, the halves of a head against each other."""
    angles = [torch.cat((t, t), dim=-1).to(q.dtype) for t in (cos, sin)]
    return tuple(_turned(x, *angles) for x in (q, k))


def _turned(x: Any, cos: Any, sin: Any) -> Any:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


OF_TORCH: dict[str, Callable[..., Any]] = {
    "attention": torch_attention,
    "layer_norm": torch_layer_norm,
    "linear": torch_linear,
    "activation": torch_activation,
    "softmax_cross_entropy": torch_cross_entropy,
    "embedding": torch_embedding,
    "rotary": torch_rotary,
}


def of(operator: str, device: str, against: Sequence[str] = ()) -> Iterator[Contender]:
    """Yield who races an operator on a device: twofold first, then torch.

    Args:
        operator: its name.
        device: "cpu" or "cuda".
        against: further functions, "module:function".

    Raises:
        ValueError: one of `against` cannot be imported.
    """
    if device == "cpu":
        yield Contender(TWOFOLD, side=ops.load("reference"))
    else:
        yield Contender(TWOFOLD, side=ops.load("triton"))
        if (adapter := _adapter(operator)) is not None:
            yield Contender(f"{TWOFOLD} through torch's autograd", adapter)
    yield Contender(TORCH, OF_TORCH[operator])
    if device == "cuda":
        yield Contender("torch.compile", torch.compile(OF_TORCH[operator], dynamic=False))
        yield from _peers(operator)
        if operator == "attention":
            from twofold.core.bench import baseline

            yield Contender("a first Triton kernel", baseline.attention)
    for name in against:
        yield Contender(name, foreign_subjects.load(name))


def _adapter(operator: str) -> Callable[..., Any] | None:
    """Return the operator as torch's users call it, None where they cannot."""
    file = "attention" if operator == "attention" else "layers"
    name = {"softmax_cross_entropy": "cross_entropy"}.get(operator, operator)
    return getattr(importlib.import_module(f"twofold.adapters.{file}"), name, None)


def _peers(operator: str) -> Iterator[Contender]:
    for peer in PEERS:
        if peer.operator != operator or peer.name == "flex" or "adam" in peer.name:
            continue
        missing = peer.missing()
        if missing:
            yield Contender(peer.name, missing=missing)
            continue
        try:
            module, function = peer.target.split(":")
            yield Contender(peer.name, getattr(importlib.import_module(module), function))
        except Exception as error:  # whatever its code raises
            yield Contender(peer.name, missing=f"{type(error).__name__}: {error}")
