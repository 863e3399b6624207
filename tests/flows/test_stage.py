"""What makes a cached stage stale and what does not; and what a child process may do to the flow it works for."""

import dataclasses
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.client.orchestration import get_client

from csip import source, tables
from csip.config import EmbedConfig, PretrainConfig, RuntimeConfig, SplitConfig, ValidateConfig
from csip.errors import (
    ProcessLostError,
    StageError,
    StorageFaultError,
    StoreBusyError,
    StoreError,
    TooLittleDataError,
)
from csip.maintenance.moving import move
from csip.maintenance.snapshots import published
from csip.training.pretrain import initialise, pretrain_visual
from csip.types import EmbeddingsRef, ExtractDigests, FileRef, Output, SourceVideo, TableRef, VideoList
from flows.progress import LISTENER
from flows.stage import part_of_many, stage

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Further attempts are made at once."""
    monkeypatch.setattr("flows.stage.RETRY_SECONDS", (0.0, 0.0))


@pytest.fixture
def heard():
    """Every record that reaches the command line's listener."""
    records = []
    token = LISTENER.set(records.append)
    yield records
    LISTENER.reset(token)


def runs(store, name):
    return tables.find_runs(store, f"stage = {tables.quote(name)}")


def given(store, **changes):
    """Arguments of `write_file`: references of several shapes, a section, a number, a runtime."""
    embeddings = EmbeddingsRef(TableRef(f"{store}/embeddings.lance", 1), "d" * 64, "trained", "c" * 64)
    parents = ((FileRef("/a", "a" * 64), FileRef("/b", "b" * 64)), (FileRef("/c", "c" * 64),))
    return {
        "parents": parents,
        "embeddings": embeddings,
        "config": EmbedConfig(),
        "seed": 0,
        "runtime": RuntimeConfig(device="cpu"),
        **changes,
    }


@pytest.fixture
def twice(toys, store):
    """Run `write_file`, then again after a change; tell the second state's name and how often it ran in all."""
    task = stage(toys.write_file, work=None, cached=True)
    first = task(store, **given(store))

    def again(**changes):
        state = task(store, **given(store, **changes), return_state=True)
        return SimpleNamespace(
            state=state, name=state.name, ran=len(runs(store, "write_file")), first=first, second=state.result()
        )

    return again


def test_the_same_inputs_are_not_worked_on_again(twice):
    done = twice()
    assert (done.name, done.ran) == ("Cached", 1)
    assert done.state.is_completed()
    assert done.second == done.first
    assert isinstance(done.second, FileRef)


def test_what_only_changes_the_speed_is_no_reason_to_run_again(twice):
    done = twice(runtime=RuntimeConfig(device="cpu", encode_batch=1, stall_seconds=5, pose_engine="pytorch"))
    assert (done.name, done.ran) == ("Cached", 1)


@pytest.mark.parametrize(
    "change",
    [
        {"config": EmbedConfig(sampling="dense")},
        {"seed": 1},
        {"parents": ((FileRef("/a", "a" * 64),), (FileRef("/c", "c" * 64),))},
        {"parents": ((FileRef("/a", "a" * 64), FileRef("/b", "9" * 64)), (FileRef("/c", "c" * 64),))},
        {"embeddings": EmbeddingsRef(TableRef("/s/embeddings.lance", 2), "d" * 64, "trained", "c" * 64)},
    ],
    ids=["section", "seed", "fewer references", "another file", "another version"],
)
def test_a_changed_input_runs_again(twice, change):
    done = twice(**change)
    assert (done.name, done.ran) == ("Completed", 2)
    assert done.second.path != done.first.path


def test_nothing_is_trained_again_on_a_snapshot_that_a_gc_has_moved(toys, store, publish_tiny):
    task, facts = stage(toys.train, work=None, cached=True), {"config": SplitConfig(), "seed": 3}
    runtime = RuntimeConfig(device="cpu")
    snapshot = publish_tiny(store)
    first = task(store, snapshot, **facts, runtime=runtime)
    tables.delete(store, "crops", "tracklet_id = 'nobody'")
    rows = tables.read(tables.current(store, "crops"), where="tracklet_id = 'p4-a'")
    tables.upsert(store, "crops", rows)
    move(store, published(store)[snapshot.name])
    moved = tables.open_snapshot(store, snapshot.name)
    assert moved.tables["crops"] > snapshot.tables["crops"]
    state = task(store, moved, **facts, runtime=runtime, return_state=True)
    assert (state.name, state.result()) == ("Cached", first)
    # Other rows under other versions, which no gc makes, are another matter.
    tables.upsert(store, "crops", rows)
    versions = dict(moved.tables) | {"crops": tables.current(store, "crops").version}
    again = task(store, dataclasses.replace(moved, tables=versions), **facts, runtime=runtime, return_state=True)
    assert again.name == "Completed"


def test_a_vanished_file_is_made_again(twice, store):
    Path(runs(store, "write_file")[0].outputs["path"]).unlink()
    done = twice()
    assert (done.name, done.ran) == ("Completed", 2)
    assert Path(done.second.path).is_file()
    assert twice().name == "Cached", "the newest run counts"


def test_a_vanished_table_version_is_made_again(toys, store):
    task = stage(toys.write_table, work=None, cached=True)
    first = task(store, SplitConfig())
    assert task(store, SplitConfig()) == first
    shutil.rmtree(first.uri)
    state = task(store, SplitConfig(), return_state=True)
    assert (state.name, len(runs(store, "write_table"))) == ("Completed", 2)
    assert tables.exists(state.result())


def test_a_changed_source_runs_again_and_a_changed_comment_does_not(tmp_path, store, monkeypatch):
    package = tmp_path / "toyhouse"
    package.mkdir()
    (package / "__init__.py").touch()
    text = (HERE / "toy_stages.py").read_text(encoding="utf-8")
    (package / "stages.py").write_text("from toyhouse import helper\n" + text.replace("from __future__", "# "))
    helper = package / "helper.py"
    helper.write_text('"""Add."""\ndef add(a, b):\n    return a + b\n')
    (package / "unread.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(source, "_OURS", ("toyhouse",))
    from toyhouse import stages

    def name_after(path, text):
        path.write_text(text)
        source._parse_module.cache_clear()  # as in a process that starts after the edit
        return stage(stages.write_table, work=None, cached=True)(store, SplitConfig(), return_state=True).name

    try:
        assert name_after(package / "unread.py", "x = 1\n") == "Completed"
        assert name_after(helper, '"""Sum."""\n# A comment.\ndef add(a, b):\n    return (a + b)\n') == "Cached"
        assert name_after(package / "unread.py", "x = 2\n") == "Cached"
        assert name_after(helper, '"""Add."""\ndef add(a, b):\n    return a - b\n') == "Completed"
    finally:
        source._parse_module.cache_clear()
    digests = [run.source_digest for run in runs(store, "write_table")]
    assert len(set(digests)) == 2


def test_a_stage_that_is_not_cached_runs_every_time(toys, store):
    task = stage(toys.write_table, work=None, cached=False)
    assert [task(store, SplitConfig(), return_state=True).name for _ in range(2)] == ["Completed"] * 2
    assert len(runs(store, "write_table")) == 2


def test_a_run_records_references_as_inputs_and_the_rest_as_config(twice, store):
    done = twice()
    (run,) = runs(store, "write_file")
    assert set(run.inputs) == {"parents", "embeddings"}
    assert run.inputs["parents"][0][1] == {"path": "/b", "sha256": "b" * 64}
    assert run.inputs["embeddings"]["table"] == {"uri": f"{store}/embeddings.lance", "version": 1}
    assert set(run.config) == {"config", "seed"}
    written = {"sampling": "restricted", "unit": "tracklet", "clip_stride": 4, "histogram_bins": [16, 4, 4]}
    assert run.config["config"] == written
    assert run.outputs == {"path": done.first.path, "sha256": done.first.sha256}
    assert run.counts == {"bytes": Path(done.first.path).stat().st_size, "left_out": {"too small": 3}}
    assert run.weights == {"eyes.pt": "e" * 64}
    assert 0 < run.seconds < 60
    assert run.device == "cpu"
    assert len(run.key) == len(run.source_digest) == 64


def test_figures_of_epochs_are_kept_under_the_run(twice, store):
    twice()
    (run,) = runs(store, "write_file")
    table = tables.read(tables.current(store, "metrics"), where=f"run_id = {tables.quote(run.run_id)}")
    found = {(row["step"], row["name"]): (row["stage"], row["value"]) for row in table.to_pylist()}
    expected = {(1, "loss"): 1.0, (2, "loss"): 0.5, (1, "rate"): 0.5, (2, "rate"): 0.5}
    assert found == {key: ("write_file", value) for key, value in expected.items()}


def test_what_a_flow_does_several_times_is_told_apart_by_name(toys, store):
    task = stage(toys.say, work=None, cached=False, named="say: {store}")
    with part_of_many("seed 1"), part_of_many("biwi-s", "split 2"):
        state = task(store, return_state=True)
    with get_client(sync_client=True) as client:
        assert client.read_task_run(state.state_details.task_run_id).name == f"say: {store} (seed 1, biwi-s, split 2)"


def test_a_run_that_failed_is_not_recorded_and_so_is_tried_again(toys, store):
    task = stage(toys.refuse, work=None, cached=True)
    for _ in range(2):
        with pytest.raises(TooLittleDataError, match="Found 3 people in store, expected 4"):
            task(store, "user", RuntimeConfig(device="cpu"))
    assert runs(store, "refuse") == []


def test_a_childs_records_arrive_in_order_whatever_is_printed_between(toys, store, heard):
    task = stage(toys.write_from_child, work="training", cached=False)
    ref = task(store, 4, 0.25, RuntimeConfig(device="cpu"))
    assert [(r.stage, r.done, r.total, r.unit, r.values) for r in heard] == [
        ("write_from_child", done, 4, "frames", {"rate": 2.0 * done}) for done in (1, 2, 3, 4)
    ]
    assert int(Path(ref.path).name) != os.getpid()
    assert runs(store, "write_from_child")[0].counts == {"pid": int(Path(ref.path).name)}


def test_records_that_come_too_fast_are_thinned_but_the_last_one_arrives(toys, store, heard):
    ref = stage(toys.write_file, work="training", cached=False)(store, **given(store))
    assert Path(ref.path).is_file()
    assert heard[-1].done == heard[-1].total == 2


def test_a_childs_user_error_comes_back_as_it_was_raised(toys, store):
    with pytest.raises(TooLittleDataError) as caught:
        stage(toys.refuse, work="training", cached=False)(store, "user", RuntimeConfig(device="cpu"))
    assert type(caught.value) is TooLittleDataError
    assert str(caught.value) == "Found 3 people in store, expected 4.\nAdd video: «street»."


def test_a_value_error_of_ours_comes_back_from_a_child_as_it_was_raised(toys, store):
    with pytest.raises(ValueError, match=r"^runtime\.device: got 'abacus', expected 'auto', 'cpu'"):
        stage(toys.refuse, work="training", cached=False)(store, "caller", RuntimeConfig(device="cpu"))


@pytest.mark.parametrize("what", ["ZeroDivisionError", "ValueError"])
def test_a_bug_in_a_child_is_a_stage_error_that_shows_the_traceback(toys, store, what):
    with pytest.raises(StageError, match=rf"ended with code 1 and left no result(.|\n)*toy_stages.py(.|\n)*{what}"):
        stage(toys.refuse, work="training", cached=False)(store, what, RuntimeConfig(device="cpu"))


def test_a_child_that_cannot_even_start_is_a_stage_error(toys, store, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    # More than a pipe holds, so that writing it to a child that is gone fails.
    with pytest.raises(StageError, match="ended with code 1 and left no result"):
        stage(toys.refuse, work="training", cached=False)(store, "x" * 2**20, RuntimeConfig(device="cpu"))


@pytest.mark.parametrize(("how", "code"), [("exit", "7"), ("kill", "-9")])
def test_a_child_that_dies_leaves_its_last_words(toys, store, tmp_path, how, code):
    mark = tmp_path / "mark"
    with pytest.raises(
        StageError, match=rf"toy_stages:die.*code {code} (.|\n)*decoder: bad cast in layer 7(.|\n)*again"
    ):
        stage(toys.die, work="training", cached=False)(store, how, str(mark), RuntimeConfig(device="cpu"))
    assert mark.is_file()
    assert runs(store, "die") == []


def test_a_child_that_was_told_to_stop_says_so_and_nothing_of_a_cause(toys, store, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(StageError, match=r"toy_stages:die: was told to stop, and has stopped\. .* goes on from there"):
        stage(toys.die, work="training", cached=False)(store, "stop", str(mark), RuntimeConfig(device="cpu"))
    assert len(mark.read_text().split()) == 1, "it is not tried again"


def test_a_child_that_is_killed_from_outside_is_tried_again_and_goes_on(toys, store, tmp_path):
    mark = tmp_path / "mark"
    state = stage(toys.die, work="training", cached=False)(
        store, "kill once", str(mark), RuntimeConfig(device="cpu"), return_state=True
    )
    assert state.is_completed()
    assert len(mark.read_text().split()) == 2
    assert len(runs(store, "die")) == 1


@pytest.mark.parametrize(
    ("how", "error", "attempts"),
    [
        *(("kill", ProcessLostError, 3), ("exit", StageError, 1), ("user", StoreError, 1)),
        ("ENOSPC", StageError, 1),
        pytest.param("ESTALE", StorageFaultError, 3, marks=pytest.mark.slow),
        pytest.param("busy", StoreBusyError, 3, marks=pytest.mark.slow),
        pytest.param("fault", StorageFaultError, 3, marks=pytest.mark.slow),
    ],
)
def test_only_what_may_pass_is_tried_again(toys, store, tmp_path, how, error, attempts):
    mark = tmp_path / "mark"
    with pytest.raises(error) as caught:
        stage(toys.die, work="training", cached=False)(store, how, str(mark), RuntimeConfig(device="cpu"))
    assert type(caught.value) is error
    assert len(mark.read_text().split()) == attempts


@pytest.mark.parametrize(("what", "attempts"), [(errno.EIO, 3), (errno.EROFS, 1)])
def test_what_the_system_says_in_the_flows_own_process_is_told_apart_too(toys, store, tmp_path, what, attempts):
    mark = tmp_path / "mark"
    with pytest.raises(OSError, match=errno.errorcode[what]):
        stage(toys.die, work=None, cached=False)(store, errno.errorcode[what], str(mark), RuntimeConfig(device="cpu"))
    assert len(mark.read_text().split()) == attempts


@pytest.mark.parametrize("work", [None, "training"])
def test_nobody_is_forgotten_while_a_stage_is_at_work(toys, store, work):
    told = stage(toys.want_it_alone, work=work, cached=False)(store, RuntimeConfig(device="cpu")).path
    (run,) = runs(store, "want_it_alone")
    # A child holds the store by itself as well: it may outlive the process that started it.
    holders = sorted({os.getpid(), run.counts["pid"]})
    assert f"is at work on it, process {', '.join(map(str, holders))}, and `csip forget` needs it alone" in told
    with tables.alone(store, "run 1"):
        pass


def test_a_stage_that_begins_while_somebody_is_forgotten_is_refused_and_tried_again(toys, store):
    with tables.alone(store, "run 1"), pytest.raises(StoreBusyError, match="somebody is being forgotten in it"):
        stage(toys.write_table, work=None, cached=False)(store, SplitConfig())
    assert runs(store, "write_table") == []


def test_a_stage_that_was_given_a_video_writes_down_no_place_of_one_that_was_forgotten_since(toys, store):
    tables.prepare_store(store)
    row = {
        "video_sha": "1" * 64,
        "path": "",
        "bytes": 0,
        "codec": "",
        "width": 0,
        "height": 0,
        "fps": 0.0,
        "reason": "",
    }
    row |= {"expected_frames": 0, "num_frames": 0, "duration": 0.0, "status": "forgotten"}
    tables.upsert(store, "videos", tables.from_rows("videos", [row]))
    gone = SourceVideo("1" * 64, "/films/wedding.mp4", "church", 1.0)
    kept = SourceVideo("2" * 64, "/films/street.mp4", "gate", 1.0)
    videos = VideoList((gone, kept), ((gone,),), ExtractDigests("d", "t", {}, ""))
    stage(toys.count_videos, work=None, cached=False)(store, videos)
    (run,) = runs(store, "count_videos")
    blank = {"video_sha": "1" * 64, "path": "", "camera": "", "duration": 1.0}
    assert run.inputs["videos"]["videos"] == [blank, dataclasses.asdict(kept)]
    assert run.inputs["videos"]["batches"] == [[blank]]


def is_alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_child_that_hangs_is_killed(toys, store, tmp_path):
    mark = tmp_path / "mark"
    begun = time.monotonic()
    with pytest.raises(StageError, match=r"reported nothing for 20 s and was killed(.|\n)*stall_seconds"):
        stage(toys.die, work="training", cached=False)(
            store, "hang", str(mark), RuntimeConfig(device="cpu", stall_seconds=20)
        )
    assert 20 <= time.monotonic() - begun < 80
    assert mark.is_file(), "it was at work before it hung"
    assert not is_alive(int(mark.read_text().split()[0]))


@pytest.mark.slow
def test_a_child_does_not_outlive_the_process_it_works_for(toys, store, tmp_path, server):
    mark = tmp_path / "mark"
    program = (
        "import sys; from csip.config import RuntimeConfig; from flows.stage import stage; import toy_stages\n"
        "stage(toy_stages.die, work='training', cached=False)"
        "(*sys.argv[1:], RuntimeConfig(device='cpu', stop_seconds=1))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, store, "hang", str(mark)],
        env=os.environ | {"PREFECT_API_URL": server, "PYTHONPATH": str(HERE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: mark.is_file() and mark.read_text())
        child = int(mark.read_text())
        assert is_alive(child)
        assert child != parent.pid
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not is_alive(child), seconds=20)


# ------------------------------------------------------------------------------------------------- processes together


def together():
    return RuntimeConfig(device="cpu", processes=2)


def pids(mark):
    return [int(Path(f"{mark}-{rank}").read_text()) for rank in range(2)]


@pytest.fixture
def mark(tmp_path):
    return str(tmp_path / "mark")


def test_processes_together_count_together_and_one_of_them_speaks(toys, store, heard, mark):
    ref = stage(toys.work_together, work="training", cached=False, shared=True)(store, "well", mark, together())
    assert ref == FileRef(mark, "0" * 64)
    (run,) = runs(store, "work_together")
    assert run.counts == {"total": 2}
    assert heard[-1].done == 3
    table = tables.read(tables.current(store, "metrics"), where=f"run_id = {tables.quote(run.run_id)}")
    assert {row["step"]: row["value"] for row in table.to_pylist()} == {1: 11.0, 2: 22.0, 3: 33.0}
    assert len(set(pids(mark))) == 2


def test_a_stage_that_cannot_be_shared_has_one_process(toys, store, mark):
    stage(toys.work_together, work="training", cached=False)(store, "well", mark, together())
    assert runs(store, "work_together")[0].counts == {"total": 1}


@pytest.mark.slow
def test_an_error_of_all_processes_comes_back_as_one(toys, store, mark):
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    with pytest.raises(TooLittleDataError, match=r"^Found 2 processes, expected 3\.$"):
        task(store, "refuse", mark, together())
    wait_for(lambda: not any(map(is_alive, pids(mark))), seconds=5)


@pytest.mark.slow
def test_a_killed_process_ends_all_of_them_and_the_training_is_tried_again(toys, store, mark):
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    assert task(store, "kill once", mark, together()) == FileRef(mark, "0" * 64)
    # The first attempt's are overwritten; that it got as far is what the second one saw.
    assert [run.counts for run in runs(store, "work_together")] == [{"total": 2}]
    wait_for(lambda: not any(map(is_alive, pids(mark))), seconds=5)


@pytest.mark.slow
def test_processes_that_are_killed_every_time_are_given_up(toys, store, mark):
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    with pytest.raises(ProcessLostError, match=r"toy_stages:work_together.*ended with code 137 and left no result"):
        task(store, "kill", mark, together())
    assert runs(store, "work_together") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [("bug", r"code 1 (.|\n)*ZeroDivisionError: one by none"), ("exit", "code 7 and left no result")],
)
def test_a_process_that_ends_by_itself_is_no_reason_to_try_again(toys, store, mark, how, words):
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    with pytest.raises(StageError, match=rf"work_together.*ended with {words}") as caught:
        task(store, how, mark, together())
    assert type(caught.value) is StageError
    wait_for(lambda: not any(map(is_alive, pids(mark))), seconds=5)


@pytest.mark.slow
def test_processes_that_hang_are_gone_when_their_device_is_given_up(toys, store, mark):
    runtime = dataclasses.replace(together(), stall_seconds=30, stop_seconds=2)
    task = stage(toys.work_together, work="training", cached=False, shared=True)
    with pytest.raises(StageError, match="reported nothing for 30 s and was killed") as caught:
        task(store, "hang", mark, runtime)
    assert type(caught.value) is StageError
    assert not any(map(is_alive, pids(mark)))


@pytest.mark.slow
def test_processes_together_do_not_outlive_the_one_they_work_for(store, mark, server):
    program = (
        "import sys; from csip.config import RuntimeConfig; from flows.stage import stage; import toy_stages\n"
        "stage(toy_stages.work_together, work='training', cached=False, shared=True)"
        "(*sys.argv[1:], RuntimeConfig(device='cpu', processes=2, stop_seconds=1))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, store, "hang", mark],
        env=os.environ | {"PREFECT_API_URL": server, "PYTHONPATH": str(HERE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: all(Path(f"{mark}-{rank}").is_file() and Path(f"{mark}-{rank}").read_text() for rank in "01"))
        assert all(map(is_alive, pids(mark)))
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not any(map(is_alive, pids(mark))), seconds=20)


@pytest.fixture
def still(tiny, tiny_snapshot, run, tmp_path):
    """Initial weights of a network without dropout, in a store of their own."""
    model = dataclasses.replace(tiny.model, joint_dropout=0, prototype_dropout=0, temporal_dropout=0)
    out = Output(str(tmp_path / "still"), "run-0")
    return run(initialise(out, tiny_snapshot, tiny.clip, model, ValidateConfig(), tiny.seed))[1].value


@pytest.mark.slow
def test_a_training_through_the_flow_is_the_same_in_two_processes_and_leaves_no_state(
    store, tmp_path, still, tiny_snapshot
):
    config = PretrainConfig(epochs=2, identities=4, clips_per_identity=2, learning_rate=1e-3)
    task = stage(pretrain_visual, work="training", cached=True, shared=True)
    found = []
    for processes in (1, 2):
        own = f"{store}-{processes}"
        ref = task(
            own, still, tiny_snapshot, config, 0, RuntimeConfig(device="cpu", processes=processes, save_seconds=0)
        )
        assert [path.name for path in (Path(own) / "checkpoints").iterdir()] == [Path(ref.path).name]
        rows = tables.read(tables.current(own, "metrics")).to_pylist()
        found.append({(r["step"], r["name"]): r["value"] for r in rows if r["name"] != "clips_per_second"})
        assert {step for step, _ in found[-1]} == {1, 2}
        curves = list((Path(own) / "tensorboard").glob("pretrain_visual-*/events.*"))
        assert len(curves) == 1
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-5)
    # How many processes worked on it is no reason to do it again.
    state = task(own, still, tiny_snapshot, config, 0, RuntimeConfig(device="cpu"), return_state=True)
    assert state.name == "Cached"


def test_a_warning_of_the_library_in_this_process_reaches_whoever_watches(toys, store, heard):
    stage(toys.say, work=None, cached=False)(store)
    assert [record.note for record in heard if record.note] == ["left one out"]
    assert logging.getLogger("csip").handlers == []
    assert logging.getLogger("csip").level == logging.NOTSET
