"""Programs ordered by atomics, a lock or a counter, and some that only seem to be."""

import pytest
import torch
import triton.language as tl
from planted import ints
from triton.runtime.interpreter import InterpretedFunction

from twofold.core.verify.strict import Fault, Unsupported, strict_interpreter

PROGRAMS, N = 6, 8
SEEDS = range(8)


@InterpretedFunction
def sum_behind_lock(
    x_ptr, lock_ptr, total_ptr, calls_ptr, N: tl.constexpr,
    WAIT: tl.constexpr, BARRIER: tl.constexpr, PEEK: tl.constexpr, SEM: tl.constexpr,
    SCOPE: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, N)
    x = tl.load(x_ptr + tl.program_id(0) * N + i)
    if PEEK:
        x += 0 * tl.load(total_ptr + i)
    if WAIT:
        while tl.atomic_cas(lock_ptr, 0, 1, sem=SEM, scope=SCOPE) == 1:
            pass
    else:
        tl.atomic_cas(lock_ptr, 0, 1, sem=SEM, scope=SCOPE)
    calls = tl.load(calls_ptr)
    if calls > 0:
        x += tl.load(total_ptr + i)
    tl.store(total_ptr + i, x)
    tl.atomic_xchg(calls_ptr, calls + 1)
    if BARRIER:
        tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0, sem=SEM, scope=SCOPE)


RIGHT = {"WAIT": True, "BARRIER": True, "PEEK": False, "SEM": "acq_rel", "SCOPE": "gpu"}


def behind_lock(seed, **changed):
    x = torch.arange(PROGRAMS * N, dtype=torch.int32).reshape(PROGRAMS, N)
    total, lock, calls = torch.zeros(N, dtype=torch.int32), ints(0), ints(0)
    with strict_interpreter(seed=seed):
        sum_behind_lock[PROGRAMS,](x, lock, total, calls, N, **RIGHT | changed)
    assert torch.equal(total, x.sum(0, dtype=torch.int32)) and lock.item() == 0
    assert calls.item() == PROGRAMS


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_lock_keeps_apart_is_no_race(seed):
    behind_lock(seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"WAIT": False}, "load from calls_ptr"),
        ({"BARRIER": False}, "no barrier is between that and the atomic that releases it"),
        ({"PEEK": True}, "total_ptr"),
        ({"SEM": "relaxed"}, "load from calls_ptr"),
        ({"SCOPE": "cta"}, "load from calls_ptr"),
        ({"SEM": "acquire"}, "load from calls_ptr"),
        ({"SEM": "release"}, "load from calls_ptr"),
    ],
)
def test_a_lock_that_is_none_is_a_race(seed, changed, words):
    with pytest.raises(Fault, match=words) as fault:
        behind_lock(seed, **changed)
    assert " races at element " in str(fault.value)


@InterpretedFunction
def last_sums(
    x_ptr, parts_ptr, done_ptr, out_ptr, N: tl.constexpr, PROGRAMS: tl.constexpr,
    ASK: tl.constexpr, BARRIER: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, N)
    program = tl.program_id(0)
    tl.store(parts_ptr + program * N + i, 2 * tl.load(x_ptr + program * N + i))
    if BARRIER:
        tl.debug_barrier()
    done = tl.atomic_add(done_ptr, 1)
    if (done == PROGRAMS - 1) | (not ASK):
        total = tl.zeros([N], tl.int32)
        for part in range(PROGRAMS):
            total += tl.load(parts_ptr + part * N + i)
        tl.store(out_ptr + i, total)


def by_counter(seed, ASK=True, BARRIER=True):
    x = torch.arange(PROGRAMS * N, dtype=torch.int32).reshape(PROGRAMS, N)
    out = torch.zeros(N, dtype=torch.int32)
    with strict_interpreter(seed=seed):
        last_sums[PROGRAMS,](x, torch.zeros_like(x), ints(0), out, N, PROGRAMS, ASK, BARRIER)
    assert torch.equal(out, 2 * x.sum(0, dtype=torch.int32))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_last_of_a_counter_may_read_what_all_have_stored(seed):
    by_counter(seed)
    for wrong in ({"ASK": False}, {"BARRIER": False}):
        with pytest.raises(Fault, match=" races at element "):
            by_counter(seed, **wrong)


@InterpretedFunction
def pass_on(x_ptr, flags_ptr, HOLD: tl.constexpr):
    """Each program doubles what the previous one left, and signals the next."""
    program = tl.program_id(0)
    x = tl.load(x_ptr + (1 if HOLD else 0)) if program == 0 else 0
    if program > 0:
        while tl.atomic_add(flags_ptr + program - 1, 0, sem="acquire") == 0:
            pass
        x = tl.load(x_ptr)
    tl.store(x_ptr, 2 * x)
    tl.debug_barrier()
    tl.atomic_xchg(flags_ptr + program, 1, sem="release")


def test_order_is_handed_on():
    """A program passes on the order that it could itself rely on."""
    x = ints(1)
    with strict_interpreter(shuffle=False):
        pass_on[4,](x, ints(0, 0, 0, 0), HOLD=False)
    assert x.item() == 16


@InterpretedFunction
def count_down(turn_ptr, out_ptr, PROGRAMS: tl.constexpr):
    """The last program takes the first turn."""
    program = tl.program_id(0)
    while tl.atomic_cas(turn_ptr, PROGRAMS - 1 - program, -1) != PROGRAMS - 1 - program:
        pass
    tl.store(out_ptr + program, program)
    tl.debug_barrier()
    tl.atomic_xchg(turn_ptr, PROGRAMS - program)


def test_waiting_that_has_no_end_here_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("twofold.core.verify.strict.order.MOST_SPINS", 50)
    with strict_interpreter(shuffle=False), pytest.raises(Unsupported, match="waits for another"):
        count_down[2,](ints(0), ints(0, 0), 2)


@InterpretedFunction
def raise_to(most_ptr, x_ptr):
    x = tl.load(x_ptr + tl.program_id(0))
    before = tl.atomic_cas(most_ptr, 0, 0)
    swapped = before - 1
    while (x > before) & (swapped != before):
        swapped = before
        before = tl.atomic_cas(most_ptr, swapped, x)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_number_that_is_exchanged_and_not_put_back_is_no_lock(seed):
    most, x = ints(0), ints(3, 9, 0, 9, 4)
    with strict_interpreter(seed=seed):
        raise_to[5,](most, x)
    assert most.item() == 9


@InterpretedFunction
def by_ticket(x_ptr, next_ptr, serving_ptr, total_ptr, N: tl.constexpr, WAIT: tl.constexpr):
    i = tl.arange(0, N)
    ticket = tl.atomic_add(next_ptr, 1)
    if WAIT:
        while tl.atomic_add(serving_ptr, 0) != ticket:
            pass
    else:
        tl.atomic_add(serving_ptr, 0)
    tl.store(total_ptr + i, tl.load(total_ptr + i) + tl.load(x_ptr + tl.program_id(0) * N + i))
    tl.debug_barrier()
    tl.atomic_add(serving_ptr, 1)


@InterpretedFunction
def twice(x_ptr, lock_ptr, total_ptr, N: tl.constexpr, WAIT: tl.constexpr):
    """Each half of a row is added under the lock; without WAIT, the second time ignores it."""
    i = tl.arange(0, N)
    x = tl.load(x_ptr + tl.program_id(0) * N + i)
    for half in range(2):
        if WAIT or half == 0:
            while tl.atomic_cas(lock_ptr, 0, 1) == 1:
                pass
        else:
            tl.atomic_cas(lock_ptr, 0, 1)
        tl.store(total_ptr + i, tl.load(total_ptr + i) + tl.where(i % 2 == half, x, 0))
        tl.debug_barrier()
        tl.atomic_xchg(lock_ptr, 0)


@InterpretedFunction
def by_exchange(x_ptr, lock_ptr, total_ptr, N: tl.constexpr, WAIT: tl.constexpr):
    i = tl.arange(0, N)
    if WAIT == 0:
        tl.atomic_xchg(lock_ptr, 1)
    elif WAIT == 1:
        while tl.atomic_xchg(lock_ptr, 1) == 1:
            pass
    else:
        if tl.atomic_cas(lock_ptr, 0, 1) == 1:  # and once more
            tl.atomic_cas(lock_ptr, 0, 1)
    tl.store(total_ptr + i, tl.load(total_ptr + i) + tl.load(x_ptr + tl.program_id(0) * N + i))
    tl.debug_barrier()
    if WAIT == 2:
        tl.atomic_cas(lock_ptr, 1, 0)
    else:
        tl.atomic_xchg(lock_ptr, 0)


@InterpretedFunction
def counted(x_ptr, count_ptr, total_ptr, N: tl.constexpr, WAIT: tl.constexpr):
    """Counters before and after order nothing if nobody looks at them."""
    i = tl.arange(0, N)
    tl.atomic_add(count_ptr, 1)
    if WAIT:
        tl.atomic_add(total_ptr + i, tl.load(x_ptr + tl.program_id(0) * N + i))
    else:
        tl.store(total_ptr + i, tl.load(total_ptr + i) + tl.load(x_ptr + tl.program_id(0) * N + i))
    tl.debug_barrier()
    tl.atomic_add(count_ptr, 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kernel", "numbers"), [(by_ticket, 2), (by_exchange, 1), (counted, 1)])
def test_who_does_not_look_waits_for_nobody(seed, kernel, numbers):
    assert adds_up(kernel, seed, 1, numbers)
    with pytest.raises(Fault, match=" races at element "):
        adds_up(kernel, seed, 0, numbers)


@pytest.mark.parametrize(
    ("kernel", "how", "words"),
    [
        (by_exchange, 2, " races at element "),
        (
            twice,
            0,
            "lock_ptr of shape (1,) and strides (1,) puts it back, though it was found held",
        ),
    ],
)
def test_who_goes_on_at_the_second_time_is_seen_by_most_seeds(kernel, how, words):
    seen = 0
    for seed in SEEDS:
        try:
            adds_up(kernel, seed, how, 1)
        except Fault as fault:
            seen += words in str(fault)
    assert seen > len(SEEDS) / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_who_waits_every_time_may_take_a_lock_again(seed):
    assert adds_up(twice, seed, 1, 1)


@InterpretedFunction
def tries(x_ptr, lock_ptr, total_ptr, spare_ptr, done_ptr, N: tl.constexpr, PROGRAMS: tl.constexpr):
    """Half a row is added under the lock, the other too or, if the lock is held, elsewhere.

    The last resets the lock.
    """
    i = tl.arange(0, N)
    x = tl.load(x_ptr + tl.program_id(0) * N + i)
    for half in range(2):
        mine = tl.where(i % 2 == half, x, 0)
        taken = tl.atomic_cas(lock_ptr, 0, 1) == 0
        while (half == 0) & (not taken):
            if tl.atomic_cas(lock_ptr, 0, 0) == 0:
                taken = tl.atomic_xchg(lock_ptr, 1) == 0
        if taken:
            tl.store(total_ptr + i, tl.load(total_ptr + i) + mine)
            tl.debug_barrier()
            tl.atomic_xchg(lock_ptr, 0)
        else:
            tl.store(spare_ptr + tl.program_id(0) * N + i, mine)
    if tl.atomic_add(done_ptr, 1) == PROGRAMS - 1:
        tl.atomic_xchg(lock_ptr, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_who_finds_a_lock_held_may_do_something_else(seed):
    x = torch.arange(PROGRAMS * N, dtype=torch.int32).reshape(PROGRAMS, N)
    total, spare = torch.zeros(N, dtype=torch.int32), torch.zeros_like(x)
    with strict_interpreter(seed=seed):
        tries[PROGRAMS,](x, ints(0), total, spare, ints(0), N, PROGRAMS)
    assert torch.equal(total + spare.sum(0, dtype=torch.int32), x.sum(0, dtype=torch.int32))
    assert spare.any()


def adds_up(kernel, seed, how, numbers):
    x = torch.arange(PROGRAMS * N, dtype=torch.int32).reshape(PROGRAMS, N)
    found = torch.zeros(N, dtype=torch.int32)
    with strict_interpreter(seed=seed):
        kernel[PROGRAMS,](x, *(ints(0) for _ in range(numbers)), found, N, how)
    return torch.equal(found, x.sum(0, dtype=torch.int32))


@InterpretedFunction
def last_resets(x_ptr, done_ptr, out_ptr, PROGRAMS: tl.constexpr):
    program = tl.program_id(0)
    tl.store(x_ptr + program, program)
    tl.debug_barrier()
    if tl.atomic_add(done_ptr, 1) == PROGRAMS - 1:
        tl.store(done_ptr, 0)
        for i in range(PROGRAMS):
            tl.store(out_ptr + i, tl.load(x_ptr + i))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_last_may_put_the_counter_back(seed):
    done, out = ints(0), ints(*[9] * PROGRAMS)
    with strict_interpreter(seed=seed):
        last_resets[PROGRAMS,](ints(*[9] * PROGRAMS), done, out, PROGRAMS)
    assert done.item() == 0 and out.tolist() == list(range(PROGRAMS))


@pytest.mark.skipif(not hasattr(tl, "atomic_poll"), reason="this Triton has no atomic loads")
@pytest.mark.parametrize("poll", [False, True])
def test_a_flag_orders_who_looks_at_it(poll):
    @InterpretedFunction
    def hand_over(x_ptr, flag_ptr, out_ptr, POLL: tl.constexpr, LOOK: tl.constexpr):
        if tl.program_id(0) == 0:
            tl.store(x_ptr, 7)
            tl.debug_barrier()
            tl.atomic_store(flag_ptr, 1, sem="release")
        else:
            if LOOK:
                if POLL:
                    tl.atomic_poll(flag_ptr, 1, sem="acquire")
                else:
                    while tl.atomic_load(flag_ptr, sem="acquire") == 0:
                        pass
            tl.store(out_ptr, tl.load(x_ptr))

    with strict_interpreter(shuffle=False):
        out = ints(0)
        hand_over[2,](ints(0), ints(0), out, poll, True)
        assert out.item() == 7
        with pytest.raises(Fault, match=" races at element "):
            hand_over[2,](ints(0), ints(0), out, poll, False)
