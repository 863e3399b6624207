import dataclasses

import pytest
import torch

from csip.config import PretrainConfig, ValidateConfig
from csip.data.clips import ClipDataset, identity_requests, label_of_pid, read_parts
from csip.data.loader import ClipLoader
from csip.errors import CsipError, TooLittleDataError
from csip.models.checkpoints import load_checkpoint, save_checkpoint
from csip.training import loop
from csip.training.losses import batch_hard_triplet
from csip.training.pretrain import initialise, pretrain_visual

pytestmark = pytest.mark.usefixtures("one_thread")
BROKEN = (
    r"pretrain_visual, epoch 1: found loss nan, identity nan, expected numbers, on a batch of \d tracklets: p\d+-[ab]"
)
CONFIG = PretrainConfig(epochs=2, learning_rate=1e-3, identities=2, clips_per_identity=2)


@pytest.fixture
def train(tiny, tiny_snapshot, untrained, out, run):
    """Run the stage: records, outcome."""

    def start(checkpoint=untrained, seed=tiny.seed, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        return run(pretrain_visual(out, checkpoint, tiny_snapshot, config, seed, tiny.runtime))

    return start


def changed(before, after):
    """Names of tensors that differ between two checkpoints."""
    one, other = (load_checkpoint(ref)[0].state_dict() for ref in (before, after))
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_the_network_is_made_for_the_snapshots_people_cameras_and_layout(tiny, tiny_snapshot, untrained):
    network, header = load_checkpoint(untrained)
    assert header.spec.pids == (4, 7, 30, 100)
    # Camera 2 is in query and gallery only; the table has a row for it all the same.
    assert len(header.spec.cameras) == 3
    assert (header.spec.layout, header.spec.clip, header.spec.model) == ("coco17", tiny.clip, tiny.model)
    assert (header.stage, header.parent) == ("initialise", "")
    assert network.head_g.classifier.out_features == 4


def test_initialising_counts_what_it_made(tiny, tiny_snapshot, untrained, out, run):
    records, outcome = run(initialise(out, tiny_snapshot, tiny.clip, tiny.model, ValidateConfig(), tiny.seed))
    network, _ = load_checkpoint(untrained)
    parameters = sum(p.numel() for p in network.parameters())
    assert outcome.counts == {"parameters": parameters, "train_people": 4, "held_out_people": 0, "cameras": 3}
    assert [(r.done, r.total) for r in records] == [(0, 1), (1, 1)]


def test_initial_weights_follow_from_the_seed(tiny, tiny_snapshot, untrained, out, run):
    def sha(seed):
        stage = initialise(out, tiny_snapshot, tiny.clip, tiny.model, ValidateConfig(), seed)
        return run(stage)[1].value.sha256

    shas = [sha(0), sha(0), sha(1)]
    assert shas[0] == shas[1] == untrained.sha256
    assert shas[2] != shas[0]


def test_one_person_is_too_few(tiny, tmp_path, out, run):
    walk = tiny.Walk("w", 1, 0, "train", tuple(range(4)))
    snapshot = tiny.publish(str(tmp_path / "one"), (walk,), "one")
    with pytest.raises(TooLittleDataError, match=r"Snapshot one: found 1 people to train on, expected at least 2"):
        run(initialise(out, snapshot, tiny.clip, tiny.model, ValidateConfig(), 0))


def test_pretraining_trains_the_image_encoder_and_two_heads_and_nothing_else(untrained, train):
    _, outcome = train()
    names = changed(untrained, outcome.value)
    assert {name.split(".")[0] for name in names} == {"image_encoder", "head_g", "head_v"}
    own = load_checkpoint(untrained)[0].image_encoder
    still = {f"image_encoder.{name}" for name, _ in own.named_parameters()} - names
    # Frames are seen without cameras here, and a BNNeck's bias is frozen.
    assert still == {"image_encoder.camera_table"}
    assert {"head_g.norm.bias", "head_v.norm.bias"} & names == set()
    _, header = load_checkpoint(outcome.value)
    assert (header.stage, header.parent) == ("pretrain_visual", untrained.sha256)


def test_the_first_epochs_figures_are_those_of_the_losses_by_hand(tiny, tiny_snapshot, untrained, train):
    # Four people, so one batch an epoch: its figures come from the untrained network.
    records, outcome = train(epochs=1, identities=4, triplet_weight=0.5)
    network = load_checkpoint(untrained)[0].train()
    parts = read_parts(tiny_snapshot, "train")
    dataset = ClipDataset(tiny_snapshot, parts, tiny.clip, label_of_pid(parts))
    stream = loop.stream(tiny.seed, "pretrain_visual")
    (batch,) = ClipLoader(dataset, 0).load(identity_requests(dataset, 4, 2, seed=stream, epoch=1))
    g, v_bar, logits_g, logits_v = network.forward_visual(batch.crops, None)
    identity = 0.0
    for logits in (logits_g, logits_v):
        for row, label in zip(logits.detach().log_softmax(dim=1), batch.label, strict=True):
            target = torch.full((4,), 0.1 / 4)
            target[label] += 0.9
            identity -= float((target * row).sum()) / 8
    triplet = sum(batch_hard_triplet(x, batch.label, margin=0.3) for x in (g, v_bar)).item()
    values = records[0].values
    assert values["identity"] == pytest.approx(identity, rel=1e-4)
    assert values["triplet"] == pytest.approx(triplet, rel=1e-4)
    assert values["loss"] == pytest.approx(identity + 0.5 * triplet, rel=1e-4)
    # The first tenth is warm-up from a tenth of the rate; the one batch is its very beginning.
    assert values["learning_rate"] == pytest.approx(1e-4)
    assert outcome.counts == {"parts": 9, "clips": 8}


def test_the_loss_falls(train):
    records, _ = train(epochs=12, identities=4, learning_rate=3e-3)
    assert [r.done for r in records] == list(range(1, 13))
    losses = [r.values["loss"] for r in records]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(train):
    shas = [train(seed=seed)[1].value.sha256 for seed in (0, 0, 1)]
    assert shas[0] == shas[1] != shas[2]


def test_too_few_people_for_a_batch_are_named(train):
    with pytest.raises(TooLittleDataError, match=r"A batch joins 5 people; found 4 to train on"):
        train(identities=5)


def test_a_loss_that_is_no_number_names_the_tracklets(untrained, train, tmp_path):
    network, header = load_checkpoint(untrained)
    with torch.no_grad():
        network.head_v.classifier.weight[0, 0] = float("nan")
    broken = save_checkpoint(network, header, tmp_path)
    with pytest.raises(CsipError, match=BROKEN):
        train(checkpoint=broken)
