"""A tiny import of Walkers: its rows, its protocol, and that doing it twice or half is as good as once."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csip import tables
from csip.config import (
    BenchmarkConfig,
    ClipConfig,
    EmbedConfig,
    EvaluateConfig,
    Experiment,
    ExtractConfig,
    ReportConfig,
    RuntimeConfig,
    SplitConfig,
    TrackConfig,
    WalkersConfig,
)
from csip.data.clips import ClipDataset, ClipRequest, joint_layout, read_cameras, read_groups, read_parts, read_protocol
from csip.errors import SourceError, StoreError
from csip.evaluation.score import evaluate
from csip.evaluation.write_report import write_report
from csip.ingest.benchmarks import importing
from csip.ingest.benchmarks.crops import NoSkeletons
from csip.ingest.benchmarks.importing import import_benchmark, open_benchmark
from csip.ingest.benchmarks.records import BenchmarkTracklet, SplitRow
from csip.ingest.benchmarks.walkers import deal, walkers
from csip.ingest.records import extract_digests
from csip.lineage import History, flatten
from csip.plain import to_plain
from csip.tables import RunRecord, pinned
from csip.types import EmbeddingsRef, Output, Snapshot
from storage_schemas import TABLES

WALKERS = WalkersConfig(people=6, twins=0.67, cameras=2, frames=4, missing_frames=0.2)
CONFIG = ExtractConfig(dataset="walkers", walkers=WALKERS)
NO_SKELETONS = ExtractConfig(benchmark=BenchmarkConfig(skeletons="none"))
RUNTIME = RuntimeConfig(device="cpu")
COUNT = 6 * 2 * 2  # tracklets
ROWS = ("tracklets", "crops", "skeletons", "splits")


@pytest.fixture
def bring(run):
    """Import into a store; return progress and outcome."""

    def call(store, config=CONFIG):
        return run(import_benchmark(Output(str(store), "run-import"), "walkers:", config, RUNTIME))

    return call


@pytest.fixture(scope="module")
def imported(run, tmp_path_factory):
    """One import, shared: nothing may write to it."""
    store = str(tmp_path_factory.mktemp("walkers") / "store")
    return run(import_benchmark(Output(store, "run-import"), "walkers:", CONFIG, RUNTIME))


def rows(snapshot, name):
    return tables.read(pinned(snapshot, name)).to_pylist()


def test_a_snapshot_is_published_with_what_it_holds(imported):
    progress, outcome = imported
    snapshot = outcome.value
    assert snapshot.name == f"walkers-{snapshot.digest[:8]}"
    assert set(snapshot.tables) == set(ROWS)
    assert outcome.counts["tracklets"] == COUNT
    assert outcome.counts["frames"] == COUNT * 4
    assert outcome.counts["cameras"] == 2
    assert (outcome.counts["train_people"], outcome.counts["test_people"]) == (3, 3)
    assert (outcome.counts["train_parts"], outcome.counts["query_parts"], outcome.counts["gallery_parts"]) == (12, 6, 6)
    assert outcome.counts["twins_people"] == 4
    assert (outcome.counts["protocols"], outcome.counts["joints"]) == ("walkers", "h36m17 from walkers")
    assert (progress[0].done, progress[-1].done, progress[-1].total) == (0, COUNT, COUNT)


def test_the_rows_are_those_of_the_tracklets(imported):
    snapshot = imported[1].value
    benchmark = walkers(WALKERS)
    crops = {(row["tracklet_id"], row["frame_index"]): row for row in rows(snapshot, "crops")}
    poses = {(row["tracklet_id"], row["frame_index"]): row for row in rows(snapshot, "skeletons")}
    assert len(crops) == COUNT * 4
    for split in benchmark.splits[::7]:
        tracklet = benchmark.load(split.tracklet_id)
        for i, frame in enumerate(tracklet.frame_index.tolist()):
            row = crops[split.tracklet_id, frame]
            assert row["image"] == tracklet.images[i]
            assert row["box"] == tracklet.boxes[i].tolist()
            assert row["time"] == pytest.approx(frame / 10)
            pose = poses[split.tracklet_id, frame]
            assert pose["has_skeleton"] == tracklet.has_skeleton[i]
            assert np.array(pose["keypoints"], np.float32) == pytest.approx(tracklet.keypoints[i])
            assert pose["layout"] == "h36m17"
    # Frames without a skeleton keep their rows.
    assert len(poses) == len(crops)
    assert 0 < sum(not row["has_skeleton"] for row in poses.values()) < len(crops) / 2
    for row in rows(snapshot, "tracklets"):
        assert (row["num_frames"], row["first_frame"], row["last_frame"], row["video_sha"]) == (4, 0, 3, "")


def test_readers_open_it(imported):
    snapshot = imported[1].value
    assert read_protocol(snapshot) == ("walkers", "0")
    assert read_cameras(snapshot) == ("camera-0", "camera-1")
    assert joint_layout(snapshot).name == "h36m17"
    people = deal(WALKERS)
    assert read_groups(snapshot) == {"twins": frozenset(p for p, twin in enumerate(people.twin) if twin is not None)}
    train, query, gallery = (read_parts(snapshot, role) for role in ("train", "query", "gallery"))
    assert {part.pid for part in query} == {part.pid for part in gallery} == people.test
    assert {part.pid for part in train} == set(range(6)) - people.test
    assert {(part.pid, part.camid) for part in query} == {(pid, camid) for pid in people.test for camid in (0, 1)}
    dataset = ClipDataset(snapshot, train, ClipConfig(frames=4, height=32, width=16))
    batch = dataset.make_batch([ClipRequest(0, None, augment=True, seed=1), ClipRequest(5, (0, 1, 2, 3), False, 0)])
    assert batch.crops.shape == (2, 4, 3, 32, 16)
    assert batch.skeleton.shape == (2, 4, 17, 3)
    seen = np.concatenate([frames.frame_mask for frames in dataset.frames])
    assert 0.5 < seen.mean() < 1


def test_a_second_import_gives_the_published_snapshot_back(bring, imported, tmp_path):
    first = bring(tmp_path / "store")[1]
    assert (first.value.name, first.value.digest) == (imported[1].value.name, imported[1].value.digest)
    progress, second = bring(tmp_path / "store")
    assert second == first
    assert [record.done for record in progress] == [0, COUNT]
    assert tables.current(str(tmp_path / "store"), "crops").version == first.value.tables["crops"]


def test_an_interrupted_import_goes_on_and_leaves_the_same_rows(bring, imported, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "_COMMIT_FRAMES", 8)  # two tracklets
    store = str(tmp_path / "store")
    stage = import_benchmark(Output(store, "run-1"), "walkers:", CONFIG, RUNTIME)
    while next(stage).done < 7:
        pass
    stage.close()
    assert tables.read(tables.current(store, "snapshots")).num_rows == 0
    have = tables.count(tables.current(store, "tracklets"))
    assert have == 6
    # A commit that was cut short has left crops of a tracklet that is not there.
    lost = tables.read(tables.current(store, "tracklets"))["tracklet_id"][0].as_py()
    tables.delete(store, "tracklets", f"tracklet_id = '{lost}'")
    loaded = []
    monkeypatch.setattr(importing, "walkers", lambda config: watched(walkers(config), loaded))
    progress, outcome = bring(store)
    assert progress[1].done == have - 1
    assert len(loaded) == COUNT - have + 1
    assert lost in loaded
    for name in ROWS:
        assert rows(outcome.value, name) == rows(imported[1].value, name)


def watched(benchmark, loaded):
    def load(name):
        loaded.append(name)
        return benchmark.load(name)

    return replace(benchmark, load=load)


def test_settings_decide_the_name_and_two_sets_live_in_one_store(bring, tmp_path):
    one = bring(tmp_path / "store")[1].value
    flat = ExtractConfig(walkers=WalkersConfig(people=4, twins=1, cameras=2, frames=2, layout="coco17"))
    other = bring(tmp_path / "store", flat)[1].value
    assert one.name != other.name
    assert joint_layout(other).name == "coco17"
    assert joint_layout(one).name == "h36m17"
    assert len(read_parts(one, "train")) == 12
    assert len(read_parts(other, "train")) == 2 * 2 * 2
    # The name has nothing to do with sections that videos are extracted by.
    elsewhere = ExtractConfig(walkers=WALKERS, dataset="x", track=TrackConfig(min_frames=3), split=SplitConfig(seed=9))
    assert bring(tmp_path / "store", elsewhere)[1].value.name == one.name


def test_a_store_where_another_content_has_the_name_is_refused(bring, imported, tmp_path):
    store = str(tmp_path / "store")
    tables.prepare_store(store)
    tables.publish(Snapshot(imported[1].value.name, store, {}, "0" * 64), config={}, counts={}, videos=[])
    with pytest.raises(StoreError, match=r"a snapshot walkers-\w+ of other content is published there already"):
        bring(store)


def test_a_raised_import_version_makes_its_own_snapshot_and_both_can_be_read(bring, tmp_path, monkeypatch):
    store = tmp_path / "store"
    old = bring(store)[1].value
    monkeypatch.setattr(importing, "IMPORT_VERSION", importing.IMPORT_VERSION + 1)
    new = bring(store)[1].value
    assert old.name != new.name
    for snapshot in (old, new):
        assert len(rows(snapshot, "skeletons")) == COUNT * 4
        clips = ClipDataset(snapshot, read_parts(snapshot, "train"), ClipConfig(frames=4, height=32, width=16))
        assert len(clips.parts) == 12
    assert {row["extractor_digest"] for row in rows(old, "skeletons")} == {old.digest}
    assert {row["extractor_digest"] for row in rows(new, "skeletons")} == {new.digest}


def test_pictures_are_committed_before_they_fill_the_memory(bring, tmp_path, monkeypatch):
    sizes = []
    commit = importing._commit
    monkeypatch.setattr(importing, "_COMMIT_BYTES", 1)
    monkeypatch.setattr(importing, "_commit", lambda *given: (sizes.append(len(given[1])), commit(*given)))
    bring(tmp_path / "store", ExtractConfig(walkers=WalkersConfig(people=4, twins=0, cameras=2, frames=2)))
    assert sizes == [1] * (4 * 2 * 2)


def test_walkers_do_not_change_which_videos_count_as_extracted():
    assert extract_digests(CONFIG) == extract_digests(ExtractConfig())


def test_distractors_are_no_people_but_a_person_0_who_asks_is_one():
    def row(role, pid):
        return SplitRow(f"{role}-{pid}", "mars", "0", role, pid, 0, "one")

    distractors = (row("train", 1), row("query", 2), row("gallery", 2), row("gallery", 4), row("gallery", 0))
    assert importing._count_roles(distractors)["test_people"] == 2
    assert importing._count_roles((*distractors, row("query", 0)))["test_people"] == 3


class Made(NoSkeletons):
    """Skeletons of a maker with a digest, as weights have one."""

    def __init__(self, digest):
        self.digest = digest


@pytest.mark.parametrize("kind", ["mars", "lsvid", "ilids", "labelled"])
def test_what_makes_the_skeletons_decides_the_digest(kind, make_folder, tmp_path, monkeypatch):
    make_folder(kind)(tmp_path / kind)
    opened = []
    for maker in ("one", "other", "one"):
        monkeypatch.setattr(importing, "_skeletons", lambda *given, maker=maker: Made(maker))
        opened.append(open_benchmark(f"{kind}:{tmp_path / kind}", CONFIG, RUNTIME))
    one, other, again = (benchmark.digest for benchmark in opened)
    assert one == again
    assert one != other
    assert not {row.tracklet_id for row in opened[0].splits} & {row.tracklet_id for row in opened[1].splits}


@pytest.mark.parametrize("kind", ["biwi", "labelled"])
def test_a_folder_that_may_not_be_read_is_refused_with_its_name(kind, tmp_path, monkeypatch):
    def forbid(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "train").mkdir()
    monkeypatch.setattr("os.scandir", forbid)
    with pytest.raises(SourceError, match=rf"Source {kind}:\S+: {tmp_path}\S* cannot be read \(Permission denied\)"):
        open_benchmark(f"{kind}:{tmp_path}", NO_SKELETONS, RUNTIME)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mars:~nobody-of-this-name/mars", r"Source mars:~nobody\S+: Could not determine home directory"),
        ("talkers:", r"Source 'talkers:': found no benchmark of that name, .* begins with: biwi:, ias:, .*walkers:"),
        ("walkers", r"Source 'walkers': found no benchmark"),
        ("walkers:big", r"Source walkers:big: found 'big' behind the colon, expected nothing"),
    ],
)
def test_an_unknown_source_is_refused_with_those_there_are(source, message):
    with pytest.raises(SourceError, match=message):
        open_benchmark(source, CONFIG, RUNTIME)


def test_a_record_whose_arrays_do_not_fit_is_refused():
    good = walkers(WALKERS).load(walkers(WALKERS).splits[0].tracklet_id)
    fields = {name: getattr(good, name) for name in BenchmarkTracklet.__dataclass_fields__}
    assert len(BenchmarkTracklet(**fields)) == 4
    with pytest.raises(ValueError, match=r"\.boxes: got shape \(3, 4\), expected \(4, 4\) for 4 frames and layout"):
        BenchmarkTracklet(**fields | {"boxes": good.boxes[:3]})
    with pytest.raises(ValueError, match=r"\.keypoints: got shape \(4, 17, 3\), expected \(4, 20, 3\)"):
        BenchmarkTracklet(**fields | {"layout": "kinect20"})
    with pytest.raises(ValueError, match="got 4 frames, expected some, in their order"):
        BenchmarkTracklet(**fields | {"frame_index": good.frame_index[::-1]})


def embed(store, parts):
    """Embeddings that find everybody at once, as `embed` would write them."""
    basis = np.eye(len(parts) + 10, dtype=np.float32)[[part.pid for part in parts]]
    whole = [part.unit for part in parts]
    table = [
        *(["digest"] * len(parts), [u[0] for u in whole], [u[1] for u in whole], [u[2] for u in whole]),
        *(["c" * 64] * len(parts), ["trained"] * len(parts), basis.tolist()),
    ]
    names = TABLES["embeddings"].names
    made = [dict(zip(names, row, strict=True)) for row in zip(*table, strict=True)]
    return EmbeddingsRef(
        tables.upsert(store, "embeddings", tables.from_rows("embeddings", made)), "digest", "trained", "c" * 64
    )


def record(store, run_id, stage, inputs, outputs, config, started):
    run = RunRecord(run_id=run_id, stage=stage, key=run_id, inputs=inputs, outputs=outputs, config=config, counts={},
                    weights={}, source_digest="s", git_commit="", device="cpu", seconds=1.0,
                    started=f"2026-01-01T00:00:0{started}.000+00:00")  # fmt: skip
    tables.record_run(store, run)


@pytest.mark.parametrize("layout", ["h36m17", "coco17"])
def test_a_score_is_walked_back_to_the_import_and_reported_with_its_people(bring, run, tmp_path, layout, monkeypatch):
    small = WalkersConfig(people=4, twins=1, cameras=2, frames=3, layout=layout, missing_frames=0)
    config = ExtractConfig(dataset="walkers", walkers=small)
    store = str(tmp_path / "store")
    snapshot = bring(store, config)[1].value
    given = {"source": "walkers:", "config": to_plain(config)}
    record(store, "run-import", "import_benchmark", given, to_plain(snapshot), to_plain(config), 0)
    ref = embed(store, (*read_parts(snapshot, "query"), *read_parts(snapshot, "gallery")))
    where = {"snapshot": to_plain(snapshot)}
    record(store, "run-embed", "embed", where, to_plain(ref), to_plain(EmbedConfig()), 1)
    scored = run(evaluate(Output(store, "run-score"), (ref,), snapshot, EvaluateConfig(ranks=(1, 2)), RUNTIME))[1]
    assert scored.counts["trained mean_ap"] == scored.counts["trained twins/mean_ap"] == 1.0
    assert scored.counts["protocol"].startswith("walkers: of synthetic people, each test person's first pass")
    asked = where | {"embeddings": [to_plain(ref)]}
    record(store, "run-score", "evaluate", asked, to_plain(scored.value), {}, 2)

    history = History(store)
    made = {(node.kind, node.name): node.made_by for node in flatten(history.find("run-score"))}
    source = made["snapshot", snapshot.name]
    assert (source.run_id, source.config["walkers"]["people"]) == ("run-import", 4)
    tracklet = read_parts(snapshot, "query")[0].tracklet_id
    assert [one.name for one in history.find(tracklet).sources] == [snapshot.name]

    poses = []
    monkeypatch.setattr("csip.evaluation.report.draw_skeleton", lambda *a: poses.append(a) or jpeg())
    shown = Experiment(name="walkers", dataset="walkers", walkers=small,
                       report=ReportConfig(contact_tracklets=2, contact_frames=2, queries=1, gallery=2))  # fmt: skip
    report = run(write_report(Output(store, "run-report"), scored.value, snapshot, shown))[1]
    page = Path(report.value.path).read_text(encoding="utf-8")
    assert "<strong>walkers</strong>" in page
    assert "self-labelled" not in page
    assert "import_benchmark" in page
    # Skeletons in frame pixels are drawn over the crops; 3D ones have no place there.
    assert len(poses) >= 4 if layout == "coco17" else poses == []


def jpeg():
    file = io.BytesIO()
    Image.new("RGB", (20, 40)).save(file, "JPEG")
    return file.getvalue()


def test_the_table_says_what_made_its_skeletons(imported):
    snapshot = imported[1].value
    said = tables.described(pinned(snapshot, "skeletons"))
    (digest,) = {row["extractor_digest"] for row in rows(snapshot, "skeletons")}
    assert json.loads(said[f"csip.extractor.{digest}"]) == {
        "layout": "h36m17",
        "digest": digest,
        "name": "walkers",
        "units": "metres",
    }
