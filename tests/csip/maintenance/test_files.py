"""What runs left is compared with what they say, and what nothing names is told."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import lance

from csip import tables
from csip.maintenance.verify import verify
from csip.tables import table_uri
from tests.csip.maintenance.stores import (
    publish,
    put,
    rows_of,
    run_record,
    texts,
)


def test_what_runs_left_is_checked_by_its_bytes_also_in_a_store_that_was_moved(store, tmp_path):
    folder = Path(store) / "checkpoints"
    folder.mkdir()
    files = {}
    for name in ("same", "changed", "gone"):
        files[name] = folder / f"stage2-{name}.safetensors"
        files[name].write_bytes(name.encode())
        outputs = {"path": str(files[name]), "sha256": hashlib.sha256(name.encode()).hexdigest()}
        tables.record_run(store, run_record(name, outputs=outputs))
    put(store, "metrics", [])
    results = tables.current(store, "results")
    tables.record_run(store, run_record("kept", outputs={"table": dataclasses.asdict(results), "run_id": "kept"}))
    assert verify(store) == []
    files["changed"].write_bytes(b"otherwise")
    files["gone"].unlink()
    ref = {"uri": results.uri, "version": 77}
    tables.record_run(store, run_record("lost", outputs=[{"table": ref, "run_id": "lost"}]))
    moved = str(shutil.move(store, tmp_path / "elsewhere"))
    found = sorted(text.strip() for text in texts(verify(moved)))
    assert len(found) == 3
    assert "run changed (stage2): " in found[0]
    assert "found SHA-256" in found[0]
    assert "found no such file" in found[1]
    assert "run lost (stage2): results@77, which it left: " in found[2]
    assert "version 77 cannot be opened" in found[2]


def test_what_nothing_names_is_told_and_is_no_fault(store):
    folder = Path(store) / "checkpoints"
    folder.mkdir()
    for name in (".stage2-x.safetensors-1.part", "stage2-0123.state", "stage2-0123456789ab.safetensors"):
        (folder / name).write_bytes(b"12345")
    (crop,) = rows_of(store, "crops", "tracklet_id = 'a' AND frame_index = 12")
    put(store, "crops", [crop | {"tracklet_id": "unfinished", "frame_index": f} for f in range(2)])
    put(store, "splits", [rows_of(store, "splits")[0] | {"dataset": "unpublished"}])
    score = {"protocol": "p", "split": "0", "encoder": "e", "name": "mean_ap", "value": 1.0, "described": ""}
    put(store, "results", [score | {"run_id": "never", "encoder_digest": "", "checkpoint_sha": ""}])
    publish(store)
    lance.dataset(table_uri(store, "crops")).tags.create("snapshot-gone", 2)
    found = verify(store)
    assert texts(found) == []
    told = "\n".join(texts(found, "leftover"))
    for words in (
        "whole crops: 2 rows of 1 tracklets that are not in `tracklets`",
        "checkpoints/.stage2-x.safetensors-1.part: a file that was not written to its end, 5 bytes.",
        "checkpoints/stage2-0123.state: the state of a training that was left, 5 bytes.",
        "checkpoints/stage2-0123456789ab.safetensors: a file that no run names, 5 bytes.",
        "splits: 1 rows of no published snapshot: unpublished.",
        "results: 1 rows of no recorded run: never.",
        "crops: 1 tags of snapshots that are not published: snapshot-gone.",
    ):
        assert words in told, told
    assert len(texts(found, "leftover")) == 7
