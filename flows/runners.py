"""Where the batches of a build are worked on: on this machine, a device each, or on a Ray cluster."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from prefect import get_run_logger
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from csip.config import RuntimeConfig
from csip.device import list_devices
from csip.errors import StageError

JOIN_SECONDS = (2.0, 10.0)
"""How long to wait before each further attempt to join a Ray cluster."""


@contextmanager
def runner_for(runtime: RuntimeConfig) -> Iterator[TaskRunner[Any]]:
    """Start what runs tasks side by side: as many as there are devices, times `per_device`.

    Args:
        runtime: `runner`, and `ray_address` for Ray: its machines need CSIP installed, the store and the videos under
            the same paths, and the address of the Prefect server.

    Raises:
        StageError: Ray is asked for, and not installed, or its cluster cannot be joined.
    """
    if runtime.runner == "local":
        places = len(list_devices(runtime.device)) * runtime.per_device
        threads: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=places)
        with threads:
            yield threads
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray: Any = importlib.import_module("ray")
        prefect_ray: Any = importlib.import_module("prefect_ray")
    except ImportError as error:
        raise StageError(
            f"runtime.runner=ray: the package {error.name} is not installed. Install it (pip install 'csip[ray]') on "
            "every machine of the cluster, or use --set runtime.runner=local."
        ) from error
    with ExitStack() as stack:
        cluster = _join_ray(prefect_ray, runtime.ray_address, stack)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        stack.enter_context(prefect_ray.context.remote_options(**_share_of_a_machine(nodes, runtime)))
        yield cluster


def _join_ray(prefect_ray: Any, address: str, stack: ExitStack) -> TaskRunner[Any]:
    """Start Ray's runner for as long as `stack` is open; try again where the cluster could not be joined.

    The head forks a server for every driver from a process of many threads, and now and then that fork dies before
    it is a server: one in some fifty, with Ray 2.60. The next one is as good as any.
    """
    where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
    # What the workers say goes to the run's logs; Ray would write it to standard output, among results.
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    waits = iter(JOIN_SECONDS)
    while True:
        try:
            return stack.enter_context(prefect_ray.RayTaskRunner(address=address or None, init_kwargs=quiet))
        except (OSError, RuntimeError) as error:
            if (wait := next(waits, None)) is None:
                raise StageError(
                    f"runtime.runner=ray: cannot join {where}: {error}. Expected its head there, reachable, with the "
                    "same versions of Python and Ray; look at its logs, name it by runtime.ray_address, or use "
                    "--set runtime.runner=local."
                ) from error
            get_run_logger().warning("Cannot join %s, next attempt in %g s: %s", where, wait, error)
            time.sleep(wait)


def _share_of_a_machine(nodes: list[dict[str, float]], runtime: RuntimeConfig) -> dict[str, float]:
    """Say what one task takes of a machine: a GPU, or all cores of the smallest one."""
    if runtime.device != "cpu" and any(node.get("GPU") for node in nodes):
        # Cores are no limit: a task waits for its GPU.
        return {"num_gpus": 1 / runtime.per_device, "num_cpus": 0}
    cores = min((node["CPU"] for node in nodes if node.get("CPU")), default=1)
    return {"num_cpus": max(1, cores // runtime.per_device)}
