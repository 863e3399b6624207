"""What torchrun's end says of its processes: whether one of them was killed from outside."""

import signal

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from flows.launcher import _cause


def failed(code, after):
    found = ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="")
    found.timestamp = 1_000 + after
    return found


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ([(1, 0)], 1),
        ([(7, 0), (-signal.SIGTERM, 0)], 7),
        # Whoever misses the killed one fails in the same moment, and torchrun tells the rest to end.
        ([(-signal.SIGKILL, 0)], -signal.SIGKILL),
        ([(1, 0), (-signal.SIGKILL, 0), (-signal.SIGTERM, 2)], -signal.SIGKILL),
        # torchrun's own, for one that did not end when another had a bug.
        ([(1, 0), (-signal.SIGKILL, 30)], 1),
        # A crash of native code is met again.
        ([(-signal.SIGSEGV, 0), (1, 1)], -signal.SIGSEGV),
    ],
)
def test_a_process_that_others_killed_is_the_cause_and_one_that_torchrun_killed_is_not(failures, code):
    assert _cause([failed(*one) for one in failures]) == code
