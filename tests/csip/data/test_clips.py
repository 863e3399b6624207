import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from csip import tables
from csip.config import DataConfig
from csip.data import clips as clips_module
from csip.data.clips import (
    ClipDataset,
    ClipRequest,
    choose_splits,
    has_skeletons,
    identity_requests,
    joint_layout,
    label_of_pid,
    read_cameras,
    read_parts,
    read_protocol,
    read_splits,
    single_tracklet_people,
)
from csip.data.sampling import share
from csip.errors import StoreError
from csip.types import TrackletPart


def request(part, positions, *, augment=False, seed=0):
    return ClipRequest(part, positions, augment, seed)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in one.__slots__)


@pytest.fixture(scope="module")
def train(tiny, tiny_snapshot):
    """The training parts of the tiny store, with pixels as they are."""
    parts = read_parts(tiny_snapshot, "train")
    return ClipDataset(tiny_snapshot, parts, tiny.plain_clip, label_of_pid(parts))


@pytest.fixture(scope="module")
def find(train):
    """Position of a part in `train`, by tracklet and first frame."""
    return lambda name, first=None: next(
        i for i, p in enumerate(train.parts) if p.tracklet_id == name and first in (None, p.first_frame)
    )


def test_parts_are_read_by_role_sorted_by_tracklet_and_frame(tiny_snapshot):
    parts = read_parts(tiny_snapshot, "train")
    assert [(p.tracklet_id, p.first_frame, p.last_frame) for p in parts] == [
        ("p100-a", 0, 7),
        ("p100-b", 50, 57),
        ("p30-a", 100, 108),
        ("p30-b", 0, 2),
        ("p4-a", 10, 18),
        ("p4-b", 0, 5),
        ("p4-b", 6, 11),
        ("p7-a", 0, 5),
        ("p7-b", 0, 4),
    ]
    assert [(p.tracklet_id, p.pid, p.camid) for p in read_parts(tiny_snapshot, "gallery")] == [
        ("p2-b", 2, 2),
        ("p55-b", 55, 2),
    ]
    assert {p.pid for p in read_parts(tiny_snapshot, "query")} == {2, 55}


def test_labels_number_people_by_ascending_pid(tiny_snapshot):
    # As numbers, not as words: 4, 7, 30, 100.
    label = label_of_pid(read_parts(tiny_snapshot, "train"))
    assert list(label.items()) == [(4, 0), (7, 1), (30, 2), (100, 3)]


def test_the_right_crop_arrives_for_every_frame_of_every_part(tiny, train):
    seen = 0
    for index, (part, frames) in enumerate(zip(train.parts, train.frames, strict=True)):
        walk = tiny.walks[tiny.number[part.tracklet_id]]
        inside = [p for p, frame in enumerate(walk.frames) if part.first_frame <= frame <= part.last_frame]
        assert frames.frame_index.tolist() == [walk.frames[p] for p in inside]
        for at, position in enumerate(inside):
            batch = train.make_batch([request(index, (at,) * 4)])
            assert tiny.shown(255 * batch.crops[0, 0]) == (tiny.number[part.tracklet_id], position)
            seen += 1
    assert seen == sum(len(walk.frames) for walk in tiny.walks if walk.role == "train")


def test_the_frames_of_a_batch_stand_in_the_order_asked_for(tiny, train, find):
    asked = [(find("p4-b", 6), (5, 0, 3, 0)), (find("p100-a"), (7, 7, 1, 2))]
    batch = train.make_batch([request(*one) for one in asked])
    assert tuple(batch.crops.shape) == (2, 4, 3, 32, 16)
    shown = [[tiny.shown(255 * frame) for frame in clip] for clip in batch.crops]
    own, other = tiny.number["p4-b"], tiny.number["p100-a"]
    assert shown == [[(own, 11), (own, 6), (own, 9), (own, 6)], [(other, 7), (other, 7), (other, 1), (other, 2)]]
    assert batch.part.tolist() == [asked[0][0], asked[1][0]]
    assert batch.label.tolist() == [0, 3]
    assert batch.camid.tolist() == [1, 0]


def test_crops_and_skeletons_pair_by_key_though_their_rows_lie_in_other_orders(tiny, train):
    for part, frames in zip(train.parts, train.frames, strict=True):
        walk = tiny.walks[tiny.number[part.tracklet_id]]
        for at, frame in enumerate(frames.frame_index):
            if frames.frame_mask[at]:
                want = tiny.skeleton(tiny.number[part.tracklet_id], walk.frames.index(frame))
                np.testing.assert_allclose(frames.skeleton[at, :, :2], want, atol=1e-4)
                np.testing.assert_allclose(frames.skeleton[at, :, 2], 0.9, atol=1e-6)


def test_a_frame_without_a_valid_skeleton_keeps_its_place_under_a_mask(tiny, train):
    for part, frames in zip(train.parts, train.frames, strict=True):
        walk = tiny.walks[tiny.number[part.tracklet_id]]
        masked = {walk.frames[p] for p in (*walk.without_row, *walk.unsure)}
        assert [frame not in masked for frame in frames.frame_index.tolist()] == frames.frame_mask.tolist()
        assert not frames.skeleton[~frames.frame_mask].any()
    assert [int((~f.frame_mask).sum()) for f in train.frames] == [0, 7, 1, 0, 0, 0, 0, 6, 5]


def test_masks_and_skeletons_follow_the_frames_drawn(train, find):
    batch = train.make_batch([request(find("p100-b"), (0, 1, 1, 7))])
    assert batch.frame_mask.tolist() == [[False, True, True, False]]
    torch.testing.assert_close(batch.skeleton[0, 1, 0, 0], torch.tensor(0.1), atol=1e-4, rtol=0)
    assert not batch.skeleton[0, 0].any()


def test_a_skeleton_is_normalised_over_its_whole_tracklet_not_its_part(tiny, tiny_store):
    # In the first half the person is twice as far away. Over the whole tracklet the torso's median is that of six
    # frames of 10 and six of 20 pixels, 15; over a part it would be its own.
    number, walk = 3, tiny.walks[3]
    rows = []
    for position, frame in enumerate(walk.frames):
        size = 10 if position < 6 else 20
        points = 60 + size * tiny.skeleton(number, position)
        row = {"tracklet_id": walk.tracklet_id, "frame_index": frame, "extractor_digest": "e" * 64, "layout": "coco17"}
        rows.append(row | {"has_skeleton": True, "keypoints": [[float(x), float(y), 0.9] for x, y in points]})
    version = tables.upsert(tiny_store.store, "skeletons", tables.from_rows("skeletons", rows)).version
    tiny_store.tables["skeletons"] = version
    parts = [p for p in read_parts(tiny_store, "train") if p.tracklet_id == walk.tracklet_id]
    first, second = ClipDataset(tiny_store, parts, tiny.clip).frames
    wrist = tiny.skeleton(number, 0)[tiny.left_wrist]
    np.testing.assert_allclose(first.skeleton[0, tiny.left_wrist, :2], wrist * 10 / 15, atol=1e-4)
    np.testing.assert_allclose(second.skeleton[0, tiny.left_wrist, :2], wrist * 20 / 15, atol=1e-4)


def test_a_clip_is_a_function_of_its_request(train):
    drawn = [request(i, None, augment=True, seed=100 + i) for i in range(4)]
    batch = train.make_batch(drawn)
    assert same(batch, train.make_batch(drawn))
    # Alone or among others, a request gives the same clip.
    alone = train[drawn[2]]
    assert torch.equal(alone.crops[0], batch.crops[2])
    assert torch.equal(alone.skeleton[0], batch.skeleton[2])
    other = train.make_batch([request(i, None, augment=True, seed=200 + i) for i in range(4)])
    assert not torch.equal(other.crops, batch.crops)


def test_drawn_positions_are_one_a_chunk(tiny, train, find):
    part = find("p100-a")
    for seed in range(20):
        batch = train.make_batch([request(part, None, seed=seed)])
        positions = [tiny.shown(255 * frame)[1] for frame in batch.crops[0]]
        # Eight frames, four chunks of two.
        assert [position // 2 for position in positions] == [0, 1, 2, 3]


def test_without_augmentation_nothing_is_flipped_or_erased(train):
    plain = train.make_batch([request(0, (0, 1, 2, 3), seed=1)])
    assert same(plain, train.make_batch([request(0, (0, 1, 2, 3), seed=2)]))
    for frame in plain.crops[0]:
        assert float((frame - frame[:, :1, :1]).abs().max()) < 0.02


def test_one_coin_flips_a_whole_clip_and_one_coin_a_frame_erases(tiny, tiny_snapshot, train):
    clip = dataclasses.replace(tiny.plain_clip, flip=0.5, erase=0.5)
    dataset = ClipDataset(tiny_snapshot, train.parts, clip, label_of_pid(train.parts))
    plain = train.make_batch([request(0, (0, 1, 2, 3))])
    flips, erased = [], []
    for seed in range(60):
        batch = dataset.make_batch([request(0, (0, 1, 2, 3), augment=True, seed=seed)])
        # Which way the left wrist lies tells a mirrored skeleton, in all frames of a clip or in none.
        moved = (batch.skeleton - plain.skeleton).abs().amax(dim=(0, 2, 3)) > 1e-4
        assert len(set(moved.tolist())) == 1
        flips.append(bool(moved[0]))
        spread = batch.crops[0].flatten(2) - batch.crops[0].flatten(2).median(dim=2, keepdim=True).values
        erased += (spread.abs().amax(dim=(1, 2)) > 0.05).tolist()
    # 60 and 240 fair coins: mean 30 and 120, standard deviations 3.9 and 7.7.
    assert 10 < sum(flips) < 50
    assert 80 < sum(erased) < 160
    per_clip = [erased[i : i + 4] for i in range(0, 240, 4)]
    assert any(0 < sum(clip) < 4 for clip in per_clip)


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_the_chances_of_flip_and_erasure_are_the_configured_ones(tiny, tiny_snapshot, train, chance):
    sections = dataclasses.replace(tiny.plain_clip, flip=chance, erase=0), tiny.plain_clip
    plain = train.make_batch([request(0, (0, 1, 2, 3))])
    dataset = ClipDataset(tiny_snapshot, train.parts, sections[0], label_of_pid(train.parts))
    for seed in range(5):
        batch = dataset.make_batch([request(0, (0, 1, 2, 3), augment=True, seed=seed)])
        assert torch.equal(batch.crops.flip(-1) if chance else batch.crops, plain.crops)
        assert torch.equal(batch.skeleton, plain.skeleton) == (chance == 0)


def test_an_epochs_plan_follows_from_seed_and_epoch_alone(train):
    plan = identity_requests(train, 2, 2, seed=3, epoch=1)
    assert plan == identity_requests(train, 2, 2, seed=3, epoch=1)
    assert plan != identity_requests(train, 2, 2, seed=3, epoch=2)
    assert plan != identity_requests(train, 2, 2, seed=4, epoch=1)
    assert all(r.augment and r.positions is None for batch in plan for r in batch)
    seeds = [r.seed for batch in plan for r in batch]
    assert len(set(seeds)) == len(seeds)
    for batch in plan:
        labels = [train.labels[r.part] for r in batch]
        assert len(labels) == 4
        assert len(set(labels)) == 2


def test_a_plan_needs_labels(tiny, tiny_snapshot, train):
    unlabelled = ClipDataset(tiny_snapshot, train.parts, tiny.clip)
    with pytest.raises(ValueError, match="got a data set without labels"):
        identity_requests(unlabelled, 2, 2, seed=0, epoch=1)
    assert unlabelled.make_batch([request(0, (0, 0, 0, 0))]).label.tolist() == [-1]


def test_plans_and_clips_are_the_same_under_every_hash_seed(tiny, tiny_snapshot):
    code = """
import hashlib, json, sys
from csip.config import ClipConfig
from csip.data.clips import ClipDataset, identity_requests, label_of_pid, read_parts
from csip.tables import open_snapshot
snapshot = open_snapshot(sys.argv[1], "tiny")
parts = read_parts(snapshot, "train")
data = ClipDataset(snapshot, parts, ClipConfig(frames=4, height=32, width=16), label_of_pid(parts))
plan = identity_requests(data, 2, 2, seed=5, epoch=1)
batch = data.make_batch(plan[0])
sha = hashlib.sha256(batch.crops.numpy().tobytes() + batch.skeleton.numpy().tobytes()).hexdigest()
print(json.dumps([list(data.labels), [[r.part, r.seed] for b in plan for r in b], sha]))
"""
    there = subprocess.run(
        [sys.executable, "-c", code, tiny_snapshot.store],
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    parts = read_parts(tiny_snapshot, "train")
    dataset = ClipDataset(tiny_snapshot, parts, tiny.clip, label_of_pid(parts))
    plan = identity_requests(dataset, 2, 2, seed=5, epoch=1)
    batch = dataset.make_batch(plan[0])
    sha = hashlib.sha256(batch.crops.numpy().tobytes() + batch.skeleton.numpy().tobytes()).hexdigest()
    # This process has a hash seed of its own, drawn when it started.
    label = list(dataset.labels)
    assert json.loads(there.stdout) == [label, [[r.part, r.seed] for b in plan for r in b], sha]


def test_a_data_set_forgets_nothing_when_it_is_sent_to_a_worker(train):
    drawn = [request(1, None, augment=True, seed=9)]
    assert same(pickle.loads(pickle.dumps(train)).make_batch(drawn), train.make_batch(drawn))


def test_a_part_without_crops_is_named(tiny, tiny_snapshot):
    for part in (TrackletPart("nobody", 0, 3, 1, 0), TrackletPart("p4-a", 13, 14, 4, 0)):
        with pytest.raises(StoreError, match=rf"Part {part.tracklet_id} frames {part.first_frame}\.\..*found no crops"):
            ClipDataset(tiny_snapshot, [part], tiny.clip)


def test_skeletons_of_two_extractors_are_refused(tiny, tiny_store):
    row = tables.read(tables.pinned(tiny_store, "skeletons")).to_pylist()[0] | {"extractor_digest": "f" * 64}
    tiny_store.tables["skeletons"] = tables.upsert(
        tiny_store.store, "skeletons", tables.from_rows("skeletons", [row])
    ).version
    with pytest.raises(
        StoreError, match=r"skeletons\.lance version 3: found crops with skeletons of several extractors"
    ):
        ClipDataset(tiny_store, read_parts(tiny_store, "train"), tiny.clip)


def test_skeletons_of_two_layouts_are_refused(tiny_store):
    row = tables.read(tables.pinned(tiny_store, "skeletons")).to_pylist()[0] | {"layout": "h36m17"}
    tiny_store.tables["skeletons"] = tables.upsert(
        tiny_store.store, "skeletons", tables.from_rows("skeletons", [row])
    ).version
    with pytest.raises(StoreError, match=r"layouts \['coco17', 'h36m17'\], expected one of \['coco17', 'h36m17', 'kin"):
        joint_layout(tiny_store)


def test_a_snapshot_without_skeletons_is_refused(tiny_store):
    tables.delete(tiny_store.store, "skeletons", "true")
    tiny_store.tables["skeletons"] = tables.current(tiny_store.store, "skeletons").version
    with pytest.raises(StoreError, match=r"Snapshot tiny: found skeletons of layouts \[\]"):
        joint_layout(tiny_store)


def test_a_damaged_crop_is_named(tiny, tiny_store):
    where = "tracklet_id = 'p4-a' AND frame_index = 12"
    row = tables.read(tables.pinned(tiny_store, "crops"), where=where).to_pylist()[0]
    tiny_store.tables["crops"] = tables.upsert(
        tiny_store.store, "crops", tables.from_rows("crops", [row | {"image": b"nothing"}])
    ).version
    parts = [p for p in read_parts(tiny_store, "train") if p.tracklet_id == "p4-a"]
    dataset = ClipDataset(tiny_store, parts, tiny.clip)
    with pytest.raises(StoreError, match="Crop p4-a/12: 7 bytes that are no JPEG or PNG"):
        dataset.make_batch([request(0, (0, 1, 2, 3))])


def test_a_published_snapshot_gives_the_same_clips_after_later_writes(tiny, tiny_store):
    parts = read_parts(tiny_store, "train")
    before = ClipDataset(tiny_store, parts, tiny.clip).make_batch([request(0, (0, 1, 2, 3))])
    rows = tables.read(tables.pinned(tiny_store, "crops"), where="tracklet_id = 'p100-a'").to_pylist()
    tables.upsert(tiny_store.store, "crops", tables.from_rows("crops", [row | {"image": b"x"} for row in rows]))
    tables.delete(tiny_store.store, "splits", "role = 'train'")
    assert read_parts(tiny_store, "train") == parts
    assert same(ClipDataset(tiny_store, parts, tiny.clip).make_batch([request(0, (0, 1, 2, 3))]), before)


def test_crops_are_read_from_the_store_once_a_batch(train, monkeypatch):
    asked = []
    take = clips_module.Rows.take

    def watch(self, rows, columns):
        asked.append(rows.tolist())
        return take(self, rows, columns)

    monkeypatch.setattr(clips_module.Rows, "take", watch)
    train.make_batch([request(0, (0, 0, 1, 1)), request(0, (1, 1, 2, 2))])
    assert len(asked) == 1
    assert len(asked[0]) == len(set(asked[0])) == 3


def test_parts_are_cut_into_units_that_hold_their_own_frames(tiny, tiny_snapshot):
    parts = [p for p in read_parts(tiny_snapshot, "train") if p.tracklet_id in ("p4-a", "p4-b", "p100-b")]
    clip = dataclasses.replace(tiny.plain_clip, unit="window", unit_frames=4, unit_stride=3)
    whole = ClipDataset(tiny_snapshot, parts, clip, label_of_pid(parts))
    cut = ClipDataset(tiny_snapshot, parts, clip, label_of_pid(parts), units=True)
    # p100-b has frames 50..57: windows at 0, 3 and, to reach the end, 4. p4-a has 10 11 12 15 16 17 18: at 0 and 3.
    # The parts of p4-b have six frames each: at 0 and, to reach the end, 2.
    assert [(p.tracklet_id, p.first_frame, p.last_frame) for p in cut.parts] == [
        *(("p100-b", 50, 53), ("p100-b", 53, 56), ("p100-b", 54, 57)),
        *(("p4-a", 10, 15), ("p4-a", 15, 18)),
        *(("p4-b", 0, 3), ("p4-b", 2, 5), ("p4-b", 6, 9), ("p4-b", 8, 11)),
    ]
    assert cut.labels == (1, 1, 1, 0, 0, 0, 0, 0, 0)
    assert [(p.pid, p.camid) for p in cut.parts] == [(100, 1)] * 3 + [(4, 0)] * 2 + [(4, 1)] * 4
    assert cut.frames[3].frame_index.tolist() == [10, 11, 12, 15]
    assert cut.frames[1].frame_mask.tolist() == whole.frames[0].frame_mask[3:7].tolist()
    # Skeletons stay normalised over the whole tracklet.
    np.testing.assert_array_equal(cut.frames[4].skeleton, whole.frames[1].skeleton[3:7])
    assert same(cut.make_batch([request(1, (0, 1, 2, 3))]), _as_part(whole.make_batch([request(0, (3, 4, 5, 6))]), 1))
    assert len(whole) == 4


def _as_part(batch, part):
    return dataclasses.replace(batch, part=torch.tensor([part]))


def test_chunks_are_parts_of_their_own_and_whole_tracklets_are_what_there_was(tiny, tiny_snapshot):
    parts = read_parts(tiny_snapshot, "train")
    chunked = dataclasses.replace(tiny.plain_clip, unit="chunk", unit_frames=4)
    cut = ClipDataset(tiny_snapshot, parts, chunked, units=True)
    lengths = [len(frames.row) for frames in cut.frames]
    # p100-a p100-b p30-a p30-b p4-a p4-b p4-b p7-a p7-b, of 8 8 9 3 7 6 6 6 5 frames.
    assert lengths == [4, 4, 4, 4, 4, 5, 3, 7, 6, 6, 6, 5]
    assert ClipDataset(tiny_snapshot, parts, tiny.plain_clip, units=True).parts == parts


def test_people_with_one_tracklet_are_named(tiny, tiny_snapshot):
    parts = read_parts(tiny_snapshot, "train")
    alone = [p for p in parts if p.tracklet_id not in ("p100-a", "p7-b")]
    assert single_tracklet_people(ClipDataset(tiny_snapshot, parts, tiny.clip)) == []
    assert single_tracklet_people(ClipDataset(tiny_snapshot, alone, tiny.clip)) == [7, 100]


def test_a_rank_has_whole_people_and_all_ranks_the_whole_batch(train):
    for batch in identity_requests(train, 4, 2, seed=3, epoch=1):
        shares = [share(batch, rank, 2, 2) for rank in range(2)]
        assert shares[0] + shares[1] == batch
        people = [{train.labels[r.part] for r in own} for own in shares]
        assert [len(own) for own in people] == [2, 2]
        assert not people[0] & people[1]


@pytest.fixture
def split_snapshot(tiny_store):
    """The tiny store under `tiny`, and under `other` in two splits; the second swaps query and gallery."""
    rows = tables.read(tables.current(tiny_store.store, "splits")).to_pylist()
    swapped = {"train": "train", "query": "gallery", "gallery": "query"}
    more = [row | {"protocol": "other", "split": "2"} for row in rows]
    more += [row | {"protocol": "other", "split": "10", "role": swapped[row["role"]]} for row in rows]
    version = tables.upsert(tiny_store.store, "splits", tables.from_rows("splits", more)).version
    tiny_store.tables["splits"] = version
    return tiny_store


def names(parts):
    return {part.tracklet_id for part in parts}


def test_a_view_of_one_split_reads_its_own_roles(split_snapshot):
    assert read_splits(split_snapshot) == {"other": ("2", "10"), "tiny": ("0",)}
    (plain,) = choose_splits(split_snapshot, DataConfig(protocol="tiny"))
    two, ten = choose_splits(split_snapshot, DataConfig(protocol="other", split="all"))
    assert [(v.protocol, v.split) for v in (plain, two, ten)] == [("tiny", "0"), ("other", "2"), ("other", "10")]
    assert names(read_parts(plain, "query")) == names(read_parts(two, "query")) == {"p2-a", "p55-a"}
    assert names(read_parts(ten, "query")) == names(read_parts(two, "gallery")) == {"p2-b", "p55-b"}
    assert len(read_parts(ten, "train")) == len(read_parts(plain, "train")) == 9
    assert read_protocol(ten) == ("other", "10")
    # Cameras are those of the data set, so that a camera keeps its number in every split.
    assert read_cameras(ten) == read_cameras(plain)


def test_splits_of_two_protocols_that_have_the_same_number_are_apart(split_snapshot):
    # As iLIDS-VID's two readings have it: split 0 of one trains on what split 0 of the other is tested on.
    rows = tables.read(tables.current(split_snapshot.store, "splits")).to_pylist()
    swapped = {"train": "train", "query": "gallery", "gallery": "query"}
    more = [
        row | {"protocol": "other", "split": "0", "role": swapped[row["role"]]}
        for row in rows
        if row["protocol"] == "tiny"
    ]
    version = tables.upsert(split_snapshot.store, "splits", tables.from_rows("splits", more)).version
    split_snapshot.tables["splits"] = version
    tiny, other = (choose_splits(split_snapshot, DataConfig(protocol=name, split="0"))[0] for name in ("tiny", "other"))
    assert names(read_parts(tiny, "query")) == names(read_parts(other, "gallery")) == {"p2-a", "p55-a"}
    assert names(read_parts(tiny, "gallery")) == names(read_parts(other, "query")) == {"p2-b", "p55-b"}
    assert len(read_parts(tiny, "train")) == len(read_parts(other, "train")) == 9


def test_everything_is_chosen_by_all(split_snapshot):
    views = choose_splits(split_snapshot, DataConfig(protocol="all", split="all"))
    assert [(view.protocol, view.split) for view in views] == [("other", "2"), ("other", "10"), ("tiny", "0")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(), r"data\.protocol=: snapshot tiny has other, tiny\. .*--set data\.protocol=other, or all"),
        (DataConfig(protocol="mars"), r"data\.protocol=mars: snapshot tiny has other, tiny"),
        (DataConfig(protocol="other"), r"data\.split=: snapshot tiny has 2, 10\."),
        (DataConfig(protocol="other", split="0"), r"data\.split=0: snapshot tiny has 2, 10\. .*--set data\.split=2"),
    ],
)
def test_what_is_not_there_or_left_open_is_told_with_what_there_is(split_snapshot, config, message):
    with pytest.raises(ValueError, match=message):
        choose_splits(split_snapshot, config)


def test_clips_without_skeletons_need_none_and_read_none(tiny, tiny_store):
    with_them = ClipDataset(tiny_store, read_parts(tiny_store, "query"), tiny.plain_clip)
    tables.delete(tiny_store.store, "skeletons", "true")
    tiny_store.tables["skeletons"] = tables.current(tiny_store.store, "skeletons").version
    parts = read_parts(tiny_store, "query")
    assert not has_skeletons(tiny_store)
    dataset = ClipDataset(tiny_store, parts, tiny.plain_clip, skeletons=False)
    asked = [request(0, (0, 1, 2, 3))]
    batch = dataset.make_batch(asked)
    assert batch.skeleton.shape == (1, 4, 0, 3)
    assert not batch.frame_mask.any()
    assert torch.equal(batch.crops, with_them.make_batch(asked).crops)
    with pytest.raises(StoreError, match="Training needs skeletons"):
        ClipDataset(tiny_store, parts, tiny.plain_clip)
    with pytest.raises(ValueError, match="asked to augment clips without skeletons"):
        dataset.make_batch([request(0, None, augment=True)])
