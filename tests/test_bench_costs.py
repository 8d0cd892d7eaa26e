"""What the passes of an operator cost at the least, and how time and memory grow."""

import math

import numpy as np
import pytest
import torch
from small_races import CEILINGS, SMALL

from twofold.core.bench import contenders, costs, growth, problems, timing, torch_calls
from twofold.core.bench.contenders import Contender
from twofold.core.bench.costs import Cost


def test_the_least_time_is_that_of_what_limits():
    assert CEILINGS.least(Cost(1e10, 1e10)) == 1.0
    assert CEILINGS.least(Cost(1e9, 1e12)) == 10.0


def test_costs_are_those_of_the_tensors():
    """Every argument and result once, in float32; attention's lse is one more float32 a row."""
    for name, passes in {
        "layer_norm": ("forward",), "rms_norm": ("forward",), "dropout": ("forward",),
        "activation": ("forward", "backward"),
        "softmax": ("forward", "backward"),
        "rotary": ("forward", "backward"),
    }.items():  # fmt: skip
        problem = SMALL[name]
        tensors = problem.make(torch.Generator().manual_seed(0), "cpu")
        size = 4 * sum(t.numel() for n, t in tensors.items() if n in ("x", "q", "k"))
        for which in passes:
            factor = 3 if name in ("activation", "softmax") and which == "backward" else 2
            assert problem.costs[which].bytes == factor * size
    cost, n = SMALL["gated_activation"].costs, 3 * 8
    assert (cost["forward"].bytes, cost["backward"].bytes) == (4 * 3 * n, 4 * 5 * n)
    B, H, M, N, D = 2, 3, 5, 7, 8
    cost = costs.attention(B, H, H, M, N, D, 4)
    assert cost["forward"].operations == 2 * 2 * B * H * M * N * D
    assert cost["backward"].operations == 5 * 2 * B * H * M * N * D
    assert cost["forward"].bytes == 4 * (2 * B * H * M * D + 2 * B * H * N * D + B * H * M)
    assert costs.attention(B, H, H, M, M, D, 4, causal=True)["forward"].operations == (
        B * H * M * M * D * 2
    )


def test_costs_count_every_argument_and_result_once():
    """What is told apart by no test above: keys that are shared, halves of bytes, backwards."""

    def bytes_of(*shapes):
        return sum(2 * math.prod(shape) for shape in shapes)

    B, H, K, M, N, D = 2, 6, 3, 5, 7, 8
    q, kv, lse = (B, H, M, D), (B, K, N, D), 4 * B * H * M
    cost = costs.attention(B, H, K, M, N, D, 2)
    assert cost["forward"].bytes == bytes_of(q, kv, kv, q) + lse
    assert cost["backward"].bytes == bytes_of(q, kv, kv, q, q, q, kv, kv) + lse
    assert costs.decode(B, H, K, M, N, D, 2) == {
        "forward": Cost(bytes_of(q, kv, kv, q), 2 * 2 * B * H * M * N * D)
    }
    x, weight, out = (3, 5), (5, 7), (3, 7)
    for activation, kept in ((False, ()), (True, (out,))):
        cost = costs.linear(3, 5, 7, 2, activation)
        assert cost["forward"] == (bytes_of(x, weight, out, *kept), 2 * 3 * 5 * 7)
        assert cost["backward"] == (bytes_of(x, weight, out, x, weight, *kept), 4 * 3 * 5 * 7)
    # Fused, layer norm has dropout: dresidual is not dx.
    for norm, backward in ((costs.layer_norm, 4), (costs.rms_norm, 3)):
        for fused, numbers in ((False, (2, 3)), (True, (4, backward))):
            found = norm(3, 5, 2, fused)
            assert tuple(c.bytes for c in found.values()) == tuple(bytes_of(x) * n for n in numbers)
    assert costs.cross_entropy(3, 5, 2)["forward and backward"] == Cost(bytes_of(x, x))
    assert costs.dropout(15, 2) == costs.rotary(15, 2)
    assert [c.bytes for c in costs.dropout(15, 2).values()] == [bytes_of(x, x)] * 2
    places, table, positions = (6, 5), (4, 5), (3, 5)
    found = costs.embedding(6, 4, 5, 2), costs.positions(6, 3, 4, 5, 2)
    for cost, more in zip(found, ((), (positions,)), strict=True):
        assert cost["forward"].bytes == bytes_of(places, places, *more)
        assert cost["backward"].bytes == bytes_of(places, table, *more)
    assert costs.adam(9)["step"] == Cost(4 * 9 * (4 + 3))  # grads read, three written besides


def test_an_exponent_is_fitted_to_the_highest_sizes():
    sizes = [1, 2, 4, 8, 16, 32]
    values = [9.0, 9.0] + [3.0 * n**2 for n in sizes[2:]]
    assert growth.exponent(sizes, values) == pytest.approx(2.0)
    assert np.isnan(growth.exponent([1], [1.0]))


def test_memory_of_numpy_is_counted():
    assert growth.peak(lambda: np.zeros(10**6), "cpu", True) >= 8 * 10**6
    assert growth.peak(lambda: None, "cpu", False) == 0


def test_growth_has_a_size_for_every_doubling():
    quick, whole = growth.axes("cpu", True), growth.axes("cpu", False)
    assert list(quick["length"]) == [128, 256, 512] and list(quick["batch"]) == [1, 2, 4]
    assert max(whole["length"]) == growth.LONGEST["cpu"] and max(whole["width"]) == 64
    for axis, listed in quick.items():
        for n, problem in listed.items():
            B, H, L = {"length": (1, 1, n), "batch": (n, 4, 256), "width": (2, n, 256)}[axis]
            assert problem.title == f"B={B} H={H} M={L} N={L} D=64"


def test_growth_has_a_curve_of_each_pass_and_contender(monkeypatch):
    """Who runs out of memory at a size, as it is made or as it is called, is out there alone."""
    sizes, called = {n: problems.attention(1, 1, 1, n, n, 8, "float32") for n in (2, 4, 8)}, []

    def narrow(q, k, v, causal):
        called.append(q.shape[2])
        if q.shape[2] == 8 or called.count(4) > 1:
            raise MemoryError
        return torch_calls.torch_attention(q, k, v, causal)

    rivals = [*contenders.of("attention", "cpu"), Contender("other", narrow)]
    rivals[1] = Contender("torch", narrow, named=True)
    monkeypatch.setattr(contenders, "of", lambda *_: rivals)
    monkeypatch.setattr(growth, "axes", lambda *_: {"length": sizes})
    timed = {n: [1e-3, 2e-3, 9e-3] for n in ("twofold", "torch")}
    monkeypatch.setattr(timing, "race", lambda calls, *_: {n: timed[n] for n in calls})
    found = {(c["pass"], c["contender"]): c for c in growth.curves("cpu", 0.0)}
    assert found.keys() == {(p, c) for p in ("forward", "backward") for c in timed}
    for (_, who), curve in found.items():
        few = [2] if who == "torch" else [2, 4, 8]
        assert curve["axis"] == "length" and curve["sizes"] == few
        assert curve["median_ms"] == [2.0] * len(few)
        if who == "twofold":
            assert len(curve["peak_bytes"]) == 3 and curve["time_exponent"] == pytest.approx(0)
            assert curve["memory_exponent"] == growth.exponent(few, curve["peak_bytes"])
        else:
            assert curve["peak_bytes"] == [] and curve["memory_exponent"] is None


def test_growth_ends_in_time():
    assert list(growth.curves("cpu", 0.0, quick=True, ends=0.0)) == []
