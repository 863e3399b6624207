"""Where the batches of a build are worked on: side by side on this machine's devices, or on a Ray cluster."""

import importlib
import json
import threading
import time
from pathlib import Path

import pytest
from prefect import Task, flow, task

from csip import tables
from csip.config import RuntimeConfig
from csip.errors import StageError
from flows import runners
from flows.runners import _share_of_a_machine, runner_for
from tests import kill_builds as builds

from .test_flows import free_port

FLOWS = Path(runners.__file__).parent
RAY = RuntimeConfig(runner="ray", device="cpu")


@pytest.mark.parametrize(("devices", "per_device"), [(["cpu"], 1), (["cuda:0", "cuda:1"], 1), (["cuda:0"], 3)])
def test_as_many_batches_run_side_by_side_as_devices_have_place_for(devices, per_device, monkeypatch, server):
    monkeypatch.setattr("flows.runners.list_devices", lambda _: devices)
    busy, most, guard = [], [], threading.Lock()

    @task
    def work(number):
        with guard:
            busy.append(number)
            most.append(len(busy))
        time.sleep(0.3)
        with guard:
            busy.remove(number)
        return number

    @flow
    def all_of_them():
        with runner_for(RuntimeConfig(per_device=per_device)) as runner:
            return [one.result() for one in [runner.submit(work, {"number": n}) for n in range(7)]]

    assert all_of_them() == list(range(7))
    assert max(most) == len(devices) * per_device


@pytest.mark.parametrize(
    ("runtime", "nodes", "share"),
    [
        # A task takes a GPU, or half of one where two may share it; its cores are no limit.
        (RuntimeConfig(), [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}], {"num_gpus": 1.0, "num_cpus": 0}),
        (RuntimeConfig(per_device=2), [{"CPU": 8.0, "GPU": 1.0}], {"num_gpus": 0.5, "num_cpus": 0}),
        # Without a GPU it takes a machine; a head that has no cores to give counts for nothing.
        (RuntimeConfig(), [{}, {"CPU": 8.0}, {"CPU": 4.0}], {"num_cpus": 4}),
        (RuntimeConfig(device="cpu"), [{"CPU": 8.0, "GPU": 2.0}], {"num_cpus": 8}),
        (RuntimeConfig(device="cpu", per_device=4), [{"CPU": 2.0}], {"num_cpus": 1}),
    ],
)
def test_a_batch_takes_its_share_of_a_machine_of_the_cluster(runtime, nodes, share):
    assert _share_of_a_machine(nodes, runtime) == share


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    found = importlib.import_module

    def no_ray(name, *more):
        if name == "prefect_ray":
            raise ModuleNotFoundError("No module named 'prefect_ray'", name="prefect_ray")
        return found(name, *more)

    monkeypatch.setattr("importlib.import_module", no_ray)
    message = (
        r"runtime\.runner=ray: the package prefect_ray is not installed\. Install it \(pip install 'csip\[ray\]'\)"
    )
    with pytest.raises(StageError, match=message), runner_for(RAY):
        pass


@pytest.fixture
def failing(monkeypatch):
    """Ray's `init` fails as often as the caller says and then works; gives the list of its calls."""
    ray = importlib.import_module("ray")
    # Without an address Ray would join a cluster that happens to run on this machine.
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("flows.runners.JOIN_SECONDS", (0.0, 0.1))
    joined, calls = ray.init, []

    def fail(error, times):
        def init(*address, **more):
            calls.append(address)
            if len(calls) <= times:
                raise error
            return joined(*address, **more)

        monkeypatch.setattr(ray, "init", init)
        return calls

    return fail


@pytest.mark.parametrize("kind", [ConnectionError, RuntimeError])
def test_a_cluster_that_cannot_be_joined_is_named_with_what_to_do(kind, failing, server):
    calls = failing(kind("no server"), times=9)

    @flow
    def build():
        with runner_for(RuntimeConfig(runner="ray", ray_address="ray://far:10001")):
            pass

    message = r"runtime\.runner=ray: cannot join the Ray cluster at ray://far:10001: no server\. Expected"
    with pytest.raises(StageError, match=message):
        build()
    assert calls == [("ray://far:10001",)] * 3


@pytest.mark.slow
def test_a_cluster_that_fails_to_take_a_driver_in_is_joined_again(failing, server):
    calls = failing(ConnectionError("Starting Ray client server failed."), times=2)

    @task
    def double(number):
        return 2 * number

    @flow
    def build():
        with runner_for(RAY) as runner:
            return [one.result() for one in [runner.submit(double, {"number": n}) for n in range(3)]]

    assert build() == [0, 2, 4]
    assert calls == [()] * 3


def test_every_task_can_be_sent_to_another_machine():
    pickle = importlib.import_module("ray.cloudpickle")
    modules = [importlib.import_module(f"flows.{path.stem}") for path in FLOWS.glob("*.py")]
    tasks = {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Task)}
    assert {"extract_videos", "import_benchmark", "stage2", "retrieve"} <= set(tasks)
    for name, one in tasks.items():
        assert pickle.loads(pickle.dumps(one)).name == name


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A Ray cluster on this machine: a head that does no work, and two workers of one core."""
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "CSIP_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    port = free_port()
    head = {"num_cpus": 0, "include_dashboard": False, "ray_client_server_port": port}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.workers = [made.add_node(num_cpus=1) for _ in range(2)]
    # By way of the head: who names the cluster itself belongs to one of its machines.
    made.url = f"ray://127.0.0.1:{port}"
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_ray_cluster_builds_what_one_machine_builds_though_a_machine_is_lost(
    cluster, fresh_command, settings, server, tmp_path
):
    first, others = builds.make_videos(tmp_path)
    videos = [first, *others]
    sets = (*settings.extract, *settings.sets(("runtime.video_batch_seconds=1", "runtime.threads=1")))
    alone = fresh_command("build-skeletons", *videos, "--store", tmp_path / "alone", "--json", *sets)
    assert alone.code == 0, alone.err
    # Both workers are on this machine and share its processor.
    there = settings.sets(("runtime.runner=ray", f"runtime.ray_address={cluster.url}", "runtime.per_device=2"))
    store = tmp_path / "together"
    words = ["build-skeletons", *videos, "--store", store, "--json", *sets, *there]
    build = fresh_command.start(*words, PREFECT_API_URL=server, RAY_USAGE_STATS_ENABLED="0")
    try:
        deadline = time.monotonic() + 300
        while not (store / "runs.lance").exists() or not tables.find_runs(str(store), "stage = 'detect_video'"):
            assert build.poll() is None, build.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        cluster.remove_node(cluster.workers.pop(), allow_graceful=False)
        out, err = build.communicate(timeout=400)
    finally:
        build.kill()
    assert build.returncode == 0, err
    assert json.loads(out)["snapshot"] == json.loads(alone.out)["snapshot"]
    found, expected = builds.rows(store), builds.rows(tmp_path / "alone")
    for name in ("videos", "detections", "tracklets", "crops", "skeletons", "splits"):
        assert found[name] == expected[name]
