import dataclasses
import math

import numpy as np
import pytest
import torch

from csip import tables
from csip.config import Stage1Config, ValidateConfig
from csip.data import sampling
from csip.data.clips import ClipDataset, ClipRequest, label_of_pid, read_parts
from csip.errors import CheckpointError, CsipError, TooLittleDataError
from csip.models.checkpoints import load_checkpoint
from csip.training import loop
from csip.training.features import cache_features
from csip.training.pretrain import initialise
from csip.training.stage1 import stage1
from csip.training.state import seed_batch

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = Stage1Config(epochs=3, batch_clips=4, learning_rate=1e-3, warmup_epochs=0)


@pytest.fixture
def train(tiny, tiny_snapshot, untrained, tiny_features, out, run):
    """Run the stage: records, outcome."""

    def start(seed=tiny.seed, features=tiny_features, checkpoint=untrained, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        return run(stage1(out, checkpoint, features, tiny_snapshot, config, seed, tiny.runtime))

    return start


def drawn(counts):
    """Clips that were drawn, whatever became of them."""
    return sum(counts.get(name, 0) for name in ("clips", "clips_without_skeleton", "clips_alone_in_batch"))


def slow_contrast(a, b, label):
    """L(a, b) of method.md section 3, clip by clip; keeps the graph for the step after it."""
    total = 0
    for i in range(len(a)):
        products = [(a[i] * b[j]).sum() for j in range(len(b))]
        rest = torch.logsumexp(torch.stack(products), dim=0)
        same = [j for j in range(len(b)) if label[j] == label[i]]
        total = total - sum(products[j] - rest for j in same) / len(same)
    return total / len(a)


def slow_stage1(tiny, snapshot, checkpoint, config):
    """Stage 1 without a cache: every drawn frame goes through the image encoder when it is drawn."""
    network = load_checkpoint(checkpoint)[0].eval()
    parts = read_parts(snapshot, "train")
    dataset = ClipDataset(snapshot, parts, tiny.clip, label_of_pid(parts))
    usable = [i for i, frames in enumerate(dataset.frames) if frames.frame_mask.any()]
    encoder = network.skeleton_encoder.train()
    adam = torch.optim.Adam(encoder.parameters(), lr=1.0, weight_decay=config.weight_decay)
    stream = loop.stream(tiny.seed, "stage1")
    losses = []
    for epoch in range(1, config.epochs + 1):
        rng = np.random.default_rng([stream, epoch])
        last = 1e-6 + (config.learning_rate - 1e-6) * (1 + math.cos(math.pi * epoch / config.epochs)) / 2
        adam.param_groups[0]["lr"] = last
        total, clips = 0.0, 0
        for number, chosen in enumerate(sampling.plain_batches(len(usable), config.batch_clips, rng)):
            rng, batches = np.random.default_rng([stream, epoch, number]), []
            for i in chosen:
                at = sampling.restricted_random(len(dataset.frames[usable[i]].row), 4, rng)
                batch = dataset.make_batch([ClipRequest(usable[i], tuple(map(int, at)), False, 0)])
                if batch.frame_mask.any():
                    batches.append(batch)
            if len(batches) < 2:
                continue
            with torch.no_grad():
                v_bar = torch.stack([sum(network.frame_features(f[None])[0] for f in b.crops[0]) / 4 for b in batches])
            skeleton, mask = (torch.cat([getattr(b, name) for b in batches]) for name in ("skeleton", "frame_mask"))
            seed_batch(stream, epoch, number)
            s_bar = encoder(skeleton, mask)[1]
            label = [int(b.label) for b in batches]
            loss = slow_contrast(v_bar, s_bar, label) + slow_contrast(s_bar, v_bar, label)
            adam.zero_grad()
            loss.backward()
            adam.step()
            total, clips = total + len(batches) * float(loss.detach()), clips + len(batches)
        losses.append(total / clips)
    return losses


def test_the_cache_gives_the_losses_of_features_made_on_the_fly(tiny, tiny_snapshot, untrained, train):
    records, _ = train()
    want = slow_stage1(tiny, tiny_snapshot, untrained, CONFIG)
    assert [r.values["loss"] for r in records] == pytest.approx(want, rel=1e-4)
    # Constant within an epoch, by the cosine over three epochs: cos 60, cos 120 degrees, and the end.
    rates = [1e-6 + 9.99e-4 * share for share in (0.75, 0.25, 0)]
    assert [r.values["learning_rate"] for r in records] == pytest.approx(rates)


def test_stage_1_changes_the_skeleton_encoder_and_nothing_else(untrained, train):
    _, outcome = train()
    before, after = (load_checkpoint(ref)[0] for ref in (untrained, outcome.value))
    own, new = before.state_dict(), after.state_dict()
    differ = {name for name in own if not torch.equal(own[name], new[name])}
    # Every weight of S and its projection; the joint graph's positions are no weight.
    assert differ == {f"skeleton_encoder.{name}" for name, _ in before.skeleton_encoder.named_parameters()}
    _, header = load_checkpoint(outcome.value)
    assert (header.stage, header.parent) == ("stage1", untrained.sha256)
    assert header.config["epochs"] == 3


def test_what_has_no_skeleton_is_left_out_and_counted(train):
    _, outcome = train(epochs=5)
    counts = outcome.counts
    # Person 7's two tracklets have none at all.
    assert (counts["parts"], counts["parts_without_skeleton"]) == (7, 2)
    # One part has a skeleton in one frame of eight: some of its five draws miss it.
    assert 0 < counts["clips_without_skeleton"] <= 5
    assert drawn(counts) == 5 * 7


def test_a_clip_alone_in_its_batch_is_counted_not_trained_on(train):
    # Seven parts in batches of six leave one alone in every epoch, or none when its skeleton was missed.
    _, outcome = train(epochs=4, batch_clips=6)
    counts = outcome.counts
    assert counts["clips_alone_in_batch"] > 0
    assert drawn(counts) == 4 * 7


def test_a_group_of_batches_ends_with_its_epoch_though_the_last_batch_has_nothing_to_compare(train):
    # Six clips, then one alone: with one batch a step or three, each epoch makes the same single step.
    one, three = (train(epochs=3, batch_clips=6, accumulate=n) for n in (1, 3))
    losses = [[record.values["loss"] for record in records] for records, _ in (one, three)]
    assert losses[0] == losses[1]
    weights = [load_checkpoint(outcome.value)[0].state_dict() for _, outcome in (one, three)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_last_partial_batch_is_left_out_where_the_recipe_says_so(train):
    _, outcome = train(epochs=4, batch_clips=5, drop_last=True)
    assert drawn(outcome.counts) == 4 * 5


def test_the_loss_falls(train):
    records, _ = train(epochs=60, batch_clips=8, learning_rate=3e-3)
    losses = [r.values["loss"] for r in records]
    assert [(r.stage, r.done, r.total, r.unit) for r in records[:1]] == [("stage1", 1, 60, "epochs")]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(train):
    shas = [train(seed=seed)[1].value.sha256 for seed in (0, 0, 1)]
    assert shas[0] == shas[1] != shas[2]


def test_chance_outside_the_stage_changes_nothing(train):
    torch.manual_seed(1)
    first = train()[1].value
    torch.manual_seed(2)
    assert train()[1].value == first


def test_temperature_and_normalisation_are_read(train):
    losses = {tuple(c.items()): train(epochs=1, **c)[0][0].values["loss"] for c in ({}, {"temperature": 0.5})}
    assert len(set(losses.values())) == 2
    # Of unit vectors no product exceeds 1, so with four clips a batch each of two losses lies under ln 4 + 2.
    normalised = train(epochs=1, normalize=True)[0][0].values["loss"]
    assert 0 < normalised < 2 * (math.log(4) + 2)


def test_no_epochs_leave_the_skeleton_encoder_as_it_was(untrained, train):
    records, outcome = train(epochs=0)
    assert records == []
    own, new = (load_checkpoint(ref)[0].state_dict() for ref in (untrained, outcome.value))
    assert all(torch.equal(own[name], new[name]) for name in own)


def test_a_loss_that_is_no_number_names_the_tracklets(tiny_features, train, out):
    rows = [row | {"feature": [float("nan")] * 32} for row in tables.read(tiny_features).to_pylist()]
    broken = tables.upsert(out.store, "frame_features", tables.from_rows("frame_features", rows))
    names = r"p100-a, (p100-b, )?p30-a, p30-b, p4-a, p4-b\."
    message = rf"stage1, epoch 1: found loss nan, expected numbers, on a batch of [56] tracklets: {names}"
    with pytest.raises(CsipError, match=message):
        train(features=broken, batch_clips=8)


def test_features_of_another_encoder_are_refused(tiny, tiny_snapshot, train, out, run):
    other = run(initialise(out, tiny_snapshot, tiny.clip, tiny.model, ValidateConfig(), 1))[1].value
    with pytest.raises(CheckpointError, match=r"found no feature of encoder .*Run the stage cache_features"):
        train(checkpoint=other)


def test_fewer_than_two_skeletons_are_too_few(tiny, tmp_path, out, run):
    one = tiny.Walk("w", 1, 0, "train", tuple(range(4)))
    other = tiny.Walk("x", 2, 0, "train", tuple(range(4)), unsure=(0, 1, 2, 3))
    snapshot = tiny.publish(str(tmp_path / "two"), (one, other), "two")
    checkpoint = run(initialise(out, snapshot, tiny.clip, tiny.model, ValidateConfig(), 0))[1].value
    features = run(cache_features(out, checkpoint, snapshot, tiny.runtime))[1].value
    with pytest.raises(TooLittleDataError, match=r"found 1 of 2 training parts .*expected at least 2"):
        run(stage1(out, checkpoint, features, snapshot, CONFIG, 0, tiny.runtime))


def test_fewer_skeletons_than_a_whole_batch_are_too_few_when_others_are_left_out(train):
    with pytest.raises(TooLittleDataError, match=r"found 7 of 9 training parts .*expected at least 8"):
        train(batch_clips=8, drop_last=True)
