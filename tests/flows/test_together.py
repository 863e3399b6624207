"""Trainings over several machines: those that join are told what to do, and are let go when it is over."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore
from torch.distributed.launcher.api import LaunchConfig

from csip import tables
from csip.config import PretrainConfig, RuntimeConfig, ValidateConfig
from csip.errors import StageError, TooLittleDataError
from csip.training.pretrain import initialise, pretrain_visual
from csip.types import FileRef, Output
from flows import child, together
from flows.child import REQUEST, _compare
from flows.devices import Held, held
from flows.stage import stage
from flows.usage import make_parser

from .test_flows import free_port, wait_for

HERE = Path(__file__).parent


@pytest.fixture
def rendezvous():
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def two_machines(rendezvous):
    return RuntimeConfig(device="cpu", nodes=2, rendezvous=rendezvous, save_seconds=0, threads=1)


class Joined:
    """`csip join` on another machine: a process with a folder, a home and a cache of its own."""

    def __init__(self, home, rendezvous, path=HERE, sets=()):
        home.mkdir()
        self.log = home / "log"
        own = {"HOME": str(home), "CSIP_CACHE": str(home / "cache"), "PREFECT_HOME": str(home), "PYTHONPATH": str(path)}
        words = ["join", rendezvous, "--set", "runtime.device=cpu", "--set", "runtime.threads=1"]
        words += [word for one in sets for word in ("--set", one)]
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
    assert command[1:3] == ["-m", "flows.launcher"]
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
    together._take_part(two_machines, 1, tmp_path, Held("cpu"), told.append)
    assert told == ["Broken off. The last words:\nno room left"]


def test_what_is_to_be_typed_elsewhere_is_told_as_csip_understands_it(two_machines):
    for runtime in (two_machines, dataclasses.replace(two_machines, nodes=3, processes=4)):
        words = together.join_command(runtime).replace("--node K", "--node 2").split()
        args = make_parser().parse_args(words[1:])
        assert (args.command, args.address, args.nodes) == ("join", runtime.rendezvous, runtime.nodes)
        assert ("runtime.processes=4" in args.set) == (runtime.processes == 4)


class AnywayError(Exception):
    """Ends what would go on for ever."""


def test_a_machine_trains_on_the_device_that_it_holds(two_machines, tmp_path, monkeypatch):
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("flows.devices.list_devices", lambda _: ["cuda:0", "cuda:1"])
    # In place of torchrun: tells which devices it was shown.
    program = "import os, sys; sys.exit('shown: ' + os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))"
    monkeypatch.setattr(together, "torchrun", lambda *_: [sys.executable, "-c", program])

    def tell(text):
        if "shown" in text:
            raise AnywayError(text)

    runtime = dataclasses.replace(two_machines, device="auto")
    with held("training", runtime, 1, "another training", print) as other:
        assert other.name == "cuda:0"
        with pytest.raises(AnywayError, match=r"shown: 1$"):
            together.join(runtime, 1, tell)


def test_torchrun_lets_its_processes_save_for_as_long_as_is_asked_for(two_machines, monkeypatch):
    environment = together.child_environment(dataclasses.replace(two_machines, stop_seconds=90.5))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == 91


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"source": "b"}, r"found other code on box2 than where the flow runs \(box1\)"),
        ({"processes": "1"}, r"found 1 processes on box2 and 2 where the flow runs \(box1\).*runtime\.processes=N"),
        (
            {"device": "cpu"},
            r"found the device cpu on box2 and cuda where the flow runs \(box1\).*runtime\.device=NAME",
        ),
    ],
)
def test_a_machine_that_differs_from_the_first_is_refused_by_name(difference, message):
    first = {"host": "box1", "source": "a", "processes": "2", "device": "cuda"}
    _compare("stage1", first, first | {"host": "box3"})
    with pytest.raises(StageError, match=message):
        _compare("stage1", first, first | {"host": "box2"} | difference)


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
def test_machines_with_other_numbers_of_processes_are_refused(join, toys, store, two_machines, tmp_path, server):
    join()
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    with pytest.raises(StageError, match=r"work_together: found 1 processes on .* and 2 where the flow runs"):
        task(store, "well", str(tmp_path / "mark"), dataclasses.replace(two_machines, processes=2))
    assert not list(tmp_path.glob("mark*"))


@pytest.mark.slow
def test_a_machine_uses_its_own_device_whatever_the_flow_was_told(join, toys, store, two_machines, tmp_path, server):
    # There is no such device on the machine of the flow, which finds its own under another name.
    join(sets=["runtime.device=cpu:0"])
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    mark = str(tmp_path / "mark")
    assert task(store, "well", mark, two_machines)
    assert [Path(f"{mark}-{rank}.device").read_text() for rank in range(2)] == ["cpu", "cpu:0"]


@pytest.mark.slow
def test_a_training_waits_for_a_machine_longer_than_for_a_word(join, toys, store, two_machines, tmp_path, server):
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    runtime = dataclasses.replace(two_machines, stall_seconds=15)
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(task, store, "well", str(tmp_path / "mark"), runtime)
        with pytest.raises(TimeoutError):
            training.result(timeout=25)
        join()
        assert training.result(timeout=120)


@pytest.mark.slow
def test_a_machine_that_never_comes_is_named_with_what_to_do(toys, store, two_machines, tmp_path, server, monkeypatch):
    monkeypatch.setattr(together, "PATIENCE", 3)
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    message = rf"waited 3 s for 2 machines.*`csip join {two_machines.rendezvous}` on each of the others"
    with pytest.raises(StageError, match=message) as caught:
        task(store, "well", str(tmp_path / "mark"), dataclasses.replace(two_machines, stop_seconds=1))
    assert type(caught.value) is StageError


STORE = """
import sys, time
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=True, wait_for_workers=False)
time.sleep(600)
"""
FIRST = "from csip import ranks\nwith ranks.joined(): pass"


@pytest.mark.slow
def test_a_process_whose_first_machine_begins_anew_before_they_are_a_group_ends(tmp_path):
    """The first process has said where it is, and hangs; then its torchrun is killed."""
    request = tmp_path / "request.json"
    asked = {"manifest": str(tmp_path / "manifest.json"), "parent": os.getpid(), "stop_seconds": 2}
    request.write_text(json.dumps(asked), encoding="utf-8")
    # Of two processes the one with the lower port calls the other, and has done its part; so it is an even chance.
    for _ in range(16):
        with first_that_hangs(str(free_port()), request) as (launcher, first, other):
            if connections(other.pid, listening(first.pid)):
                continue
            assert other.poll() is None
            launcher.kill()
            assert other.wait(60) == 1
            assert "began anew on its first machine" in other.stderr.read()
            return
    pytest.fail("in none of 16 groups did the second process wait for the first one")


def test_a_process_that_cannot_reach_its_first_machine_says_where_it_looked(monkeypatch, capsys):
    port = free_port()
    shared = {"RANK": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(child, "_SECONDS_TO_REACH", 1)
    monkeypatch.setattr(os, "_exit", lambda code: sys.exit(f"left with {code}"))
    with pytest.raises(SystemExit, match="left with 1"):
        child._end_with_first(threading.Event())
    assert f"cannot be reached at 127.0.0.1:{port}: " in capsys.readouterr().err
    # Once they are a group it is nobody's business any more.
    formed = threading.Event()
    formed.set()
    child._end_with_first(formed)


@contextlib.contextmanager
def first_that_hangs(port, request):
    """The store of two processes, the first of them, stopped when it can be found, and a second that has found it."""
    shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with contextlib.ExitStack() as stack:

        def start(*words, **own):
            environment = os.environ | shared | own
            process = subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE, text=True)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        def wait_until_found(process, rank):
            wait_for(lambda: any(key.endswith(f"/{rank}") for key in store.list_keys()), 180, process.poll)
            time.sleep(2)

        launcher = start("-c", STORE, port)
        store = TCPStore("127.0.0.1", int(port), is_master=False, timeout=timedelta(seconds=180))
        first = start("-c", FIRST, RANK="0")
        wait_until_found(first, 0)
        first.send_signal(signal.SIGSTOP)
        other = start("-m", "flows.child", RANK="1", **{REQUEST: str(request)})
        wait_until_found(other, 1)
        yield launcher, first, other


def listening(pid):
    """The port on which a process can be called."""
    (port,) = {one.laddr.port for one in psutil.Process(pid).net_connections("tcp") if one.status == "LISTEN"}
    return port


def connections(pid, port):
    """Connections of a process to a port of this machine."""
    return [one for one in psutil.Process(pid).net_connections("tcp") if one.raddr and one.raddr.port == int(port)]


@pytest.mark.slow
def test_a_machine_that_falls_silent_is_lost_and_another_one_takes_its_place(
    join, toys, store, two_machines, tmp_path, server, monkeypatch
):
    monkeypatch.setattr("flows.stage.RETRY_SECONDS", (0.0, 0.0))
    task, mark = stage(toys.work_together, work="training", cached=False, shared=True), tmp_path / "mark"
    runtime = dataclasses.replace(two_machines, stall_seconds=15, stop_seconds=2)
    silent = join()
    silent.wait_for("Waiting for trainings")
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(task, store, "stop once", str(mark), runtime)
        # The process of that machine stops itself, and this is the rest of it. No socket is closed.
        silent.wait_for("Taking part in")
        os.killpg(silent.process.pid, signal.SIGSTOP)
        wait_for(lambda: Path(f"{mark}-1").is_file() and Path(f"{mark}-1").read_text(), 60, silent.told)
        stopped = int(Path(f"{mark}-1").read_text())
        try:
            join()
            assert training.result(timeout=180)
            assert int(Path(f"{mark}-1").read_text()) != stopped
        finally:
            os.kill(stopped, signal.SIGKILL)
    assert [run.counts for run in tables.find_runs(store, "stage = 'work_together'")] == [{"total": 2}]


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
