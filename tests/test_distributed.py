"""Several processes: the bits of one, however many there are, and a clear end if one dies.

Real processes, two and four, over Gloo; they run `distributed_worker.py`.
"""

import contextlib
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import distributed_worker as worker
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_cli import TINY, call, table
from test_training import Run, begin, parameters, same_bits, toy, train

from twofold.core.commands import training
from twofold.core.training import checkpoints, loop, scaling
from twofold.core.training.inference import accuracy
from twofold.core.training.processes import Lost, Processes, Several, joined
from twofold.core.training.trainer import added

RUNS = {
    "whole": {},
    "early": worker.EARLY,
    "diverged": worker.DIVERGED,
    "resumed": worker.RESUMED,
    "apart": {},
    "killed": worker.KILLED,
}


def prepared(folder: Path) -> Path:
    """Return a folder with the runs that the workers take up."""
    for name, changes in RUNS.items():
        begin(folder / name, toy(), **worker.recipe(changes))
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = prepared(tmp_path_factory.mktemp("alone"))
    states = {n: train(Run.open(folder / n)) for n in ("whole", "early", "resumed", "killed")}
    return folder, states


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Return the folder and what each process saw, by number of processes."""
    folder = tmp_path_factory.mktemp("several")
    for size in (2, 4):
        prepared(folder / str(size))
    done = subprocess.run(
        [sys.executable, worker.__file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for size in (2, 4):
        here = folder / str(size)
        found[size] = here, [json.loads((here / f"{r}.json").read_text()) for r in range(size)]
    return found


@pytest.fixture(params=[2, 4])
def several(request, seen):
    return seen[request.param]


def rows(run: Run) -> list[str]:
    """Return the metrics without the seconds."""
    lines = (run.folder / "metrics.csv").read_text().splitlines()
    return [line.rsplit(",", 1)[0] for line in lines]


def test_several_processes_learn_the_bits_of_one(alone, several):
    """Every row's loss, norm and accuracy, all of the last checkpoint, and the model."""
    folder, seen = several
    model, _ = alone[1]["whole"]
    assert {s["whole"] for s in seen} == {hashlib.sha256(model.flat.tobytes()).hexdigest()}
    one, many = (Run.open(f / "whole") for f in (alone[0], folder))
    assert rows(one) == rows(many)
    last = [checkpoints.newest(run.checkpoints)[0].tensors for run in (one, many)]
    assert same_bits(*last)
    assert same_bits(parameters(one), parameters(many))


def test_early_stopping_is_agreed_on(alone, several):
    _, state = alone[1]["early"]
    expected = [state.best_epoch, state.best_accuracy, state.step]
    assert all(s["early"] == expected for s in several[1])
    assert same_bits(*(parameters(Run.open(f / "early")) for f in (alone[0], several[0])))


def test_a_loss_that_is_not_finite_stops_all_at_its_step(several):
    said = {s["diverged"] for s in several[1]}
    assert len(said) == 1 and "both must be finite" in said.pop()
    found, refused = checkpoints.newest(several[0] / "diverged" / "checkpoints")
    assert found is not None and not refused


def test_a_signal_to_one_stops_all_and_another_number_goes_on(alone, seen, tmp_path):
    for size, step in ((2, 4), (4, 10)):
        assert {s["resumed"] for s in seen[size][1]} == {f"stopped at step {step} of fit"}
    shutil.copytree(seen[4][0] / "resumed", tmp_path / "resumed")
    found, _ = checkpoints.newest(tmp_path / "resumed" / "checkpoints")
    assert found.state["step"] == 10
    train(Run.open(tmp_path / "resumed"))
    runs = (Run.open(f / "resumed") for f in (alone[0], tmp_path))
    assert same_bits(*map(parameters, runs))


def test_validation_is_shared_and_found_the_same(alone, several, reference):
    model = Run.open(alone[0] / "whole").first_model(reference)
    found = accuracy(model, *worker.judged())
    assert 0.3 < found < 0.7
    assert all(s["accuracy"] == found for s in several[1])


def test_what_is_told_and_counted_is_the_same_everywhere(several):
    size = len(several[1])
    total = size * (size + 1) // 2
    assert all(s["common"] == ["ä0", total, [total], [total], [total]] for s in several[1])


def test_processes_that_came_apart_are_refused(several):
    before, after = (
        f"1 of {len(several[1])} processes have other parameters {when} than the first one"
        for when in ("or checkpoints to begin with", "after an epoch")
    )
    assert all(s["apart"] == [before, after] for s in several[1])


def test_a_killed_process_ends_the_others_and_nothing_is_lost(alone, several, tmp_path):
    folder, seen = several
    for rank, s in enumerate(seen):
        if rank != 1:
            said, seconds = s["killed"]
            assert said.startswith(f"process 1 of {len(seen)}, counted from 0, no longer answers")
            assert seconds < 30  # training to there included
    shutil.copytree(folder / "killed", tmp_path / "killed")
    found, refused = checkpoints.newest(tmp_path / "killed" / "checkpoints")
    assert found.state["step"] == found.state["done"] == worker.KILLED_AT and not refused
    train(Run.open(tmp_path / "killed"))
    assert same_bits(*(parameters(Run.open(f / "killed")) for f in (alone[0], tmp_path)))


def test_torchrun_starts_the_command_line(tmp_path):
    """`torchrun -m twofold.core train`, with a batch in as many parts as there are processes."""
    file = table(tmp_path / "reviews.csv")
    how = ["--data", file, *TINY, "--parts", 2]
    call("train", *how, "--out", tmp_path / "one")
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    more = ["--out", tmp_path / "two", "--json", tmp_path / "r.json"]
    command = [*several, "-m", "twofold.core", "train", *how[:-2], *more]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in 2 processes") == 1 and "Traceback" not in done.stderr
    assert same_bits(*(parameters(Run.open(tmp_path / name)) for name in ("one", "two")))
    results = [
        json.loads(p.read_text()) for p in (tmp_path / "one" / "result.json", tmp_path / "r.json")
    ]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]


def test_a_process_with_other_options_is_refused(monkeypatch, tmp_path):
    processes, first = Processes(), []
    processes.size, processes.rank = 2, 1

    def told(text):
        first.append(text)
        return first[0] if text else ""  # and without a folder, of a run that it has refused

    monkeypatch.setattr(processes, "told", told)
    monkeypatch.setattr(training, "joined", lambda: contextlib.nullcontext(processes))
    how = ["train", "--data", "x.csv", "--lr", 0.5, "--out"]
    for folder in ("here", "there"):
        assert call(*how, tmp_path / folder, status=2) == ""
    said = call("train", "--data", "x.csv", "--lr", 0.25, status=2)
    assert said == "error: 1 of 2 processes have other options than the first one"


def test_more_processes_than_parts_are_refused(monkeypatch, tmp_path):
    processes = Processes()
    processes.size, processes.rank = 4, 3
    assert list(processes.share(8)) == [6, 7]
    with pytest.raises(ValueError, match="parts is 6; it must be a multiple of 4"):
        processes.share(6)
    with pytest.raises(ValueError, match="parts is 6; it must be a multiple of 4"):
        training.recipe_of({"parts": 6}, processes, "reference")
    with pytest.raises(ValueError, match="parts is 2; it must be a multiple of 4"):
        loop.train(begin(tmp_path / "run", toy()), toy(), worker.ops.load("reference"),
                   lambda event: None, processes=processes)  # fmt: skip


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is missing: start several processes with"),
        (worker.environment(0, 3, 1), "the number of processes is 3; it must be a power of two"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc'; it must be a whole number from 1 to"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; it must be a whole number from 1 to"),
        *(
            (worker.environment(0, 2, 1) | {name: was}, f"{name} is '{was}'; it must be {must}")
            for name, was, must in (
                ("RANK", "x", "a whole number from 0 to 1"),
                ("RANK", "2", "a whole number from 0 to 1"),
                ("LOCAL_RANK", "", "a whole number from 0 to 1"),
                ("LOCAL_RANK", "-1", "a whole number from 0 to 1"),
                ("MASTER_PORT", "x", "a whole number from 0 to 65535"),
                ("MASTER_PORT", "65536", "a whole number from 0 to 65535"),
            )
        ),
    ],
)
def test_what_cannot_be_joined_is_refused(named, words, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{words}"), joined(timeout=1.0):
        pass


def test_without_torch_several_processes_are_refused_and_one_is_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with joined() as processes:
        assert processes.size == 1 and processes.told("a") == "a" and processes.count(3) == 3
    for name, value in worker.environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ImportError, match=r"several processes need torch: pip install"), joined():
        pass


def test_processes_that_do_not_all_come_are_told_so(monkeypatch):
    for name, value in worker.environment(0, 2, worker.free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Lost, match="not all of 2 processes came"), joined(timeout=1.0):
        pass


class Threads:
    """What `Several` needs of torch.distributed, implemented by threads; counts what is sent."""

    def __init__(self, size: int) -> None:
        self.lines = {(a, b): queue.Queue() for a in range(size) for b in range(size)}
        self.local, self.sent = threading.local(), []

    def isend(self, x, partner):
        self.sent.append((self.local.rank, partner, x.numel()))
        self.lines[self.local.rank, partner].put(x.clone())

    def irecv(self, x, partner):
        x.copy_(self.lines[partner, self.local.rank].get(timeout=20))

    def P2POp(self, how, x, partner):  # noqa: N802
        return how, x, partner

    def batch_isend_irecv(self, ops):
        for how, x, partner in ops:
            how(x, partner)
        return []


def added_by_threads(buffers):
    """Add up the buffers of several processes, here threads; return what was sent."""
    dist = Threads(len(buffers))

    def work(rank: int) -> None:
        dist.local.rank = rank
        one = Several.__new__(Several)
        one.rank, one.size, one._torch, one._dist = rank, len(buffers), torch, dist
        one._scratch, one._backend, one._on_gpu = {}, "gloo", False
        one.add(buffers[rank])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(buffers))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=30)
    return dist.sent


@pytest.mark.parametrize("numel", [1, 5, 64, 333])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_the_all_reduce_adds_over_the_tree_in_as_many_bytes_as_are_counted(levels, numel, of):
    size = 2**levels
    rng = np.random.default_rng(levels)
    terms = (
        rng.standard_normal((size, numel)) * 10.0 ** rng.integers(-6, 6, (size, numel))
    ).astype(np.float32)
    expected = added(list(terms.copy()))
    buffers = [of(x) for x in terms.copy()]
    sent = added_by_threads(buffers)
    assert {np.asarray(x).tobytes() for x in buffers} == {expected.tobytes()}
    counted = scaling.exchange(4 * numel, size)
    if numel % size == 0:
        for rank in range(size):
            mine = [(partner, n) for source, partner, n in sent if source == rank]
            assert 4 * sum(n for _, n in mine) == counted.sent == 2 * (1 - 1 / size) * 4 * numel
            assert len(mine) == counted.exchanges == 2 * levels
            leaving = sum(n for p, n in mine if p // scaling.MACHINE != rank // scaling.MACHINE)
            assert 4 * leaving == counted.leaving


def test_room_for_what_is_received_grows_and_is_used_again():
    one = Several.__new__(Several)
    one._torch, one._scratch = torch, {}
    places = []
    for n in (1, 9, 4, 20, 20):
        room = one._received(torch.zeros(n))
        assert room.shape == (n,)
        places.append(room.data_ptr())
    assert places[1] == places[2] and places[3] == places[4]
    assert one._received(torch.zeros(5, dtype=torch.int64)).dtype == torch.int64


@given(st.integers(0, 3), st.integers(1, 5), st.data())
def test_shares_are_added_to_the_bits_of_the_whole(levels, each, data):
    """For any number of parts, with the last ones missing, N processes add as one does."""
    size = 2**levels
    parts = size * each
    present = data.draw(st.integers(1, parts))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    terms = [np.float32(rng.standard_normal(1) * 10.0 ** rng.integers(-6, 6)) for _ in range(parts)]
    terms[present:] = [None] * (parts - present)

    def copies(some):
        return [None if x is None else x.copy() for x in some]

    shares = [added(copies(terms[i * each :][:each])) for i in range(size)]
    neutral = np.full(1, -0.0, np.float32)
    several = added([neutral.copy() if x is None else x for x in shares])
    assert several.tobytes() == added(copies(terms)).tobytes()


def test_the_figures_of_scaling_are_those_that_it_counts():
    assert scaling.table() in scaling.__doc__
    assert scaling.efficiency(1.0, 4.0, 1) == 1.0
    assert scaling.exchange(8.0, 1) == (0.0, 0.0, 0, 0.0)
