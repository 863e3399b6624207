"""`csip forget`, as it is typed."""

import json

from csip import tables


def test_a_person_is_forgotten_and_a_dry_run_tells_the_same(command, tiny, tmp_path):
    store = str(tmp_path / "store")
    tiny.publish(store, (tiny.Walk("a", 4, 0, "train", (1, 2, 3)), tiny.Walk("b", 7, 1, "gallery", (0, 1))), "whole")
    words = ["forget", "--store", store, "--pid", "4", "--snapshot", "whole"]
    told = json.loads(command(*words, "--dry-run", "--json").out)
    assert (told["counts"]["crops"], told["bytes"]) == (3, 0)
    done = command(*words, "--yes", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["counts"] == told["counts"]
    assert set(tables.read(tables.current(store, "crops"), [])["tracklet_id"].to_pylist()) == {"b"}
    assert "has no person 4" in command(*words, "--yes").err


def test_a_pid_needs_its_snapshot(command, tmp_path):
    told = command("forget", "--store", tmp_path, "--pid", "1")
    assert told.code == 2
    assert "--pid and --snapshot go together" in told.err
