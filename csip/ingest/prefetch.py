"""A thread that works while its caller says so, or ahead of it: what it makes waits in a bounded queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_END = object()


def prefetch(items: Generator[T, None, None], ahead: int, every: float) -> Generator[T | None, None, None]:
    """Run a generator in a thread of its own, at most `ahead` items before whoever reads them.

    What the generator raises is raised here, after the items that came before it. When the reader stops early, the
    generator is closed in its own thread before this returns.

    Args:
        items: to be read ahead.
        ahead: 1 or more.
        every: seconds without an item after which the reader gets a turn.

    Yields:
        The items, and None whenever `every` seconds have passed without one.

    Raises:
        ValueError: ahead is less than 1.
    """
    if ahead < 1:
        raise ValueError(f"prefetch: got ahead {ahead}, expected 1 or more.")
    with ThreadPoolExecutor(1, "prefetch") as thread:
        ready: deque[Future[Any]] = deque(thread.submit(next, items, _END) for _ in range(ahead))
        try:
            while True:
                if not wait([ready[0]], every).done:
                    yield None
                    continue
                if (item := ready.popleft().result()) is _END:
                    return
                ready.append(thread.submit(next, items, _END))
                yield item
        finally:
            for waiting in ready:
                waiting.cancel()
            thread.submit(items.close).result()


def meanwhile(work: Callable[[], T], every: float, record: R) -> Generator[R, None, T]:
    """Do a piece of work in a thread of its own, and give `record` every so many seconds until it is done.

    Returns:
        What the work returns; what it raises is raised here. When the reader stops early, this waits for its end.
    """
    with ThreadPoolExecutor(1, "meanwhile") as thread:
        job = thread.submit(work)
        while not wait([job], every).done:
            yield record
        return job.result()
