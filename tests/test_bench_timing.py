"""How long a call takes: what is waited for, what the host does, what else runs."""

import pytest
import torch

from twofold.core.bench import timing


def test_a_call_that_is_waited_for_ends_when_the_gpu_has(monkeypatch):
    """The time includes the host's work before its first wait, and the GPU's after it."""
    clock, said = Clock(), []
    monkeypatch.setattr(timing, "time", clock)

    def synchronize():
        clock.sleep(1.0 if said[-1:] == ["called"] else 0.0)
        said.append("waited")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    call = timing.waited(lambda: (said.append("called"), clock.sleep(0.5)))
    assert timing.race({"a": [call]}, "cpu", 0.0)["a"] == pytest.approx([1.5] * timing.FEWEST)
    assert said[:3] == ["waited", "called", "waited"]


def test_the_hosts_time_is_that_until_a_call_returns(monkeypatch):
    """It excludes the GPU's work, which is waited for before the call, not after."""
    clock, said = Clock(), []
    monkeypatch.setattr(timing, "time", clock)

    def synchronize():
        said.append("waited")
        clock.sleep(1.0)

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert timing.host(lambda: (said.append("called"), clock.sleep(0.002))) == pytest.approx(0.002)
    assert said == ["waited", "called"] * timing.HOST_CALLS + ["waited"]


class Clock:
    """Stands in for `time`: sleeps and calls take as long as they are told to.

    For the first `spinning` seconds another thread of the process is busy.
    """

    def __init__(self, spinning=0.0):
        self.now, self.spinning = 0.0, spinning

    def perf_counter(self):
        return self.now

    def process_time(self):
        return min(self.now, self.spinning)

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize("spinning, waited", [(0.0, 0.01), (0.1, 0.11), (60.0, timing.PATIENCE)])
def test_a_call_begins_when_no_other_thread_runs(monkeypatch, spinning, waited):
    clock = Clock(spinning)
    monkeypatch.setattr(timing, "time", clock)
    timing.come_to_rest()
    assert clock.now == pytest.approx(waited)


@pytest.mark.parametrize("first, then, calls", [(0.006, 0.001, 11), (0.05, 0.04, 2), (0.2, 0.2, 1)])
def test_a_short_call_is_timed_when_threads_are_awake(monkeypatch, first, then, calls):
    clock, made = Clock(), []
    monkeypatch.setattr(timing, "time", clock)

    def call():
        clock.now += then if made else first
        made.append(clock.now)

    assert timing._Timer("cpu")(call) == pytest.approx(then)
    assert len(made) == calls


def test_neighbours_and_inputs_rotate(monkeypatch):
    """No contender always follows the same one, nor times inputs that were just read."""
    said = []
    monkeypatch.setattr(timing, "_Timer", lambda device: lambda call: call() or 0.0)
    calls = {
        name: [lambda name=name, i=i: said.append(f"{name}{i}") for i in (0, 1)] for name in "abc"
    }
    timing.race(calls, "cpu", 0.0, before=lambda: said.append("-"))
    words = "".join(said)
    warm = "".join(f"-{name}0{name}1" + f"{name}0" * timing.WARMUP for name in "abc")
    assert words.startswith(warm)
    assert words[len(warm) :].startswith("-a0-b0-c0" + "-b1-c1-a1" + "-c0-a0-b0" + "-a1-b1-c1")


def test_a_summary_has_the_middle_and_the_fifths_beside_it():
    times = {"a": [n * 1e-3 for n in (3, 1, 2, 5, 4, 6)], "b": [1e-3, 1e-3, 9e-3]}
    found = timing.summary(times, "b")["a"]
    assert found == pytest.approx(
        {"median_ms": 3.5, "p20_ms": 2.0, "p80_ms": 5.0, "calls": 6, "ratio": 3.5}
    )


def test_a_race_goes_on_for_the_time_that_it_is_given(monkeypatch):
    """Counted from when all are warm; a round that has begun is finished."""
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    call = [lambda: clock.sleep(0.3)]
    times = timing.race({"a": call, "b": call}, "cpu", 5.9)  # rounds of 0.62, with the rests
    assert [len(taken) for taken in times.values()] == [10, 10]
