"""Many compilations, one process per operator and target, several at a time.

A compiler can crash its process instead of raising an error: the crash is then attributed to the
kernel being compiled, and a new process goes on with the others.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from twofold.core.verify.compiling.compiled import ALL, Compiled, Name, Share
from twofold.core.verify.compiling.compiles import Key, check_interpreter, compile_operator

CONTEXT = get_context("forkserver")  # torch and triton are imported once, before any thread runs
CONTEXT.set_forkserver_preload([__name__, "torch", "triton"])


@dataclass
class _Job:
    """One operator for one target, and what its processes have reported so far."""

    operator: str
    target: str
    log: Path
    share: Share
    only: Collection[Name] | None = None
    made: list[Compiled] = field(default_factory=list)
    begun: dict[Key, Compiled] = field(default_factory=dict)
    done: bool = False
    seconds: float = 0.0
    process: Any = None

    def start(self) -> Connection:
        receive, send = CONTEXT.Pipe(duplex=False)
        what = (self.operator, self.target, list(self.begun), self.share, self.only)
        self.process = CONTEXT.Process(target=_work, args=(send, *what, self.log))
        self.process.start()
        send.close()
        return receive

    def hear(self, said: tuple[str, Any]) -> None:
        what, value = said
        if what == "begin":
            self.begun.update([value])
        elif what == "made":
            self.made.append(value)
        else:
            self.done = True
            self.seconds += value

    def bury(self) -> None:
        """Blame the kernel at which the process ended without a word, if it did."""
        self.process.join()
        if self.done:
            return
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        reason = f"its process ended with status {self.process.exitcode}: {' '.join(last)[:300]}"
        whole = Compiled(self.operator, "", self.target, "", "")
        at = [*self.begun.values()][-1:] if len(self.begun) > len(self.made) else [whole]
        self.done = at == [whole]  # it would crash again
        self.made.append(replace(at[0], failure=reason))


def compile_all(
    operators: Iterable[str],
    targets: Iterable[str],
    jobs: int,
    share: Share = ALL,
    only: Collection[Name] | None = None,
) -> Iterator[tuple[list[Compiled], float]]:
    """Yield (kernels, seconds of processor time) for each operator and target, `jobs` at a time.

    Kernels of one `share` are compiled; if `only` is given, just these of them, whatever a cache
    has.

    Raises:
        ValueError: Triton's interpreter is on in this process.
    """
    check_interpreter()
    targets = list(targets)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        waiting = [
            _Job(operator, target, Path(folder) / f"{operator}-{target}", share, only)
            for operator in operators
            for target in targets
            if only is None or any(x[0] == operator and x[2] == target for x in only)
        ]
        running: dict[Connection, _Job] = {}
        stack.callback(lambda: [job.process.kill() for job in running.values()])
        while waiting or running:
            while waiting and len(running) < jobs:
                job = waiting.pop(0)
                running[job.start()] = job
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                job = running[connection]
                try:
                    job.hear(connection.recv())
                except EOFError:
                    del running[connection]
                    job.bury()
                    if job.done:
                        yield job.made, job.seconds
                    else:
                        running[job.start()] = job


def _work(
    send: Connection,
    operator: str,
    target: str,
    skip: list[Key],
    share: Share,
    only: Collection[Name] | None,
    log: Path,
) -> None:
    """Compile, reporting every kernel before and after; nothing is printed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)

    try:
        compile_operator(
            operator,
            target,
            skip=skip,
            share=share,
            only=only,
            begin=lambda key, kernel: send.send(("begin", (key, kernel))),
            end=lambda kernel: send.send(("made", kernel)),
        )
    except Exception as error:  # one operator's fault, not the run's
        reason = f"{type(error).__name__}: {error}"
        send.send(("made", Compiled(operator, "", target, "", "", failure=reason)))
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    send.send(("done", sum(x.ru_utime + x.ru_stime for x in used)))
