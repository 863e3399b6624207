import dataclasses

import numpy as np
import pytest
import torch

from csip.config import Stage2Config, ValidateConfig
from csip.data.clips import ClipDataset, identity_requests, label_of_pid, read_parts
from csip.data.loader import ClipLoader
from csip.data.sampling import restricted_random
from csip.errors import CheckpointError, CsipError, TooLittleDataError
from csip.models.checkpoints import add_heads, encoder_digest, load_checkpoint, save_checkpoint
from csip.training import loop
from csip.training.features import read_features
from csip.training.losses import stage2_loss
from csip.training.pretrain import initialise
from csip.training.stage2 import make_prototypes, stage2
from csip.training.state import seed_batch

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = Stage2Config(
    epochs=2, identities=2, clips_per_identity=2, learning_rate=1e-3, head_factor=2, warmup_epochs=0, milestones=(2,)
)
WEIGHTS = {"identity": 0.25, "triplet": 1.0, "prototype": 1.0, "frame": 1.3}  # method.md section 4, Loss


@pytest.fixture
def train(tiny, tiny_snapshot, untrained, tiny_features, out, run):
    """Run the stage: records, outcome."""

    def start(seed=tiny.seed, checkpoint=untrained, runtime=tiny.runtime, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        return run(stage2(out, checkpoint, tiny_features, tiny_snapshot, config, ValidateConfig(), seed, runtime))

    return start


@pytest.fixture
def labelled(tiny, tiny_snapshot):
    parts = read_parts(tiny_snapshot, "train")
    return ClipDataset(tiny_snapshot, parts, tiny.clip, label_of_pid(parts))


def with_heads(untrained, seed, prototypes="pfu", temporal=True):
    """The network that stage 2 starts from."""
    network, header = load_checkpoint(untrained)
    heads = loop.stream(loop.stream(seed, "stage2"), "heads")
    return add_heads(network, header.spec, prototypes=prototypes, temporal=temporal, seed=heads)[0]


def changed(network, after):
    """Names of tensors that differ between a network and a checkpoint."""
    one, other = network.state_dict(), load_checkpoint(after)[0].state_dict()
    assert set(one) == set(other)
    return {name for name in one if not torch.equal(one[name], other[name])}


@torch.no_grad()
def test_prototypes_are_each_persons_mean_features_in_eval_mode(untrained, tiny_features, labelled):
    network, header = load_checkpoint(untrained)
    cached = read_features(tiny_features, network, labelled, encoder_digest(network, header.spec))
    stood_in = set()
    for seed in range(8):
        network.train()  # it is the function's duty to switch dropout and sign flips off
        visual, skeleton, without = make_prototypes(network, labelled, cached, seed, "cpu")
        network.eval()
        rng = np.random.default_rng(seed)
        v, s = {}, {}
        for part, features, frames in zip(labelled.parts, cached, labelled.frames, strict=True):
            at = restricted_random(len(features), 4, rng)
            v.setdefault(part.pid, []).append(sum(features[i] for i in at) / 4)
            valid = [i for i in range(len(features)) if frames.frame_mask[i]]
            if not valid:
                continue
            if part.tracklet_id == "p100-b":  # one skeleton in eight frames
                stood_in.add(valid[0] not in at)
            at = [i for i in at if i in valid] or valid[:1]
            alone = [torch.from_numpy(frames.skeleton[i])[None, None] for i in at]
            joints = [network.skeleton_encoder(one, torch.ones(1, 1, dtype=torch.bool))[0][0, 0] for one in alone]
            s.setdefault(part.pid, []).append(sum(joints).mean(dim=0) / len(joints))
        for label, pid in enumerate((4, 7, 30, 100)):
            torch.testing.assert_close(visual[label], sum(v[pid]) / len(v[pid]), atol=1e-5, rtol=1e-4)
            # Person 7 was never seen with a skeleton.
            want = sum(s[pid]) / len(s[pid]) if pid != 7 else visual[label]
            torch.testing.assert_close(skeleton[label], want, atol=1e-5, rtol=1e-4)
        assert without == 1
    # The one skeleton was drawn at times, and at times it had to be fetched.
    assert stood_in == {True, False}


def test_prototypes_are_computed_before_training_and_stay(untrained, tiny, tiny_features, labelled, train):
    _, outcome = train()
    network, header = load_checkpoint(untrained)
    cached = read_features(tiny_features, network, labelled, encoder_digest(network, header.spec))
    seed = loop.stream(loop.stream(tiny.seed, "stage2"), "prototypes")
    visual, skeleton, _ = make_prototypes(network, labelled, cached, seed, "cpu")
    trained, header = load_checkpoint(outcome.value)
    assert torch.equal(trained.visual_prototypes, visual)
    assert torch.equal(trained.skeleton_prototypes, skeleton)
    assert bool(trained.prototypes_ready)
    assert (header.stage, header.parent) == ("stage2", untrained.sha256)
    assert outcome.counts["people_without_skeleton"] == 1


def test_stage_2_trains_every_part_of_the_network(tiny, untrained, train):
    _, outcome = train()
    network = with_heads(untrained, tiny.seed)
    names = changed(network, outcome.value)
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trainable - names == set()
    assert {name for name in names if name.startswith("skeleton_encoder.")}
    fixed = {"skeleton_encoder.positions", "head_g.norm.bias", "head_v.norm.bias"}
    assert fixed & names == set()


def test_a_frozen_skeleton_encoder_stays_as_stage_1_left_it(tiny, untrained, train):
    _, outcome = train(freeze_skeleton_encoder=True)
    names = changed(with_heads(untrained, tiny.seed), outcome.value)
    assert not [name for name in names if name.startswith("skeleton_encoder.")]
    assert [name for name in names if name.startswith("image_encoder.")]


def test_the_first_epochs_figures_are_those_of_one_pass_by_hand(tiny, untrained, tiny_features, labelled, train):
    # Four people, so one batch an epoch: its figures come from the untrained network.
    records, outcome = train(epochs=1, identities=4, milestones=())
    network, spec = with_heads(untrained, tiny.seed), load_checkpoint(untrained)[1].spec
    cached = read_features(tiny_features, network, labelled, encoder_digest(network, spec))
    stream = loop.stream(tiny.seed, "stage2")
    visual, skeleton, _ = make_prototypes(network, labelled, cached, loop.stream(stream, "prototypes"), "cpu")
    network.set_prototypes(visual, skeleton)
    network.train()
    (batch,) = ClipLoader(labelled, 0).load(identity_requests(labelled, 4, 2, seed=stream, epoch=1))
    seed_batch(stream, 1, 0)
    output = network(batch.crops, batch.skeleton, batch.frame_mask, batch.camid)
    weights = {f"{name}_weight": weight for name, weight in WEIGHTS.items()}
    losses = stage2_loss(output, batch.label, label_smoothing=0.1, margin=0.3, **weights)
    values = dict(records[0].values)
    assert values.pop("clips_per_second") > 0
    assert values.pop("learning_rate") == pytest.approx(1e-3)
    assert values.pop("loss") == pytest.approx(float(losses.total), rel=1e-5)
    assert values == pytest.approx({name: float(getattr(losses, name)) for name in WEIGHTS}, rel=1e-5)
    assert outcome.counts["clips"] == 8
    # Two of the eight are person 7's.
    assert outcome.counts["clips_without_skeleton"] >= 2


def test_the_loss_is_the_weighted_sum_of_its_terms(train):
    records, _ = train()
    for record in records:
        assert record.values["loss"] == pytest.approx(sum(w * record.values[n] for n, w in WEIGHTS.items()), rel=1e-4)
    # A milestone at the second of two epochs.
    assert [r.values["learning_rate"] for r in records] == pytest.approx([1e-3, 1e-4])
    assert [(r.stage, r.done, r.total, r.unit) for r in records] == [("stage2", e, 2, "epochs") for e in (1, 2)]


@pytest.mark.parametrize(
    ("heads", "terms"),
    [
        ({"prototypes": "none", "temporal": False}, "identity triplet"),
        ({"prototypes": "visual"}, "identity triplet prototype frame"),
        ({"prototypes": "fixed", "temporal": False}, "identity triplet prototype"),
        ({"prototypes": "none"}, "identity triplet frame"),
    ],
    ids=str,
)
def test_a_part_that_is_switched_off_has_no_loss(train, heads, terms):
    records, outcome = train(**heads)
    assert set(records[0].values) == {*terms.split()} | {"loss", "learning_rate", "clips_per_second"}
    assert ("people_without_skeleton" in outcome.counts) == (heads["prototypes"] != "none")
    spec = load_checkpoint(outcome.value)[1].spec
    assert {"prototypes": spec.prototypes, "temporal": spec.temporal} == {"temporal": True, **heads}


def test_the_loss_falls(train):
    records, _ = train(epochs=6, milestones=())
    losses = [r.values["loss"] for r in records]
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(train):
    shas = [train(seed=seed)[1].value.sha256 for seed in (0, 0, 1)]
    assert shas[0] == shas[1] != shas[2]


def test_chance_outside_the_stage_changes_nothing(train):
    torch.manual_seed(1)
    first = train()[1].value
    torch.manual_seed(2)
    np.random.seed(3)
    assert train()[1].value == first


def test_a_loss_that_is_no_number_names_the_tracklets(untrained, train, tmp_path):
    network, header = load_checkpoint(untrained)
    with torch.no_grad():
        network.image_encoder.projection.weight[0, 0] = float("nan")
    broken = save_checkpoint(network, header, tmp_path)
    message = r"stage2, epoch 1: found loss nan, .*, expected numbers, on a batch of \d tracklets: p\d+-[ab], p\d+-[ab]"
    with pytest.raises(CsipError, match=message):
        train(checkpoint=broken, prototypes="none")


def test_too_few_people_for_a_batch_are_named(train):
    with pytest.raises(TooLittleDataError, match=r"A batch joins 5 people; found 4 to train on"):
        train(identities=5)


def test_features_of_another_encoder_are_refused(tiny, tiny_snapshot, train, out, run):
    other = run(initialise(out, tiny_snapshot, tiny.clip, tiny.model, ValidateConfig(), 1))[1].value
    with pytest.raises(CheckpointError, match=r"found no feature of encoder"):
        train(checkpoint=other)
