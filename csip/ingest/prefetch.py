"""A thread that works ahead: what it makes waits in a bounded queue, so that it never gets further than that."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 0.1


def prefetch(items: Iterator[T], ahead: int) -> Generator[T, None, None]:
    """Run an iterator in a thread of its own, at most `ahead` items before whoever reads them.

    What the iterator raises is raised here, after the items that came before it. When the reader stops early, the
    iterator is closed in its own thread before this returns.

    Args:
        items: to be read ahead.
        ahead: 1 or more.

    Raises:
        ValueError: ahead is less than 1.
    """
    if ahead < 1:
        raise ValueError(f"prefetch: got ahead {ahead}, expected 1 or more.")
    ready: queue.Queue[T | _End] = queue.Queue(ahead)
    stop = threading.Event()
    thread = threading.Thread(target=_work, args=(items, ready, stop), name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        thread.join()


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _work(items: Iterator[T], ready: queue.Queue[T | _End], stop: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            if not _put(ready, item, stop):
                break
    except BaseException as raised:  # passed on to the reader, whatever it is
        error = raised
    finally:
        if isinstance(items, Generator):
            items.close()
    _put(ready, _End(error), stop)


def _put(ready: queue.Queue[T | _End], item: T | _End, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=_SECONDS_BETWEEN_LOOKS)
        except queue.Full:
            continue
        return True
    return False
