"""Skeleton-only training on a small closed set: people who differ in their proportions, seen in three sessions."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from csip import tables
from csip.config import RuntimeConfig, SkeletonConfig
from csip.errors import CheckpointError, CsipError, TooLittleDataError
from csip.evaluation.embed_skeletons import embed_windows, probe_rank1, scored_windows
from csip.models.checkpoints import (
    CheckpointHeader,
    ModelSpec,
    checkpoint_ref,
    initial,
    load_checkpoint,
    save_checkpoint,
)
from csip.models.skeleton_checkpoints import load_skeleton_checkpoint
from csip.training import skeletons
from csip.training.skeletons import initialise_skeletons, train_skeletons

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = SkeletonConfig(epochs=2, batch_windows=16, learning_rate=3e-3, frames=4, masked_frames=1)
TRANSG = {"encoder": "transg", "transg_width": 16, "transg_layers": 1, "transg_heads": 2, "transg_dropout": 0.1}


@pytest.fixture(scope="module")
def snapshot(make_folder, tmp_path_factory):
    return make_folder("sessions")(tmp_path_factory.mktemp("sessions") / "store")


@pytest.fixture
def begin(tiny, snapshot, out, run):
    """Make a network and the generator of its training."""

    def make(*, snapshot=snapshot, out=out, initial=None, seed=0, save_seconds=120, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        runtime = RuntimeConfig(device="cpu", save_seconds=save_seconds)
        first = run(initialise_skeletons(out, snapshot, config, tiny.model, initial, seed))[1].value
        return train_skeletons(out, first, snapshot, config, seed, runtime)

    return make


@pytest.fixture
def train(begin, run):
    """Train to the end: figures of every epoch but the speed, and the outcome."""

    def end(**changes):
        records, outcome = run(begin(**changes))
        return [{k: v for k, v in r.values.items() if k != "clips_per_second"} for r in records], outcome

    return end


def states(out):
    return sorted((Path(out.store) / "checkpoints").glob("*.state"))


def rank1(snapshot, ref, config=CONFIG):
    network, _ = load_skeleton_checkpoint(ref)
    query, gallery = scored_windows(snapshot, config)
    asked, there = (embed_windows(network, side.skeleton, 64, "cpu") for side in (query, gallery))
    return probe_rank1(asked, query.pid, there, gallery.pid)


@pytest.mark.parametrize(
    "changes",
    [pytest.param({"learning_rate": 1e-3}, id="csip"), pytest.param(TRANSG, id="transg", marks=pytest.mark.slow)],
)
def test_people_are_found_by_their_proportions_after_training_and_not_before(
    make_folder, tmp_path, train, out, run, tiny, changes
):
    sessions = make_folder("sessions")(tmp_path / "long", lengths=(("train", 60), ("query", 24), ("gallery", 24)))
    config = dataclasses.replace(CONFIG, **changes)
    untrained = run(initialise_skeletons(out, sessions, config, tiny.model, None, 1))[1].value
    figures, outcome = train(snapshot=sessions, seed=1, epochs=8, **changes)
    for name in ("loss", "contrast", "reconstruction"):
        values = [one[name] for one in figures]
        assert values[-1] < 0.8 * values[0], name
    # Six people: one in six by chance.
    assert rank1(sessions, untrained, config) < 0.6
    assert rank1(sessions, outcome.value, config) > 0.8
    assert outcome.counts["epoch"] == 8


def left_after_every_record(begin, out, changes):
    """Leave the training after one record more each time, and give what each comes to in the end."""
    records = sum(1 for _ in begin(out=dataclasses.replace(out, store=out.store + "-counted"), **changes))
    for left in range(1, records + 1):
        stage = begin(**changes)
        for _ in range(left):
            next(stage)
        stage.close()
        assert len(states(out)) == 1
        yield begin(**changes)
        states(out)[0].unlink()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="csip"),
        pytest.param({**TRANSG, "shuffle_once": True}, id="transg, shuffled once", marks=pytest.mark.slow),
        pytest.param(
            {"select_on_probe": True, "patience": 1, "epochs": 3}, id="best on the probes", marks=pytest.mark.slow
        ),
    ],
)
def test_a_training_left_after_any_record_comes_to_the_same(begin, out, run, changes):
    changes = {"batch_windows": 200, **changes}  # two batches an epoch
    elsewhere = dataclasses.replace(out, store=out.store + "-whole")
    for store in (elsewhere.store, out.store + "-counted"):
        tables.prepare_store(store)
    records, want = run(begin(out=elsewhere, **changes))
    figures = [dict(r.values) | {"clips_per_second": 0} for r in records]
    for stage in left_after_every_record(begin, out, changes):
        told, found = run(stage)
        assert [dict(r.values) | {"clips_per_second": 0} for r in told] == figures  # to the last bit
        assert found.value.sha256 == want.value.sha256
        assert found.counts == want.counts


def test_prototypes_are_those_of_the_epochs_beginning(begin, out, monkeypatch):
    made = []

    def watch(network, *rest):
        made.append({name: value.clone() for name, value in network.state_dict().items()})
        return plain(network, *rest)

    plain = skeletons._prototypes
    monkeypatch.setattr(skeletons, "_prototypes", watch)
    stage = begin(batch_windows=100)
    next(stage), next(stage)
    stage.close()
    assert len(made) == 1
    # Taken up in the middle of the first epoch: only the second one's are made anew.
    list(begin(batch_windows=100))
    assert len(made) == 2
    assert not torch.equal(made[0]["frame_matrix.weight"], made[1]["frame_matrix.weight"])


def test_prototypes_are_each_persons_mean_over_all_windows_without_flips_or_dropout(snapshot, begin, out):
    begin().close()
    network, header = load_skeleton_checkpoint(untrained_in(out))
    windows = skeletons.read_windows(snapshot, "train", 4)
    label = torch.from_numpy(np.searchsorted(header.spec.pids, windows.pid))
    network.train()
    found = skeletons._prototypes(network, windows, label, CONFIG, "cpu")
    network.eval()
    for k, pid in enumerate(header.spec.pids):
        with torch.no_grad():
            own = [network.embed(torch.from_numpy(one)[None])[0] for one in windows.skeleton[windows.pid == pid]]
        torch.testing.assert_close(found[k], sum(own) / len(own), atol=1e-5, rtol=1e-5)


def untrained_in(out):
    """The network that `begin` made before it trains."""
    (path,) = (Path(out.store) / "checkpoints").glob("initialise_skeletons-*.safetensors")
    return checkpoint_ref(path)


def test_an_epoch_is_steps_of_adam_on_the_documented_loss(snapshot, begin, out, run):
    """One epoch, against the formulas of datasets.md section 10 written out again."""
    changes = {"batch_windows": 128, "epochs": 1, "drop_last": True}
    config = dataclasses.replace(CONFIG, **changes)
    stage = begin(**changes)
    network, header = load_skeleton_checkpoint(untrained_in(out))
    windows = skeletons.read_windows(snapshot, "train", 4)
    stream = skeletons.loop.stream(0, "train_skeletons")
    plan = skeletons._plan(windows.pid, config, stream, 1)
    label = np.searchsorted(header.spec.pids, windows.pid)
    network.eval()
    with torch.no_grad():
        features = network.embed(torch.from_numpy(windows.skeleton))
        prototypes = torch.stack([features[torch.from_numpy(label == k)].mean(dim=0) for k in range(6)])
    network.train()
    adam, losses = torch.optim.Adam(network.parameters(), lr=config.learning_rate), []
    for number, batch in enumerate(plan):
        skeletons.seed_batch(stream, 1, number)
        joints, frames = skeletons.draw_masks(20, 10, 4, 1, np.random.default_rng([stream, 1, number]))
        x, y = torch.from_numpy(windows.skeleton[batch]), torch.from_numpy(label[batch])
        out_ = network(x, joints, frames)
        cosine = F.cosine_similarity(out_.sequence[:, None], prototypes[None], dim=2)
        sequence = F.cross_entropy(cosine / 0.07, y)
        left, right = network.frame_matrix(out_.frame), network.prototype_matrix(prototypes)
        frame = sum(F.cross_entropy(left[:, f] @ right.T / 14, y) for f in range(4))
        contrast = 0.5 * sequence + 0.5 * frame
        error = 0.5 * (out_.structure - x).abs().mean() + 0.5 * (out_.trajectory - x).abs().mean()
        loss = 0.5 * contrast + 0.5 * error
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append([float(one.detach()) for one in (loss, contrast, error)])
    records, outcome = run(stage)
    found = [records[0].values[name] for name in ("loss", "contrast", "reconstruction")]
    assert found == pytest.approx(np.mean(losses, axis=0), rel=1e-4)
    trained = load_skeleton_checkpoint(outcome.value)[0].state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(trained[name], value, atol=2e-4, rtol=1e-3)


def test_the_same_seed_gives_the_same_bytes_whatever_else_draws_and_another_seed_others(train):
    shas = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(shas))
        shas.append(train(seed=seed)[1].value.sha256)
    assert shas[0] == shas[1] != shas[2]


def test_a_path_and_the_number_of_trainings_change_no_checkpoint(train):
    one, other = train(epochs=1)[1], train(epochs=1, initial=None, seeds=5)[1]
    assert one.value.sha256 == other.value.sha256


def test_an_epochs_batches_hold_everybody_as_often_and_change_from_epoch_to_epoch(snapshot):
    pid = skeletons.read_windows(snapshot, "train", 4).pid
    plans = [skeletons._plan(pid, CONFIG, 5, epoch) for epoch in (1, 1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(plans[0], plans[1], strict=True))
    assert not np.array_equal(np.concatenate(plans[0]), np.concatenate(plans[2]))
    # 240 windows are 15 whole batches: 30 rounds of 16 // 6 windows of each of six people.
    drawn = pid[np.concatenate(plans[0])]
    assert np.unique(drawn, return_counts=True)[1].tolist() == [60] * 6
    assert [len(batch) for batch in plans[0]] == [16] * 22 + [8]


def test_published_batches_leave_the_last_one_out_and_stay_the_same(snapshot):
    pid = skeletons.read_windows(snapshot, "train", 4).pid
    config = dataclasses.replace(CONFIG, drop_last=True, shuffle_once=True)
    one, other = (skeletons._plan(pid, config, 5, epoch) for epoch in (1, 2))
    assert [len(batch) for batch in one] == [16] * 22
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_published_reconstruction_is_divided_by_the_batch(train):
    plain, divided = (
        train(epochs=1, drop_last=True, learning_rate=0.0, reconstruction_over_batch=flag)[0][0]
        for flag in (False, True)
    )
    assert divided["reconstruction"] == pytest.approx(plain["reconstruction"] / 16, rel=1e-5)
    assert divided["contrast"] == pytest.approx(plain["contrast"], rel=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_statistics_are_still_zero_and_one_after_training(train, frozen):
    _, outcome = train(epochs=1, bn_frozen_stats=frozen, **TRANSG)
    encoder = load_skeleton_checkpoint(outcome.value)[0].encoder
    for norm in (encoder.norm_attention, encoder.norm_feed_forward):
        untouched = torch.equal(norm.running_mean, torch.zeros(16)) and torch.equal(norm.running_var, torch.ones(16))
        assert untouched == frozen


def test_the_best_epoch_on_the_probes_is_reported_and_patience_ends_the_training(snapshot, train, out):
    figures, outcome = train(epochs=12, select_on_probe=True, patience=2)
    looked = [one["probe_rank1"] for one in figures]
    best = 1 + looked.index(max(looked))
    assert len(looked) == min(12, best + 2)
    assert outcome.counts["epoch"] == best
    assert rank1(snapshot, outcome.value) == pytest.approx(max(looked))
    assert load_skeleton_checkpoint(outcome.value)[1].epoch == best
    kept = list((Path(out.store) / "checkpoints").glob("train_skeletons-*.safetensors"))
    assert [str(path) for path in kept] == [outcome.value.path]


def test_nobody_looks_at_the_probes_unless_asked_to(train, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(skeletons, "scored_windows", refuse)
    figures, outcome = train()
    assert set(figures[0]) == {"loss", "contrast", "reconstruction", "learning_rate"}
    assert outcome.counts["epoch"] == 2


@pytest.mark.parametrize("layout", ["coco17", "h36m17", "kinect20"])
def test_what_is_taken_from_a_checkpoint_and_what_is_not_is_told_and_counted(
    tiny, snapshot, out, run, layout, tmp_path
):
    spec = ModelSpec(model=tiny.model, clip=tiny.clip, layout=layout, cameras=("a",), pids=(1, 2))
    source = save_checkpoint(initial(spec, 1)[0], CheckpointHeader(spec, "stage1", "a" * 64, {}), tmp_path)
    model = dataclasses.replace(tiny.model, width=64)
    records, outcome = run(initialise_skeletons(out, snapshot, CONFIG, model, source, 0))
    anew = {"coco17": {"embed_joint.0", "embed_position"}, "h36m17": {"embed_position"}, "kinect20": set()}[layout]
    assert set(outcome.counts["reinitialised"]) == anew
    assert outcome.counts["resized"] == {"width": "64 -> 32"}
    notes = " ".join(record.note for record in records)
    assert all(f"{name} is drawn anew, since" in notes for name in anew)
    assert "width 64 -> 32" in notes
    network, header = load_skeleton_checkpoint(outcome.value)
    assert (header.parent, header.spec.width, header.spec.layout) == (source.sha256, 32, "kinect20")
    theirs = load_checkpoint(source)[0].skeleton_encoder.state_dict()
    same = {name for name, value in network.encoder.named_parameters() if torch.equal(value, theirs[name])}
    assert {name for name in dict(network.encoder.named_parameters()) if name.rpartition(".")[0] not in anew} == same


def test_from_scratch_it_says_so_and_counts_people_and_windows(tiny, snapshot, out, run):
    records, outcome = run(initialise_skeletons(out, snapshot, CONFIG, tiny.model, None, 0))
    assert any(record.note == "Skeleton encoder (csip): all its weights are drawn anew." for record in records)
    # Six people of 24 frames: a window of four from each of the first 21, and another but from the first two.
    assert (outcome.counts["train_people"], outcome.counts["train_windows"]) == (6, 6 * (21 + 19))
    assert load_skeleton_checkpoint(outcome.value)[1].spec.pids == (0, 3, 4, 7, 11, 12)


def test_transg_takes_no_checkpoint(tiny, snapshot, out, run, untrained):
    config = dataclasses.replace(CONFIG, **TRANSG)
    with pytest.raises(CheckpointError, match=r"found this method's skeleton encoder in it, expected transg's"):
        run(initialise_skeletons(out, snapshot, config, tiny.model, untrained, 0))


def test_a_network_for_other_people_or_windows_is_refused(tiny, snapshot, out, run, make_folder, tmp_path):
    other = make_folder("sessions")(tmp_path / "other", people=(1, 2, 3), name="other")
    first = run(initialise_skeletons(out, snapshot, CONFIG, tiny.model, None, 0))[1].value
    runtime = RuntimeConfig(device="cpu")
    with pytest.raises(CheckpointError, match=r"people: found \(1, 2, 3\), expected 6 \(\(0, 3, 4, 7, 11\)\.\.\.\)"):
        run(train_skeletons(out, first, other, CONFIG, 0, runtime))
    wider = dataclasses.replace(CONFIG, frames=5)
    with pytest.raises(CheckpointError, match=r"frames a window: found 5, expected 4"):
        run(train_skeletons(out, first, snapshot, wider, 0, runtime))


def test_too_few_windows_for_a_batch_are_refused(begin, run):
    with pytest.raises(TooLittleDataError, match=r"found 240 windows of 6 people, expected at least one batch of 256"):
        run(begin(batch_windows=256))


def test_one_person_is_too_few(tiny, out, run, make_folder, tmp_path):
    alone = make_folder("sessions")(tmp_path / "alone", people=(1,), name="alone")
    with pytest.raises(TooLittleDataError, match="of 1 people to train on, expected at least 2"):
        run(initialise_skeletons(out, alone, CONFIG, tiny.model, None, 0))


def test_a_loss_that_is_no_number_names_the_tracklets(begin, run, monkeypatch):
    monkeypatch.setattr(skeletons, "prototype_contrast", lambda *_, **__: torch.tensor(float("nan")))
    message = r"train_skeletons, epoch 1: found loss nan, contrast nan, expected numbers.*train-0"
    with pytest.raises(CsipError, match=message):
        run(begin())
