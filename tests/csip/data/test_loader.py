import multiprocessing
import os
import signal

import pytest
import torch

from csip import tables
from csip.data.clips import ClipDataset, identity_requests, label_of_pid, read_parts
from csip.data.loader import READ_AHEAD, ClipLoader
from csip.errors import StageError, StoreError


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in one.__slots__)


def workers():
    return sorted(child.pid for child in multiprocessing.active_children())


@pytest.fixture(scope="module")
def train(tiny, tiny_snapshot):
    parts = read_parts(tiny_snapshot, "train")
    return ClipDataset(tiny_snapshot, parts, tiny.clip, label_of_pid(parts))


@pytest.fixture(scope="module")
def plans(train):
    return [identity_requests(train, 2, 2, seed=3, epoch=epoch) for epoch in (1, 2, 3)]


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_any_number_of_workers_gives_the_same_batches_and_lives_through_all_plans(train, plans, count):
    with ClipLoader(train, 0) as here, ClipLoader(train, count) as there:
        seen = []
        for plan in plans:
            batches = list(there.load(plan))
            assert len(batches) == len(plan) > 1
            assert all(same(one, other) for one, other in zip(here.load(plan), batches, strict=True))
            # In the order planned.
            assert [batch.part.tolist() for batch in batches] == [[r.part for r in requests] for requests in plan]
            seen.append(workers())
        assert len(seen[0]) == count
        assert seen[0] == seen[1] == seen[2]
    assert workers() == []


def test_a_plan_is_read_ahead_some_batches_a_call_and_no_further(train, plans, monkeypatch):
    asked = []
    take = tables.Rows.take
    monkeypatch.setattr(tables.Rows, "take", lambda self, *args: asked.append(None) or take(self, *args))
    plan = (plans[0] * READ_AHEAD)[: READ_AHEAD + 1]
    calls = []
    with ClipLoader(train, 0) as loader:
        for batch, requests in zip(loader.load(plan), plan, strict=True):
            assert same(batch, train.decode_batch(train.read_batches([requests])[0]))
            calls.append(len(asked) - len(calls) - 1)  # without those of the line above
    assert calls == [1] * READ_AHEAD + [2]


@pytest.mark.parametrize("count", [0, 1])
def test_a_plan_can_be_left_in_the_middle_and_another_begun(train, plans, count):
    with ClipLoader(train, count) as loader:
        left = loader.load(plans[0])
        next(left)
        batches = list(loader.load(plans[1]))
        assert [batch.part.tolist() for batch in batches] == [[r.part for r in requests] for requests in plans[1]]
        with pytest.raises(ValueError, match="asked for more of a plan after another was begun"):
            next(left)
        for _ in loader.load(plans[0]):
            break
        assert len(list(loader.load(plans[2]))) == len(plans[2])


@pytest.mark.slow
def test_an_exception_in_the_loop_ends_the_workers(train, plans):
    def epoch():
        with ClipLoader(train, 1) as loader:
            yield from loader.load(plans[0])

    def fail():
        for _ in epoch():
            assert len(workers()) == 1
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert workers() == []
    # A generator that is closed where it waits.
    batches = epoch()
    next(batches)
    assert len(workers()) == 1
    batches.close()
    assert workers() == []


@pytest.fixture
def damaged(tiny, tiny_store):
    """Two parts; a crop of the first is no picture."""
    where = "tracklet_id = 'p4-a' AND frame_index = 12"
    row = tables.read(tables.pinned(tiny_store, "crops"), where=where).to_pylist()[0]
    tiny_store.tables["crops"] = tables.upsert(
        tiny_store.store, "crops", tables.from_rows("crops", [row | {"image": b"nothing"}])
    ).version
    parts = [p for p in read_parts(tiny_store, "train") if p.tracklet_id in ("p4-a", "p100-a")]
    return ClipDataset(tiny_store, parts[::-1], tiny.clip)


@pytest.mark.parametrize("count", [0, 1])
def test_an_error_in_a_worker_is_the_one_that_is_raised_here(damaged, count):
    from csip.data.clips import ClipRequest

    bad, good = ([ClipRequest(part, (0, 1, 2, 3), False, 0)] for part in (0, 1))
    with ClipLoader(damaged, count) as loader:
        batches = loader.load([good, bad, good])
        next(batches)
        with pytest.raises(StoreError, match=r"^Crop p4-a/12: 7 bytes that are no JPEG or PNG, or not a whole one\. E"):
            next(batches)
        # The loader itself is unharmed.
        assert len(list(loader.load([good, good]))) == 2


# PyTorch raises from its handler of the death's signal, now and then inside a destructor, where Python can only warn.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_dies_is_said(train, plans):
    with ClipLoader(train, 1) as loader:
        batches = loader.load(plans[0] * 50)
        next(batches)
        os.kill(workers()[0], signal.SIGKILL)
        with pytest.raises(StageError, match=r"reads training clips died .*lower runtime\.workers"):
            list(batches)
    assert workers() == []
