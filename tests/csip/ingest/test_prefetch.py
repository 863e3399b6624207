"""A thread that works ahead: same items, bounded, and it ends with its reader."""

import threading
import time

import pytest

from csip.ingest.prefetch import prefetch


def settle(condition, seconds=5.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("ahead", [1, 2, 100])
def test_items_come_once_and_in_order(ahead):
    assert list(prefetch((i for i in range(50)), ahead)) == list(range(50))


def test_an_empty_iterator_ends_at_once():
    assert list(prefetch((i for i in ()), 1)) == []


def test_it_works_ahead_no_further_than_asked():
    made = []

    def count():
        for i in range(100):
            made.append(i)
            yield i

    items = prefetch(count(), 3)
    assert next(items) == 0
    assert settle(lambda: len(made) == 4)
    time.sleep(0.3)
    assert made == [0, 1, 2, 3]
    items.close()


def test_what_the_iterator_raises_comes_after_what_it_gave():
    def break_off():
        yield 1
        raise OSError("disk gone")

    items = prefetch(break_off(), 5)
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
    items = prefetch(endless(), 1)
    next(items)
    items.close()
    assert closed == ["prefetch_0"]
    assert threading.active_count() == before


def test_working_ahead_takes_a_queue():
    with pytest.raises(ValueError, match="got ahead 0, expected 1 or more"):
        next(prefetch((i for i in [1]), 0))
