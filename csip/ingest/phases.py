"""Where the time of an extraction goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

Seconds = Counter[str]
"""Phase -> seconds spent in it. Each phase belongs to one thread."""


@contextmanager
def timed(seconds: Seconds, phase: str) -> Iterator[None]:
    """Add the time of a block to a phase."""
    begun = time.monotonic()
    try:
        yield
    finally:
        seconds[phase] += time.monotonic() - begun  # type: ignore[assignment]


def waiting_for(items: Iterator[T], seconds: Seconds, phase: str) -> Iterator[T]:
    """Pass items on; add the time that their reader waits for them to a phase."""
    while True:
        with timed(seconds, phase):
            item = next(items, _END)
        if item is _END:
            return
        yield item  # type: ignore[misc]


_END = object()
