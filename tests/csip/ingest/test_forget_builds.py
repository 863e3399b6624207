"""What `csip forget` leaves of a small build of real people, and what tracking it again makes of that."""

import dataclasses
from types import SimpleNamespace

import pytest

from csip import tables
from csip.config import SplitConfig
from csip.evaluation.publish import publish
from csip.ingest.extract import extract_videos
from csip.ingest.records import extract_digests
from csip.ingest.retrack import list_snapshot, with_detections_of
from csip.maintenance.forget import Selector, forget, look_up
from csip.maintenance.verify import verify
from csip.plain import to_plain
from csip.types import Output, VideoList

ENDS = (20, 40, 60, 63)


def changed(config, **sections):
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    )


def run(stage):
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value.value


def rows(store, table):
    return tables.read(tables.current(store, table)).to_pylist()


def runs(store, stage):
    return sorted(tables.find_runs(store, f"stage = '{stage}'"), key=lambda one: one.counts["frames"])


def faults(store):
    return [f"{one.snapshot} {one.where}: {one.text}" for one in verify(store) if one.kind == "fault"]


def record_publish(store, listed, name):
    """As flows.stage records it."""
    record = tables.RunRecord(
        *("run-publish", "publish", "k", {"videos": to_plain(listed)}, {"name": name}, {}),
        *({}, {}, "s", "", "cpu", tables.now(), 1.0),
    )
    tables.record_run(store, record)


@pytest.fixture
def built(replayed, street, steps, tmp_path):
    """The street in segments of twenty frames, the last of three, published; who goes is there in three of them."""
    config = dataclasses.replace(
        changed(steps.config, detect={"segment_seconds": 2.0}), split=SplitConfig(min_part_frames=2, gap_seconds=0.1)
    )
    store = str(tmp_path / "store")
    steps.extract(store, [street], config)
    listed = VideoList((street,), (), extract_digests(config))
    name = run(publish(Output(store, "run-publish"), listed, (), config)).name
    record_publish(store, listed, name)
    assert faults(store) == []
    gone = next(r for r in rows(store, "tracklets") if r["first_frame"] < 20 and r["last_frame"] >= 40)
    return SimpleNamespace(store=store, name=name, config=config, gone=gone["tracklet_id"])


def track_again(built, steps):
    config = changed(with_detections_of(built.store, built.name, built.config), track={"min_seconds": 0.5})
    out = Output(built.store, "run-again")
    listed = run(list_snapshot(out, built.name, config, steps.runtime))
    for batch in listed.batches:
        run(extract_videos(out, batch, listed.digests, config, steps.runtime))
    return run(publish(out, listed, (), config)).name


def test_every_pass_over_the_video_counts_what_is_left_of_it(built):
    crops = [row["frame_index"] for row in rows(built.store, "crops") if row["tracklet_id"] == built.gone]
    before = {stage: runs(built.store, stage) for stage in ("detect_video", "track_segment", "track_video")}
    seen = sum(one.counts["detections"] for one in before["detect_video"])
    forget(built.store, look_up(built.store, Selector.of_tracklets([built.gone])))
    left = [row["frame_index"] for row in rows(built.store, "detections")]
    assert seen - len(left) >= len(crops) > 20
    first = 0
    detected = sorted(runs(built.store, "detect_video"), key=lambda one: one.counts["end_frame"])
    for one, end in zip(detected, ENDS, strict=True):
        assert one.counts["detections"] == sum(first <= frame < end for frame in left)
        first = end
    first = 0
    tracked = [*runs(built.store, "track_segment"), *runs(built.store, "track_video")]
    for one, old, end in zip(tracked, [*before["track_segment"], *before["track_video"]], ENDS, strict=True):
        assert one.counts["detections"] == sum(frame < end for frame in left)
        assert old.counts["tracklets"] - one.counts["tracklets"] == 1
        assert old.counts["crops"] - one.counts["crops"] == sum(frame < end for frame in crops)
        assert old.counts["segment_crops"] - one.counts["segment_crops"] == sum(first <= f < end for f in crops)
        first = end
    assert tables.snapshot_row(built.store, built.name)["counts"]["detections"] == len(left)
    assert faults(built.store) == []


def test_what_is_left_is_tracked_again_without_a_fault(built, steps):
    forget(built.store, look_up(built.store, Selector.of_tracklets([built.gone])))
    left = len(rows(built.store, "detections"))
    name = track_again(built, steps)
    assert name != built.name
    assert tables.snapshot_row(built.store, name)["counts"]["detections"] == left
    assert faults(built.store) == []
    # Of both generations at once: the same person has another name in the other one, and goes by that.
    both = [row["tracklet_id"] for row in rows(built.store, "tracklets")][::3]
    forget(built.store, look_up(built.store, Selector.of_tracklets(both)))
    assert faults(built.store) == []


def test_a_whole_video_leaves_passes_that_count_nothing(built, street):
    forget(built.store, look_up(built.store, Selector.of_video(built.store, street.video_sha)))
    for stage in ("detect_video", "track_segment", "track_video"):
        found = runs(built.store, stage)
        assert found
        for one in found:
            names = {"detections", "tracklets", "crops", "segment_crops"} & set(one.counts)
            assert {one.counts[name] for name in names} == {0}
    assert faults(built.store) == []
