"""A separate process for what may hang or crash, so that nothing else goes down with it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from typing import Any

LIMIT = 60.0  # seconds, for one case, or for importing code that is not ours
STARTING = 300.0  # seconds, until the process has imported our own modules


class Ended(Exception):
    """The process is gone; the message names the signal or the exit status."""

    def __init__(self, status: int) -> None:
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        super().__init__(f"ended the process {how}")


class Alone:
    """A process that runs target(pipe, …), and our end of its pipe."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
        self._pipe, theirs = context.Pipe()
        self._process: Any = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, question: object) -> None:
        """Send something, whether or not the process is still there to receive it."""
        try:
            self._pipe.send(question)
        except ConnectionError:
            pass  # `hear` will say so soon enough

    def hear(self, wait: float) -> Any:
        """Return what the process says next.

        Raises:
            TimeoutError: the process says nothing for `wait` seconds.
            Ended: the process is gone.
        """
        if not self._pipe.poll(wait):
            raise TimeoutError(f"does not end within {wait:.3g} s")
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise Ended(self._process.exitcode or 0) from None

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
