"""Which checkpoint `evaluate-csip` takes where it is named by its path, by a run, or not at all."""

import shutil
from pathlib import Path

import pytest
from prefect import flow

from csip import tables
from csip.errors import CheckpointError
from csip.files import digest_file
from csip.plain import to_plain
from csip.tables import RunRecord
from flows.evaluate_csip import take_checkpoint


@flow
def take(store, named, sha256=""):
    return take_checkpoint(store, named, sha256)


@pytest.fixture
def trained(store, untrained, tmp_path):
    """A checkpoint of one's own, and the runs of two trainings, of which the later one wrote it."""
    path = Path(shutil.copy(untrained.path, tmp_path / "own.safetensors"))
    files = ((untrained.path, untrained.sha256), (str(path), digest_file(path)))
    for number, (name, sha256) in enumerate(files):
        rest = {key: {} for key in ("inputs", "config", "counts", "weights")} | {"seconds": 1.0, "device": "cpu"}
        digests = {"key": f"{number}" * 64, "source_digest": "0" * 64, "git_commit": ""}
        outputs = {"path": name, "sha256": sha256}
        run = RunRecord(
            f"run-{number}", "stage2", outputs=outputs, started=f"2026-01-0{number + 1}T00:00:00", **digests, **rest
        )
        tables.record_run(store, run)
    return path


def test_a_checkpoint_is_named_by_its_path_and_its_digest_is_looked_up(store, trained):
    assert to_plain(take(store, str(trained))) == {"path": str(trained), "sha256": digest_file(trained)}


def test_a_checkpoint_is_named_by_the_run_that_wrote_it(store, trained, untrained):
    assert take(store, "run-0") == untrained


def test_where_no_checkpoint_is_named_the_newest_is_taken(store, trained):
    assert take(store, "").path == str(trained)


@pytest.mark.parametrize("named", ["/nowhere/x.safetensors", "run-7"])
def test_a_checkpoint_that_is_not_there_is_said(store, trained, named):
    with pytest.raises(CheckpointError, match=rf"Checkpoint {named}: found no such file .* and in {store} no run"):
        take(store, named)


def test_a_store_where_nothing_was_trained_says_so(store):
    with pytest.raises(CheckpointError, match="Checkpoint of a training: found no such file"):
        take(store, "")


def test_a_file_that_is_another_one_than_was_meant_is_refused(store, trained, untrained, grown):
    with pytest.raises(CheckpointError, match=rf"found SHA-256 {untrained.sha256}, expected {'f' * 64}"):
        take(store, untrained.path, "f" * 64)
    # Also where the run knows what it wrote.
    shutil.copy(grown.path, trained)
    with pytest.raises(CheckpointError, match=rf"found SHA-256 {grown.sha256}, .*another one than was meant"):
        take(store, "run-1")
