"""Functions replayed as CUDA graphs, and arrays written and read without waiting."""

import contextlib
import gc

import numpy as np
import pytest
import torch

from twofold.core import captured, ops


def test_a_function_is_run_then_captured_then_replayed(monkeypatch):
    """As with torch's graphs, for which stand-ins are used; all share one pool."""
    done, pools = [], []

    class Graph:
        def replay(self):
            done.append("replayed")

    @contextlib.contextmanager
    def graph(made, pool, capture_error_mode):
        pools.append(pool)
        done.append("(")
        # A graph that is garbage stays, and NCCL's threads may go on.
        assert not gc.isenabled() and capture_error_mode == "thread_local"
        yield
        assert not gc.isenabled()
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
    assert pools[0] is pools[1] is not None

    def plain():
        pass

    assert captured.capturing("cpu")(plain) is captured.capturing("meta")(plain) is plain

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
    assert streams[-1] == "own" and function.graph is None


def test_a_run_that_failed_is_none(monkeypatch):
    """What it would have compiled is not: the next call runs, and captures nothing."""
    faults = [RuntimeError("no memory")]
    function = captured.capturing("cuda")(lambda: faults and (_ for _ in ()).throw(faults.pop()))
    with pytest.raises(RuntimeError, match="no memory"):
        function()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", None)  # which a capture would make
    function()
    assert function.runs == 1


def test_garbage_is_collected_again_only_where_it_was():
    gc.disable()
    try:
        with captured.nothing_collected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ops.SIDES)
def test_arrays_are_written_together_and_read_as_they_were(name):
    side = ops.load(name)
    given = [np.arange(6.0).reshape(3, 2).T, np.array(True), np.array([7, 8, 9])]
    buffers = side.buffers(given)
    buffers.write(given)
    now = [side.read(x) for x in buffers.arrays]
    kept = [x.copy() for x in given]
    for x in given:
        x[...] = 0  # the caller may go on at once
    for read, x in zip(now, kept, strict=True):
        assert read().dtype == x.dtype and np.array_equal(read(), x)
    buffers.write(given)
    for read, buffer, x in zip(now, buffers.arrays, kept, strict=True):
        assert np.array_equal(read(), x) and not side.to_numpy(buffer).any()
    with pytest.raises(ValueError, match="zip"):
        buffers.write(given[:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_what_numpy_has_no_dtype_for_is_read_as_float32(dtype):
    found = captured.read(torch.tensor([1.0, -0.5]).to(dtype))()
    assert found.dtype == np.float32 and found.tolist() == [1, -0.5]


def test_buffers_made_in_inference_mode_are_written_outside():
    with torch.inference_mode():
        buffers = captured.Buffers([np.zeros(3)], "cpu")
    buffers.write([np.ones(3)])
    assert buffers.arrays[0].tolist() == [1, 1, 1]


def test_buffers_lie_in_one_memory_where_kernels_are_told_they_do():
    arrays = [np.zeros(3, np.float32), np.zeros((), bool), np.zeros((2, 5), np.int64)]
    buffers = captured.Buffers(arrays, "cpu")
    places = [x.data_ptr() - buffers.arrays[0].data_ptr() for x in buffers.arrays]
    assert (
        places == [0, 16, 32] and len({x.untyped_storage().data_ptr() for x in buffers.arrays}) == 1
    )
