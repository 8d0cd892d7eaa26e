"""How a run is told to stop."""

import signal
import threading

import pytest

from twofold.core.training.stopping import stoppable


def handled(request, number, handler):
    before = signal.signal(number, handler)
    request.addfinalizer(lambda: signal.signal(number, before))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_and_a_second_one_does_what_it_did_before(request, number):
    """So that a hanging step can be ended; afterwards all handlers are restored."""
    told = []

    def handler(number, _):
        told.append(number)

    handled(request, number, handler)
    for _ in range(2):
        told.clear()
        with stoppable() as stop:
            assert not stop.is_set()
            signal.raise_signal(number)
            assert stop.is_set() and not told
            signal.raise_signal(number)
            assert told == [number]
        assert signal.getsignal(number) is handler
    with pytest.raises(ZeroDivisionError), stoppable():
        1 // 0  # noqa: B018
    assert signal.getsignal(number) is handler


def test_a_hangup_that_is_ignored_stays_so(request):
    handled(request, signal.SIGHUP, signal.SIG_IGN)
    with stoppable() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.is_set()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_in_another_thread_nobody_asks():
    found = []

    def work():
        with stoppable() as stop:
            found.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
