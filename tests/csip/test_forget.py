"""A person who is forgotten: no row, version or file below the store shows them, and nobody else has changed."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from csip import tables
from csip.errors import StoreError
from csip.maintenance import forget as forgetting
from csip.maintenance.collect import OLDER_THAN, collect
from csip.maintenance.forget import Selector, finish, forget, forgotten, forgotten_on, look_up
from csip.maintenance.forget_traces import doomed_detections
from csip.maintenance.verify import verify
from csip.tables import RunRecord, TableRef, table_uri
from csip.types import Snapshot

DETECT, TRACK = "1" * 64, "2" * 64
FILM, OTHER = f"{7:064d}", f"{8:064d}"
FRAMES = 4
BENCH = {"bench-anna-0001": 4, "bench-anna-0002": 4, "bench-bert-0001": 5, "bench-carl-0001": 6}
FILMED = {"film-doris-0001": FILM, "film-emil-0001": FILM, "film-fritz-0001": OTHER}
PINS = ("videos", "detections", "tracklets", "crops", "skeletons", "splits")


def payload(name):
    """Bytes that no codec makes smaller, and that are one tracklet's alone."""
    return np.random.default_rng(list(name.encode())).bytes(2000)


def put(store, table, rows):
    tables.upsert(store, table, tables.from_rows(table, rows))


def box_of(name, frame):
    return [sum(name.encode()) % 97 / 2, float(frame), 50.5, 99.25]


def write_tracklets(store, names, digest, video_of, pid_of):
    """Tracklets of four frames each, with all rows that depend on them."""
    frames = [(name, frame) for name in names for frame in range(FRAMES)]
    key = [{"tracklet_id": name, "frame_index": frame} for name, frame in frames]
    crop = {"time": 0.0, "score": 1.0, "media_type": "image/jpeg"}
    put(store, "crops", [one | crop | {"box": box_of(*frame), "image": payload(frame[0])}
                         for one, frame in zip(key, frames, strict=True)])  # fmt: skip
    pose = {"extractor_digest": "e" * 64, "has_skeleton": True, "layout": "coco17"}
    put(store, "skeletons", [one | pose | {"keypoints": [[1.0, 2.0, 0.9]] * 17} for one in key])
    put(store, "frame_features", [one | {"encoder_digest": "f" * 64, "feature": [0.5] * 8} for one in key])
    part = {"first_frame": 0, "last_frame": FRAMES - 1}
    clip = {"encoder_digest": "f" * 64, "checkpoint_sha": "", "encoder": "trained", "feature": [1.0, 0.0]}
    put(store, "embeddings", [part | clip | {"tracklet_id": name} for name in names])
    whole = {"track_digest": digest, "first_time": 0.0, "last_time": 1.0, "num_frames": FRAMES}
    whole |= {"keypoint_confidence": 0.9, "begins": "unknown", "ends": "unknown", "interpolated_frames": 0} | part
    put(store, "tracklets", [whole | {"tracklet_id": n, "video_sha": video_of.get(n, ""), "pid": pid_of.get(n)}
                             for n in names])  # fmt: skip


def write_splits(store, dataset, protocol, pids):
    part = {"dataset": dataset, "protocol": protocol, "split": "0", "first_frame": 0, "last_frame": FRAMES - 1}
    part |= {"role": "train", "group": "", "camid": 0, "camera": "door"}
    put(store, "splits", [part | {"tracklet_id": name, "pid": pid} for name, pid in pids.items()])


def run_record(run_id, stage, inputs, outputs, counts):
    rest = {"key": run_id, "config": {}, "weights": {}, "source_digest": "s", "git_commit": "", "device": "cpu"}
    return RunRecord(run_id=run_id, stage=stage, inputs=inputs, outputs=outputs, counts=counts,
                     started="2020-01-01T00:00:00.000+00:00", seconds=1.0, **rest)  # fmt: skip


def publish(store, name, digest, config, counts, videos):
    pins = {table: tables.current(store, table).version for table in PINS}
    snapshot = Snapshot(name, store, pins, digest)
    tables.publish(snapshot, config=config, counts=counts, videos=videos)
    return {"name": name, "tables": pins, "digest": digest}


def write_film(store):
    settings = {"detect": {"weights": ""}, "track": {"x": 1}}
    video = {"bytes": 9, "codec": "h264", "width": 4, "height": 4, "fps": 25.0, "expected_frames": 4, "num_frames": 4}
    video |= {"duration": 0.2, "status": "ok", "reason": ""}
    write_tracklets(store, list(FILMED), TRACK, FILMED, {})
    for sha, path in ((FILM, "/films/wedding.mp4"), (OTHER, "/films/street.mp4")):
        put(store, "videos", [video | {"video_sha": sha, "path": path}])
        own = [name for name, film in FILMED.items() if film == sha]
        seen = {"video_sha": sha, "detect_digest": DETECT, "time": 0.0, "score": 1.0, "keypoints": []}
        boxes = [[box_of(name, frame) for name in own] + [[0.0, 0.0, 1.0, 1.0]] for frame in range(FRAMES)]
        put(store, "detections", [seen | {"frame_index": frame, "n": n, "box": box}
                                  for frame, some in enumerate(boxes) for n, box in enumerate(some)])  # fmt: skip
        counts = {"tracklets": len(own), "crops": FRAMES * len(own), "detections": FRAMES * (len(own) + 1), "frames": 4}
        outputs = {"video_sha": sha, "detect_digest": DETECT, "track_digest": TRACK}
        inputs = {"video": {"video_sha": sha, "path": path, "camera": "door"}}
        run = run_record(f"t-{sha[-1]}", "track_video", inputs, outputs, counts)
        tables.record_run(store, RunRecord(**{n: getattr(run, n) for n in tables.TABLES["runs"].names if n != "config"},
                                           config=settings))  # fmt: skip
    write_splits(store, "film", "self-labelled", {name: number for number, name in enumerate(FILMED)})
    counts = {"videos": 2, "tracklets": 3, "crops": 12, "detections": 20, "frames": 8, "train_people": 3}
    return publish(store, "film", "6" * 64, settings, counts, [FILM, OTHER])


def put_page(store, snapshot):
    """A report and a checkpoint, and the runs that made them of a snapshot."""
    for kind, name in (("reports", "-r1.html"), ("checkpoints", "-0123456789ab.safetensors")):
        path = Path(store, kind, snapshot["name"] + name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"{kind} of {snapshot['name']}".encode())
        outputs = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        run = run_record(f"{kind}-{snapshot['name']}", kind, {"snapshot": snapshot}, outputs, {})
        tables.record_run(store, run)


def make_store(folder):
    store = str(folder)
    tables.prepare_store(store)
    write_tracklets(store, list(BENCH), "5" * 64, {}, BENCH)
    tables.describe(store, "skeletons", {f"csip.extractor.{'5' * 64}": json.dumps({"layout": "coco17"})})
    write_splits(store, "bench", "labelled", BENCH)
    counts = {"tracklets": 4, "frames": 16, "train_people": 3, "train_parts": 4}
    bench = publish(store, "bench", "5" * 64, {}, counts, [])
    film = write_film(store)
    for snapshot in (bench, film):
        put_page(store, snapshot)
    for run_id, table in (("e1", "embeddings"), ("c1", "frame_features")):
        ref = tables.current(store, table)
        outputs = {"table": {"uri": ref.uri, "version": ref.version}, "encoder_digest": "f" * 64, "encoder": "trained"}
        tables.record_run(
            store, run_record(run_id, "embed", {"snapshot": film}, outputs, {"worst": ["film-emil-0001"]})
        )
    return store


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("forget") / "made")


@pytest.fixture
def store(made, tmp_path):
    return copy(made, tmp_path / "store")


def copy(made, target):
    """Runs name their tables and files where they lay; those of a copy are found by folder and name."""
    return str(shutil.copytree(made, target))


PEOPLE = {
    "a pid": (lambda store: Selector.of_person("bench", 4), ["bench-anna-0001", "bench-anna-0002"], []),
    "a provisional pid": (lambda store: Selector.of_person("film", 1), ["film-emil-0001"], []),
    "tracklets of two snapshots": (
        lambda store: Selector.of_tracklets(["film-fritz-0001", "bench-carl-0001"]),
        ["film-fritz-0001", "bench-carl-0001"],
        [],
    ),
    "a video": (lambda store: Selector.of_video(store, FILM), ["film-doris-0001", "film-emil-0001"], [FILM]),
}


def do(store, selector):
    plan = look_up(store, selector)
    forget(store, selector, plan)
    return plan


def every_version(store):
    for name in tables.TABLES:
        for version in tables.list_versions(store, name):
            yield name, tables.read(TableRef(table_uri(store, name), version)).to_pylist()


def seen_by(store, names, videos):
    """What each snapshot holds of everybody else: its own rows, since a table's version has other snapshots', too."""
    out = {}
    for snapshot, own in (("bench", BENCH), ("film", FILMED)):
        for table in PINS:
            rows = tables.read(tables.pinned(tables.open_snapshot(store, snapshot), table)).to_pylist()
            if table in ("videos", "detections"):
                rows = [r for r in rows if snapshot == "film" and r["video_sha"] not in videos]
                rows = [r for r in rows if table == "videos" or r["box"] == [0.0, 0.0, 1.0, 1.0]]
            else:
                rows = [r for r in rows if r["tracklet_id"] in own and r["tracklet_id"] not in names]
            out[snapshot, table] = rows
    return out


def traces(store, names, words=()):
    """The files below a store that hold a name, or the pixels, of some tracklets."""
    wanted = [*(name.encode() for name in names), *(payload(name)[:40] for name in names), *(w.encode() for w in words)]
    files = [path for path in Path(store).rglob("*") if path.is_file()]
    return [str(path) for path in files if any(one in path.read_bytes() for one in wanted)]


def faults(store):
    return [f"{one.snapshot} {one.where}: {one.text}" for one in verify(store) if one.kind == "fault"]


def tree(store):
    return {str(p): p.read_bytes() for p in sorted(Path(store).rglob("*")) if p.is_file()}


def check_forgotten(store, names, videos, before):
    for table, rows in every_version(store):
        assert [row for row in rows if row.get("tracklet_id") in names] == [], table
        assert [row for row in rows if row.get("video_sha") in videos and table != "videos"] == []
    boxes = {tuple(box_of(name, frame)) for name in names for frame in range(FRAMES)}
    for table, rows in every_version(store):
        assert table != "detections" or boxes.isdisjoint(tuple(row["box"]) for row in rows)
    assert traces(store, names, ["wedding.mp4"] if videos else []) == []
    assert seen_by(store, names, videos) == before
    assert faults(store) == []


def test_the_store_shows_these_people_before(store):
    assert faults(store) == []
    assert traces(store, ["bench-anna-0001"])
    assert traces(store, [], ["wedding.mp4"])


@pytest.mark.parametrize("who", PEOPLE)
def test_no_row_no_version_and_no_file_shows_a_forgotten_person_and_nobody_else_has_changed(store, who):
    select, names, videos = PEOPLE[who]
    before = seen_by(store, names, videos)
    selector = select(store)
    plan = do(store, selector)
    check_forgotten(store, names, videos, before)
    assert plan.rows["crops"] == plan.rows["skeletons"] == plan.rows["frame_features"] == FRAMES * len(names)
    assert plan.rows["tracklets"] == plan.rows["embeddings"] == len(names)
    collect(store, dry_run=False, older_than=OLDER_THAN)
    collect(store, dry_run=False, older_than=0 * OLDER_THAN)
    check_forgotten(store, names, videos, before)


def test_a_record_says_that_somebody_was_forgotten_and_not_who(store):
    do(store, Selector.of_person("bench", 4))
    (run,) = tables.find_runs(store, "stage = 'forget'")
    assert run.config == {"kind": "pid", "sha256": list(Selector.of_person("bench", 4).shas)}
    assert run.counts["rows"] == {"embeddings": 2, "frame_features": 8, "skeletons": 8, "crops": 8, "splits": 2,
                                  "tracklets": 2}  # fmt: skip
    assert (run.inputs, run.outputs, run.counts["files"], run.counts["trained"]) == ({}, {}, 1, 1)


def test_counts_of_snapshots_and_runs_are_those_of_who_is_left(store):
    created = tables.snapshot_row(store, "film")["created"]
    do(store, Selector.of_video(store, FILM))
    row = tables.snapshot_row(store, "film")
    note = row["counts"].pop("forgotten")
    assert row["counts"] == {"videos": 1, "tracklets": 1, "crops": 4, "detections": 8, "frames": 4, "train_people": 1}
    assert (note["tracklets"], row["videos"], row["created"]) == (2, [OTHER], created)
    (run,) = tables.find_runs(store, "run_id = 't-7'")
    assert (run.counts["tracklets"], run.counts["crops"], run.counts["detections"]) == (0, 0, 0)
    assert "forgotten" not in tables.snapshot_row(store, "bench")["counts"]
    do(store, Selector.of_person("bench", 4))
    counts = tables.snapshot_row(store, "bench")["counts"]
    assert counts.pop("forgotten")["tracklets"] == 2
    assert counts == {"tracklets": 2, "frames": 8, "train_people": 2, "train_parts": 2}


def test_a_forgotten_video_leaves_a_tombstone_so_that_it_is_not_built_again(store):
    assert forgotten(store) == frozenset()
    do(store, Selector.of_video(store, FILM[:-1] + "7"))
    assert forgotten(store) == {FILM}
    (row,) = tables.read(tables.current(store, "videos"), where=f"video_sha = '{FILM}'").to_pylist()
    assert (row["path"], row["status"], row["bytes"]) == ("", "forgotten", 0)


def test_detections_over_a_crop_go_unless_they_are_somebody_elses(store):
    weak, theirs = [one + 0.25 for one in box_of("film-emil-0001", 0)], box_of("film-doris-0001", 0)
    seen = {"video_sha": FILM, "detect_digest": DETECT, "time": 0.0, "score": 0.1, "keypoints": [], "frame_index": 0}
    weak = [weak[0], weak[1], weak[0] + 9.0, weak[1] + 9.0]
    put(store, "detections", [seen | {"n": 8, "box": weak}])
    (row,) = tables.read(tables.current(store, "crops"), where="tracklet_id = 'film-emil-0001' AND frame_index = 0"
                         ).to_pylist()  # fmt: skip
    boxes = lambda: [r["box"] for r in tables.read(tables.current(store, "detections")).to_pylist()]  # noqa: E731
    put(store, "crops", [row | {"box": [weak[0], weak[1], weak[0] + 8.0, weak[1] + 8.0]}])
    chosen = ["film-emil-0001"]
    keys = doomed_detections(store, chosen, [], tables.find_runs(store, "true"))
    assert keys["n"].to_pylist().count(8) == 1  # 64 of 81 square pixels
    tables.delete_rows(store, "detections", keys)
    assert weak not in boxes()
    put(store, "detections", [seen | {"n": 8, "box": theirs}])
    (row,) = tables.read(tables.current(store, "crops"), where="tracklet_id = 'film-emil-0001' AND frame_index = 0"
                         ).to_pylist()  # fmt: skip
    put(store, "crops", [row | {"box": theirs}])
    assert len(doomed_detections(store, chosen, [], tables.find_runs(store, "true"))) == 0


def test_pages_of_these_people_are_deleted_and_checkpoints_are_told(store):
    plan = do(store, Selector.of_person("bench", 4))
    assert plan.files == ("reports/bench-r1.html",)
    assert plan.trained == ("checkpoints/bench-0123456789ab.safetensors",)
    left = sorted(p.name for kind in ("reports", "checkpoints") for p in Path(store, kind).iterdir())
    assert left == ["bench-0123456789ab.safetensors", "film-0123456789ab.safetensors", "film-r1.html"]
    (run,) = tables.find_runs(store, "run_id = 'reports-bench'")
    assert set(run.outputs) == {"forgotten"}


@pytest.mark.parametrize(("who", "kind"), [("a pid", "bench"), ("a provisional pid", "film"), ("a video", "film")])
def test_pages_of_snapshots_that_were_dropped_go_too_where_they_may_show_the_person(store, who, kind):
    film = {n: tables.snapshot_row(store, "film")[n] for n in ("name", "tables", "digest")}
    inputs = {"videos": {"videos": [{"video_sha": FILM, "path": "/films/wedding.mp4"}]}}
    for name, sha in (("film", FILM), ("other", OTHER)):
        old = film | {"name": f"{name}-old", "digest": "7" * 64}
        inputs["videos"]["videos"][0]["video_sha"] = sha
        tables.record_run(store, run_record(f"p-{name}", "publish", json.loads(json.dumps(inputs)), old, {}))
        put_page(store, old)
    put_page(store, film | {"name": "bench-old", "digest": "5" * 64})
    plan = do(store, PEOPLE[who][0](store))
    assert f"reports/{kind}-old-r1.html" in plan.files
    left = {f"{name}-old-r1.html" for name in ("film", "other", "bench")} - {f"{kind}-old-r1.html"}
    assert left <= {path.name for path in Path(store, "reports").iterdir()}
    assert not Path(store, "reports", f"{kind}-old-r1.html").exists()
    assert f"checkpoints/{kind}-old-0123456789ab.safetensors" in plan.trained
    assert faults(store) == []


def test_another_video_of_the_same_name_keeps_it(store):
    elsewhere = {"video_sha": OTHER, "path": "/other/wedding.mp4", "camera": "door"}
    outputs = {"video_sha": OTHER, "detect_digest": DETECT, "track_digest": TRACK}
    run = run_record("t-other", "track_segment", {"video": elsewhere}, outputs, {})
    tables.record_run(store, run)
    do(store, Selector.of_video(store, FILM))
    assert tables.find_runs(store, "run_id = 't-other'") == [run]
    (run,) = tables.find_runs(store, "run_id = 't-7'")
    assert run.inputs == {"video": {"video_sha": FILM, "path": "", "camera": ""}}


def test_a_self_labelled_pid_and_a_film_that_still_shows_the_person_are_said(store):
    notes = " ".join(look_up(store, Selector.of_person("film", 1)).notes)
    assert "provisional" in notes
    assert "video files still show" in notes
    assert look_up(store, Selector.of_person("bench", 4)).notes == ()


def test_looking_changes_no_byte(store):
    before = tree(store)
    look_up(store, Selector.of_person("bench", 4))
    look_up(store, Selector.of_video(store, "/films/wedding.mp4"))
    assert tree(store) == before


def test_to_forget_again_does_nothing_more(store):
    for selector in (Selector.of_person("bench", 4), Selector.of_video(store, FILM)):
        do(store, selector)
        after = tree(store)
        assert finish(store) == []
        assert look_up(store, selector) is None
        assert forgotten_on(store, selector)
        assert tree(store) == after


@pytest.mark.parametrize(
    ("select", "told"),
    [
        (lambda store: Selector.of_person("bench", 99), "nobody with pid 99 among 3 people: 4, 5, 6"),
        (lambda store: Selector.of_person("nowhere", 4), "no snapshot 'nowhere'; there are: bench, film"),
        (lambda store: Selector.of_tracklets(["nobody"]), "no tracklet nobody; there are 7: bench-anna-0001"),
        (lambda store: Selector.of_video(store, "/films/none.mp4"), "names 0 videos, expected one of 2"),
        (lambda store: Selector.of_video(store, "0000000"), "names 2 videos"),
    ],
)
def test_an_unknown_person_is_an_error_that_says_who_is_known(store, select, told):
    with pytest.raises(StoreError, match=told):
        look_up(store, select(store))


def test_a_snapshot_whose_rows_were_written_again_is_not_silently_changed(store):
    (row, *_) = tables.read(tables.current(store, "tracklets"), where="tracklet_id = 'bench-carl-0001'").to_pylist()
    put(store, "tracklets", [row | {"num_frames": 3}])
    before = tree(store)
    with pytest.raises(StoreError, match="Snapshot bench: its rows of tracklets were written again"):
        look_up(store, Selector.of_person("bench", 4))
    assert tree(store) == before


WRITES = (
    *("record_run", "close_table", "delete_rows", "upsert", "compact", "seal", "publish", "record_runs", "untag"),
    *("clean_up", "open_table"),
)


class KilledError(Exception):
    pass


def break_after(patch, number):
    """Let the numbered write, and all before, happen, and then no more."""
    done = [0]

    def breaking(write):
        def call(*args, **kwargs):
            value = write(*args, **kwargs)
            done[0] += 1
            if done[0] == number:
                raise KilledError
            return value

        return call

    for name in WRITES:
        patch.setattr(tables, name, breaking(getattr(tables, name)))
    patch.setattr(Path, "unlink", breaking(Path.unlink))


@pytest.mark.parametrize(
    ("who", "first", "step"),
    # Each breaks off after other writes, all of them together after every one.
    [
        pytest.param("a video", 13, 13, marks=pytest.mark.slow),
        *(pytest.param(who, i, len(PEOPLE), marks=pytest.mark.slow) for i, who in enumerate(PEOPLE, start=1)),
    ],
)
def test_broken_off_after_any_write_the_store_opens_and_the_next_run_completes(made, tmp_path, who, first, step):
    select, names, videos = PEOPLE[who]
    before = seen_by(made, names, videos)
    for number in itertools.count(first, step):
        store = copy(made, tmp_path / f"store-{number}")
        selector = select(store)
        plan = look_up(store, selector)
        with pytest.MonkeyPatch.context() as patch:
            break_after(patch, number)
            try:
                forget(store, selector, plan)
                break
            except KilledError:
                pass
        assert seen_by(store, names, videos) == before
        finish(store)
        check_forgotten(store, names, videos, before)
        assert look_up(store, select(store)) is None
        shutil.rmtree(store)
    assert number > 60


def test_a_killed_process_is_told_of_and_finished_by_the_next(store):
    before = seen_by(store, ["bench-anna-0001", "bench-anna-0002"], [])
    code = (
        "import os, sys\nfrom csip import tables\nfrom csip.maintenance.forget import Selector, forget, look_up\n"
        "selector = Selector.of_person('bench', 4)\nplan = look_up(sys.argv[1], selector)\n"
        "tables.publish = lambda *a, **k: os.kill(os.getpid(), 9)\nforget(sys.argv[1], selector, plan)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, store], env=os.environ, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(StoreError, match="was not finished"):
        look_up(store, Selector.of_person("bench", 5))
    (plan,) = finish(store)
    assert plan.tracklets == ("bench-anna-0001", "bench-anna-0002")
    check_forgotten(store, plan.tracklets, [], before)


def test_who_writes_at_the_same_time_is_told_to_stop(store, monkeypatch):
    selector = Selector.of_person("bench", 4)
    plan = look_up(store, selector)
    with monkeypatch.context() as patch:
        patch.setattr(tables, "compact", lambda *_, **__: False)
        with pytest.raises(StoreError, match="needs the store for itself"):
            forget(store, selector, plan)
    assert len(forgetting.finish(store)) == 1


def forge(store, **changes):
    plan = {"kind": "tracklet", "shas": ["0"], "tracklets": ["bench-carl-0001"]} | changes
    run = run_record("forged", "forget", {}, {}, {"status": "started"})
    parts = {name: getattr(run, name) for name in tables.TABLES["runs"].names}
    tables.record_run(store, RunRecord(**parts | {"config": {"kind": "tracklet", "sha256": ["0"], "plan": plan}}))


@pytest.mark.parametrize(
    "name",
    ["{beside}", "../victim.txt", "reports/../../victim.txt", "reports/", "victim.txt", "runs.lance/x", "reports/out"],
)
def test_a_forged_journal_deletes_nothing_beside_the_store_and_nothing_in_it(store, tmp_path, name):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    Path(store, "reports", "out").symlink_to(victim)
    forge(store, files=["reports/film-r1.html", name.format(beside=victim)])
    before = tree(store)
    with pytest.raises(StoreError, match=r"expected a plain name in checkpoints or reports|leads out of the store"):
        finish(store)
    assert victim.read_text() == "precious"
    assert tree(store) == before | {str(Path(store, "lock")): b""}


def test_a_forged_journal_that_is_no_plan_is_said(store):
    forge(store, tracklets=7)
    with pytest.raises(StoreError, match=r"run forged: its plan cannot be read .*tracklets"):
        finish(store)


def test_a_run_with_a_forged_path_deletes_nothing_beside_the_store(store, tmp_path):
    victims = [tmp_path / "victim.html", tmp_path / "reports" / "page.html"]
    for victim in victims:
        victim.parent.mkdir(exist_ok=True)
        victim.write_text("precious")
    snapshot = {n: tables.snapshot_row(store, "bench")[n] for n in ("name", "tables", "digest")}
    for number, path in enumerate(["/anything/../victim.html", str(victims[1]), "reports/.."]):
        outputs = {"path": path, "sha256": "0"}
        tables.record_run(store, run_record(f"forged-{number}", "write_report", {"snapshot": snapshot}, outputs, {}))
    plan = do(store, Selector.of_person("bench", 4))
    assert plan.files == ("reports/bench-r1.html",)
    assert [victim.read_text() for victim in victims] == ["precious"] * 2


def test_a_page_that_is_a_link_out_of_the_store_is_said_before_anything_is_changed(store, tmp_path):
    (tmp_path / "victim.html").write_text("precious")
    Path(store, "reports", "bench-r2.html").symlink_to(tmp_path / "victim.html")
    with pytest.raises(StoreError, match=r"bench-r2\.html: leads out of the store"):
        look_up(store, Selector.of_person("bench", 4))


def test_a_forged_snapshot_is_said_before_anything_is_changed(store):
    row = {"name": "../../evil", "digest": "d", "tables": "{}", "config": "{}", "counts": "{}", "videos": "[]"}
    put(store, "snapshots", [row | {"created": "2020-01-01T00:00:00.000+00:00"}])
    with pytest.raises(StoreError, match=r"Snapshot '\.\./\.\./evil': .*not written by CSIP"):
        look_up(store, Selector.of_person("bench", 4))
