import hashlib

import pyarrow as pa
import pytest

from csip import tables
from csip.errors import StoreError
from csip.lineage import History, flatten
from csip.tables import RunRecord
from csip.types import Snapshot

# A history as `flows` would record it, by hand: two videos, a snapshot of both, and a training on it.
VIDEOS = ["a" * 64, "b" * 64]
START, TRAINED, PRETRAINED = "1" * 64, "2" * 64, "3" * 64
ENCODER = "e" * 64


def checkpoint(sha):
    return {"path": f"/store/checkpoints/{sha[:4]}.safetensors", "sha256": sha}


def table(name, version):
    return {"uri": f"/store/{name}.lance", "version": version}


def video(sha):
    return {"video_sha": sha, "path": f"/videos/{sha[0]}.mp4", "camera": sha[0], "duration": 8.0}


def snapshot(digest="d1"):
    return {"name": "street", "store": "/store", "tables": {"crops": 4}, "digest": digest}


def embeddings(version=3):
    return {"table": table("embeddings", version), "encoder_digest": ENCODER, "encoder": "trained"} | {
        "checkpoint_sha": TRAINED
    }


RESULTS = {"table": table("results", 2), "run_id": "run-evaluate"}
RUNS = [
    ("run-track-a", "track_video", {"video": video(VIDEOS[0])}, {"video_sha": VIDEOS[0], "track_digest": "t"}),
    ("run-track-b", "track_video", {"video": video(VIDEOS[1])}, {"video_sha": VIDEOS[1], "track_digest": "t"}),
    ("run-publish", "publish", {"videos": [{"video_sha": sha, "run_id": "x"} for sha in VIDEOS]}, snapshot()),
    ("run-initialise", "initialise", {"snapshot": snapshot()}, checkpoint(START)),
    (
        "run-features",
        "cache_features",
        {"checkpoint": checkpoint(START), "snapshot": snapshot()},
        table("frame_features", 2),
    ),
    (
        "run-stage1",
        "stage1",
        {"checkpoint": checkpoint(START), "features": table("frame_features", 2), "snapshot": snapshot()},
        checkpoint(PRETRAINED),
    ),
    (
        "run-stage2",
        "stage2",
        {"checkpoint": checkpoint(PRETRAINED), "features": table("frame_features", 2), "snapshot": snapshot()},
        checkpoint(TRAINED),
    ),
    ("run-embed", "embed", {"checkpoint": checkpoint(TRAINED), "snapshot": snapshot()}, embeddings()),
    ("run-evaluate", "evaluate", {"embeddings": [embeddings()], "snapshot": snapshot()}, RESULTS),
    (
        "run-report",
        "write_report",
        {"results": RESULTS, "snapshot": snapshot()},
        {"path": "/store/report.html", "sha256": "9" * 64},
    ),
]


def record(store, number, run_id, stage, inputs, outputs, key="", **counts):
    tables.record_run(
        store,
        RunRecord(
            run_id=run_id,
            stage=stage,
            key=key or run_id,
            inputs=inputs,
            outputs=outputs,
            config={},
            counts=counts,
            weights={},
            source_digest="s",
            git_commit="",
            device="cpu",
            started=f"2026-01-01T00:{number:02d}:00.000+00:00",
            seconds=1.0,
        ),
    )


@pytest.fixture
def store(tmp_path):
    path = str(tmp_path / "store")
    tables.prepare_store(path)
    for number, run in enumerate(RUNS):
        record(path, number, *run)
    row = {name: 0 for name in tables.TABLES["tracklets"].names}
    row |= {
        "tracklet_id": "t-00001",
        "video_sha": VIDEOS[1],
        "track_digest": "t",
        "pid": None,
        "begins": "",
        "ends": "",
    }
    row |= {"first_frame": 10, "last_frame": 14, "num_frames": 4}
    tables.upsert(path, "tracklets", tables.from_rows("tracklets", [row]))
    crop = {"tracklet_id": "t-00001", "frame_index": 12, "time": 1.2, "box": [1.0, 2.0, 31.5, 80.0], "score": 0.75}
    tables.upsert(path, "crops", tables.from_rows("crops", [crop | {"media_type": "image/jpeg", "image": b""}]))
    film = {
        name: "" if pa.types.is_string(tables.TABLES["videos"].field(name).type) else 0
        for name in tables.TABLES["videos"].names
    }
    film |= {"video_sha": VIDEOS[0], "path": "/videos/gone.mp4", "status": "ok"}
    tables.upsert(path, "videos", tables.from_rows("videos", [film]))
    for name, value in (("mean_ap", 0.5), ("rank-1", 0.25)):
        score = {"run_id": "run-evaluate", "protocol": "p", "split": "0", "encoder": "trained", "name": name}
        score |= {"value": value, "described": "", "encoder_digest": ENCODER, "checkpoint_sha": TRAINED}
        tables.upsert(path, "results", tables.from_rows("results", [score]))
    epochs = [
        {"run_id": "run-stage1", "step": n, "name": "loss", "stage": "stage1", "value": 4.0 / n} for n in (1, 2, 10)
    ]
    tables.upsert(path, "metrics", tables.from_rows("metrics", epochs))
    return path


def chain(node):
    """The first path of runs from a thing to where it ends."""
    out = []
    while node is not None:
        out.append((node.kind, node.made_by.run_id if node.made_by else None))
        node = node.sources[0] if node.sources else None
    return out


def test_a_score_is_walked_back_to_the_videos(store):
    node = History(store).find("run-evaluate")
    assert chain(node) == [
        ("results", "run-evaluate"),
        ("embeddings", "run-embed"),
        ("checkpoint", "run-stage2"),
        ("checkpoint", "run-stage1"),
        ("checkpoint", "run-initialise"),
        ("snapshot", "run-publish"),
        ("video", "run-track-a"),
    ]
    everything = {(n.kind, n.name) for n in flatten(node)}
    assert everything == {
        ("results", "run-evaluate"),
        ("embeddings", ENCODER),
        ("checkpoint", TRAINED),
        ("checkpoint", PRETRAINED),
        ("checkpoint", START),
        ("table", "frame_features@2"),
        ("snapshot", "street"),
        ("video", VIDEOS[0]),
        ("video", VIDEOS[1]),
    }


def test_each_thing_is_listed_once_from_the_root(store):
    listed = [(n.kind, n.name) for n in flatten(History(store).find("run-report"))]
    assert len(listed) == len(set(listed))
    assert listed[:2] == [("file", "9" * 64), ("results", "run-evaluate")]


def test_the_features_of_a_training_are_its_sources(store):
    node = History(store).find(TRAINED)
    assert [(s.kind, s.name) for s in node.sources] == [
        ("checkpoint", PRETRAINED),
        ("table", "frame_features@2"),
        ("snapshot", "street"),
    ]
    features = node.sources[1]
    assert features.made_by.run_id == "run-features"
    assert [s.name for s in features.sources] == [START, "street"]


@pytest.mark.parametrize(
    ("ref", "kind", "name"),
    [
        ("run-embed", "embeddings", ENCODER),
        ("street", "snapshot", "street"),
        (TRAINED, "checkpoint", TRAINED),
        (TRAINED[:6], "checkpoint", TRAINED),
        (VIDEOS[0][:12], "video", VIDEOS[0]),
        ("frame_features@2", "table", "frame_features@2"),
        ("t-00001", "tracklet", "t-00001"),
        (ENCODER[:8], "embeddings", ENCODER),
    ],
)
def test_a_thing_is_found_by_what_people_call_it(store, ref, kind, name):
    node = History(store).find(ref)
    assert (node.kind, node.name) == (kind, name)


UNDER = {"protocol": "p", "split": "0"}


@pytest.mark.parametrize(
    ("ref", "facts", "behind"),
    [
        ("run-evaluate:mAP", UNDER | {"trained": 0.5}, ("results", "run-evaluate")),
        ("run-evaluate:mean_ap", UNDER | {"trained": 0.5}, ("results", "run-evaluate")),
        ("run-evaluate:rank-1", UNDER | {"trained": 0.25}, ("results", "run-evaluate")),
        ("run-evaluate:rank-1@p/0", UNDER | {"trained": 0.25}, ("results", "run-evaluate")),
        ("run-stage1:loss", {"epochs": 3, "first": 4.0, "last": 0.4}, ("checkpoint", PRETRAINED)),
    ],
)
def test_a_figure_is_read_and_walked_back_from_the_run_that_made_it(store, ref, facts, behind):
    node = History(store).find(ref)
    assert (node.kind, node.name, node.facts) == ("figure", ref, facts)
    assert [(source.kind, source.name) for source in node.sources] == [behind]
    assert ("video", VIDEOS[1]) in {(n.kind, n.name) for n in flatten(node)}


def test_a_crop_is_walked_back_to_its_frame_of_the_video(store):
    node = History(store).find("t-00001@12")
    assert (node.kind, node.facts) == (
        "crop",
        {"frame_index": 12, "time": 1.2, "box": "1.0 2.0 31.5 80.0", "score": 0.75},
    )
    (tracklet,) = node.sources
    assert (tracklet.kind, tracklet.name, tracklet.facts["num_frames"]) == ("tracklet", "t-00001", 4)
    assert [(n.kind, n.name, n.made_by.run_id) for n in tracklet.sources] == [("video", VIDEOS[1], "run-track-b")]


def test_a_tracklet_is_walked_back_to_the_run_that_made_it_and_not_to_a_later_one(store):
    again = {"video_sha": VIDEOS[1], "track_digest": "other"}
    record(store, 30, "run-track-b-again", "track_video", {"video": video(VIDEOS[1])}, again)
    history = History(store)
    (seen,) = history.find("t-00001").sources
    assert seen.made_by.run_id == "run-track-b"
    assert history.find(VIDEOS[1]).made_by.run_id == "run-track-b-again"


def put_score(store, **changes):
    score = {"run_id": "run-evaluate", "protocol": "p", "split": "0", "encoder": "trained", "name": "mean_ap"}
    score |= {"value": 0.75, "described": "", "encoder_digest": ENCODER, "checkpoint_sha": TRAINED} | changes
    tables.upsert(store, "results", tables.from_rows("results", [score]))


def test_a_figure_of_several_splits_is_named_with_its_split_and_shows_every_encoder(store):
    put_score(store, split="1")
    put_score(store, split="1", encoder="untrained", value=0.125)
    put_score(store, protocol="q", split="1", value=0.25)
    history = History(store)
    told = r"names 3 of 3 values, expected one of: run-evaluate:mAP@p/0, run-evaluate:mAP@p/1, run-evaluate:mAP@q/1\."
    with pytest.raises(StoreError, match=told):
        history.find("run-evaluate:mAP")
    for ambiguous in ("p", "1"):
        with pytest.raises(StoreError, match="names 2 of 3 values"):
            history.find(f"run-evaluate:mAP@{ambiguous}")
    with pytest.raises(StoreError, match="names 0 of 3 values, expected one of"):
        history.find("run-evaluate:mAP@r")
    assert history.find("run-evaluate:mAP@p/1").facts == {
        "protocol": "p",
        "split": "1",
        "trained": 0.75,
        "untrained": 0.125,
    }
    assert history.find("run-evaluate:mAP@0").facts == UNDER | {"trained": 0.5}
    assert history.find("run-evaluate:mAP@q").facts == {"protocol": "q", "split": "1", "trained": 0.25}
    assert history.find("run-evaluate:rank-1").facts == UNDER | {"trained": 0.25}, "of which there is but one"


def extraction(store, number, name, sha, detect, track, segments=1):
    """Record what extracting a video leaves: a pass of each kind a segment, the last of which finishes it."""
    made = {"video_sha": sha, "detect_digest": detect}
    for i in range(segments):
        where = {"video": video(sha)}
        key = f"detect-{sha}-{detect}-{i}"
        record(store, number + i, f"{name}-detect-{i}", "detect_video", where, made, key, frames=10, detections=7)
        stage = "track_video" if i == segments - 1 else "track_segment"
        counts = {"segment_crops": 5}
        record(store, number + i, f"{name}-track-{i}", stage, where, made | {"track_digest": track}, **counts)


@pytest.fixture
def extracted(store):
    """Two videos extracted together, the first of three segments, and one of them again under other settings."""
    extraction(store, 20, "long", VIDEOS[0], "d" * 64, "t1", segments=3)
    extraction(store, 20, "short", VIDEOS[1], "d" * 64, "t1")
    ran = [("long-track-2", VIDEOS[0]), ("short-track-0", VIDEOS[1])]
    outputs = [{"video_sha": sha, "track_digest": "t1", "run_id": run_id} for run_id, sha in ran]
    record(store, 20, "run-extract", "extract_videos", {"videos": [video(sha) for sha in VIDEOS]}, outputs)
    extraction(store, 40, "other", VIDEOS[1], "e" * 64, "t2")
    return store


def test_a_run_over_several_videos_shows_each_by_the_run_that_finished_it_and_not_by_a_later_one(extracted):
    node = History(extracted).find("run-extract")
    assert (node.kind, node.made_by.stage, node.facts) == ("run", "extract_videos", {"outputs": 2})
    assert [(n.kind, n.name, n.made_by.run_id) for n in node.sources] == [
        ("video", VIDEOS[0], "long-track-2"),
        ("video", VIDEOS[1], "short-track-0"),
    ]
    assert History(extracted).find(VIDEOS[1]).made_by.run_id == "other-track-0"


def test_a_video_shows_its_detections_and_segments_as_the_tracking_pass_read_them(extracted):
    # The first segment was detected twice, by two builds at once: the later one's rows are in the store.
    again = {"video_sha": VIDEOS[0], "detect_digest": "d" * 64}
    same = f"detect-{VIDEOS[0]}-{'d' * 64}-0"
    record(extracted, 21, "again", "detect_video", {"video": video(VIDEOS[0])}, again, same, frames=10, detections=8)
    node = History(extracted).find(VIDEOS[0])
    detections, segments = node.sources
    assert (detections.kind, detections.made_by.stage) == ("detections", "detect_video")
    runs = ["again", "long-detect-1", "long-detect-2"]
    assert detections.facts == {"frames": 30, "detections": 22, "runs": runs}
    assert (segments.kind, segments.made_by.stage) == ("segments", "track_segment")
    assert segments.facts == {"segment_crops": 10, "runs": ["long-track-0", "long-track-1"]}
    (one,) = History(extracted).find("short-track-0").sources
    assert (one.made_by.run_id, one.facts) == ("short-detect-0", {"frames": 10, "detections": 7})


@pytest.mark.parametrize("name", ["long-detect-1", "long-track-1", "long-track-2", "short-track-0"])
def test_a_pass_over_a_video_is_walked_from_that_very_run(extracted, name):
    node = History(extracted).find(name)
    assert (node.kind, node.made_by.run_id, node.facts["camera"]) == ("video", name, node.name[0])
    assert node.facts["detect_digest"] == "d" * 64


def test_what_several_runs_made_alike_is_walked_from_the_run_that_is_named(store):
    record(store, 30, "run-initialise-again", "initialise", {"snapshot": snapshot()}, checkpoint(START))
    assert History(store).find("run-initialise").made_by.run_id == "run-initialise"
    assert History(store).find(START).made_by.run_id == "run-initialise-again"


def test_a_snapshot_of_videos_that_were_tracked_before_stands_on_their_own_settings(extracted):
    # Published after the video had been tracked under t2, under t1, where nothing was left to extract.
    listed = {"videos": [video(VIDEOS[1])], "batches": [], "digests": {"detect": "d" * 64, "track": "t1"}}
    made = {"name": "first", "store": "/store", "tables": {"crops": 9}, "digest": "d9"}
    record(extracted, 50, "run-publish-t1", "publish", {"extracted": [], "videos": listed}, made)
    (seen,) = History(extracted).find("first").sources
    assert (seen.name, seen.made_by.run_id) == (VIDEOS[1], "short-track-0")


def test_a_run_that_left_nothing_shows_what_it_read(store):
    record(store, 30, "run-check", "check", {"snapshot": snapshot()}, {"counted": 3})
    node = History(store).find("run-check")
    assert (node.kind, node.made_by.stage, [s.name for s in node.sources]) == ("run", "check", ["street"])


def test_a_version_that_snapshots_pin_is_found_and_names_them(store):
    version = tables.current(store, "crops").version
    for name in ("street", "lane"):
        made = Snapshot(name, store, {"crops": version}, digest="d1")
        tables.publish(made, config={}, counts={}, videos=[])
    node = History(store).find(f"crops@{version}")
    assert (node.kind, node.facts) == ("table", {"pinned_by": "street, lane"})
    assert [(s.kind, s.name) for s in node.sources] == [("snapshot", "street"), ("snapshot", "lane")]
    assert ("video", VIDEOS[1]) in {(n.kind, n.name) for n in flatten(node)}
    with pytest.raises(StoreError, match=f"'crops@{version + 1}' names nothing"):
        History(store).find(f"crops@{version + 1}")


def test_what_the_store_calls_by_a_name_goes_before_a_file_of_that_name(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(store, 30, "run-x", "stage2", {}, checkpoint(hashlib.sha256(b"weights").hexdigest()))
    for name in ("street", "run-embed", "t-00001", "frame_features@2"):
        (tmp_path / name).write_bytes(b"weights")
        kind = {"street": "snapshot", "run-embed": "embeddings", "t-00001": "tracklet"}.get(name, "table")
        assert History(store).find(name).kind == kind
        assert History(store).find(f"./{name}").made_by.run_id == "run-x"


def test_a_checkpoint_whose_file_is_gone_is_found_by_where_it_lay_and_by_its_digest(store):
    for ref in (checkpoint(TRAINED)["path"], TRAINED, TRAINED[:8]):
        assert History(store).find(ref).made_by.run_id == "run-stage2"


def test_another_file_where_one_lay_is_not_taken_for_it(store, tmp_path):
    place = tmp_path / "best.safetensors"
    record(store, 30, "run-x", "stage2", {}, {"path": str(place), "sha256": "8" * 64})
    assert History(store).find(str(place)).name == "8" * 64
    place.write_bytes(b"other")
    with pytest.raises(
        StoreError, match=r"which this store does not know; recorded there: checkpoint 8888888888888888\."
    ):
        History(store).find(str(place))


def put_video(store, sha, **facts):
    kinds = {name: tables.TABLES["videos"].field(name).type for name in tables.TABLES["videos"].names}
    row = {name: "" if pa.types.is_string(kind) else 0 for name, kind in kinds.items()} | {"status": "ok"}
    tables.upsert(store, "videos", tables.from_rows("videos", [row | facts | {"video_sha": sha}]))


def test_a_video_is_found_behind_the_links_by_which_it_was_named(store, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    put_video(store, VIDEOS[1], path=str((tmp_path / "disk").resolve() / "gone.mp4"))
    monkeypatch.chdir(tmp_path)
    for ref in ("link/gone.mp4", str(tmp_path / "link" / "gone.mp4"), "disk/gone.mp4"):
        assert History(store).find(ref).name == VIDEOS[1]


def test_a_quarantined_video_is_found_and_says_why(store, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    sha = hashlib.sha256(b"no video").hexdigest()
    put_video(store, sha, path=str(broken), status="quarantined", reason="no stream")
    told = {"path": str(broken), "status": "quarantined", "reason": "no stream"}
    for ref in (str(broken), sha, sha[:10]):
        node = History(store).find(ref)
        assert (node.kind, node.name, node.facts, node.made_by) == ("video", sha, told, None)
    broken.unlink()
    assert History(store).find(str(broken)).facts == told
    put_video(store, VIDEOS[1], path="/videos/b.mp4", status="partial", reason="cut off")
    facts = History(store).find(VIDEOS[1]).facts
    assert (facts["status"], facts["reason"], facts["camera"]) == ("partial", "cut off", "b")


def test_a_video_is_found_by_where_it_lay(store):
    node = History(store).find("/videos/gone.mp4")
    assert (node.kind, node.name) == ("video", VIDEOS[0])


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("run-evaluate:mAp", r"run run-evaluate has no figure 'mAp'; it has: mean_ap, rank-1\."),
        ("run-embed:mAP", r"run run-embed has no figure 'mAP'; it has: none\."),
        ("run-evaluate:mAp@p", r"run run-evaluate has no figure 'mAp'; it has: mean_ap, rank-1\."),
        ("run-nowhere:mAP", r"'run-nowhere:mAP' names nothing; expected one snapshot, run, RUN:FIGURE"),
        ("t-00001@13", r"tracklet t-00001 has no crop of frame 13; it was seen from 10 to 14\."),
        ("t-00002@12", r"'t-00002@12' names nothing; expected one .*TRACKLET@FRAME"),
        ("frame_features@7", r"'frame_features@7' names nothing"),
    ],
)
def test_rows_that_are_not_there_are_said(store, ref, told):
    with pytest.raises(StoreError, match=told):
        History(store).find(ref)


def test_a_file_is_found_by_its_content_wherever_it_lies(store, tmp_path):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(b"weights")
    sha = hashlib.sha256(b"weights").hexdigest()
    record(store, 30, "run-x", "stage2", {"snapshot": snapshot()}, checkpoint(sha))
    node = History(store).find(str(moved))
    assert (node.kind, node.made_by.run_id) == ("checkpoint", "run-x")


def test_an_unknown_name_is_refused_with_what_was_expected(store):
    with pytest.raises(StoreError, match=r"'nowhere' names nothing; expected one snapshot, run, RUN:FIGURE, tracklet"):
        History(store).find("nowhere")


def test_a_few_letters_are_not_enough_to_guess_from(store):
    with pytest.raises(StoreError, match="'222' names nothing"):
        History(store).find("222")


def test_an_ambiguous_beginning_is_refused_with_its_candidates(store):
    record(store, 31, "run-y", "stage2", {"snapshot": snapshot()}, checkpoint("2" * 6 + "f" * 58))
    with pytest.raises(StoreError, match=r"'222222' names checkpoint 2222222222222222, checkpoint 222222ffffffffff"):
        History(store).find("222222")
    assert History(store).find("2222222").name == TRAINED


def test_what_a_run_read_was_made_before_it(store):
    # The snapshot is published again, with other rows, after the training that read its first edition.
    record(store, 40, "run-publish-2", "publish", {"videos": [{"video_sha": VIDEOS[0]}]}, snapshot("d2"))
    history = History(store)
    assert history.find("street").made_by.run_id == "run-publish-2"
    trained = {n.kind: n.made_by.run_id for n in flatten(history.find("run-evaluate")) if n.kind == "snapshot"}
    assert trained == {"snapshot": "run-publish"}


def test_what_came_from_outside_was_made_by_no_run(store):
    foreign = embeddings(9) | {"encoder_digest": "x"}
    record(store, 50, "run-foreign", "embed", {"checkpoint": checkpoint("7" * 64)}, foreign)
    node = History(store).find("7" * 64)
    assert (node.made_by, node.sources) == (None, ())


def test_a_run_that_names_its_own_output_as_input_ends_the_walk(store):
    # A stage that finds nothing to do gives back the version it was given.
    features = table("frame_features", 2)
    record(store, 60, "run-again", "cache_features", {"features": features}, features)
    node = History(store).find("frame_features@2")
    assert (node.made_by.run_id, node.sources) == ("run-again", ())
