"""Who is held out, which epoch is chosen, and what is kept of the others."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from csip.config import ValidateConfig
from csip.data.clips import ClipDataset, ClipRequest, read_parts
from csip.errors import CheckpointError, TooLittleDataError
from csip.models.checkpoints import checkpoint_ref, load_checkpoint
from csip.training import loop
from csip.training.features import cache_features
from csip.training.pretrain import initialise
from csip.training.validate import Validation, hold_out

pytestmark = pytest.mark.usefixtures("one_thread")
HALF = ValidateConfig(select="validation", fraction=0.5)
TEST = ValidateConfig(select="test")


def test_nobody_is_held_out_unless_the_recipe_selects_by_validation():
    for select in ("last", "test"):
        assert hold_out([3, 5, 9], ValidateConfig(select=select, fraction=0.5), 1) == ((3, 5, 9), ())


@pytest.mark.parametrize(("people", "fraction", "count"), [(10, 0.3, 3), (100, 0.1, 10), (4, 0.5, 2), (37, 0.2, 7)])
def test_people_held_out_are_drawn_from_the_seed_alone(people, fraction, count):
    pids = list(range(5, 5 + 3 * people, 3))
    config = ValidateConfig(select="validation", fraction=fraction)
    draws = set()
    for seed in range(20):
        kept, held = hold_out(pids, config, seed)
        np.random.seed(seed)
        torch.manual_seed(seed + 1)
        assert hold_out(tuple(pids), config, seed) == (kept, held)
        assert sorted(kept + held) == pids
        assert (list(kept), list(held)) == (sorted(kept), sorted(held))
        assert len(held) == count
        draws.add(held)
    assert len(draws) > 3, "another seed draws others"


@pytest.mark.parametrize(
    ("people", "fraction", "held", "left"), [(3, 0.5, 2, 1), (10, 0.1, 1, 9), (4, 0.8, 3, 1), (10, 1e-6, 0, 10)]
)
def test_two_people_stay_on_each_side(people, fraction, held, left):
    config = ValidateConfig(select="validation", fraction=fraction)
    message = (
        rf"validate\.fraction={fraction} of {people} training people: holds {held} out and leaves {left}, expected at "
        r"least two of each\. Change the fraction, or use validate\.select=last\."
    )
    with pytest.raises(TooLittleDataError, match=message):
        hold_out(range(people), config, 0)


@pytest.fixture
def made(tiny, tiny_snapshot, out, run):
    """Make initial weights and features for a way to choose an epoch."""

    def make(validate):
        checkpoint = run(initialise(out, tiny_snapshot, tiny.clip, tiny.model, validate, tiny.seed))[1].value
        return checkpoint, run(cache_features(out, checkpoint, tiny_snapshot, tiny.runtime))[1].value

    return make


@pytest.fixture
def train(made, begin, run):
    def start(validate, **changes):
        checkpoint, features = made(validate)
        # A rate at which the figures move.
        settings = {"epochs": 5, "learning_rate": 3e-3, "milestones": (), "identities": 2} | changes
        return run(begin("stage2", checkpoint=checkpoint, features=features, validate=validate, **settings))

    return start


def test_people_held_out_are_not_trained_on(made, tiny, tiny_snapshot, train):
    _, header = load_checkpoint(made(HALF)[0])
    kept, held = hold_out((4, 7, 30, 100), HALF, loop.stream(tiny.seed, "hold_out"))
    assert (header.spec.pids, header.spec.held_out) == (kept, held)
    dataset = loop.training_data(tiny_snapshot, header)
    assert {part.pid for part in dataset.parts} == set(kept)
    assert set(dataset.labels) == {0, 1}
    _, outcome = train(HALF, epochs=1)
    network, header = load_checkpoint(outcome.value)
    assert len(network.visual_prototypes) == network.head_g.classifier.out_features == 2
    assert header.spec.held_out == held


def slow_mean_ap(checkpoint, snapshot, sides, *, same_camera):
    """mAP and rank-1 by the definition: every query's gallery sorted, precision at every match, then means."""
    network, header = load_checkpoint(checkpoint)
    network.eval()
    features = {}
    for part in {part.unit: part for side in sides for part in side}.values():
        dataset = ClipDataset(snapshot, [part], header.spec.clip)
        chunk = -(-len(dataset.frames[0].row) // 4)
        window = tuple(min(i * chunk, len(dataset.frames[0].row) - 1) for i in range(4))
        batch = dataset.make_batch([ClipRequest(0, window, augment=False, seed=0)])
        with torch.inference_mode():
            feature = network.embed(batch.crops, batch.camid)[0].double()
        features[part.unit] = feature / feature.norm()
    found, first = [], []
    for query in sides[0]:
        ranked = []
        for item in sides[1]:
            own_camera = item.pid == query.pid and item.camid == query.camid
            if item.unit != query.unit and (same_camera or not own_camera):
                distance = float((features[query.unit] - features[item.unit]).norm())
                ranked.append((distance, item.pid == query.pid))
        matches = [match for _, match in sorted(ranked, key=lambda one: one[0])]
        if any(matches):
            at = [i for i, match in enumerate(matches, start=1) if match]
            found.append(sum(n / i for n, i in enumerate(at, start=1)) / len(at))
            first.append(float(matches[0]))
    return sum(found) / len(found), sum(first) / len(first)


@pytest.mark.parametrize("select", ["validation", "test"])
def test_the_figures_of_a_look_are_those_of_a_slow_ranking(select, train, tiny_snapshot):
    validate = dataclasses.replace(HALF, select=select)
    records, outcome = train(validate, epochs=1)
    header = load_checkpoint(outcome.value)[1]
    if select == "validation":
        own = [part for part in read_parts(tiny_snapshot, "train") if part.pid in header.spec.held_out]
        sides = (own, own)
    else:
        sides = (read_parts(tiny_snapshot, "query"), read_parts(tiny_snapshot, "gallery"))
    mean_ap, rank1 = slow_mean_ap(outcome.value, tiny_snapshot, sides, same_camera=False)
    values = records[0].values
    assert values[f"{select}_mean_ap"] == pytest.approx(mean_ap, abs=1e-6)
    assert values[f"{select}_rank1"] == pytest.approx(rank1, abs=1e-6)
    assert header.metrics[f"{select}_mean_ap"] == values[f"{select}_mean_ap"]


def test_the_last_epoch_is_reported_without_a_look(train):
    records, outcome = train(ValidateConfig(), epochs=3)
    assert not [name for record in records for name in record.values if "mean_ap" in name]
    assert (outcome.counts["epoch"], outcome.counts["kept"]) == (3, {})
    assert load_checkpoint(outcome.value)[1].epoch == 3


def script(monkeypatch, figures):
    """Let stage 2 see figures of the test's own; None for an epoch without a look."""

    def look(self, network, epoch, epochs):
        network.eval()
        return {} if figures[epoch - 1] is None else {self.figure: figures[epoch - 1]}

    monkeypatch.setattr(Validation, "look", look)


@pytest.mark.parametrize(
    ("figures", "keep_every", "best", "kept"),
    [
        ((0.2, 0.5, None, 0.5, 0.1), 0, 2, {2}),  # the first of equals
        ((0.6, 0.5, 0.1, 0.5, 0.1), 0, 1, {1}),
        ((0.1, 0.2, 0.3, 0.4, 0.5), 0, 5, {5}),  # each best takes the place of the last
        ((0.2, 0.5, None, 0.5, 0.1), 2, 2, {2, 4}),
        ((0.1, 0.2, 0.3, 0.4, 0.5), 2, 5, {2, 4, 5}),
        ((0.1, 0.2, 0.9, 0.4, 0.5), 3, 3, {3}),
    ],
)
def test_the_best_epoch_is_returned_and_what_was_asked_for_is_kept(
    monkeypatch, train, out, figures, keep_every, best, kept
):
    script(monkeypatch, figures)
    _, outcome = train(HALF, keep_every=keep_every)
    assert outcome.counts["epoch"] == best
    assert set(outcome.counts["kept"]) == {str(epoch) for epoch in kept}
    header = load_checkpoint(outcome.value)[1]
    assert header.epoch == best
    assert header.metrics["validation_mean_ap"] == figures[best - 1]
    assert outcome.value.sha256 == outcome.counts["kept"][str(best)]
    # On disk: what was kept and the last one, which is written whatever it came to.
    files = (Path(out.store) / "checkpoints").glob("stage2-*.safetensors")
    found = {}
    for path in files:
        ref = checkpoint_ref(path)
        found[load_checkpoint(ref)[1].epoch] = ref.sha256
    assert set(found) == kept | {5}
    assert {str(epoch): sha for epoch, sha in found.items() if epoch in kept} == outcome.counts["kept"]


def test_every_nth_epoch_is_kept_where_the_last_one_is_reported(train, out):
    _, outcome = train(ValidateConfig(), keep_every=2)
    assert (outcome.counts["epoch"], set(outcome.counts["kept"])) == (5, {"2", "4"})
    epochs = set()
    for path in (Path(out.store) / "checkpoints").glob("stage2-*.safetensors"):
        epochs.add(load_checkpoint(checkpoint_ref(path))[1].epoch)
    assert epochs == {2, 4, 5}


@pytest.mark.parametrize("left", [3, 5, 6, 8])
def test_a_choice_survives_being_left(left, begin, made, run, train, out):
    # Two batches and a look an epoch: left before, at and after an epoch whose checkpoint was kept.
    checkpoint, features = made(HALF)
    given = {"checkpoint": checkpoint, "features": features, "validate": HALF, "keep_every": 2}
    given |= {"epochs": 4, "learning_rate": 3e-3, "milestones": (), "identities": 2}
    stage = begin("stage2", **given)
    for _ in range(left):
        next(stage)
    stage.close()
    found = run(begin("stage2", **given))[1]
    Path(found.leftovers[0]).unlink()
    want = run(begin("stage2", **given))[1]
    assert (found.value, dict(found.counts)) == (want.value, dict(want.counts))
    written = {checkpoint_ref(path).sha256 for path in (Path(out.store) / "checkpoints").glob("stage2-*.safetensors")}
    last = {found.value.sha256, *found.counts["kept"].values()}
    assert last <= written
    assert len(written) <= len(last) + 1


def test_a_look_changes_nothing_but_the_choice(train):
    # Epoch by epoch the same losses, whether anybody looks every epoch, every other, or at the end only.
    losses, looks = [], []
    for every in (1, 2, 5):
        records, _ = train(dataclasses.replace(TEST, every=every))
        losses.append([record.values["loss"] for record in records])
        looks.append([record.done for record in records if "test_mean_ap" in record.values])
    assert losses[0] == losses[1] == losses[2]
    # The last one is always looked at.
    assert looks == [[1, 2, 3, 4, 5], [2, 4, 5], [5]]


def test_a_network_made_for_everybody_holds_nobody_out(begin, out, untrained):
    stage = begin("stage2", validate=HALF, checkpoint=untrained)
    message = r"validate\.select=validation: found a network made to be trained on everybody, expected one with people"
    with pytest.raises(CheckpointError, match=message):
        next(stage)
    assert not list((Path(out.store) / "checkpoints").glob("*"))


@pytest.mark.parametrize(
    ("history", "best"),
    [
        ([], 0),
        ([{"loss": 1.0}], 0),
        ([{"test_mean_ap": 0.1}, {"test_mean_ap": 0.3}, {}, {"test_mean_ap": 0.3}], 2),
        ([{}, {"test_mean_ap": 0.0}], 2),
        ([{"validation_mean_ap": 0.9}, {"test_mean_ap": 0.1}], 2),
    ],
)
def test_the_first_of_the_best_epochs_is_chosen(history, best, tiny, tiny_snapshot, untrained):
    spec = load_checkpoint(untrained)[1].spec
    validation = Validation(tiny_snapshot, spec, TEST, tiny.runtime, "cpu")
    assert validation.best_epoch(history) == best
    # Where the last epoch is reported none is the best, whatever figures there are.
    last = Validation(tiny_snapshot, spec, ValidateConfig(), tiny.runtime, "cpu")
    assert last.best_epoch(history) == 0
