import dataclasses

import numpy as np
import pytest
import torch

from csip import tables
from csip.config import ValidateConfig
from csip.data.clips import ClipDataset, ClipRequest, read_parts
from csip.errors import CheckpointError
from csip.models.checkpoints import encoder_digest, load_checkpoint
from csip.models.reid import CsipReID
from csip.training import features as features_module
from csip.training.features import cache_features, read_features
from csip.training.pretrain import initialise

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder(tiny, tiny_snapshot, untrained):
    """The untrained network in eval mode, its digest, and the training parts."""
    network, header = load_checkpoint(untrained)
    dataset = ClipDataset(tiny_snapshot, read_parts(tiny_snapshot, "train"), tiny.clip)
    return network.eval(), encoder_digest(network, header.spec), dataset


@pytest.fixture
def encoded(monkeypatch):
    """Counts the frames that go through the image encoder."""
    count = []
    forward = CsipReID.frame_features

    def watch(self, crops):
        count.append(len(crops))
        return forward(self, crops)

    monkeypatch.setattr(CsipReID, "frame_features", watch)
    return count


@torch.no_grad()
def test_cached_features_are_those_of_each_frame_alone(encoder, tiny_features):
    network, digest, dataset = encoder
    cached = read_features(tiny_features, network, dataset, digest)
    assert [len(c) for c in cached] == [8, 8, 9, 3, 7, 6, 6, 6, 5]
    for part, rows in enumerate(cached):
        for at, row in enumerate(rows):
            crop = dataset.make_batch([ClipRequest(part, (at,), False, 0)]).crops[0]
            torch.testing.assert_close(row, network.frame_features(crop)[0], atol=1e-5, rtol=1e-4)


def test_only_frames_of_training_parts_are_encoded_each_once(tiny, tiny_snapshot, untrained, out, run, encoded):
    records, outcome = run(cache_features(out, untrained, tiny_snapshot, tiny.runtime))
    train = {(w.tracklet_id, frame) for w in tiny.walks if w.role == "train" for frame in w.frames}
    table = tables.read(outcome.value)
    keys = list(zip(table["tracklet_id"].to_pylist(), table["frame_index"].to_pylist(), strict=True))
    assert len(keys) == len(train)
    assert set(keys) == train
    assert outcome.counts == {"encoded": 58, "already_there": 0}
    assert sum(encoded) == len(train) == 58
    # Batches of five, and progress after each.
    assert encoded == [5] * 11 + [3]
    assert [(r.done, r.total) for r in records] == [(min(5 * i, 58), 58) for i in range(1, 13)]


def test_features_that_are_there_are_not_made_again(tiny, tiny_snapshot, untrained, out, run, encoded):
    _, first = run(cache_features(out, untrained, tiny_snapshot, tiny.runtime))
    del encoded[:]
    records, again = run(cache_features(out, untrained, tiny_snapshot, tiny.runtime))
    assert (encoded, records) == ([], [])
    assert again.counts == {"encoded": 0, "already_there": 58}
    assert again.value == first.value


def test_a_broken_run_is_taken_up_where_its_last_commit_left_it(
    tiny, tiny_snapshot, untrained, out, run, encoded, monkeypatch, tiny_features, encoder
):
    monkeypatch.setattr(features_module, "_COMMIT_FRAMES", 10)
    stage = cache_features(out, untrained, tiny_snapshot, tiny.runtime)
    for _ in range(5):  # two batches a commit: the second commit is done before the fifth record
        next(stage)
    stage.close()
    assert tables.count(tables.current(out.store, "frame_features")) == 20
    del encoded[:]
    _, outcome = run(cache_features(out, untrained, tiny_snapshot, tiny.runtime))
    assert outcome.counts == {"encoded": 38, "already_there": 20}
    assert sum(encoded) == 38
    network, digest, dataset = encoder
    whole, pieces = (read_features(ref, network, dataset, digest) for ref in (tiny_features, outcome.value))
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_features_are_kept_apart_by_the_encoder_that_made_them(tiny, tiny_snapshot, untrained, out, run, encoder):
    _, first = run(cache_features(out, untrained, tiny_snapshot, tiny.runtime))
    other = run(initialise(out, tiny_snapshot, tiny.clip, tiny.model, ValidateConfig(), tiny.seed + 1))[1].value
    _, second = run(cache_features(out, other, tiny_snapshot, tiny.runtime))
    assert second.counts == {"encoded": 58, "already_there": 0}
    assert tables.count(second.value) == 116
    network, digest, dataset = encoder
    own, later = (read_features(ref, network, dataset, digest) for ref in (first.value, second.value))
    assert all(torch.equal(a, b) for a, b in zip(own, later, strict=True))
    network2, header2 = load_checkpoint(other)
    theirs = read_features(second.value, network2, dataset, encoder_digest(network2, header2.spec))
    assert not torch.allclose(own[0], theirs[0])


def test_features_of_another_checkpoint_are_refused(tiny, tiny_snapshot, out, run, tiny_features, encoder):
    other = run(initialise(out, tiny_snapshot, tiny.clip, tiny.model, ValidateConfig(), tiny.seed + 1))[1].value
    network, header = load_checkpoint(other)
    digest = encoder_digest(network, header.spec)
    with pytest.raises(CheckpointError, match=rf"no feature of encoder {digest[:12]} for frame 0 of p100-a\. Run the"):
        read_features(tiny_features, network, encoder[2], digest)


def test_a_single_missing_frame_is_named(tiny_features, encoder, out):
    network, digest, dataset = encoder
    rows = tables.read(tiny_features).to_pylist()
    kept = [row for row in rows if (row["tracklet_id"], row["frame_index"]) != ("p4-a", 15)]
    ref = tables.upsert(out.store, "frame_features", tables.from_rows("frame_features", kept))
    with pytest.raises(CheckpointError, match=r"frame_features\.lance version 2: found no feature .* frame 15 of p4-a"):
        read_features(ref, network, dataset, digest)


def test_parts_of_one_tracklet_may_share_frames(tiny, tmp_path, out, run):
    # As on iLIDS-VID: windows of eight frames at a stride of four.
    walk = tiny.Walk("w", 1, 0, "train", tuple(range(12)), parts=((0, 7), (4, 11)))
    other = tiny.Walk("x", 2, 0, "train", tuple(range(4)))
    snapshot = tiny.publish(str(tmp_path / "overlap"), (walk, other), "overlap")
    checkpoint = run(initialise(out, snapshot, tiny.clip, tiny.model, ValidateConfig(), 0))[1].value
    _, outcome = run(cache_features(out, checkpoint, snapshot, tiny.runtime))
    assert outcome.counts == {"encoded": 16, "already_there": 0}
    network, header = load_checkpoint(checkpoint)
    dataset = ClipDataset(snapshot, read_parts(snapshot, "train"), tiny.clip)
    first, second, _ = read_features(outcome.value, network, dataset, encoder_digest(network, header.spec))
    assert torch.equal(first[4:], second[:4])


def test_the_size_of_an_encoder_call_changes_nothing_but_speed(tiny, tiny_snapshot, untrained, out, run, tiny_features):
    runtime = dataclasses.replace(tiny.runtime, encode_batch=64)
    _, outcome = run(cache_features(out, untrained, tiny_snapshot, runtime))
    one, other = (tables.vectors_array(tables.read(ref)["feature"]) for ref in (outcome.value, tiny_features))
    np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-4)
