"""More than one machine: two workers, one server on PostgreSQL, one store; a machine that is lost loses no row."""

import json
import os
import re
import signal
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from csip import tables
from csip.maintenance.verify import verify
from csip.plain import to_plain
from tests import kill_builds as builds

from .postgres import running_postgres
from .test_flows import Processes, flow_runs, free_port, running_server, wait_for

pytestmark = pytest.mark.slow

# Many segments: there is a middle to be killed in.
CONFIG = replace(builds.CONFIG, detect=replace(builds.CONFIG.detect, segment_seconds=0.6))


class Machine:
    """A worker with a working directory, a HOME and a PREFECT_HOME of its own."""

    def __init__(self, folder, server, pool):
        self.home = folder / "home"
        (folder / "work").mkdir(parents=True)
        self.home.mkdir()
        own = {"HOME": str(self.home), "PREFECT_HOME": str(self.home / "prefect"), "PREFECT_API_URL": server.url}
        own["CSIP_CACHE"] = str(self.home / "cache")  # which has the slots of a machine's devices
        self.processes = Processes(folder / "work", server.processes.environment | own)
        self.worker = self.processes.start(server.prefect.with_name("csip"), "worker", "--pool", pool)

    def everything(self):
        """All its processes: whatever has its HOME."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdecimal() else []
            except OSError:
                continue
            if f"HOME={self.home}".encode() in words:
                found.append((int(entry.name), words))
        return found

    def run(self):
        """Name the flow run it works on."""
        ids = {word.partition(b"=")[2].decode() for _, words in self.everything() for word in words if _is_run(word)}
        return next(iter(ids), None)

    def log(self):
        """The end of what its worker wrote."""
        return "\n".join(path.read_text()[-4000:] for path in self.processes.folder.glob("*.log"))

    def lose(self):
        """Kill all of it at once."""
        for pid, _ in self.everything():
            os.kill(pid, signal.SIGKILL)


def _is_run(word):
    return word.startswith(b"PREFECT__FLOW_RUN_ID=")


@pytest.fixture
def cluster(tmp_path):
    """A server on PostgreSQL with the deployments, and two machines that pull from its pool."""
    with (
        running_postgres(free_port()) as database,
        running_server(tmp_path / "server", PREFECT_API_DATABASE_CONNECTION_URL=database) as server,
    ):
        csip = server.prefect.with_name("csip")
        told = server.processes.run(csip, "deploy", "--pool", "boxes", "--no-plugin", "--json")
        assert json.loads(told)["pool"] == "boxes"
        machines = []
        try:
            machines += [Machine(tmp_path / name, server, "boxes") for name in ("one", "two")]
            yield SimpleNamespace(server=server, machines=machines, database=database)
        finally:
            for machine in machines:
                machine.processes.end()
                machine.lose()


def has(store, table):
    return (store / f"{table}.lance").exists()


def passes(store, video):
    """How often each part of a video was worked on and finished, by the store's own account."""
    found = tables.find_runs(str(store), "seconds >= 0") if has(store, "runs") else []
    return Counter((run.stage, run.key) for run in found if run.inputs.get("video", {}).get("path") == str(video))


@pytest.fixture
def built_alone(tmp_path, monkeypatch):
    """A function that builds videos, one after the other, in one undisturbed process, and gives the store's rows."""

    def build(*videos):
        store = tmp_path / "alone"
        # As `runtime.threads` has it for the flows; sums in another order are other sums.
        monkeypatch.setenv("OMP_NUM_THREADS", str(builds.RUNTIME.threads))
        # The process imports its function, and gets this one's path.
        monkeypatch.syspath_prepend(builds.ROOT)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for video in videos:
                pool.submit(builds.build, str(store), [str(video)], CONFIG).result(timeout=300)
        return rows(store)

    return build


def rows(store):
    """All rows in an order of their own: which of two builds commits first is nobody's promise."""
    return {name: sorted(found, key=repr) for name, found in builds.rows(store).items()}


def test_a_lost_machine_loses_no_row_and_another_one_goes_on_with_its_run(cluster, built_alone, tmp_path):
    server, store = cluster.server, tmp_path / "store"
    _, videos = builds.make_videos(tmp_path)

    def start(video):
        given = {"sources": [str(video)], "store": str(store), "config": to_plain(CONFIG)}
        given["runtime"] = to_plain(builds.RUNTIME)
        words = [word for name, value in given.items() for word in ("--param", f"{name}={json.dumps(value)}")]
        server.processes.run(server.prefect, "deployment", "run", "build-skeletons/build-skeletons", *words)

    def runs():
        return {run["id"]: run for run in flow_runs(server.url, store)}

    def logs():
        return "\n".join(machine.log() for machine in cluster.machines)

    for video in videos:
        start(video)
    # Both machines work at the same time, on a run each.
    wait_for(lambda: all(machine.run() for machine in cluster.machines), 120, logs)
    assert len({machine.run() for machine in cluster.machines}) == 2
    lost = next(m for m in cluster.machines if runs()[m.run()]["parameters"]["sources"] == [str(videos[0])])
    (kept,) = [machine for machine in cluster.machines if machine is not lost]
    victim, other = lost.run(), kept.run()
    wait_for(lambda: passes(store, videos[0]), 240, logs)
    lost.lose()
    before = passes(store, videos[0])
    assert not any(stage == "track_video" for stage, _ in before), "it was done before it could be killed"

    wait_for(lambda: runs()[other]["state_type"] == "COMPLETED", 240, logs)
    # Nobody does anything: the run itself is noticed, and given to the machine that is left.
    wait_for(lambda: runs()[victim]["state_name"] == "Lost", 300, logs)
    assert "No heartbeat for 95 s" in runs()[victim]["state"]["message"]
    wait_for(lambda: runs()[victim]["state_type"] in ("COMPLETED", "FAILED"), 600, logs)
    assert runs()[victim]["state_type"] == "COMPLETED", logs()
    assert runs().keys() == {victim, other}

    # What the lost machine had finished was not done again.
    after = passes(store, videos[0])
    assert before.keys() < after.keys()
    assert set(after.values()) == {1}
    assert [one for one in verify(str(store)) if one.kind == "fault"] == []
    found, expected = rows(store), built_alone(*videos)
    assert all(found[name] for name in ("videos", "detections", "tracklets", "crops", "skeletons", "snapshots"))
    for name in builds.ROWS:
        assert found[name] == expected[name], name


def test_a_worker_that_docker_stops_lets_its_training_save_in_time(built, own_store, settings, tmp_path):
    compose = yaml.safe_load((builds.ROOT / "docker" / "worker.yaml").read_text(encoding="utf-8"))
    grace = float(re.search(r":-(\d+)s\}", compose["services"]["worker-cpu"]["stop_grace_period"])[1])
    words = ("--store", own_store, "--pool", "boxes", "--no-plugin", "--recipe", "demo", *settings.small)
    # Far too long, and no state but that of who is told to stop.
    words += ("--set", "pretrain.epochs=100000", "--set", "runtime.save_seconds=86400")
    with running_server(tmp_path / "server") as server:
        csip = server.prefect.with_name("csip")
        server.processes.run(csip, "deploy", *words)
        machine = Machine(tmp_path / "one", server, "boxes")
        try:
            name = json.dumps(built.snapshot)
            server.processes.run(
                server.prefect, "deployment", "run", "train-csip/train-csip", "--param", f"snapshot={name}"
            )

            def trained():
                found = tables.read(tables.current(str(own_store), "metrics")) if has(own_store, "metrics") else None
                return found is not None and "pretrain_visual" in found["stage"].to_pylist()

            wait_for(trained, 180, machine.log)
            # What Docker sends to the container's first process, and that one to the worker alone.
            begun = time.monotonic()
            machine.worker.send_signal(signal.SIGTERM)
            machine.worker.wait(grace)
            assert time.monotonic() - begun < grace
            assert machine.everything() == []
            assert [path.suffix for path in (own_store / "checkpoints").glob("pretrain_visual-*")] == [".state"]
        finally:
            machine.processes.end()
            machine.lose()
