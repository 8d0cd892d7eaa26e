"""Terminating signals as an exception, so that unfinished work is cleaned up first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does, where they would kill.

    A signal that already has a handler keeps it; an ignored SIGHUP, as under nohup, stays ignored.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():  # signals belong to it
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
