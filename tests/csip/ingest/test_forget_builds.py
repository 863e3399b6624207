"""What `csip forget` leaves of a small build of real people, and what tracking it again makes of that."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from csip import tables
from csip.config import SplitConfig
from csip.errors import TooLittleDataError
from csip.evaluation.publish import publish
from csip.ingest.extract import extract_videos
from csip.ingest.records import extract_digests
from csip.ingest.retrack import list_snapshot, with_detections_of
from csip.ingest.sources import list_videos
from csip.maintenance.forget import Selector, forget, look_up
from csip.maintenance.verify import verify
from csip.plain import to_plain
from csip.types import Output, VideoList

ENDS = (20, 40, 60, 63)


def changed(config, **sections):
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    )


def end(stage):
    while True:
        try:
            next(stage)
        except StopIteration as ended:
            return ended.value


def run(stage):
    return end(stage).value


def rows(store, table):
    return tables.read(tables.current(store, table)).to_pylist()


def runs(store, stage):
    return sorted(tables.find_runs(store, f"stage = '{stage}'"), key=lambda one: one.counts["frames"])


def faults(store):
    return [f"{one.snapshot} {one.where}: {one.text}" for one in verify(store) if one.kind == "fault"]


def forget_all(store, selector):
    forget(store, selector, look_up(store, selector))


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
    forget_all(built.store, Selector.of_tracklets([built.gone]))
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
    forget_all(built.store, Selector.of_tracklets([built.gone]))
    left = len(rows(built.store, "detections"))
    name = track_again(built, steps)
    assert name != built.name
    assert tables.snapshot_row(built.store, name)["counts"]["detections"] == left
    assert faults(built.store) == []
    # Of both generations at once: the same person has another name in the other one, and goes by that.
    both = [row["tracklet_id"] for row in rows(built.store, "tracklets")][::3]
    forget_all(built.store, Selector.of_tracklets(both))
    assert faults(built.store) == []


def test_a_whole_video_leaves_passes_that_count_nothing(built, street):
    forget_all(built.store, Selector.of_video(built.store, street.video_sha))
    for stage in ("detect_video", "track_segment", "track_video"):
        found = runs(built.store, stage)
        assert found
        for one in found:
            names = {"detections", "tracklets", "crops", "segment_crops"} & set(one.counts)
            assert {one.counts[name] for name in names} == {0}
    assert faults(built.store) == []


@pytest.fixture
def under_way(extracted, replayed, street, steps, tmp_path):
    """A build of two films, stopped where a stage has ended and nobody holds the store, and what it goes on with."""
    store = str(shutil.copytree(extracted.store, tmp_path / "store"))
    film = Path(shutil.copy(street.path, tmp_path / "wedding.mp4"))
    with film.open("ab") as file:
        file.write(b"\0\0\0\x08free")  # the same pictures, another film
    wedding, out = steps.source(film, "church"), Output(store, "run-1")
    settings = [changed(steps.config, track={"min_seconds": n}) for n in (0.5, 1.0)]
    config, other = (
        dataclasses.replace(one, split=SplitConfig(min_part_frames=2, gap_seconds=0.1)) for one in settings
    )

    def build(sources, config, after_listing=lambda: None, before_publishing=lambda: None):
        listed = run(list_videos(out, sources, "", config, steps.runtime))
        after_listing()
        made = [end(extract_videos(out, batch, listed.digests, config, steps.runtime)) for batch in listed.batches]
        before_publishing()
        done = end(publish(out, listed, tuple(one.value for one in made), config))
        return SimpleNamespace(
            name=done.value.name, counts=done.counts, reasons=[r for one in made for r in reasons(one)]
        )

    def forget_wedding():
        forget_all(store, Selector.of_video(store, wedding.video_sha))

    both = (street.path, wedding.path)
    record_publish(store, VideoList((street, wedding), (), extract_digests(config)), build(both, config).name)
    call = SimpleNamespace(store=store, street=street, wedding=wedding, other=other, forget=forget_wedding)
    call.again = lambda **moments: build(both, other, **moments)
    return call


def reasons(outcome):
    return [text for name, text in outcome.counts.items() if name.startswith("left out")]


def check_without_wedding(built, name):
    sha = built.wedding.video_sha
    assert tables.snapshot_row(built.store, name)["videos"] == [built.street.video_sha]
    assert {row["video_sha"] for table in ("tracklets", "detections") for row in rows(built.store, table)} == {
        built.street.video_sha
    }
    (row,) = [row for row in rows(built.store, "videos") if row["video_sha"] == sha]
    assert (row["status"], row["path"]) == ("forgotten", "")
    ours = {row["tracklet_id"] for row in rows(built.store, "tracklets")}
    assert {row["tracklet_id"] for row in [*rows(built.store, "crops"), *rows(built.store, "skeletons")]} == ours
    assert faults(built.store) == []


@pytest.mark.parametrize("moment", ["after_listing", "before_publishing"])
def test_a_build_under_way_leaves_out_what_was_forgotten_since_it_was_listed(under_way, moment):
    done = under_way.again(**{moment: under_way.forget})
    check_without_wedding(under_way, done.name)
    assert (done.counts["videos"], done.counts["videos_left_out"], done.counts["videos_forgotten"]) == (1, 1, 1)
    told = [
        f"Video {under_way.wedding.video_sha[:12]}: was forgotten here (`csip forget`) since this build has listed it"
    ]
    assert [one.partition(", and")[0] for one in done.reasons] == (told if moment == "after_listing" else [])


def test_what_was_forgotten_since_it_was_listed_is_not_tracked_again(under_way, steps):
    (name,) = [row["name"] for row in rows(under_way.store, "snapshots")]
    out, config = Output(under_way.store, "run-again"), under_way.other
    listed = run(list_snapshot(out, name, config, steps.runtime))
    assert {video.video_sha for video in listed.videos} == {under_way.street.video_sha, under_way.wedding.video_sha}
    under_way.forget()
    for batch in listed.batches:
        run(extract_videos(out, batch, listed.digests, config, steps.runtime))
    check_without_wedding(under_way, run(publish(out, listed, (), config)).name)


def test_a_build_of_which_all_was_forgotten_meanwhile_says_so(under_way, steps):
    out = Output(under_way.store, "run-1")
    listed = run(list_videos(out, (under_way.wedding.path,), "", under_way.other, steps.runtime))
    under_way.forget()
    with pytest.raises(TooLittleDataError, match="All of 1 videos were forgotten in this store"):
        run(publish(out, listed, (), under_way.other))
