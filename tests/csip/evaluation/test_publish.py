"""Hand-made tracklets to a published snapshot: its name, its parts, its cameras, and what it counts."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from csip import tables
from csip.config import DetectConfig, ExtractConfig, SplitConfig, TrackConfig
from csip.errors import StoreError, TooLittleDataError
from csip.evaluation import publish as publishing
from csip.evaluation.protocol import BETWEEN, TOO_SHORT
from csip.evaluation.publish import publish
from csip.maintenance.unused import give_back
from csip.protocols import SELF_LABELLED
from csip.tables import RunRecord
from csip.types import ExtractDigests, ExtractedVideo, Output, SourceVideo, VideoList

TRACK = "d" * 64
DIGESTS = ExtractDigests("e" * 64, TRACK, {}, "")
SPLIT = SplitConfig(min_part_frames=4, max_parts=2, gap_seconds=0.3)
CONFIG = ExtractConfig(split=SPLIT)
TENTHS = tuple(n / 10 for n in range(12))


def sha(letter):
    return letter * 64


def write(store, video, tracklets, *, track=TRACK, dropped=None, confidence=0.8):
    """Put a video into a store as extraction leaves it; `tracklets` are the times of each one's frames 0, 1, 2, ..."""
    tables.prepare_store(store)
    crops, rows = [], []
    for number, times in enumerate(tracklets):
        name = f"{video}-{track[:2]}-{number}"
        crops += [
            {
                "tracklet_id": name,
                "frame_index": frame,
                "time": time,
                "box": [0, 0, 1, 1],
                "score": 1,
                "media_type": "x",
                "image": b"",
            }
            for frame, time in enumerate(times)
        ]
        rows.append(
            {
                "tracklet_id": name,
                "video_sha": sha(video),
                "track_digest": track,
                "first_frame": 0,
                "last_frame": len(times) - 1,
                "first_time": times[0],
                "last_time": times[-1],
                "num_frames": len(times),
                "keypoint_confidence": confidence,
                "pid": None,
                "begins": "unknown",
                "ends": "unknown",
                "interpolated_frames": 0,
            }
        )
    tables.upsert(store, "crops", tables.from_rows("crops", crops))
    tables.upsert(store, "tracklets", tables.from_rows("tracklets", rows))
    counts = {
        "frames": 100,
        "detections": 50,
        "tracklets": len(rows),
        "crops": len(crops),
        "keypoint_confidence": confidence,
        "dropped": dropped or {"shorter than min_frames": 1},
        "rules": {"cut at a jump": 1},
    }
    run = RunRecord(
        run_id=f"run-{video}-{track[:2]}",
        stage="track_video",
        key="k",
        inputs={"video": {"video_sha": sha(video)}},
        outputs={"video_sha": sha(video), "detect_digest": "e", "track_digest": track},
        config={},
        counts=counts,
        weights={},
        source_digest="s",
        git_commit="",
        device="cpu",
        started=tables.now(),
        seconds=1.0,
    )
    tables.record_run(store, run)


def detected(store, video, key, *, left_out=None, reason="", detect="e"):
    """Say that a segment of a video was detected."""
    counts = {"frames": 50, "detections": 25, "left_out": left_out or {}, "reason": reason}
    record = RunRecord(
        *(f"{video}-{key}-{tables.now()}", "detect_video", f"{video}-{key}", {}),
        {"video_sha": sha(video), "detect_digest": detect},
        *({}, counts, {}, "s", "", "cpu", tables.now(), 1.0),
    )
    tables.record_run(store, record)


def listed(**cameras):
    """A list of videos, by letter, with their cameras."""
    videos = tuple(SourceVideo(sha(letter), f"/{letter}.mp4", camera, 10.0) for letter, camera in cameras.items())
    return VideoList(videos, (), DIGESTS)


@pytest.fixture
def store(tmp_path):
    """Video a with four people and video b with one, each seen for twelve frames."""
    path = str(tmp_path / "store")
    write(path, "a", [TENTHS] * 4, confidence=0.5)
    write(path, "b", [TENTHS], dropped={"shorter than min_frames": 2, "low keypoint confidence": 3}, confidence=0.9)
    return path


@pytest.fixture
def published(run):
    def call(store, videos, config=CONFIG, extracted=()):
        outcome = run(publish(Output(store, "run-p"), videos, extracted, config))[1]
        return SimpleNamespace(snapshot=outcome.value, counts=dict(outcome.counts))

    return call


def parts(store, name):
    rows = tables.read(tables.current(store, "splits"), where=f"dataset = '{name}'").to_pylist()
    return {(row["tracklet_id"], row["first_frame"], row["last_frame"]): row for row in rows}


def test_a_name_follows_from_content_and_from_nothing_else(store, published, tmp_path):
    base = published(store, listed(a="gate", b="yard")).snapshot
    assert base.name == f"video-{base.digest[:8]}"
    # Elsewhere, in another order, under other settings of what is in the tracklets' digest already.
    other = str(tmp_path / "other")
    write(other, "b", [TENTHS])
    write(other, "a", [TENTHS] * 4)
    write(other, "c", [TENTHS] * 2)
    settings = dataclasses.replace(CONFIG, detect=DetectConfig(weights="/elsewhere.pt"), track=TrackConfig())
    moved = VideoList(listed(b="yard", a="gate").videos, (), DIGESTS)
    same = published(other, moved, settings).snapshot
    assert (same.name, same.digest) == (base.name, base.digest)
    changes = [
        (listed(a="gate", b="gate"), CONFIG),
        (listed(a="gate"), CONFIG),
        (listed(a="gate", b="yard"), dataclasses.replace(CONFIG, split=dataclasses.replace(SPLIT, seed=1))),
        (listed(a="gate", b="yard"), dataclasses.replace(CONFIG, dataset="street")),
    ]
    names = [published(store, videos, config).snapshot.name for videos, config in changes]
    assert len({base.name, *names}) == 5
    assert names[-1] == f"street-{base.digest[:8]}"


def test_publishing_again_gives_the_same_snapshot_and_writes_nothing(store, published):
    first = published(store, listed(a="gate", b="yard"))
    versions = {name: tables.current(store, name).version for name in ("splits", "snapshots")}
    again = published(store, listed(a="gate", b="yard"))
    assert again.snapshot == first.snapshot
    assert again.counts == first.counts
    assert {name: tables.current(store, name).version for name in versions} == versions
    # Also after others were published, whose parts stand in newer versions.
    other = published(store, listed(a="gate")).snapshot
    assert published(store, listed(a="gate", b="yard")).snapshot == first.snapshot
    assert other.tables["splits"] > first.snapshot.tables["splits"]
    rows = tables.read(tables.pinned(first.snapshot, "splits")).to_pylist()
    assert {row["dataset"] for row in rows} == {first.snapshot.name}


def test_a_snapshot_pins_every_table_a_reader_needs(store, published):
    snapshot = published(store, listed(a="gate", b="yard")).snapshot
    assert set(snapshot.tables) == {"videos", "detections", "tracklets", "crops", "skeletons", "splits"}
    assert tables.open_snapshot(store, snapshot.name) == snapshot
    row = tables.snapshot_row(store, snapshot.name)
    assert row["videos"] == [sha("a"), sha("b")]
    assert row["config"] == json.loads(json.dumps(row["config"]))
    assert row["config"]["split"]["gap_seconds"] == 0.3
    assert row["config"]["digests"] == {"detect": "e" * 64, "track": TRACK}
    write(store, "c", [TENTHS])
    assert tables.count(tables.pinned(snapshot, "tracklets")) == 5


def test_parts_are_as_long_as_the_gap_in_time_allows(store, published):
    # Twelve frames a tenth of a second apart, a gap of 0.3 s: the next part starts on the third frame after the last.
    snapshot = published(store, listed(a="gate", b="yard")).snapshot
    found = parts(store, snapshot.name)
    assert {unit[1:] for unit in found} == {(0, 4), (7, 11)}
    assert len(found) == 10


def test_gaps_are_measured_by_the_crops_own_times(tmp_path, published):
    # The camera stood still for five seconds after frame 5: that is gap enough, and no frame is lost to one.
    store = str(tmp_path / "store")
    late = tuple(n / 10 + (5 if n >= 6 else 0) for n in range(12))
    write(store, "a", [late] * 4)
    snapshot = published(store, listed(a="gate"))
    assert {unit[1:] for unit in parts(store, snapshot.snapshot.name)} == {(0, 5), (6, 11)}
    assert snapshot.counts["left_out_of_protocol"] == {TOO_SHORT: 0, BETWEEN: 0}


def test_every_person_trains_or_is_tested_and_cameras_are_numbered_by_name(store, published):
    done = published(store, listed(a="yard", b="gate"))
    rows = list(parts(store, done.snapshot.name).values())
    assert {row["protocol"] for row in rows} == {SELF_LABELLED}
    assert {(row["camera"], row["camid"]) for row in rows} == {("gate", 0), ("yard", 1)}
    assert {row["camera"] for row in rows if row["tracklet_id"].startswith("a-")} == {"yard"}
    roles = {}
    for row in rows:
        roles.setdefault(row["pid"], []).append(row["role"])
    # Half of five people, rounded up, are tested: an early part asks, a later one answers.
    assert sorted(map(tuple, map(sorted, roles.values()))) == [("gallery", "query")] * 3 + [("train", "train")] * 2
    expected = {"cameras": 2, "train_people": 2, "test_people": 3, "train_parts": 4, "query_parts": 3}
    assert {name: done.counts[name] for name in expected} == expected
    # Two of twelve frames lie between the parts of each.
    assert done.counts["left_out_of_protocol"] == {TOO_SHORT: 0, BETWEEN: 10}


def test_counts_add_up_over_videos_and_confidence_is_weighted_by_crops(store, published):
    counts = published(store, listed(a="gate", b="yard")).counts
    assert {name: counts[name] for name in ("videos", "videos_left_out", "frames", "detections")} == {
        "videos": 2,
        "videos_left_out": 0,
        "frames": 200,
        "detections": 100,
    }
    assert (counts["tracklets"], counts["crops"]) == (5, 60)
    assert counts["dropped"] == {"shorter than min_frames": 3, "low keypoint confidence": 3}
    assert counts["rules"] == {"cut at a jump": 2}
    assert counts["keypoint_confidence"] == pytest.approx((48 * 0.5 + 12 * 0.9) / 60, abs=1e-4)


def test_people_that_were_not_looked_for_and_videos_that_break_off_are_counted(store, published):
    detected(store, "a", "0", left_out={"smaller than min_box_height": 4, "outside region": 1})
    detected(store, "a", "1", left_out={"smaller than min_box_height": 2, "outside region": 0})
    detected(store, "a", "1", left_out={"smaller than min_box_height": 2, "outside region": 0})  # by two builds at once
    detected(store, "b", "0", left_out={"outside region": 10}, reason="b.mp4: read 5 of 9 frames")
    detected(store, "b", "x", left_out={"outside region": 500}, reason="other settings", detect="f")
    detected(store, "c", "0", left_out={"outside region": 500}, reason="not in this build")
    counts = published(store, listed(a="gate", b="yard")).counts
    assert counts["people_left_out"] == {"outside region": 11, "smaller than min_box_height": 6}
    assert counts["partial_videos"] == 1


def test_videos_none_of_which_was_extracted_are_refused_as_that(store, published):
    videos = listed(y="gate", z="roof")
    with pytest.raises(TooLittleDataError, match=r"None of 2 videos could be extracted.*the first: /y\.mp4"):
        published(store, dataclasses.replace(videos, batches=(videos.videos,)))


def test_a_video_that_was_not_extracted_is_left_out_and_counted(store, published):
    videos = listed(a="gate", b="yard", z="roof")
    done = published(store, dataclasses.replace(videos, batches=(videos.videos[2:],)))
    assert (done.counts["videos"], done.counts["videos_left_out"]) == (2, 1)
    assert done.snapshot == published(store, listed(a="gate", b="yard")).snapshot


GONE = r"1 videos that this build has extracted, or found extracted, are not there any more: .*; run the same command"


def test_a_video_that_was_done_when_the_build_listed_it_is_not_left_out_in_silence(store, published):
    with pytest.raises(StoreError, match=GONE):
        published(store, listed(a="gate", b="yard", z="roof"))
    extracted = ((ExtractedVideo(sha("z"), TRACK, "run-z"),),)
    videos = listed(a="gate", z="roof")
    with pytest.raises(StoreError, match=GONE):
        published(store, dataclasses.replace(videos, batches=(videos.videos[1:],)), extracted=extracted)
    assert tables.read(tables.current(store, "snapshots")).to_pylist() == []


def test_what_is_taken_away_before_it_is_pinned_is_not_published(store, published, monkeypatch):
    real = publishing._write_splits

    def meanwhile(*args):
        (run,) = [run for run in tables.find_runs(store, "true") if run.outputs["video_sha"] == sha("b")]
        tables.record_runs(store, give_back([run]))
        return real(*args)

    monkeypatch.setattr(publishing, "_write_splits", meanwhile)
    with pytest.raises(StoreError, match=GONE):
        published(store, listed(a="gate", b="yard"))
    assert tables.read(tables.current(store, "snapshots")).to_pylist() == []


def test_a_video_whose_tracklets_were_all_dropped_takes_part_without_people(store, published):
    write(store, "c", [], dropped={"shorter than min_frames": 7})
    done = published(store, listed(a="gate", b="yard", c="roof"))
    assert done.counts["videos"] == 3
    assert done.counts["dropped"]["shorter than min_frames"] == 10
    assert {row["camera"] for row in parts(store, done.snapshot.name).values()} == {"gate", "yard"}


def test_videos_without_any_tracklet_are_refused_with_what_was_dropped(tmp_path, published):
    store = str(tmp_path / "store")
    write(store, "c", [], dropped={"shorter than min_frames": 7})
    with pytest.raises(
        TooLittleDataError, match=r"no tracklet in 1 videos \(100 frames, 50 detections.*min_frames': 7"
    ):
        published(store, listed(c="roof"))
    assert tables.count(tables.current(store, "snapshots")) == 0


def test_too_few_people_are_published_without_a_protocol_and_say_why(tmp_path, published):
    store = str(tmp_path / "store")
    write(store, "a", [TENTHS, TENTHS, TENTHS[:5]])
    done = published(store, listed(a="gate"))
    assert (done.counts["train_people"], done.counts["test_people"]) == (0, 0)
    assert "Found 3 tracklets, 2 of them long enough for two parts of 4 frames" in done.counts["no_protocol"]
    assert parts(store, done.snapshot.name) == {}
    assert tables.open_snapshot(store, done.snapshot.name) == done.snapshot


def test_tracklets_of_other_settings_stay_out(store, published):
    write(store, "a", [TENTHS] * 3, track="f" * 64)
    done = published(store, listed(a="gate", b="yard"))
    assert done.counts["tracklets"] == 5
    assert all("-dd-" in unit[0] for unit in parts(store, done.snapshot.name))


def test_what_was_extracted_just_now_counts_like_what_was_there(store, published):
    extracted = ((ExtractedVideo(sha("a"), TRACK, "run-a-dd"),), (ExtractedVideo(sha("b"), TRACK, "run-b-dd"),))
    now = published(store, listed(a="gate", b="yard"), extracted=extracted).snapshot
    assert now == published(store, listed(a="gate", b="yard")).snapshot
