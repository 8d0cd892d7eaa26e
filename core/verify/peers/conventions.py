"""What definitions leave open, asked of every peer: answers differ, and none is a fault.

No contract tests a plain function on any of this. Each question is one small call, and the answer a
few words; ours stands beside theirs.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from twofold.core import ops
from twofold.core.verify.foreign import strictly
from twofold.core.verify.foreign.refusals import REFUSALS
from twofold.core.verify.peers.peer import Peer

REFUSES = "refuses"


class Question(NamedTuple):
    """A question to an operator's peers, what ours does, and the call that asks theirs."""

    operator: str
    words: str
    ours: str
    ask: Callable[[Callable[..., Any], str], str]


def without_keys(attention: Callable[..., Any], device: str) -> str:
    """Ask for the output of a query that may attend no key; the values are 1 and 3."""
    import torch

    q, k = torch.ones(1, 1, 2, 16, device=device), torch.ones(1, 1, 2, 16, device=device)
    v = torch.tensor([1.0, 3.0], device=device).reshape(1, 1, 2, 1).expand(1, 1, 2, 16).clone()
    mask = torch.tensor([[[[True, True], [False, False]]]], device=device)
    answer = float(_first(attention(q, k, v, softmax_scale=1.0, mask=mask))[0, 0, 1, 0])
    return {0.0: "0", 2.0: "the mean of the values"}.get(answer, "NaN" if answer != answer else "?")


def fewer_queries(attention: Callable[..., Any], device: str) -> str:
    """Ask which of 4 keys the first of 2 queries attends; the values are 1, 3, 5 and 7."""
    import torch

    q, k = torch.ones(1, 1, 2, 16, device=device), torch.ones(1, 1, 4, 16, device=device)
    v = torch.tensor([1.0, 3.0, 5.0, 7.0], device=device).reshape(1, 1, 4, 1)
    v = v.expand(1, 1, 4, 16).clone()
    answer = float(_first(attention(q, k, v, softmax_scale=1.0, causal=True))[0, 0, 0, 0])
    return {1.0: "the first key", 3.0: "all but the last key"}.get(answer, "?")


def base_of_lse(attention: Callable[..., Any], device: str) -> str:
    """Ask for the base of the log-sum-exp of 2 equal scores."""
    import torch

    q = k = torch.zeros(1, 1, 2, 16, device=device)
    returned = attention(q, k, k, softmax_scale=1.0)
    if not isinstance(returned, tuple):
        return "returns none"
    answer = float(returned[1][0, 0, 0])
    return "e" if math.isclose(answer, math.log(2), rel_tol=2**-20) else "2"


def nothing_merged(merge: Callable[..., Any], device: str) -> str:
    """Ask for the output of a query that attended no key in either of two parts."""
    import torch

    out, lse = torch.zeros(1, 1, 16, device=device), torch.full((1, 1), -math.inf, device=device)
    answer = float(_first(merge(out, lse, out, lse))[0, 0, 0])
    return "NaN" if answer != answer else f"{answer:g}"


def nothing_shared(softmax: Callable[..., Any], device: str) -> str:
    """Ask for the softmax of a row that is −∞ throughout."""
    import torch

    answer = float(_first(softmax(torch.full((2, 16), -math.inf, device=device)))[0, 0])
    return "NaN" if answer != answer else f"{answer:g}"


def nothing_counted(cross_entropy: Callable[..., Any], device: str) -> str:
    """Ask for the mean over rows that are all to be ignored (all peers ignore −100)."""
    import torch

    logits = torch.zeros(2, 3, device=device)
    targets = torch.tensor([-100, -100], device=device)
    answer = float(cross_entropy(logits, targets))
    return "NaN" if math.isnan(answer) else f"{answer:g}"


def dtype_of_loss(cross_entropy: Callable[..., Any], device: str) -> str:
    """Ask for the dtype of the loss of bfloat16 logits."""
    import torch

    logits = torch.zeros(2, 3, device=device, dtype=torch.bfloat16)
    targets = torch.tensor([0, 1], device=device)
    return str(cross_entropy(logits, targets).dtype).removeprefix("torch.")


QUESTIONS = (
    Question("attention", "a query that may attend no key gives", "0", without_keys),
    Question(
        "attention", "the first of 2 causal queries with 4 keys attends", "all but the last key",
        fewer_queries,
    ),
    Question("attention", "the base of the log-sum-exp is", "e", base_of_lse),
    Question("merge_attention", "parts that attended nothing give", "0", nothing_merged),
    Question("softmax", "a row of −∞ is", "0", nothing_shared),
    Question("softmax_cross_entropy", "the mean of no rows is", "0", nothing_counted),
    Question(
        "softmax_cross_entropy", "the loss of bfloat16 logits is", "bfloat16", dtype_of_loss
    ),
)  # fmt: skip


def answers(peer: Peer) -> dict[str, str]:
    """Ask a peer what its operator's definition leaves open; a refusal is an answer."""
    said = {}
    module, _, name = peer.target.partition(":")
    for question in QUESTIONS:
        if question.operator == peer.operator:
            with strictly():
                function = getattr(importlib.import_module(module), name)
                try:
                    said[question.words] = question.ask(function, ops.triton_device())
                except (*REFUSALS, RuntimeError, TypeError):
                    said[question.words] = REFUSES
    return said


def _first(returned: Any) -> Any:
    return returned[0] if isinstance(returned, tuple) else returned
