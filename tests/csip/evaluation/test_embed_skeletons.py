"""Windows to embeddings, against the network called by hand on the same skeletons."""

import dataclasses

import numpy as np
import pytest
import torch

from csip import tables
from csip.config import RuntimeConfig, SkeletonConfig
from csip.data.clips import read_parts
from csip.errors import CheckpointError, TooLittleDataError
from csip.evaluation.embed import read_embeddings
from csip.evaluation.embed_skeletons import embed_skeletons, probe_rank1, scored_windows
from csip.models.checkpoints import CheckpointHeader, SkeletonSpec, save_checkpoint
from csip.models.skeleton_checkpoints import initial_skeleton_network, load_skeleton_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
PEOPLE = (0, 3, 4, 7, 11, 12)
CONFIG = SkeletonConfig(batch_windows=16)
SPEC = SkeletonSpec(
    encoder="csip", width=8, layers=1, heads=2, dropout=0.3, graph_positions=4, layout="kinect20", frames=6, pids=PEOPLE
)


@pytest.fixture(scope="module")
def snapshot(make_folder, tmp_path_factory):
    """Six people; 24 query and 26 gallery frames each, from frame 10 on: four windows of six either way."""
    lengths = (("train", 12), ("query", 24), ("gallery", 26))
    return make_folder("sessions")(tmp_path_factory.mktemp("sessions") / "store", PEOPLE, lengths)


@pytest.fixture(params=["csip", "transg"])
def checkpoint(request, tmp_path):
    spec = dataclasses.replace(SPEC, encoder=request.param)
    return save_checkpoint(
        initial_skeleton_network(spec, 0), CheckpointHeader(spec, "train_skeletons", "a" * 64, {}), tmp_path
    )


@pytest.fixture
def embedded(out, run, snapshot, checkpoint):
    def call(name="trained", encode_batch=256, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        runtime = RuntimeConfig(device="cpu", encode_batch=encode_batch)
        return run(embed_skeletons(out, checkpoint, snapshot, config, name, runtime))

    return call


def test_every_window_has_the_networks_feature_as_it_is(embedded, snapshot, checkpoint):
    _, outcome = embedded()
    assert (outcome.value.encoder, outcome.value.unit) == ("trained", "clips")
    sides = {"query_windows": 24, "gallery_windows": 24, "parts_too_short_for_a_window": 0}
    assert outcome.counts == {**sides, "embedded": 48, "already_there": 0}
    network = load_skeleton_checkpoint(checkpoint)[0].eval()
    rows = tables.read(tables.pinned(snapshot, "skeletons")).to_pylist()
    for part in (*read_parts(snapshot, "query"), *read_parts(snapshot, "gallery")):
        units, _, feature = read_embeddings(outcome.value, [part])
        assert [(unit.first_frame, unit.last_frame) for unit in units] == [(10, 15), (16, 21), (22, 27), (28, 33)]
        joints = {
            row["frame_index"]: np.array(row["keypoints"]) for row in rows if row["tracklet_id"] == part.tracklet_id
        }
        for unit, found in zip(units, feature, strict=True):
            frames = np.stack([joints[f] - joints[f][0] for f in range(unit.first_frame, unit.last_frame + 1)])
            with torch.no_grad():
                want = network.embed(torch.from_numpy(frames.astype(np.float32))[None])[0].numpy()
            np.testing.assert_allclose(found, want, atol=1e-5)
            assert abs(np.linalg.norm(found) - 1) > 1e-3


@pytest.mark.parametrize(("of", "said"), [("", False), ("this", False), ("f" * 64, True)])
def test_a_network_of_another_data_sets_people_is_said_to_be_one(out, run, snapshot, tmp_path, of, said):
    spec = dataclasses.replace(SPEC, snapshot=snapshot.digest if of == "this" else of)
    header = CheckpointHeader(spec, "train_skeletons", "a" * 64, {})
    ref = save_checkpoint(initial_skeleton_network(spec, 0), header, tmp_path)
    outcome = run(embed_skeletons(out, ref, snapshot, CONFIG, "trained", RuntimeConfig(device="cpu")))[1]
    assert ("trained on another snapshot" in outcome.value.words) == said


def test_how_many_windows_go_in_at_once_changes_nothing_and_nothing_flips(embedded, snapshot, out):
    parts = read_parts(snapshot, "query")
    torch.manual_seed(1)
    one = read_embeddings(embedded(encode_batch=1)[1].value, parts)[2]
    tables.delete(out.store, "embeddings", "true")
    torch.manual_seed(2)
    many = read_embeddings(embedded(encode_batch=1000)[1].value, parts)[2]
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_windows_that_are_there_are_not_done_again(embedded, out):
    embedded()
    tables.delete(out.store, "embeddings", "tracklet_id = 'query-003'")
    _, outcome = embedded()
    assert (outcome.counts["embedded"], outcome.counts["already_there"]) == (4, 44)


def test_the_published_evaluation_leaves_the_last_partial_batch_of_either_side_out(embedded, snapshot):
    whole, _ = embedded()[1].value, None
    _, outcome = embedded(drop_last_eval=True)
    # 24 windows are one batch of 16 and eight more: the first four people's.
    assert (outcome.counts["query_windows"], outcome.counts["gallery_windows"]) == (16, 16)
    assert outcome.value.encoder_digest != whole.encoder_digest
    assert "without the last partial 16 of either side" in outcome.value.words
    rows = tables.read(outcome.value.table, [], f"encoder_digest = '{outcome.value.encoder_digest}'")
    left = {f"{role}-{pid:03d}" for role in ("query", "gallery") for pid in PEOPLE[:4]}
    assert set(rows["tracklet_id"].to_pylist()) == left
    assert len(rows) == 32
    config = dataclasses.replace(CONFIG, drop_last_eval=True)
    assert [side.pid.tolist() for side in scored_windows(snapshot, config)] == [
        [p for p in PEOPLE[:4] for _ in range(4)]
    ] * 2


def test_a_side_without_a_whole_batch_has_nothing_to_score(embedded):
    with pytest.raises(
        TooLittleDataError, match=r"0 query and 0 gallery windows of 6 .*leave skeleton\.drop_last_eval"
    ):
        embedded(drop_last_eval=True, batch_windows=32)


def test_a_network_for_other_windows_is_refused(embedded):
    with pytest.raises(
        CheckpointError, match=r"windows of 4 frames and 20 joints, expected 6 and 20.*skeleton\.frames=6"
    ):
        embedded(frames=4)


def test_the_nearest_window_decides_whatever_the_features_lengths():
    query, gallery = np.array([[3, 0], [0, 1]], np.float32), np.array([[1, 0], [2.5, 1], [0, 1.5]], np.float32)
    # By direction the first query is nearest to the first item, by distance (2 against 1.118) to the second.
    pids = np.array([5, 8]), np.array([8, 5, 8])
    assert probe_rank1(query, pids[0], gallery, pids[1]) == 1.0
    assert probe_rank1(query, pids[0], gallery, np.array([5, 8, 8])) == 0.5
