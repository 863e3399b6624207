"""`csip ablate walkers` in a small form: every row from two seeds, what they share trained once, figures in a table."""

import json

import pytest

from csip import tables
from csip.config import RuntimeConfig
from csip.plain import from_plain
from csip.types import ResultsRef
from flows.ablate_csip import ROWS, side_by_side
from flows.results import result_values

SMALL = ("walkers.people=8", "walkers.cameras=2", "walkers.frames=8", "walkers.seed=3")


def stages(store):
    return sorted(run.stage for run in tables.find_runs(str(store), "seconds >= 0"))


@pytest.fixture
def ablate(command, settings, tmp_path):
    """Run the command on a store of one's own: its exit code and output, and the store."""
    store = tmp_path / "store"

    def run(*words, sets=()):
        small = (*settings.small, *settings.sets((*SMALL, *sets)))
        return command("ablate", "walkers", "--store", store, *words, *small), store

    return run


def test_the_rows_are_those_of_the_method():
    switches = {letter: (row.prototypes, row.temporal, row.aligned) for letter, row in ROWS.items()}
    assert switches == {
        "a": ("none", False, False),
        "b": ("fixed", False, False),
        "c": ("fixed", False, True),
        "d": ("pfu", False, True),
        "e": ("pfu", True, True),
        "f": ("pfu", True, False),
    }


def test_a_letter_that_is_no_row_is_wrong_usage(ablate):
    done, _ = ablate("--rows", "abx")
    assert done.code == 2
    assert "--rows abx: found letters other than those of the table: abcdef" in done.err


@pytest.mark.parametrize(
    ("device", "asked", "set_before", "expected"),
    [
        # Eight cores: one training each, or 8 // 3 threads for each of three, and never none.
        ("cpu", 0, {}, (8, 8, 1)),
        ("cpu", 3, {}, (3, 3, 2)),
        ("cpu", 20, {}, (20, 20, 1)),
        ("cpu", 2, {"threads": 5, "per_device": 4}, (2, 4, 5)),
        ("cuda:0", 0, {}, (1, 1, 0)),
        ("cuda:0", 2, {}, (2, 2, 0)),
    ],
)
def test_trainings_side_by_side_share_the_machine(monkeypatch, device, asked, set_before, expected):
    monkeypatch.setattr("os.process_cpu_count", lambda: 8, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    runtime, trainings = side_by_side(RuntimeConfig(device=device, **set_before), asked)
    assert (trainings, runtime.per_device, runtime.threads) == expected


@pytest.mark.slow
def test_six_rows_from_two_seeds_share_what_they_can_and_run_once(ablate):
    done, store = ablate("--seeds", "2", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["seeds"] == [0, 1]
    assert set(told["scores"]) == {*"abcdef", "untrained", "hsv-histogram"}
    assert set(told["rows"]) == set("abcdef")
    for row in "abcdef":
        assert {"mean_ap", "rank-1", "twins/mean_ap", "twins/rank-1"} <= set(told["scores"][row])
        assert told["scores"][row]["mean_ap"]["n"] == 2
        assert 0 < told["scores"][row]["mean_ap"]["mean"] <= 1
    # The histogram knows no seed.
    assert told["scores"]["hsv-histogram"]["mean_ap"]["std"] == 0
    assert set(told["retrieval"]) == {"before stage 1", "after stage 1"}
    ran = stages(store)
    shared = ["initialise", "pretrain_visual", "stage1", "evaluate"]
    assert [ran.count(name) for name in shared] == [2, 2, 2, 2]
    assert ran.count("stage2") == 12
    assert ran.count("retrieve") == 4
    # The mean is that of the seeds' own results.
    evaluations = sorted(tables.find_runs(str(store), "stage = 'evaluate'"), key=lambda run: run.started)
    results = [result_values(from_plain(ResultsRef, run.outputs)) for run in evaluations]
    for row in "ae":
        own = [one[row]["mean_ap"] for one in results]
        assert told["scores"][row]["mean_ap"]["mean"] == pytest.approx(sum(own) / 2)
    # Again: only what looks again each time runs.
    done, store = ablate("--seeds", "2")
    assert done.code == 0, done.err
    again = stages(store)
    assert again.count("stage2") == 12
    assert again.count("pretrain_visual") == 2
    lines = done.out.splitlines()
    assert any("e" in line.split()[:1] and "the whole method" in line and "±" in line for line in lines)
    assert any("twins mAP" in line for line in lines)
    assert any("after stage 1" in line for line in lines)


@pytest.mark.slow
def test_what_failed_first_says_why(ablate):
    # Stage 1 cannot fill a batch; everything behind it fails for want of it, and is not what the user is told.
    done, _ = ablate("--seeds", "1", sets=("stage1.batch_clips=1000", "stage1.drop_last=true"))
    assert done.code == 1
    assert "csip ablate: Stage 1 pairs skeletons with pictures" in done.err
    assert "Traceback" not in done.err
