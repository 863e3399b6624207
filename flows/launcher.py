"""torchrun as a program whose end says whether one of its processes was killed; by itself it ends with 1 either way.

Killed from outside, a stage is tried again; a bug would only be met again.
"""

from __future__ import annotations

import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

# torchrun asks the others to end, and kills those that have not within 30 s. Whoever is killed sooner was so by others.
_ITS_OWN_KILLS_SECONDS = 15


def main() -> int:
    """Start this machine's processes and wait for them.

    Returns:
        0, or as a shell has it, 128 and the number of the signal where one was killed, else the first failure's code.
    """
    try:
        run.main()
    except ChildFailedError as error:
        # torchrun's own account is a page, which would push the processes' last words out of sight.
        told = ", ".join(f"{rank}: {one.exitcode}" for rank, one in sorted(error.failures.items()))
        sys.stderr.write(f"Processes by rank, and the codes they ended with: {told}\n")
        code = _cause(list(error.failures.values()))
        return code if code > 0 else 128 - code
    return 0


def _cause(failures: list[ProcessFailure]) -> int:
    """Tell with which code the processes began to fail; those that miss a killed one may be seen before it."""
    first = min(failures, key=lambda failure: failure.timestamp)
    soon = [one.exitcode for one in failures if one.timestamp - first.timestamp < _ITS_OWN_KILLS_SECONDS]
    return -signal.SIGKILL if -signal.SIGKILL in soon else first.exitcode


if __name__ == "__main__":
    sys.exit(main())
