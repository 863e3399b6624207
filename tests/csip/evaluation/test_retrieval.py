import json

import numpy as np
import pytest
import torch

from csip import tables
from csip.data.clips import ClipDataset, ClipRequest, read_parts
from csip.data.sampling import restricted_first
from csip.evaluation.retrieval import Crossing, by_person, chance, figures, first_is_right, retrieve, shuffled
from csip.models.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def crossing(skeleton, skeleton_pid, picture, picture_pid):
    return Crossing(
        np.array(skeleton, dtype=np.float32),
        np.array(skeleton_pid),
        np.array(picture, dtype=np.float32),
        np.array(picture_pid),
    )


# Person 1's skeletons point along x, person 2's along y; one of person 2's looks like person 1.
HAND = crossing([[1, 0], [0, 1], [2, 1]], [1, 2, 2], [[1, 0], [0, 1], [0, 3], [0.5, 0]], [1, 2, 2, 1])


def test_a_skeleton_is_right_when_the_largest_inner_product_is_its_own_persons():
    # Products: [1, 0, 0, .5] -> person 1, right; [0, 1, 3, 0] -> person 2, right; [2, 1, 3, 1] -> person 2, right.
    assert first_is_right(HAND) == 1.0
    turned = crossing([[1, 0], [0, 1], [4, 1]], [1, 2, 2], HAND.picture, HAND.picture_pid)
    # The last: [4, 1, 3, 2] -> person 1, wrong.
    assert first_is_right(turned) == pytest.approx(2 / 3)


def test_chance_is_the_share_of_pictures_of_the_same_person():
    assert chance(HAND) == 0.5
    uneven = crossing(HAND.skeleton, HAND.skeleton_pid, HAND.picture, [1, 2, 2, 2])
    # One skeleton of person 1 (1 of 4 pictures), two of person 2 (3 of 4).
    assert chance(uneven) == pytest.approx((1 / 4 + 3 / 4 + 3 / 4) / 3)


def test_people_are_the_means_of_their_clips():
    people = by_person(HAND)
    assert people.skeleton_pid.tolist() == people.picture_pid.tolist() == [1, 2]
    assert people.skeleton.tolist() == [[1, 0], [1, 1]]
    assert people.picture.tolist() == [[0.75, 0], [0, 2]]


def test_shuffling_gives_every_skeleton_to_another_person():
    for seed in range(5):
        other = shuffled(HAND, seed)
        assert (other.skeleton_pid != HAND.skeleton_pid).all()
        assert sorted(set(other.skeleton_pid.tolist())) == [1, 2]
        assert other.skeleton is HAND.skeleton


def test_perfect_features_stand_far_above_chance_and_the_control():
    rng = np.random.default_rng(0)
    people = rng.normal(size=(20, 16))
    pid = np.repeat(np.arange(20), 3)
    noise = [rng.normal(scale=0.05, size=(60, 16)) for _ in range(2)]
    found = figures(crossing(people[pid] + noise[0], pid, people[pid] + noise[1], pid))
    assert found["clip rank-1"] > 0.8
    assert found["person rank-1"] > 0.8
    assert found["clip chance"] == found["person chance"] == pytest.approx(0.05)
    assert found["clip shuffled"] < 0.2


@torch.no_grad()
def test_the_stage_scores_query_skeletons_against_gallery_pictures(tiny_snapshot, untrained, tiny, out, run):
    outcome = run(retrieve(out, untrained, tiny_snapshot, tiny.runtime))[1]
    network = load_checkpoint(untrained)[0].eval()

    def features(role):
        for number, part in enumerate(read_parts(tiny_snapshot, role)):
            dataset = ClipDataset(tiny_snapshot, [part], tiny.clip)
            at = restricted_first(len(dataset.frames[0].row), tiny.clip.frames)
            frames = dataset.frames[0]
            skeleton, mask = (torch.from_numpy(array[at])[None] for array in (frames.skeleton, frames.frame_mask))
            s = network.skeleton_encoder(skeleton, mask)[1][0]
            crops = dataset.make_batch([ClipRequest(0, tuple(at.tolist()), False, number)]).crops[0]
            v = torch.stack([network.frame_features(crop[None])[0] for crop in crops]).mean(dim=0)
            yield part.pid, bool(frames.frame_mask[at].any()), s.numpy(), v.numpy()

    asked = [(pid, s) for pid, seen, s, _ in features("query") if seen]
    there = [(pid, v) for pid, _, _, v in features("gallery")]
    right = [pid == max(there, key=lambda item: float(np.dot(s, item[1])))[0] for pid, s in asked]
    rows = {row["name"]: row for row in tables.read(outcome.value.table).to_pylist()}
    assert rows["clip rank-1"]["value"] == pytest.approx(np.mean(right))
    assert rows["clip chance"]["value"] == pytest.approx(np.mean([p == q for p, _ in asked for q, _ in there]))
    assert rows["clip rank-1"]["encoder"] == "initialise"
    assert "held out from training" in rows["clip rank-1"]["described"]
    assert outcome.counts["skeleton_clips"] == len(asked)
    assert json.loads(json.dumps(outcome.counts)) == outcome.counts
