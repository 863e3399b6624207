"""A thread that works ahead: what it makes waits in a bounded queue, so that it never gets further than that."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_END = object()


def prefetch(items: Generator[T, None, None], ahead: int) -> Generator[T, None, None]:
    """Run a generator in a thread of its own, at most `ahead` items before whoever reads them.

    What the generator raises is raised here, after the items that came before it. When the reader stops early, the
    generator is closed in its own thread before this returns.

    Args:
        items: to be read ahead.
        ahead: 1 or more.

    Raises:
        ValueError: ahead is less than 1.
    """
    if ahead < 1:
        raise ValueError(f"prefetch: got ahead {ahead}, expected 1 or more.")
    with ThreadPoolExecutor(1, "prefetch") as thread:
        ready: deque[Future[Any]] = deque(thread.submit(next, items, _END) for _ in range(ahead))
        try:
            while (item := ready.popleft().result()) is not _END:
                ready.append(thread.submit(next, items, _END))
                yield item
        finally:
            for waiting in ready:
                waiting.cancel()
            thread.submit(items.close).result()
