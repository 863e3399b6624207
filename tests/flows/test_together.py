"""Trainings over several machines: those that join are told what to do, and are let go when it is over."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from csip import tables
from csip.config import PretrainConfig, RuntimeConfig, ValidateConfig
from csip.errors import StageError, TooLittleDataError
from csip.training.pretrain import initialise, pretrain_visual
from csip.types import FileRef, Output
from flows import together
from flows.stage import stage

from .test_flows import free_port

HERE = Path(__file__).parent


@pytest.fixture
def rendezvous():
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def two_machines(rendezvous):
    return RuntimeConfig(device="cpu", nodes=2, rendezvous=rendezvous, save_seconds=0, threads=1)


class Joined:
    """`csip join` on another machine: a process with a folder, a home and a cache of its own."""

    def __init__(self, home, rendezvous, path=HERE):
        home.mkdir()
        self.log = home / "log"
        own = {"HOME": str(home), "CSIP_CACHE": str(home / "cache"), "PREFECT_HOME": str(home), "PYTHONPATH": str(path)}
        words = ["join", rendezvous, "--set", "runtime.device=cpu", "--set", "runtime.threads=1"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("csip"), *words],
                cwd=home,
                env=os.environ | own,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def told(self):
        return self.log.read_text()

    def wait_for(self, text, seconds=60):
        deadline = time.monotonic() + seconds
        while text not in self.told():
            assert self.process.poll() is None, self.told()
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.1)


@pytest.fixture
def join(tmp_path, rendezvous):
    """Start `csip join`; whatever it has started is gone at the end."""
    made = []

    def start(**more):
        made.append(Joined(tmp_path / f"machine-{len(made)}", rendezvous, **more))
        return made[-1]

    yield start
    for one in made:
        os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()


@pytest.mark.parametrize(
    ("runtime", "node", "words"),
    [
        (RuntimeConfig(processes=2), 0, ["--standalone", "--nproc-per-node=2"]),
        (
            RuntimeConfig(processes=4, nodes=3, rendezvous="10.0.0.7:29500"),
            2,
            ["--nnodes=3", "--node-rank=2", "--master-addr=10.0.0.7", "--master-port=29500", "--nproc-per-node=4"],
        ),
    ],
)
def test_torchrun_is_told_who_takes_part(runtime, node, words):
    command = together.torchrun(runtime, node)
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert set(words) <= set(command)
    assert command[-2:] == ["-m", "flows.child"]


def test_a_host_that_nobody_knows_is_refused_before_anybody_waits_for_it():
    message = r"Rendezvous nobody\.invalid:29500: no address found for 'nobody\.invalid' \(.*Expected the name"
    with pytest.raises(StageError, match=message):
        together.join(RuntimeConfig(device="cpu", nodes=2, rendezvous="nobody.invalid:29500"), 1, print)


def test_a_start_that_fails_is_told_with_its_last_words(two_machines, tmp_path, monkeypatch):
    failing = [sys.executable, "-c", "import sys; sys.exit('no room left')"]
    monkeypatch.setattr(together, "torchrun", lambda *_: failing)
    monkeypatch.setattr(together, "_SECONDS_AFTER_FAILING", 0.0)
    told = []
    together._take_part(two_machines, 1, tmp_path, (), told.append)
    assert told == ["Broken off. The last words:\nno room left"]


@pytest.mark.slow
def test_a_machine_that_joined_takes_part_in_one_training_after_another(
    join, toys, store, two_machines, tmp_path, server
):
    machine = join()
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    for number in (1, 2):
        mark = str(tmp_path / f"mark-{number}")
        assert task(store, "well", mark, two_machines) == FileRef(mark, "0" * 64)
        # 1 + 10, and so on: both processes counted; the one of the other machine said who it is.
        pids = [int(Path(f"{mark}-{rank}").read_text()) for rank in range(2)]
        assert len(set(pids)) == 2
    runs = tables.find_runs(store, "stage = 'work_together'")
    assert [run.counts for run in runs] == [{"total": 2}] * 2
    rows = tables.read(tables.current(store, "metrics"), where=f"run_id = {tables.quote(runs[0].run_id)}").to_pylist()
    assert {row["step"]: row["value"] for row in rows} == {1: 11.0, 2: 22.0, 3: 33.0}
    machine.wait_for("Done.")
    assert machine.told().count("Taking part in toy_stages:work_together.") == 2


@pytest.mark.slow
def test_an_error_reaches_the_flow_and_the_machine_waits_for_the_next_training(
    join, toys, store, two_machines, tmp_path, server
):
    machine = join()
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    with pytest.raises(TooLittleDataError, match=r"^Found 2 processes, expected 3\.$"):
        task(store, "refuse", str(tmp_path / "mark"), two_machines)
    machine.wait_for("Not done: Found 2 processes, expected 3.")
    assert task(store, "well", str(tmp_path / "mark"), two_machines)


@pytest.mark.slow
def test_a_machine_with_other_code_is_refused(join, toys, store, two_machines, tmp_path, server):
    other = tmp_path / "other"
    other.mkdir()
    (other / "toy_stages.py").write_text((HERE / "toy_stages.py").read_text() + "\nMORE = 1\n")
    join(path=other)
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    with pytest.raises(StageError, match=r"toy_stages:work_together: found other code on .* Install the same version"):
        task(store, "well", str(tmp_path / "mark"), two_machines)
    assert not list(tmp_path.glob("mark*"))


@pytest.mark.slow
def test_a_training_over_two_machines_is_that_of_one_though_a_machine_is_lost(
    join, store, two_machines, tiny, tiny_snapshot, run, tmp_path, server, monkeypatch
):
    monkeypatch.setattr("flows.stage.RETRY_SECONDS", (0.0, 0.0))
    model = dataclasses.replace(tiny.model, joint_dropout=0, prototype_dropout=0, temporal_dropout=0)
    out = Output(str(tmp_path / "still"), "run-0")
    still = run(initialise(out, tiny_snapshot, tiny.clip, model, ValidateConfig(), tiny.seed))[1].value
    config = PretrainConfig(epochs=40, identities=4, clips_per_identity=2, learning_rate=1e-3)
    task = stage(pretrain_visual, work="training", cached=True, shared=True)

    def train(own, runtime):
        ref = task(own, still, tiny_snapshot, config, 0, runtime)
        rows = tables.read(tables.current(own, "metrics")).to_pylist()
        # A part that was broken off has left figures of its own.
        (done,) = tables.find_runs(own, "stage = 'pretrain_visual'")
        kept = [row for row in rows if row["run_id"] == done.run_id and row["name"] != "clips_per_second"]
        return ref, {(row["step"], row["name"]): row["value"] for row in kept}

    _, alone = train(f"{store}-alone", RuntimeConfig(device="cpu", threads=1))
    first = join()
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(train, store, two_machines)
        first.wait_for("Taking part in")
        while not list(Path(store, "checkpoints").glob("*.state")):
            assert not training.done(), training.result()
            time.sleep(0.05)
        os.killpg(first.process.pid, signal.SIGKILL)
        join()
        _, together = training.result(timeout=300)
    assert {step for step, _ in together} == set(range(1, 41))
    assert together == pytest.approx(alone, rel=1e-3, abs=1e-3)
