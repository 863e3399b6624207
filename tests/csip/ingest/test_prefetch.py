"""A thread that works ahead, or while others wait: same items, bounded, and it ends with its reader."""

import threading
import time

import pytest

from csip.ingest.prefetch import meanwhile, prefetch


def settle(condition, seconds=5.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("ahead", [1, 2, 100])
def test_items_come_once_and_in_order(ahead):
    assert list(prefetch((i for i in range(50)), ahead, 60)) == list(range(50))


def test_an_empty_iterator_ends_at_once():
    assert list(prefetch((i for i in ()), 1, 60)) == []


def test_it_works_ahead_no_further_than_asked():
    made = []

    def count():
        for i in range(100):
            made.append(i)
            yield i

    items = prefetch(count(), 3, 60)
    assert next(items) == 0
    assert settle(lambda: len(made) == 4)
    time.sleep(0.3)
    assert made == [0, 1, 2, 3]
    items.close()


def test_what_the_iterator_raises_comes_after_what_it_gave():
    def break_off():
        yield 1
        raise OSError("disk gone")

    items = prefetch(break_off(), 5, 60)
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)


def test_a_reader_that_stops_early_closes_the_iterator_in_its_own_thread():
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    before = threading.active_count()
    items = prefetch(endless(), 1, 60)
    next(items)
    items.close()
    assert closed == ["prefetch_0"]
    assert threading.active_count() == before


def test_working_ahead_takes_a_queue():
    with pytest.raises(ValueError, match="got ahead 0, expected 1 or more"):
        next(prefetch((i for i in [1]), 0, 60))


def test_a_reader_gets_a_turn_while_an_item_is_long_in_coming():
    gate = threading.Event()

    def slow():
        yield 1
        gate.wait(30)
        yield 2

    items = prefetch(slow(), 2, 0.05)
    begun = time.monotonic()
    assert [next(items) for _ in range(4)] == [1, None, None, None]
    assert 0.1 < time.monotonic() - begun < 10
    gate.set()
    assert [item for item in items if item is not None] == [2]


def test_a_time_out_that_an_item_raises_is_not_taken_for_waiting():
    def broken():
        raise TimeoutError("the disk")
        yield

    with pytest.raises(TimeoutError, match="the disk"):
        next(prefetch(broken(), 1, 0.05))


def test_records_come_while_a_piece_of_work_is_done():
    gate, told = threading.Event(), []

    def work():
        gate.wait(30)
        return 7

    def through():
        told.append((yield from meanwhile(work, 0.05, "busy")))

    for n, record in enumerate(through()):
        assert record == "busy"
        if n == 2:
            gate.set()
    assert told == [7]
    assert n >= 2


def test_what_a_piece_of_work_raises_is_raised_where_it_is_waited_for():
    def work():
        raise ValueError("no good")

    with pytest.raises(ValueError, match="no good"):
        list(meanwhile(work, 60, "busy"))
