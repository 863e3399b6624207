"""The one command line, `csip`.

Exit codes: 0 done, 1 could not be done (the message says why) or, of `verify`, faults were found, 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flows import environment
from flows.dispatch import UsageError
from flows.usage import make_parser

_SECONDS_TO_LEAVE = 3.0


def main(argv: list[str] | None = None) -> int:
    """Run one command and give its exit code."""
    environment.prepare()
    parser = make_parser()
    args = parser.parse_args(argv)
    from csip.errors import CsipError

    interrupted = threading.Event()
    code = 0
    try:
        if args.json and args.endless:
            raise UsageError(f"{args.command}: runs until it is told to stop, and has no one document to print.")
        with _leaving_soon(args.command, interrupted):
            code = args.run(args) or 0
    except UsageError as error:
        parser.error(str(error))
    except (CsipError, ValueError) as error:
        from flows.child import OURS, raised_by

        # A ValueError of our own says which value does not fit; any other is a bug and shows where.
        if not isinstance(error, CsipError) and not raised_by(error, *OURS):
            raise
        if not interrupted.is_set():
            sys.stderr.write(f"csip {args.command}: {error}\n")
            return 1
    except KeyboardInterrupt:
        interrupted.set()
    return 130 if interrupted.is_set() else code


@contextmanager
def _leaving_soon(command: str, interrupted: threading.Event) -> Iterator[None]:
    """Say at once that Ctrl-C was heard, and end within seconds of it.

    Ctrl-C reaches Prefect's temporary server too, and Prefect would wait minutes for its answer.
    """

    def leave() -> None:
        from flows import terminal

        terminal.ERR.show_cursor()
        _end_server()
        os._exit(130)

    def interrupt(*_: object) -> None:
        interrupted.set()
        sys.stderr.write(
            f"csip {command}: interrupted. What was committed stays; the same command goes on from there.\n"
        )
        timer = threading.Timer(_SECONDS_TO_LEAVE, leave)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_server() -> None:
    """End Prefect's temporary server: a signal that was meant for this process alone has not reached it."""
    from prefect.server.api.server import SubprocessASGIServer

    for server in SubprocessASGIServer._instances.values():
        if server.server_process:
            server.server_process.terminate()


if __name__ == "__main__":
    sys.exit(main())
