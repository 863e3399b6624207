"""What a training refuses, and says, before its first batch."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from csip.config import RuntimeConfig, ValidateConfig
from csip.data import clips
from csip.data.clips import ClipDataset
from csip.data.loader import ClipLoader
from csip.errors import CheckpointError, CsipError
from csip.models.checkpoints import load_checkpoint, save_checkpoint
from csip.models.prototypes import mean_by_label
from csip.training import loop
from csip.training.pretrain import initialise
from csip.training.stage2 import make_prototypes

pytestmark = pytest.mark.usefixtures("one_thread")
STAGES = ("pretrain_visual", "stage1", "stage2")


@pytest.fixture
def of_stage(untrained, grown, tmp_path):
    """A checkpoint that says it comes from a stage."""

    def make(stage):
        network, header = load_checkpoint(grown if stage == "stage2" else untrained)
        return save_checkpoint(network, dataclasses.replace(header, stage=stage), tmp_path / "made")

    return make


@pytest.mark.parametrize(
    ("name", "parent", "expected"),
    [
        ("pretrain_visual", "pretrain_visual", "initialise"),
        ("pretrain_visual", "stage1", "initialise"),
        ("pretrain_visual", "stage2", "initialise"),
        ("stage1", "stage1", "initialise, pretrain_visual"),
        ("stage1", "stage2", "initialise, pretrain_visual"),
        ("stage2", "stage2", "initialise, pretrain_visual, stage1"),
    ],
)
def test_a_checkpoint_of_another_stage_is_refused(begin, of_stage, name, parent, expected):
    message = rf"{name}: found a checkpoint of the stage '{parent}', expected one of {expected}\. Train from the start"
    with pytest.raises(CheckpointError, match=message):
        next(begin(name, checkpoint=of_stage(parent)))


@pytest.mark.parametrize(
    ("name", "parent"),
    [("stage1", "pretrain_visual"), ("stage2", "initialise"), ("stage2", "pretrain_visual"), ("stage2", "stage1")],
)
def test_a_checkpoint_of_a_usual_parent_is_taken(begin, of_stage, name, parent):
    assert next(begin(name, checkpoint=of_stage(parent))).stage == name


def other_people(tiny):
    return [dataclasses.replace(walk, pid=31 if walk.pid == 30 else walk.pid) for walk in tiny.walks]


def fewer_people(tiny):
    return [walk for walk in tiny.walks if walk.pid != 100]


def fewer_cameras(tiny):
    return [walk for walk in tiny.walks if walk.camid < 2]


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(
    ("change", "found", "difference"),
    [
        (other_people, "found 4 people to train on", r"1 people are new \(pid 31\), 1 are missing \(pid 30\)"),
        (fewer_people, "found 3 people to train on", r"0 people are new \(pid none\), 1 are missing \(pid 100\)"),
        (fewer_cameras, r"found 4 .*cameras \('cam0', 'cam1'\)", "0 people are new .*, 0 are missing"),
    ],
)
def test_a_snapshot_of_other_people_or_cameras_is_refused(begin, tiny, tmp_path, name, change, found, difference):
    snapshot = tiny.publish(str(tmp_path / "changed"), change(tiny), "changed")
    expected = r"expected the 4 people, coco17 skeletons and cameras \('cam0', 'cam1', 'cam2'\) that the checkpoint was"
    with pytest.raises(CheckpointError, match=rf"Snapshot changed: {found}.*, {expected} .*{difference}"):
        next(begin(name, snapshot=snapshot))


@pytest.mark.parametrize("name", STAGES)
def test_a_joint_layout_that_does_not_fit_is_refused(begin, untrained, tmp_path, name):
    network, header = load_checkpoint(untrained)
    spec = dataclasses.replace(header.spec, layout="h36m17")
    other = save_checkpoint(network, dataclasses.replace(header, spec=spec), tmp_path)
    message = r"with coco17 skeletons and .*, expected the 4 people, h36m17 skeletons"
    with pytest.raises(CheckpointError, match=message):
        next(begin(name, checkpoint=other))


def test_skeletons_of_another_number_of_joints_are_refused():
    from csip.models.skeleton_encoder import SkeletonEncoder

    encoder = SkeletonEncoder(positions=torch.randn(17, 4), width=8, layers=1, heads=2)
    with pytest.raises(
        ValueError, match=r"got skeleton \(2, 4, 20, 3\) and frame_mask \(2, 4\), expected \(B, T, 17, 3\)"
    ):
        encoder(torch.zeros(2, 4, 20, 3), torch.ones(2, 4, dtype=torch.bool))


@pytest.mark.parametrize("name", STAGES)
def test_people_with_a_single_tracklet_are_named(begin, tiny, tmp_path, out, run, caplog, name):
    walks = [walk for walk in tiny.walks if walk.tracklet_id not in ("p30-b", "p100-b")]
    snapshot = tiny.publish(str(tmp_path / "single"), walks, "single")
    stage = initialise(out, snapshot, tiny.clip, tiny.model, ValidateConfig(), tiny.seed)
    checkpoint = run(stage)[1].value
    with caplog.at_level(logging.WARNING):
        loop.training_data(snapshot, load_checkpoint(checkpoint)[1])
    (record,) = caplog.records
    assert record.getMessage() == (
        "2 of 4 people have one training tracklet only, which gives them no match across tracklets: pid 30, 100."
    )


# ------------------------------------------------------------------------------------------------------ bad numbers


def break_crops(batch):
    batch.crops[1, 0, 0, 3, 3] = float("nan")


def break_skeleton(batch):
    batch.skeleton[:] = float("inf")
    batch.frame_mask[:] = True


@pytest.mark.parametrize(
    ("name", "damage"), [("pretrain_visual", break_crops), ("stage2", break_crops), ("stage2", break_skeleton)]
)
def test_a_batch_that_is_no_number_names_its_tracklets_and_reaches_no_weight(begin, monkeypatch, out, name, damage):
    load = ClipLoader.load
    seen = []

    def broken(self, plan):
        for batch in load(self, plan):
            damage(batch)
            seen.append(batch.part.tolist())
            yield batch

    monkeypatch.setattr(ClipLoader, "load", broken)
    # Nothing is yielded before the error: no step, no heartbeat, no state.
    with pytest.raises(CsipError, match=rf"{name}, epoch 1: found loss nan, .*expected numbers") as caught:
        next(begin(name, save_seconds=0))
    # Walks in the order of their tracklets' ids are the order of parts; p4-b has two.
    parts = ["p100-a", "p100-b", "p30-a", "p30-b", "p4-a", "p4-b", "p4-b", "p7-a", "p7-b"]
    names = sorted({parts[i] for i in seen[0]})
    said = f"on a batch of {len(names)} tracklets: {', '.join(names)}. Look at their crops and skeletons"
    assert said in str(caught.value)
    assert list(Path(out.store).glob("checkpoints/*")) == []


def test_stage_1_names_the_tracklets_of_a_broken_skeleton(begin, monkeypatch, out):
    index = clips.cut_part

    def broken(part, tracklets):
        frames = index(part, tracklets)
        if part.tracklet_id == "p30-b":
            frames.skeleton[:] = np.nan
        return frames

    monkeypatch.setattr(clips, "cut_part", broken)
    with pytest.raises(CsipError, match=r"stage1, epoch 1: found loss nan, .* of \d tracklets: .*p30-b"):
        next(begin("stage1", batch_clips=8))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_only_losses_that_are_no_numbers_are_named(value, tiny, tiny_snapshot, untrained):
    dataset = loop.training_data(tiny_snapshot, load_checkpoint(untrained)[1])
    good = {"loss": torch.tensor(1.0), "triplet": torch.tensor(0.0)}
    loop.require_finite(good, "stage2", 3, dataset, np.array([0, 1]))
    with pytest.raises(CsipError, match=rf"stage2, epoch 3: found triplet {value}, expected numbers, on a batch of 4"):
        loop.require_finite(good | {"triplet": torch.tensor(value)}, "stage2", 3, dataset, np.array([0, 1, 2, 3]))


def test_a_label_without_any_feature_has_no_prototype():
    features = torch.arange(6.0).reshape(3, 2)
    with pytest.raises(ValueError, match=r"mean_by_label: 2 of 4 labels have no feature to average: 1, 2\."):
        mean_by_label(features, torch.tensor([0, 3, 3]), 4)
    seen = torch.tensor([True, False, True])
    with pytest.raises(ValueError, match=r"1 of 3 labels have no feature to average: 1\."):
        mean_by_label(features, torch.tensor([0, 1, 2]), 3, seen)


def test_prototypes_of_a_label_without_a_part_are_refused(tiny, tiny_snapshot, grown):
    network, _ = load_checkpoint(grown)
    parts = [part for part in clips.read_parts(tiny_snapshot, "train") if part.pid != 30]
    dataset = ClipDataset(tiny_snapshot, parts, tiny.clip, {4: 0, 7: 1, 30: 2, 100: 3})
    cached = [torch.zeros(len(frames.row), 32) for frames in dataset.frames]
    with pytest.raises(ValueError, match=r"mean_by_label: 1 of 4 labels have no feature to average: 2\."):
        make_prototypes(network, dataset, cached, 0, "cpu")


@torch.no_grad()
def test_prototypes_of_all_frames_draw_nothing(tiny, tiny_snapshot, grown):
    network, header = load_checkpoint(grown)
    dataset = loop.training_data(tiny_snapshot, header)
    torch.manual_seed(0)
    cached = [torch.randn(len(frames.row), 32) for frames in dataset.frames]
    visual, skeleton, _ = make_prototypes(network, dataset, cached, 0, "cpu", all_frames=True)
    for found, want in zip(
        make_prototypes(network, dataset, cached, 9, "cpu", all_frames=True)[:2], (visual, skeleton), strict=True
    ):
        assert torch.equal(found, want)
    for label in range(4):
        own = [features.mean(dim=0) for features, one in zip(cached, dataset.labels, strict=True) if one == label]
        torch.testing.assert_close(visual[label], sum(own) / len(own))
    # Person 100 (label 3): eight frames of the first tracklet, one valid frame of the second.
    alone = []
    for part, frames in zip(dataset.parts, dataset.frames, strict=True):
        if part.pid == 100:
            valid = torch.from_numpy(frames.skeleton[frames.frame_mask])[None]
            alone.append(network.eval().skeleton_encoder(valid, torch.ones(valid.shape[:2], dtype=torch.bool))[1][0])
    torch.testing.assert_close(skeleton[3], sum(alone) / 2, atol=1e-5, rtol=1e-4)


def test_a_stream_of_chance_follows_from_its_names():
    streams = {loop.stream(0, "stage1"), loop.stream(0, "stage2"), loop.stream(1, "stage1"), loop.stream(0, "stage", 1)}
    assert len(streams) == 4
    assert loop.stream(0, "stage", 1) == loop.stream(0, "stage", "1")
    assert all(0 <= one < 2**63 for one in streams)


def test_a_compiled_network_shares_its_weights(monkeypatch):
    layer = torch.nn.Linear(2, 2)
    assert loop.compiled(layer, RuntimeConfig()) is layer
    compiled = loop.compiled(layer, RuntimeConfig(compile=True))
    assert compiled is not layer
    assert [id(one) for one in compiled.parameters()] == [id(one) for one in layer.parameters()]
