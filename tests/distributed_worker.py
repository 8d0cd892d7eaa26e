"""Two processes, then four, go through every scenario that the tests look at.

    python distributed_worker.py FOLDER

They are forked here, so that torch is imported once, with the environment that `torchrun` gives.
Their runs are in FOLDER/2 and FOLDER/4, where each process records what it saw in RANK.json,
scenario by scenario. The last scenario kills process 1.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
from test_training import Run, toy

from twofold.core import ops, whole
from twofold.core.training import loop
from twofold.core.training.inference import accuracy
from twofold.core.training.processes import Apart, Lost, Several, joined
from twofold.core.training.trainer import Diverged, Trainer

RECIPE = {"parts": 4, "batch_size": 17, "epochs": 4, "average": 0.9}  # 54 = 3·17 + 3 examples
EARLY = {"epochs": 12, "patience": 2, "refit": False, "lr": 3e-2, "checkpoint_steps": 3}
DIVERGED = {"lr": 1e30, "max_norm": 0.0, "checkpoint_steps": 1}
RESUMED = {"epochs": 6, "checkpoint_steps": 1000}
KILLED = {"epochs": 6, "checkpoint_steps": 4}
KILLED_AT = 14


def recipe(changes):
    return {**RECIPE, **changes}


def judged():
    """Return examples, enough for several batches, to judge a model on."""
    rng = np.random.default_rng(3)
    inputs = [rng.integers(2, 19, rng.integers(1, 12)) for _ in range(333)]
    return inputs, rng.integers(0, 2, len(inputs))


class Worker:
    def __init__(self, folder: Path, processes: Several) -> None:
        self.folder, self.processes, self.seen = folder, processes, {}
        self.side = ops.load("reference")

    def run(self, name: str) -> Run:
        return Run.open(self.folder / name)

    def train(self, name: str, observe=lambda event: None):
        how = {"processes": self.processes}
        return loop.train(self.run(name), toy(), self.side, observe, **how)

    def raised(self, kind: type[Exception], work) -> str:
        try:
            work()
        except kind as error:
            return str(error)
        return "nothing was raised"

    def whole(self) -> str:
        """Return a hash of the model that a run ends with, as this process has it."""
        model, _ = self.train("whole")
        return hashlib.sha256(model.flat.tobytes()).hexdigest()

    def early(self) -> list:
        _, state = self.train("early")
        return [state.best_epoch, state.best_accuracy, state.step]

    def diverged(self) -> str:
        return self.raised(Diverged, lambda: self.train("diverged"))

    def resumed(self) -> str:
        """Stop a run: two processes begin it, four go on where the two were stopped."""
        rank, step = {2: (1, 3), 4: (3, 9)}[self.processes.size]

        def stopping(event):
            if self.processes.rank == rank and event.step == step:
                signal.raise_signal(signal.SIGTERM)

        return self.raised(loop.Interrupted, lambda: self.train("resumed", stopping))

    def accuracy(self) -> float:
        model = self.run("whole").first_model(self.side)
        return accuracy(model, *judged(), self.processes)

    def common(self) -> list:
        """Return what the first process tells, sums of numbers, and sums of odd-sized buffers."""
        processes = self.processes
        found = [processes.told(f"ä{processes.rank}"), processes.count(processes.rank + 1)]
        for numel in (1, 3, 33):
            buffer = np.full(numel, 1.0 + processes.rank, np.float32)
            processes.add(buffer)
            found.append(sorted(set(buffer.tolist())))
        return found

    def apart(self) -> list:
        """Change parameters in the last process, before training and after an epoch."""

        last = self.processes.rank == self.processes.size - 1
        first_model, learn = Run.first_model, Trainer.learn

        def other(run, side):
            model = first_model(run, side)
            model.flat[0] += 1e-3
            return model

        def spoilt(trainer, *arguments):
            learn(trainer, *arguments)
            trainer.model.flat[0] += 1e-3

        said = []
        for name, wrong in (("first_model", other), ("learn", spoilt)):
            owner = Run if name == "first_model" else Trainer
            right = getattr(owner, name)
            if last:
                setattr(owner, name, wrong)
            said.append(self.raised(Apart, lambda: self.train("apart")))
            setattr(owner, name, right)
        return said

    def killed(self) -> list:
        """Kill process 1 in the middle of a step, without telling the others."""

        def dying(event):
            if event.step == KILLED_AT and self.processes.rank == 1:
                self.leave()
                os.kill(os.getpid(), signal.SIGKILL)

        began = time.monotonic()
        said = self.raised(Lost, lambda: self.train("killed", dying))
        return [said, time.monotonic() - began]

    def leave(self) -> None:
        path = self.folder / f"{self.processes.rank}.json"
        path.write_text(json.dumps(self.seen))


SCENARIOS = ("whole", "early", "diverged", "resumed", "accuracy", "common", "apart", "killed")


def forbidden(*_):
    raise AssertionError("only the first process writes files")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    named = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in named.items()}


def work(folder: Path, named: dict[str, str]) -> None:
    os.environ.update(named)
    with joined(timeout=120.0) as processes:
        if not processes.first:
            whole.write_folder = whole.write_text = forbidden
        worker = Worker(folder, processes)
        for name in SCENARIOS:
            worker.seen[name] = getattr(worker, name)()
        worker.leave()


def main(folder: Path) -> None:
    import torch  # noqa: F401, for all of them

    fork = multiprocessing.get_context("fork")
    for size in (2, 4):
        port, here = free_port(), folder / str(size)
        if size == 4:
            shutil.rmtree(here / "resumed")
            shutil.copytree(folder / "2" / "resumed", here / "resumed")
        each = [environment(rank, size, port) for rank in range(size)]
        workers = [fork.Process(target=work, args=(here, named)) for named in each]
        for w in workers:
            w.start()
        for w in workers:
            w.join(100)
            w.kill()
        codes = [w.exitcode for w in workers]
        if codes != [-signal.SIGKILL if rank == 1 else 0 for rank in range(size)]:
            sys.exit(f"{size} processes ended with {codes}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
