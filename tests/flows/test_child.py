"""A training in a real child process: killed at any moment, told to stop, left alone by its parent; and its curves."""

import dataclasses
import inspect
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flows
from csip import tables
from csip.config import PretrainConfig, Stage1Config, Stage2Config, ValidateConfig
from csip.plain import to_plain
from csip.training.pretrain import pretrain_visual
from csip.training.stage1 import stage1
from csip.training.stage2 import stage2
from csip.types import Output
from flows.child import STOPPED, StoppedError, run_stage

ROOT = Path(flows.__file__).resolve().parent.parent
# Long enough to be killed in, a state after every batch.
TRAININGS = {
    "pretrain_visual": (pretrain_visual, PretrainConfig(epochs=30, identities=2, clips_per_identity=2)),
    "stage1": (stage1, Stage1Config(epochs=30, batch_clips=2, accumulate=3)),
    "stage2": (stage2, Stage2Config(epochs=30, identities=2, clips_per_identity=2, accumulate=2)),
}


@pytest.fixture
def given(tiny, tiny_snapshot, untrained, tiny_features):
    """All that the trainings ask for."""
    return {
        "checkpoint": untrained,
        "features": tiny_features,
        "snapshot": tiny_snapshot,
        "validate": ValidateConfig(),
        "seed": tiny.seed,
        "runtime": dataclasses.replace(tiny.runtime, save_seconds=0),
    }


def arguments(name, given, **changes):
    function, config = TRAININGS[name]
    values = given | {"config": dataclasses.replace(config, **changes)}
    return {key: values[key] for key in inspect.signature(function).parameters if key != "out"}


class Child:
    """One `python -m flows.child` with a request on its standard input."""

    def __init__(self, name, given, out, folder, **changes):
        self.manifest, self.log = folder / f"{out.run_id}.json", folder / f"{out.run_id}.log"
        function = TRAININGS[name][0]
        request = {
            "function": f"{function.__module__}:{name}",
            "arguments": {key: to_plain(value) for key, value in arguments(name, given, **changes).items()},
            "out": to_plain(out),
            "manifest": str(self.manifest),
            "parent": os.getpid(),
            "stop_seconds": 20,
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))  # every line is a record, whenever it ends
        self.lines.put(None)

    def wait_for_work(self):
        """Wait for the first record; None when it ended before."""
        return self.lines.get(timeout=120)

    def end(self, number=None, *, everybody=False):
        """Send a signal, also to the processes that it has started, or wait for its own end: the exit code."""
        if number is not None:
            (os.killpg if everybody else os.kill)(self.process.pid, number)
        code = self.process.wait(timeout=120)
        self.process.stdin.close()
        return code


@pytest.fixture
def start(given, out, tmp_path):
    """Start a training in a child, each time under another run; whatever is left at the end is killed."""
    children = []

    def begin(name, **changes):
        child = Child(name, given, Output(out.store, f"run-{len(children)}"), tmp_path, **changes)
        children.append(child)
        return child

    yield begin
    for child in children:
        child.process.kill()
        child.process.wait()


def folder_of(out):
    return Path(out.store) / "checkpoints"


def figures(store, run_id):
    """Every epoch's figures as the run recorded them."""
    rows = tables.read(tables.current(store, "metrics"), where=f"run_id = {tables.quote(run_id)}").to_pylist()
    return {(row["step"], row["name"]): row["value"] for row in rows if row["name"] != "clips_per_second"}


@pytest.fixture
def undisturbed(given, tmp_path, one_thread):
    """What a training comes to in this process, in a store of its own."""

    def train(name, **changes):
        store = str(tmp_path / "undisturbed")
        tables.prepare_store(store)
        run = Output(store, "whole")
        outcome = run_stage(TRAININGS[name][0](run, **arguments(name, given, **changes)), run, name, lambda _: None)
        return SimpleNamespace(figures=figures(store, "whole"), outcome=to_plain(outcome))

    train_once = {}
    return lambda name, **changes: train_once.setdefault(name, train(name, **changes))


def check(child, code, out, number, want):
    assert code == 0, child.log.read_text()[-3000:]
    found = json.loads(child.manifest.read_text())["outcome"]
    assert figures(out.store, f"run-{number}") == want.figures  # to the last bit
    assert found["counts"] == want.outcome["counts"]
    assert found["value"]["sha256"] == want.outcome["value"]["sha256"]
    assert list(folder_of(out).glob(".*.part")) == []


def kill_until_done(start, out, undisturbed, name, kills, chance, **changes):
    """Kill a training again and again; half of the times while it writes its state."""
    want = undisturbed(name, **changes)
    killed = writing = 0
    while True:
        for part in folder_of(out).glob(".*.part"):
            os.utime(part, (0, 0))  # a young one might be another process's, which is writing it
        child = start(name, **changes)
        child.wait_for_work()
        if killed < kills:
            if killed % 2:
                time.sleep(chance.uniform(0, 0.3))
            else:
                end = time.monotonic() + 5
                while child.process.poll() is None and time.monotonic() < end:
                    if any(folder_of(out).glob(".*.part")):
                        writing += 1
                        break
            if child.end(signal.SIGKILL) == -signal.SIGKILL:
                killed += 1
                continue
        check(child, child.end(), out, killed, want)
        return killed, writing


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_killed_many_times_goes_on_bit_for_bit(start, out, undisturbed, name):
    killed, writing = kill_until_done(start, out, undisturbed, name, 25, random.Random(2), epochs=150)
    assert killed == 25
    assert writing >= 5


@pytest.mark.slow
def test_a_training_told_to_stop_saves_and_ends_and_can_be_taken_up(start, out, given, undisturbed):
    # A state after each batch would hide whether stopping writes one.
    given["runtime"] = dataclasses.replace(given["runtime"], save_seconds=3600)
    want = undisturbed("stage2")
    child = start("stage2")
    assert child.wait_for_work() is not None, child.log.read_text()[-3000:]
    time.sleep(0.2)
    begun = time.monotonic()
    code = child.end(signal.SIGTERM)
    assert (code, STOPPED) == (143, 143), child.log.read_text()[-3000:]
    assert time.monotonic() - begun < 10
    assert not child.manifest.exists()
    (state,) = folder_of(out).glob("*.state")
    assert [path.name for path in folder_of(out).iterdir()] == [state.name]
    again = start("stage2")
    check(again, again.end(), out, 1, want)


def test_a_training_that_is_ended_with_all_that_it_has_started_saves_first(start, out, given):
    given["runtime"] = dataclasses.replace(given["runtime"], save_seconds=3600, workers=3)
    child = start("pretrain_visual", epochs=100_000)
    # Of the processes that read, one has made a batch; others may just begin.
    assert child.wait_for_work() is not None, child.log.read_text()[-3000:]
    code = child.end(signal.SIGTERM, everybody=True)
    assert code == STOPPED, (child.manifest.is_file() and child.manifest.read_text(), child.log.read_text()[-3000:])
    assert len(list(folder_of(out).glob("*.state"))) == 1


def test_a_training_whose_parent_is_gone_saves_and_ends(start, out, given):
    given["runtime"] = dataclasses.replace(given["runtime"], save_seconds=3600)
    child = start("stage1", epochs=100_000)
    assert child.wait_for_work() is not None, child.log.read_text()[-3000:]
    child.process.stdin.close()  # as when the process at the other end dies
    assert child.process.wait(timeout=20) == STOPPED
    assert len(list(folder_of(out).glob("*.state"))) == 1
    assert list(folder_of(out).glob(".*.part")) == []


# ------------------------------------------------------------------------------------------------------ in this process


def test_a_stage_that_is_told_to_stop_is_closed(given, out, one_thread):
    heard = []
    stage = stage1(out, **arguments("stage1", given))
    with pytest.raises(StoppedError):
        run_stage(stage, out, "stage1", heard.append, lambda: len(heard) > 0)
    assert len(list(folder_of(out).glob("*.state"))) == 1


@pytest.mark.parametrize("name", TRAININGS)
def test_tensorboards_curves_are_the_figures_in_metrics(given, out, one_thread, name):
    run_stage(TRAININGS[name][0](out, **arguments(name, given, epochs=3)), out, name, lambda _: None)
    written = EventAccumulator(str(Path(out.store) / "tensorboard" / f"{name}-{out.run_id}"))
    written.Reload()
    rows = tables.read(tables.current(out.store, "metrics")).to_pylist()
    assert {(row["run_id"], row["stage"]) for row in rows} == {(out.run_id, name)}
    names = {row["name"] for row in rows}
    assert set(written.Tags()["scalars"]) == names >= {"loss", "learning_rate", "clips_per_second"}
    for figure in names:
        curve = {event.step: event.value for event in written.Scalars(figure)}
        # TensorBoard keeps 32 bits of a number.
        assert curve == pytest.approx({row["step"]: row["value"] for row in rows if row["name"] == figure}, rel=1e-6)
        assert sorted(curve) == [1, 2, 3]


def test_a_stage_without_epochs_writes_no_curves(given, out, tiny_snapshot, untrained, tiny):
    from csip.training.features import cache_features

    run_stage(cache_features(out, untrained, tiny_snapshot, tiny.runtime), out, "cache_features", lambda _: None)
    assert not (Path(out.store) / "tensorboard").exists()


def test_processes_forked_from_a_stage_end_when_they_are_told_to():
    # OpenVINO forked one, told it to end, and waited for ever: it had the stage's own way of being told.
    script = """
import multiprocessing, threading, time
from flows.child import _listen
stop = threading.Event()
_listen(stop)
forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
forked.start()
time.sleep(0.5)
forked.terminate()
forked.join(20)
print(forked.exitcode, stop.is_set())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(-signal.SIGTERM), "False"]
