"""Functions replayed as CUDA graphs, and arrays that are written and read without waiting."""

import contextlib
import gc

import numpy as np
import pytest
import torch

from twofold.core import captured


def test_a_function_is_run_then_captured_then_replayed(monkeypatch):
    """As torch's graphs are used, with others in their place; all share one pool."""
    done, pools = [], []

    class Graph:
        def replay(self):
            done.append("replayed")

    @contextlib.contextmanager
    def graph(made, pool, capture_error_mode):
        pools.append(pool)
        done.append("(")
        yield
        done.append(")")

    streams = ["own"]
    captured.pool.cache_clear()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    for _ in range(2):
        function = captured.capturing("cuda")(lambda: done.append("run"))
        for _ in range(4):
            function()
        assert done == ["run", "(", "run", ")", "replayed", "replayed", "replayed"]
        done.clear()
    captured.pool.cache_clear()
    assert pools[0] is pools[1]

    def plain():
        pass

    assert captured.capturing("cpu")(plain) is plain

    def fails():
        done.append(gc.isenabled())
        streams.append("that of the capture")
        if len(done) == 2:
            raise RuntimeError("this cannot be captured")

    monkeypatch.setattr(torch.cuda, "graph", lambda *args, **how: contextlib.nullcontext())
    function = captured.capturing("cuda")(fails)
    function()
    streams.append("own")
    with pytest.raises(RuntimeError, match="cannot be captured"):
        function()
    assert done == [True, False] and gc.isenabled()  # a graph that is garbage stays, meanwhile
    assert streams[-1] == "own"


def test_an_array_is_written_as_it_is_and_read_as_it_was():
    buffer, x = torch.zeros((2, 3)), np.arange(6.0).reshape(3, 2).T
    captured.write(buffer, x)
    now = captured.read(buffer)
    buffer.zero_()
    assert np.array_equal(now(), x) and now().dtype == np.float32
    one = torch.tensor(False)
    captured.write(one, np.array(True))
    assert one.item() is True
