"""Who may use which device of a machine, and who has to wait."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from csip import tables
from csip.config import RuntimeConfig
from csip.errors import CsipError, StageError
from flows.devices import held
from flows.stage import stage

HERE = Path(__file__).parent
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
CPU, AUTO = RuntimeConfig(device="cpu"), RuntimeConfig()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Slots of these tests alone."""
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def two(monkeypatch):
    """A machine with two CUDA devices; gives what holds one of them."""
    monkeypatch.setattr("flows.devices.list_devices", lambda _: ["cuda:0", "cuda:1"])
    with ExitStack() as stack:

        def hold(work="pose", runtime=AUTO, count=1):
            return stack.enter_context(held(work, runtime, count, "somebody", refuse_to_wait))

        yield hold


class WaitedError(Exception):
    """There was nothing free."""


def refuse_to_wait(text):
    raise WaitedError(text)


def test_a_device_has_one_pose_model_and_one_training():
    with held("pose", CPU, 1, "extract_videos of run 1", refuse_to_wait) as device:
        assert (device.name, device.waited, dict(device.environment)) == ("cpu", False, {})
        with held("training", CPU, 1, "stage1 of run 2", refuse_to_wait):
            mine = rf"cpu is used by extract_videos of run 1 \(process {os.getpid()}\)"
            with pytest.raises(WaitedError, match=mine), held("pose", CPU, 1, "run 3", refuse_to_wait):
                pass
    with held("pose", CPU, 1, "run 3", refuse_to_wait) as device:
        assert not device.waited


def test_what_needs_no_device_holds_none():
    with held("pose", CPU, 1, "run 1", refuse_to_wait), held(None, CPU, 1, "run 2", refuse_to_wait) as device:
        assert (device.name, device.files) == ("cpu", ())


def test_more_may_share_a_device_that_is_large_enough():
    roomy = RuntimeConfig(device="cpu", per_device=2)
    with ExitStack() as stack:
        for name in "12":
            stack.enter_context(held("pose", roomy, 1, name, refuse_to_wait))
        with pytest.raises(WaitedError):
            stack.enter_context(held("pose", roomy, 1, "3", refuse_to_wait))


def test_of_several_devices_each_takes_one_that_is_free_and_is_shown_no_other(two):
    first, second = two(), two()
    assert [(one.name, dict(one.environment)) for one in (first, second)] == [
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "0"}),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "1"}),
    ]
    with pytest.raises(WaitedError, match=r"cuda:0 is used by .*, cuda:1 is used by "):
        two()
    assert two("training").name == "cuda:0"


def test_an_empty_device_comes_before_a_second_place_on_another(two):
    roomy = RuntimeConfig(per_device=2)
    assert [two(runtime=roomy).name for _ in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_processes_that_train_together_hold_a_device_each(two):
    both = two("training", count=2)
    assert (both.name, len(both.files), dict(both.environment)) == ("auto", 2, {})
    with pytest.raises(WaitedError):
        two("training")


def test_devices_are_those_of_the_machine_not_of_what_a_process_is_shown(two, monkeypatch):
    two()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-8b1f")
    # Physical device 0 is in use, whatever its number here.
    assert dict(two().environment) == {"CUDA_VISIBLE_DEVICES": "GPU-8b1f"}


def test_a_cache_that_cannot_be_written_does_not_stop_the_work(cache, monkeypatch, tmp_path):
    cache.write_text("a file in the folder's place")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ExitStack() as stack:
        stack.enter_context(held("pose", CPU, 1, "1", refuse_to_wait))
        with pytest.raises(WaitedError):
            stack.enter_context(held("pose", CPU, 1, "2", refuse_to_wait))


def test_a_disk_that_knows_no_locks_does_not_stop_the_work(cache, monkeypatch, tmp_path):
    """As a home on some network disks."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    whole = fcntl.flock

    def flock(file, how):
        if Path(file.name).is_relative_to(cache):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        whole(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with held("pose", CPU, 1, "1", refuse_to_wait):
        with pytest.raises(WaitedError):
            held("pose", CPU, 1, "2", refuse_to_wait).__enter__()
        assert list((tmp_path / "tmp").rglob("pose-cpu-0"))


def test_a_folder_that_is_there_and_cannot_be_written_does_not_stop_the_work(cache, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # Root may write everywhere; what nobody can open as a file is a folder.
    (cache / "devices" / BOOT / "try").mkdir(parents=True)
    with held("pose", CPU, 1, "1", refuse_to_wait), pytest.raises(WaitedError):
        held("pose", CPU, 1, "2", refuse_to_wait).__enter__()


def test_where_nothing_can_be_locked_it_says_where_it_tried(cache, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def flock(file, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    told = rf"no file can be locked in {cache}/devices \(Function not implemented\) nor in {tmp_path}/csip-devices"
    with pytest.raises(StageError, match=told):
        held("pose", CPU, 1, "1", refuse_to_wait).__enter__()


def test_two_containers_with_one_cache_wait_for_each_other(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "3f2a9c0d1e5b")
    with held("pose", CPU, 1, "the first", refuse_to_wait):
        monkeypatch.setattr("socket.gethostname", lambda: "77ab20c41e99")
        with pytest.raises(WaitedError, match="used by the first"):
            held("pose", CPU, 1, "the second", refuse_to_wait).__enter__()


def test_two_machines_with_one_cache_do_not(monkeypatch, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"{name}-boot\n")
    monkeypatch.setattr("flows.devices._BOOT_ID", tmp_path / "one")
    with held("pose", CPU, 1, "the first", refuse_to_wait):
        monkeypatch.setattr("flows.devices._BOOT_ID", tmp_path / "two")
        with held("pose", CPU, 1, "the second", refuse_to_wait) as device:
            assert not device.waited


def test_a_device_is_one_however_it_is_shown(monkeypatch):
    card = SimpleNamespace(uuid="8b1f3c52-0000-4000-8000-000000000001")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: card)
    with held("pose", AUTO, 1, "by its number", refuse_to_wait):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8b1f")
        with pytest.raises(WaitedError, match="used by by its number"):
            held("pose", AUTO, 1, "by its name", refuse_to_wait).__enter__()


def test_what_machines_left_that_are_off_is_swept_up_and_nothing_else(cache):
    folders = {name: cache / "devices" / name for name in ("old", "old but in use", "young")}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        (folder / "pose-cpu-0").write_text("{}")
        if name != "young":
            os.utime(folder / "pose-cpu-0", (0, 0))
            os.utime(folder, (0, 0))
    with (folders["old but in use"] / "pose-cpu-0").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with held("pose", CPU, 1, "1", refuse_to_wait):
            pass
    assert {path.name for path in (cache / "devices").iterdir()} == {"old but in use", "young", BOOT}


@pytest.mark.parametrize("planted", ["link", "folder of another user"])
def test_what_somebody_else_put_in_the_place_of_locks_is_not_written_to(cache, monkeypatch, tmp_path, planted):
    cache.write_text("a file in the folder's place")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "theirs").mkdir()
    other = os.getuid() + 1
    if planted == "link":
        (tmp_path / f"csip-devices-{os.getuid()}").symlink_to(tmp_path / "theirs")
    else:
        (tmp_path / f"csip-devices-{other}").mkdir()
        monkeypatch.setattr("os.getuid", lambda: other)
    with pytest.raises(CsipError, match=r"found a folder of another user, or a link.*Set CSIP_CACHE"):
        held("pose", CPU, 1, "1", refuse_to_wait).__enter__()
    assert [path for path in tmp_path.rglob("*") if path.name.startswith("pose-")] == []


def test_a_device_that_is_not_there_is_said():
    eighth = held("pose", RuntimeConfig(device="cuda:7"), 1, "1", refuse_to_wait)
    with pytest.raises(CsipError, match=r"runtime\.device: got 'cuda:7'"), eighth:
        pass


def test_a_killed_run_gives_its_device_up_when_its_last_process_is_gone():
    """The parent is killed; its child, which saves something, still counts."""
    program = """
import subprocess, sys, time
from csip.config import RuntimeConfig
from flows.devices import held
with held("pose", RuntimeConfig(device="cpu"), 1, "killed", print) as device:
    child = subprocess.Popen(["sleep", "300"], pass_fds=device.files)
    print(child.pid, flush=True)
    time.sleep(300)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1])
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        with pytest.raises(WaitedError, match="used by killed"), held("pose", CPU, 1, "next", refuse_to_wait):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()
    told = []
    with held("pose", CPU, 1, "next", told.append):  # The kernel may take a moment.
        pass


def when(store):
    """(begun, ended, CUDA devices shown) of each run, in order."""
    found = [path.read_text().split() for path in Path(store).glob("time-*")]
    return sorted((float(begun), float(ended), shown) for begun, ended, shown in found)


def run_twice(task, store, runtime, server):
    with ThreadPoolExecutor(2) as threads:
        return [one.result() for one in [threads.submit(task, store, runtime) for _ in range(2)]]


def test_two_runs_on_one_device_do_not_overlap(toys, store, server):
    run_twice(stage(toys.take_time, work="pose", cached=False), store, CPU, server)
    first, second = when(store)
    assert first[1] <= second[0]


def test_two_runs_on_two_devices_go_side_by_side(toys, store, server, monkeypatch):
    monkeypatch.setattr("flows.devices.list_devices", lambda _: ["cuda:0", "cuda:1"])
    run_twice(stage(toys.take_time, work="pose", cached=False), store, AUTO, server)
    # Had they gone one after the other, both would have taken the first device.
    assert sorted(shown for _, _, shown in when(store)) == ["0", "1"]
    runs = tables.find_runs(store, "stage = 'take_time'")
    assert sorted(run.device for run in runs) == ["cuda:0", "cuda:1"]


def test_who_waited_for_the_same_work_takes_its_outcome(toys, store, server):
    one, other = run_twice(stage(toys.take_time, work="training", cached=True), store, CPU, server)
    assert one == other
    assert len(when(store)) == 1
