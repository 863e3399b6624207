"""Parts to embeddings, against the network called by hand on the same frames."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from csip import tables
from csip.config import EmbedConfig, RuntimeConfig, ValidateConfig
from csip.data.clips import ClipDataset, ClipRequest, read_parts
from csip.errors import CheckpointError, TooLittleDataError
from csip.evaluation.embed import (
    embed,
    embed_histogram,
    embed_parts,
    encoder_name,
    known_cameras,
    modes,
    read_embeddings,
)
from csip.evaluation.histogram import color_histogram
from csip.models.checkpoints import load_checkpoint, save_checkpoint
from csip.training.pretrain import initialise

RESTRICTED, DENSE = EmbedConfig(sampling="restricted"), EmbedConfig(sampling="dense")


def features(ref, parts):
    """The embeddings of whole parts, (N, E) in their order."""
    units, of_part, feature = read_embeddings(ref, parts)
    assert units == tuple(parts)
    assert of_part.tolist() == list(range(len(parts)))
    return feature


@pytest.fixture
def test_parts(tiny_snapshot):
    """Two queries of 6 and 7 frames under cameras 0 and 1, then their gallery under camera 2."""
    return (*read_parts(tiny_snapshot, "query"), *read_parts(tiny_snapshot, "gallery"))


@pytest.fixture
def embedded(out, run, tiny, tiny_snapshot, grown):
    def call(config=RESTRICTED, checkpoint=grown, encode_batch=5):
        runtime = RuntimeConfig(device="cpu", encode_batch=encode_batch)
        return run(embed(out, checkpoint, tiny_snapshot, config, "trained", runtime))

    return call


def by_hand(checkpoint, snapshot, part, windows, camid):
    """The sum over a part's windows of what the network says, brought to length 1."""
    network, header = load_checkpoint(checkpoint)
    network.eval()
    dataset = ClipDataset(snapshot, [part], header.spec.clip)
    total = 0
    with torch.inference_mode():
        for window in windows:
            batch = dataset.make_batch([ClipRequest(0, window, augment=False, seed=0)])
            total = total + network.embed(batch.crops, torch.tensor([camid]))[0].double()
    return (total / total.norm()).numpy()


def test_every_query_and_gallery_part_has_one_embedding_of_length_one(embedded, test_parts):
    progress, outcome = embedded()
    feature = features(outcome.value, test_parts)
    # D + C + D of the tiny network.
    assert feature.shape == (4, 96)
    assert feature.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(feature, axis=1), 1, atol=1e-5)
    assert dict(outcome.counts) == {"embedded": 4, "already_there": 0}
    assert [(record.stage, record.done, record.total) for record in progress] == [
        ("embed trained", done, 4) for done in (1, 2, 3, 4)
    ]
    assert tables.count(outcome.value.table) == 4


def test_before_stage_2_an_embedding_is_g_and_v_bar_and_named_after_its_stage(
    out, run, tiny, tiny_snapshot, untrained, grown, test_parts
):
    plain = run(embed(out, untrained, tiny_snapshot, RESTRICTED, encoder_name(untrained), tiny.runtime))[1].value
    whole = run(embed(out, grown, tiny_snapshot, RESTRICTED, encoder_name(grown), tiny.runtime))[1].value
    assert (plain.encoder, whole.encoder) == ("untrained", "trained")
    # D + C: the same encoders without SGTM's f, and so the same first two thirds before both are brought to length 1.
    short, long = features(plain, test_parts), features(whole, test_parts)[:, :64]
    assert short.shape == (4, 64)
    np.testing.assert_allclose(short, long / np.linalg.norm(long, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("crops_a_call", [1, 7, 100])
def test_parts_are_embedded_in_the_order_asked_for_however_many_at_once(tiny_snapshot, grown, test_parts, crops_a_call):
    network, header = load_checkpoint(grown)
    dataset = ClipDataset(tiny_snapshot, test_parts, header.spec.clip)
    cameras = known_cameras(tiny_snapshot, header.spec)
    asked = [2, 0, 2, 3]
    found = list(embed_parts(network.eval(), dataset, asked, DENSE, cameras, crops_a_call, "cpu"))
    assert len(found) == 4
    windows = {6: [(0, 1, 2, 3), (4, 5, 4, 5)], 7: [(0, 1, 2, 3), (4, 5, 6, 4)]}
    for i, feature in zip(asked, found, strict=True):
        part = test_parts[i]
        expected = by_hand(grown, tiny_snapshot, part, windows[part.last_frame + 1], part.camid)
        np.testing.assert_allclose(feature, expected, atol=1e-5)


def test_restricted_takes_the_first_frame_of_each_chunk(embedded, test_parts, tiny_snapshot, grown):
    feature = features(embedded()[1].value, test_parts)
    # Six frames in four chunks of two, seven in four of two; positions past the end repeat the last frame.
    windows = {"p2-a": (0, 2, 4, 6), "p55-a": (0, 2, 4, 5), "p2-b": (0, 2, 4, 6), "p55-b": (0, 2, 4, 5)}
    for part, found in zip(test_parts, feature, strict=True):
        expected = by_hand(grown, tiny_snapshot, part, [windows[part.tracklet_id]], part.camid)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dense_averages_over_all_windows_before_it_normalises(embedded, test_parts, tiny_snapshot, grown):
    feature = features(embedded(DENSE)[1].value, test_parts)
    # The last window goes round: two or three frames are left over.
    windows = {6: [(0, 1, 2, 3), (4, 5, 4, 5)], 7: [(0, 1, 2, 3), (4, 5, 6, 4)]}
    for part, found in zip(test_parts, feature, strict=True):
        expected = by_hand(grown, tiny_snapshot, part, windows[part.last_frame + 1], part.camid)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_two_samplings_stand_side_by_side(embedded, test_parts):
    restricted, dense = embedded()[1].value, embedded(DENSE)[1].value
    assert restricted.encoder_digest != dense.encoder_digest
    assert tables.count(dense.table) == 8
    assert not np.allclose(features(restricted, test_parts), features(dense, test_parts), atol=1e-4)
    np.testing.assert_array_equal(
        features(restricted, test_parts),
        features(type(restricted)(dense.table, *_rest(restricted)), test_parts),
    )


def _rest(ref):
    return ref.encoder_digest, ref.encoder, ref.checkpoint_sha


def test_how_many_crops_go_in_at_once_changes_nothing(embedded, test_parts, out):
    one = features(embedded(DENSE, encode_batch=1)[1].value, test_parts)
    tables.delete(out.store, "embeddings", "true")
    many = features(embedded(DENSE, encode_batch=1000)[1].value, test_parts)
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_parts_that_are_there_are_not_done_again(embedded, test_parts, out):
    first = embedded()[1].value
    before = tables.read(first.table).to_pylist()
    tables.delete(out.store, "embeddings", "tracklet_id = 'p2-b'")
    progress, outcome = embedded()
    assert dict(outcome.counts) == {"embedded": 1, "already_there": 3}
    assert [(record.done, record.total) for record in progress] == [(1, 1)]
    assert tables.read(outcome.value.table).to_pylist() == before
    progress, outcome = embedded()
    assert dict(outcome.counts) == {"embedded": 0, "already_there": 4}


def test_a_camera_the_network_does_not_know_gets_no_cameras_own_vector(
    out, run, tiny, tiny_snapshot, tmp_path, embedded, test_parts
):
    # Made for a data set of cameras 0 and 1; the tiny gallery was seen by camera 2.
    walks = [walk for walk in tiny.walks if walk.camid < 2]
    fewer = tiny.publish(str(tmp_path / "fewer"), walks, "fewer")
    checkpoint = run(initialise(out, fewer, tiny.clip, tiny.model, ValidateConfig(), tiny.seed))[1].value
    _, header = load_checkpoint(checkpoint)
    assert len(header.spec.cameras) == 2
    feature = dict(
        zip(
            (p.tracklet_id for p in test_parts),
            features(embedded(checkpoint=checkpoint)[1].value, test_parts),
            strict=True,
        )
    )
    (part,) = [part for part in test_parts if part.tracklet_id == "p55-b"]
    said = {camid: by_hand(checkpoint, tiny_snapshot, part, [(0, 2, 4, 5)], camid) for camid in (-1, 0, 1)}
    np.testing.assert_allclose(feature["p55-b"], said[-1], atol=1e-5)
    for camid in (0, 1):
        assert np.abs(feature["p55-b"] - said[camid]).max() > 1e-5


def test_a_histogram_is_that_of_all_the_parts_crops(out, run, tiny_snapshot, test_parts):
    config = EmbedConfig(histogram_bins=(8, 2, 4))
    _, outcome = run(embed_histogram(out, tiny_snapshot, config))
    feature = features(outcome.value, test_parts)
    assert (outcome.value.encoder, outcome.value.checkpoint_sha) == ("hsv-histogram", "")
    crops = tables.read(tables.pinned(tiny_snapshot, "crops"), ["image"]).to_pylist()
    for part, found in zip(test_parts, feature, strict=True):
        images = [
            np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
            for row in crops
            if row["tracklet_id"] == part.tracklet_id
        ]
        np.testing.assert_allclose(found, color_histogram(images, bins=(8, 2, 4)), atol=1e-6)
    # Other bins are another encoder.
    _, other = run(embed_histogram(out, tiny_snapshot, EmbedConfig(histogram_bins=(4, 2, 4))))
    assert other.value.encoder_digest != outcome.value.encoder_digest
    assert other.counts["embedded"] == 4


def test_embeddings_are_read_in_the_order_asked_for(embedded, test_parts):
    ref = embedded()[1].value
    forward, backward = features(ref, test_parts), features(ref, test_parts[::-1])
    np.testing.assert_array_equal(forward, backward[::-1])


def test_a_part_without_an_embedding_is_said(embedded, tiny_snapshot):
    ref = embedded()[1].value
    parts = read_parts(tiny_snapshot, "train")
    with pytest.raises(TooLittleDataError, match=rf"no embedding by trained of {len(parts)} of {len(parts)} parts"):
        read_embeddings(ref, parts)


@pytest.mark.parametrize("role", ["query", "gallery"])
def test_a_snapshot_in_which_nobody_asks_or_answers_is_refused(out, run, tiny, tmp_path, role):
    walks = [walk for walk in tiny.walks if walk.role != role]
    snapshot = tiny.publish(str(tmp_path / "half"), walks, "half")
    found = {"query": "0 query and 2 gallery", "gallery": "2 query and 0 gallery"}[role]
    with pytest.raises(TooLittleDataError, match=f"found {found} parts, expected some of each"):
        run(embed_histogram(out, snapshot, EmbedConfig()))


def with_spec(checkpoint, folder, **changes):
    """The same weights, made for other people as its header has it."""
    network, header = load_checkpoint(checkpoint)
    return save_checkpoint(network, replace(header, spec=replace(header.spec, **changes)), folder)


def test_a_network_is_not_scored_on_people_it_was_trained_on(embedded, grown, tiny_snapshot, tmp_path):
    assert load_checkpoint(grown)[1].spec.snapshot == tiny_snapshot.digest
    assert load_checkpoint(grown)[1].spec.split == "tiny, split 0"
    knows = with_spec(grown, tmp_path, pids=(4, 7, 30, 55))
    with pytest.raises(CheckpointError, match=r"found 1 test people that the checkpoint was trained on \(under tiny"):
        embedded(checkpoint=knows)
    # Equal numbers of another data set are other people.
    embedded(checkpoint=with_spec(knows, tmp_path, snapshot="0" * 64))


def test_a_checkpoint_is_named_after_its_stage(untrained, grown):
    assert (encoder_name(untrained), encoder_name(grown)) == ("untrained", "trained")


def test_both_ways_of_sampling_are_told_apart_by_name():
    assert modes(RESTRICTED) == (("", RESTRICTED),)
    both = EmbedConfig(sampling="both")
    assert modes(both) == (("", RESTRICTED), (" dense", DENSE))


def test_clips_are_embedded_each_by_itself_to_the_last_frame(embedded, test_parts, tiny_snapshot, grown):
    outcome = embedded(EmbedConfig(unit="clip", clip_stride=2))[1]
    units, of_part, feature = read_embeddings(outcome.value, test_parts)
    # Of 6 frames 0-3 and 2-5; of 7 also 3-6, which ends with them.
    begins = {5: (0, 2), 6: (0, 2, 3)}
    wanted = [(i, part, b) for i, part in enumerate(test_parts) for b in begins[part.last_frame]]
    assert of_part.tolist() == [i for i, _, _ in wanted]
    assert [unit.unit for unit in units] == [(part.tracklet_id, b, b + 3) for _, part, b in wanted]
    assert (outcome.value.unit, outcome.counts["embedded"]) == ("clips", 10)
    for (_, part, begin), found in zip(wanted, feature, strict=True):
        window = tuple(range(begin, begin + 4))
        np.testing.assert_allclose(found, by_hand(grown, tiny_snapshot, part, [window], part.camid), atol=1e-5)
    assert outcome.value.encoder_digest != embedded()[1].value.encoder_digest


def test_an_epoch_that_was_chosen_on_the_test_set_is_said_beside_the_scores(embedded, grown, tmp_path):
    network, header = load_checkpoint(grown)
    assert "chosen" not in embedded()[1].value.words
    looked = save_checkpoint(network, replace(header, metrics={"loss": 1.0, "test_mean_ap": 0.5}), tmp_path)
    assert "epoch was chosen by its scores on the test set" in embedded(checkpoint=looked)[1].value.words
