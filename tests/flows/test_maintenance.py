"""`csip snapshots`, `verify`, `diff` and `gc` on stores that `csip` itself has filled."""

import base64
import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from csip import tables


def published(store):
    """Everything that a reader of a store's snapshots sees."""
    out = {}
    for row in tables.read(tables.current(store, "snapshots")).to_pylist():
        snapshot = tables.open_snapshot(store, row["name"])
        pinned = {name: tables.read(tables.pinned(snapshot, name)).to_pylist() for name in snapshot.tables}
        out[row["name"]] = (row, pinned)
    return out


def settled(command, store, *words):
    """Clean up until nothing is left to do; what the first time did."""
    told = []
    for _ in range(4):
        dry = json.loads(command("gc", "--store", store, "--older-than", "0", "--dry-run", "--json", *words).out)
        done = command("gc", "--store", store, "--older-than", "0", "--json", *words)
        assert done.code == 0, done.err
        told.append(json.loads(done.out))
        assert {**told[-1], "dry_run": True} == dry
        words = ()
    assert told[-1]["bytes"] == 0
    assert told[-1]["tables"] == {}
    return told[0]


def test_a_built_store_is_whole_and_a_build_after_a_gc_has_nothing_to_do(command, own_store, street, settings, built):
    before = published(str(own_store))
    listed = json.loads(command("snapshots", "--store", own_store, "--json").out)["snapshots"]
    assert [one["name"] for one in listed] == [built.snapshot]
    assert listed[0]["tables"] == built.told["tables"]
    assert listed[0]["counts"] == built.told["counts"]
    found = command("verify", "--store", own_store, "--deep", "--json")
    assert (found.code, json.loads(found.out)["findings"]) == (0, [])
    settled(command, own_store)
    assert published(str(own_store)) == before
    assert command("verify", "--store", own_store, "--deep").code == 0
    again = command("build-skeletons", street, "--store", own_store, "--json", *settings.extract)
    assert again.code == 0, again.err
    assert json.loads(again.out)["snapshot"] == built.snapshot
    assert json.loads(again.out)["listed"]["already_extracted"] == 1
    assert published(str(own_store)) == before


def test_a_gc_keeps_all_that_a_training_left(command, demo, settings, tmp_path):
    store = Path(shutil.copytree(demo.store, tmp_path / "store"))
    found = json.loads(command("verify", "--store", store, "--json").out)
    assert [one for one in found["findings"] if one["kind"] == "fault"] == []
    before = published(str(store))
    runs = tables.find_runs(str(store), "true")
    scores = tables.read(tables.current(str(store), "results")).to_pylist()
    files = {p.name for p in (store / "checkpoints").iterdir()} | {p.name for p in (store / "reports").iterdir()}
    settled(command, store)
    assert published(str(store)) == before
    assert tables.find_runs(str(store), "true") == runs
    assert tables.read(tables.current(str(store), "results")).to_pylist() == scores
    assert {p.name for p in (store / "checkpoints").iterdir()} | {
        p.name for p in (store / "reports").iterdir()
    } == files
    assert json.loads(command("verify", "--store", store, "--json").out) == {**found, "store": str(store)}
    refused = command("gc", "--store", store, "--drop", demo.snapshot)
    assert refused.code == 1
    assert f"csip gc: Store {store}: the snapshot {demo.snapshot} cannot be dropped" in refused.err


@pytest.mark.slow
def test_other_settings_do_not_make_a_store_larger_for_good(command, own_store, street, settings, built):
    size = lambda: sum(path.stat().st_size for path in (own_store / "crops.lance" / "data").iterdir())  # noqa: E731
    before = size()
    retracked = command(
        "build-skeletons", "--retrack", built.snapshot, "--store", own_store, "--json", "--set", "track.min_seconds=0.5"
    )
    assert retracked.code == 0, retracked.err
    new = json.loads(retracked.out)["snapshot"]
    assert size() > 1.5 * before
    words = ["gc", "--store", own_store, "--older-than", "0"]
    told = command(*words, "--drop", built.snapshot).out
    assert "1 given back, which a build does again" in told
    assert f"{new}" in told
    assert "moved to newer versions, with the same rows" in told
    for _ in range(4):
        assert command(*words).code == 0
    assert size() < 1.2 * before
    assert command("verify", "--store", own_store, "--deep").code == 0
    again = command("build-skeletons", street, "--store", own_store, "--json", *settings.extract)
    assert again.code == 0, again.err
    assert json.loads(again.out)["snapshot"] == built.snapshot
    assert json.loads(again.out)["counts"] == built.told["counts"]
    assert command("verify", "--store", own_store, "--deep").code == 0


def test_verify_ends_with_1_where_there_is_a_fault_and_says_where(command, own_store, built):
    whole = command("verify", "--store", own_store)
    assert whole.code == 0
    assert f"Nothing wrong: all snapshots, runs and files of {own_store}." in whole.out
    pinned = tables.pinned(tables.open_snapshot(str(own_store), built.snapshot), "skeletons")
    for path in Path(pinned.uri, "data").glob("*.lance"):
        path.unlink()
    broken = command("verify", "--store", own_store)
    assert broken.code == 1
    assert "Faults (1)" in broken.out
    assert f"{built.snapshot} skeletons" in broken.out
    assert broken.err == ""
    told = json.loads(command("verify", built.snapshot, "--store", own_store, "--json").out)
    assert (told["faults"], told["findings"][0]["where"]) == (1, "skeletons")


@pytest.mark.slow
def test_a_diff_shows_settings_counts_parts_and_rows(command, tmp_path):
    store = tmp_path / "store"
    words = ["build-skeletons", "walkers:", "--store", store, "--json", "--set", "walkers.frames=3"]
    words += ["--set", "walkers.people=4", "--set", "walkers.twins=1", "--set", "walkers.cameras=2"]
    names = []
    for seed in ("1", "2"):
        done = command(*words, "--set", f"walkers.seed={seed}")
        assert done.code == 0, done.err
        names.append(json.loads(done.out)["snapshot"])
    shown = command("diff", *names, "--store", store)
    assert shown.code == 0, shown.err
    assert "walkers.seed" in shown.out
    assert "1 -> 2" in shown.out
    told = json.loads(command("diff", *names, "--store", store, "--json").out)
    assert told["settings"] == {"walkers.seed": [1, 2]}
    assert told["tables"]["tracklets"]["only_a"] == told["tables"]["tracklets"]["rows"][0] > 0
    alike = " ".join(command("diff", names[0], names[0], "--store", store).out.split())
    assert alike.startswith("The same in both: ")
    assert f"tracklets ({told['tables']['tracklets']['rows'][0]} rows)" in alike
    listed = command("snapshots", "--store", store).out
    assert all(name in listed for name in names)
    gone = settled(command, store, "--drop", names[0])
    assert gone["dropped"] == [names[0]]
    assert json.loads(command("verify", "--store", store, "--deep", "--json").out)["faults"] == 0
    assert list(published(str(store))) == [names[1]]


def test_a_gc_says_in_words_what_it_has_done_and_left(command, tmp_path):
    store = tmp_path / "store"
    tables.prepare_store(str(store))
    assert "No snapshot is published" in command("snapshots", "--store", store).out
    metric = {"run_id": "r", "name": "loss", "stage": "s", "value": 0.5}
    for step in range(3):
        tables.upsert(str(store), "metrics", tables.from_rows("metrics", [metric | {"step": step}]))
    (store / "checkpoints").mkdir()
    (store / "checkpoints" / ".x.part").write_bytes(b"x" * 1500)
    time.sleep(0.01)
    told = command("gc", "--store", store, "--older-than", "0", "--dry-run").out
    assert "nothing was changed" in told
    assert command("gc", "--store", store, "--older-than", "0", "--detections", "--dry-run").out == told
    done = command("gc", "--store", store, "--older-than", "0").out
    assert "3 fragments merged" in done
    assert "checkpoints/.x.part" in done
    assert "1.5 kB" in done
    assert told.splitlines()[1:] == done.splitlines()[1:]
    (store / "checkpoints" / ".y.part").write_bytes(b"y")
    assert "Left: 1 unfinished files or states of trainings" in command("gc", "--store", store).out


@pytest.mark.parametrize("days", ["-1", "soon", "inf", "nan", "1e9"])
def test_an_age_that_is_none_is_wrong_usage(command, tmp_path, days):
    done = command("gc", "--store", tmp_path, f"--older-than={days}")
    assert done.code == 2
    assert "--older-than" in done.err


def test_forgetting_asks_first_and_removes_a_person_and_a_film_of_a_built_store(
    command, own_store, street, built, monkeypatch
):
    splits = tables.read(tables.current(str(own_store), "splits"), ["pid"])
    person, name = splits["pid"][0].as_py(), splits["tracklet_id"][0].as_py()
    where = f"tracklet_id = '{name}'"
    seen = tables.read(tables.current(str(own_store), "tracklets"), ["interpolated_frames"], where)
    words = ("forget", "--store", own_store, "--snapshot", built.snapshot, "--pid", person)
    before = {path: path.read_bytes() for path in own_store.rglob("*") if path.is_file()}
    told = command(*words, "--dry-run")
    assert (told.code, "nothing was changed" in told.out, "provisional" in told.out) == (0, True, True)
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    assert command(*words).code == 1
    assert {path: path.read_bytes() for path in own_store.rglob("*") if path.is_file()} == before
    done = command(*words, "--yes", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    assert rows["crops"] == rows["skeletons"] > 0
    # Crops are cut out where the pose model saw somebody, and between; a weak detection may lie there, too.
    assert rows["detections"] >= rows["crops"] - seen["interpolated_frames"][0].as_py() > 0
    assert [path for path in own_store.rglob("*") if path.is_file() and name.encode() in path.read_bytes()] == []
    assert command("verify", "--store", own_store, "--deep").code == 0
    assert "Nothing to do: all of it was forgotten" in command(*words, "--yes").out
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    assert command("forget", "--store", own_store, "--video", street).code == 0
    assert [path for path in own_store.rglob("*") if path.is_file() and b"street.mp4" in path.read_bytes()] == []
    assert len(tables.read(tables.current(str(own_store), "detections"))) == 0
    assert command("verify", "--store", own_store, "--deep").code == 0


def holding(store, *traces):
    """The files of a store that hold one of some texts or bytes, checkpoints left out: those are told."""
    files = [path for path in store.rglob("*") if path.is_file() and path.parent.name != "checkpoints"]
    return [path for path in files if any(trace in path.read_bytes() for trace in traces)]


def test_nothing_but_checkpoints_is_left_of_a_forgotten_person_after_a_training(command, demo, tmp_path):
    store = Path(shutil.copytree(demo.store, tmp_path / "store"))
    parts = tables.read(tables.current(str(store), "splits"), ["role"]).to_pylist()
    names = [next(part["tracklet_id"] for part in parts if part["role"] == role) for role in ("train", "query")]
    where = tables.any_of("tracklet_id", names)
    pictures = tables.read(tables.current(str(store), "crops"), ["image"], where)["image"].to_pylist()
    vectors = [
        np.array(row, np.float32).tobytes()
        for table in ("embeddings", "frame_features")
        for row in tables.read(tables.current(str(store), table), ["feature"], where)["feature"].to_pylist()
    ]
    boxes = {tuple(box) for box in tables.read(tables.current(str(store), "crops"), ["box"], where)["box"].to_pylist()}
    raw = [one[len(one) // 2 :][:60] for one in pictures]
    # As a page has them: three places for each four letters of a picture's own code.
    coded = [base64.b64encode(one[300:420]) for one in pictures]
    traces = [*(name.encode() for name in names), *raw, *coded, *(one[:64] for one in vectors)]
    kinds = {path.relative_to(store).parts[0] for path in holding(store, *traces)}
    assert {"crops.lance", "embeddings.lance", "frame_features.lance", "reports"} <= kinds
    words = [word for name in names for word in ("--tracklet", name)]
    done = command("forget", "--store", store, *words, "--yes", "--json")
    assert done.code == 0, done.err
    assert holding(store, *traces) == []
    left = {tuple(box) for box in tables.read(tables.current(str(store), "detections"), ["box"])["box"].to_pylist()}
    assert not boxes & left
    # Those of the networks that were trained on one of them, and where their trainings were.
    trained = {path.name for path in (store / "checkpoints").iterdir() if not path.name.startswith("initialise")}
    assert trained <= {Path(path).name for path in json.loads(done.out)["trained"]}
    found = command("verify", "--store", store, "--deep", "--json")
    assert [one for one in json.loads(found.out)["findings"] if one["kind"] == "fault"] == []


def test_whom_to_forget_is_named_in_one_way(command, own_store):
    assert command("forget", "--store", own_store, "--pid", "3").code == 2
    assert command("forget", "--store", own_store, "--tracklet", "a", "--video", "b").code == 2
    assert command("forget", "--store", own_store).code == 2
    done = command("forget", "--store", own_store, "--tracklet", "nobody", "--yes")
    assert (done.code, "found no tracklet nobody" in done.err) == (1, True)
