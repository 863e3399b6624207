"""What Prefect finds in the environment of our commands, and of the runs that deployments start.

What the user sets holds, everywhere, but for heartbeats. Prefect reads it when it is imported, so nothing here imports
Prefect.
"""

from __future__ import annotations

import os
import sys

HEARTBEAT_SECONDS = 30
"""From one sign of life of a flow run to the next; `flows.lost` waits for them. Prefect sends none more often."""

# Rarer ones would make every run that lives a lost one.
_HEARTBEATS = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
_COMMANDS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The command line prints a user's error itself, once, without a traceback.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FLOW_RUNS_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_TASK_RUNS_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",
    # Prefect gives its temporary server 20 seconds; a busy machine needs more.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
_set: set[str] = set()
"""What `prepare` has set in this process, and the user has not."""


def prepare() -> None:
    """Set what our commands want, where the user has not; heartbeats in any case, and say so."""
    for name, value in _COMMANDS.items():
        if name not in os.environ:
            os.environ[name] = value
            _set.add(name)
    for name, value in _HEARTBEATS.items():
        if os.environ.get(name, value) != value:
            sys.stderr.write(f"{name}={os.environ[name]}: runs of CSIP send one every {value} s all the same.\n")
        os.environ[name] = value


def of_runs() -> dict[str, str]:
    """Give what a run wants that any worker starts, also Prefect's own; telemetry as the user has it who deploys."""
    return _HEARTBEATS | {"DO_NOT_TRACK": os.environ.get("DO_NOT_TRACK", _COMMANDS["DO_NOT_TRACK"])}


def of_programs() -> dict[str, str]:
    """Give the environment for a program of Prefect's: this one, without what quietens our own terminal."""
    quiet = {name for name in _set if name.startswith("PREFECT_LOGGING_HANDLERS_")}
    return {name: value for name, value in os.environ.items() if name not in quiet}
