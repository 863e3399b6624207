"""A training that is left at any batch goes on exactly from there, or says why it cannot."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from csip.errors import CheckpointError
from csip.training.state import seed_batch
from csip.types import TableRef

pytestmark = pytest.mark.usefixtures("one_thread")
STAGES = ("pretrain_visual", "stage1", "stage2")
# Two batches an epoch, or four (the last of them of one clip alone at times); each setting's two epochs.
SETTINGS = {
    "pretrain_visual": ("pretrain_visual", {}),
    "stage1": ("stage1", {}),
    "stage1, three batches a step": ("stage1", {"accumulate": 3}),
    "stage2": ("stage2", {}),
    "stage2, two batches a step": ("stage2", {"accumulate": 2}),
    "stage2, every epoch kept": ("stage2", {"keep_every": 1}),
}


def states(out):
    return sorted((Path(out.store) / "checkpoints").glob("*.state"))


def same(one, other):
    assert one.epochs == other.epochs
    assert one.figures == other.figures  # to the last bit
    assert one.sha == other.sha
    assert one.counts == other.counts


@pytest.fixture
def elsewhere(tmp_path, out):
    """Another store, so that nothing is shared with what is compared."""
    return dataclasses.replace(out, store=str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_training_left_after_any_record_comes_to_the_same(begin, finish, elsewhere, out, setting):
    name, changes = SETTINGS[setting]
    want = finish(begin(name, out=elsewhere, **changes))
    Path(want.outcome.leftovers[0]).unlink()
    records = sum(1 for _ in begin(name, out=elsewhere, **changes))
    assert records >= 6
    for left in range(1, records + 1):
        stage = begin(name, **changes)
        for _ in range(left):
            next(stage)
        assert states(out) == []
        stage.close()
        (state,) = states(out)
        found = finish(begin(name, **changes))
        same(found, want)
        assert found.outcome.leftovers == (str(state),)
        state.unlink()


@pytest.mark.parametrize("setting", ["stage1, three batches a step", "stage2, two batches a step"])
def test_a_training_left_after_every_single_batch_comes_to_the_same(begin, finish, elsewhere, setting):
    name, changes = SETTINGS[setting]
    want = finish(begin(name, out=elsewhere, **changes))
    starts = 0
    while True:
        stage = begin(name, **changes)
        done = next((record for record in stage if not record.values), None)  # past the epochs that are told again
        if done is None:
            break
        stage.close()
        starts += 1
    assert starts >= 4
    same(finish(begin(name, **changes)), want)


@pytest.mark.parametrize("name", STAGES)
def test_a_finished_epoch_is_told_again_as_if_it_were_new(begin, name):
    stage = begin(name)
    told = []
    while len(told) < 1:
        record = next(stage)
        told += [record] if record.values else []
    next(stage)
    stage.close()
    again = next(begin(name))
    assert again == told[0]
    assert (again.stage, again.done, again.total, again.unit) == (name, 1, 2, "epochs")


# Stage 1 says nothing after a batch in which no clip has a skeleton.
@pytest.mark.parametrize("name", ["pretrain_visual", "stage2"])
def test_how_far_an_epoch_is_is_told_after_every_batch(begin, name):
    told = [record for record in begin(name) if record.done == 0]
    # Of equal steps, up to the whole of the first epoch.
    assert [record.part for record in told] == [(batch + 1) / len(told) for batch in range(len(told))]
    assert len(told) > 1
    assert not any(record.values for record in told)


def test_no_state_lies_there_before_there_is_something_to_save(begin, out):
    stage = begin("stage2")
    stage.close()
    assert states(out) == []


def test_a_state_is_written_as_often_as_the_runtime_says(begin, out):
    seldom = begin("stage2")
    next(seldom)
    assert states(out) == []
    often = begin("stage2", save_seconds=0)
    next(often)
    (state,) = states(out)
    first = state.read_bytes()
    next(often)
    with safe_open(str(state), framework="pt") as file:
        told = json.loads(file.metadata()["csip-training-1"])
    # The second batch ended the first epoch's plan; the epoch itself is closed after it was saved.
    assert (told["at"]["epoch"], told["at"]["batch"], told["at"]["clips"]) == (1, 2, 8)
    assert state.read_bytes() != first
    seldom.close()


def test_an_error_leaves_the_last_state_as_it_was(begin, out):
    stage = begin("stage2", save_seconds=0)
    next(stage)
    (state,) = states(out)
    before = state.read_bytes()
    with pytest.raises(RuntimeError, match="out of memory"):
        stage.throw(RuntimeError("out of memory"))
    assert state.read_bytes() == before
    assert list(state.parent.glob(".*")) == []


@pytest.mark.parametrize("name", STAGES)
def test_another_seed_rate_or_snapshot_is_another_training(begin, finish, out, elsewhere, tiny_snapshot, name):
    stage = begin(name)
    next(stage)
    stage.close()
    other = finish(begin(name, learning_rate=2e-3))
    same(other, finish(begin(name, learning_rate=2e-3, out=elsewhere)))
    assert len(states(out)) == 2
    assert other.sha != finish(begin(name)).sha


def test_what_a_killed_writer_left_half_done_is_swept_up(begin, out):
    stage = begin("stage1")
    next(stage)
    stage.close()
    (state,) = states(out)
    left = state.parent / f".{state.name}-12345.part"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    # On another machine somebody does the same training, and writes just now.
    writing = state.parent / f".{state.name}-67890.part"
    writing.write_bytes(b"half")
    others = state.parent / ".stage9-abc.state-12345.part"
    others.write_bytes(b"another training's")
    next(begin("stage1"))
    assert not left.exists()
    assert writing.exists()
    assert others.exists()


@pytest.mark.parametrize("name", STAGES)
def test_two_that_do_one_training_at_once_come_to_the_same(begin, finish, elsewhere, name):
    """As where a run was taken for lost, lives, and was given to another machine."""
    want = finish(begin(name, out=elsewhere))
    Path(want.outcome.leftovers[0]).unlink()
    both = [begin(name, save_seconds=0) for _ in range(2)]
    next(both[0])
    next(both[0])
    next(both[1])  # takes up what the first has saved, and both save over each other from here on
    next(both[0])
    next(both[1])
    for found in map(finish, both):
        assert (found.sha, found.counts) == (want.sha, want.counts)


@pytest.fixture
def left(begin, out):
    """Leave a training in its second epoch: the state's file."""

    def leave(name, **changes):
        stage = begin(name, **changes)
        for record in stage:
            if record.values:
                break
        next(stage)
        stage.close()
        (state,) = states(out)
        return state

    return leave


@pytest.mark.parametrize("keep", [0, 7, 0.5, -1])
@pytest.mark.parametrize("name", STAGES)
def test_a_truncated_state_is_refused_before_any_batch(begin, left, name, keep):
    state = left(name)
    content = state.read_bytes()
    state.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else keep])
    message = rf"(?s){name}: the state .* cannot be read .* Remove the file to train from the start: .*{state.name}"
    with pytest.raises(CheckpointError, match=message):
        next(begin(name))
    assert state.is_file(), "the user removes it, not we"


@pytest.mark.parametrize("name", STAGES)
def test_a_state_of_other_tables_is_refused_before_any_batch(begin, left, tiny_snapshot, name):
    state = left(name)
    version = tiny_snapshot.tables["videos"]
    tables = {**tiny_snapshot.tables, "videos": version + 1}
    message = rf"(?s){name}: .*read other inputs than this one \(tables: found .*, expected .*{state.name}"
    with pytest.raises(CheckpointError, match=message):
        next(begin(name, snapshot=dataclasses.replace(tiny_snapshot, tables=tables)))


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_a_state_of_other_features_is_refused_before_any_batch(begin, left, tiny_features, name, monkeypatch):
    state = left(name)
    older = TableRef(tiny_features.uri, tiny_features.version - 1)
    # Stage 1 looks at the features before the state; here they are the same ones under another version.
    monkeypatch.setattr(f"csip.training.{name}.read_features", lambda *_: [torch.zeros(20, 32)] * 9)
    message = rf"features: found {tiny_features.version}, expected {older.version}\).*{state.name}"
    with pytest.raises(CheckpointError, match=message):
        next(begin(name, features=older))


def rewrite(state, change):
    with safe_open(str(state), framework="pt") as file:
        header = json.loads(file.metadata()["csip-training-1"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, state, {"csip-training-1": json.dumps(header)})


def first_moment(tensors):
    return next(name for name in sorted(tensors) if name.startswith("exp_avg."))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: header["at"].update(epochs=3), "does not fit .*epochs"),
        (lambda header, tensors: header["at"].update(epoch="two"), "does not fit .*epoch"),
        (lambda header, tensors: header["scaler"].pop("pending"), "does not fit .*pending"),
        (lambda header, tensors: tensors.pop("network.projection.weight"), r"does not fit .*projection\.weight"),
        (lambda header, tensors: tensors.update({"network.more": torch.ones(1)}), "does not fit .*more"),
        (lambda header, tensors: tensors.update({first_moment(tensors): torch.ones(3)}), "does not fit .*moments of"),
        (lambda header, tensors: tensors.pop(first_moment(tensors)), "does not fit .*exp_avg"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_any_batch(begin, left, change, message):
    state = left("stage1")
    rewrite(state, change)
    with pytest.raises(CheckpointError, match=rf"(?s)stage1: the state that was left {message}.*{state.name}"):
        next(begin("stage1"))


def test_a_state_of_another_program_is_refused_before_any_batch(begin, left):
    state = left("stage1")
    save_file({"weight": torch.ones(2)}, state)
    with pytest.raises(
        CheckpointError, match=rf"(?s)stage1: the state .* cannot be read .*csip-training-1.*{state.name}"
    ):
        next(begin("stage1"))


def test_a_state_that_other_code_wrote_is_not_gone_on_from(begin, finish, left, elsewhere, caplog):
    want = finish(begin("stage1", out=elsewhere))
    state = left("stage1")
    # Weights that no training would come to, were they read.
    rewrite(
        state, lambda header, tensors: [header.update(source="0" * 64), tensors["network.projection.weight"].zero_()]
    )
    same(finish(begin("stage1")), want)
    assert "stage1: the code has changed since the training was left; it starts over." in caplog.text


def test_a_state_that_the_first_process_alone_sees_is_waited_for_and_refused(begin, monkeypatch):
    """Processes that begin at different places wait for each other in different collectives."""
    monkeypatch.setattr("csip.training.state.ranks.from_first", lambda _: torch.tensor(1))
    monkeypatch.setattr("csip.training.state._SECONDS_TO_SHOW", 0.5)
    with pytest.raises(CheckpointError, match=r"\.state: found no such file in process 0, expected the state that the"):
        next(begin("stage1"))


def test_the_chance_of_a_batch_follows_from_its_place_alone():
    def draw(*place):
        seed_batch(*place)
        return torch.rand(4).tolist()

    first = draw(1, 2, 3)
    torch.rand(100)
    assert draw(1, 2, 3) == first
    assert len({tuple(draw(*place)) for place in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 23, 3))}) == 5
