"""How often progress goes to Prefect, which keeps an event of every update."""

import time
from itertools import pairwise

import pytest

from csip.types import Progress
from flows import progress
from flows.progress import Reporter


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set, and the updates that go to Prefect, as the time of each."""
    now, sent = [1000.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.Reporter, "_send", lambda self, percent, text: sent.append(now[0]))
    return now, sent


def test_a_long_task_tells_prefect_less_and_less_often(clock):
    now, sent = clock
    reporter = Reporter("stage2")
    for second in range(4 * 3600):
        now[0] = 1000.0 + second
        reporter(Progress("stage2", second, 4 * 3600, "epochs"))
    pauses = [after - before for before, after in pairwise(sent)]
    # Two seconds in the first hundred, two in a hundred of what has passed, half a minute from 25 minutes on.
    assert pauses[:50] == [2.0] * 50
    assert {pause for at, pause in zip(sent, pauses, strict=False) if at > 1000 + 1530} == {30.0}
    assert len(sent) < 700
