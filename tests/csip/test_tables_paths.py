"""A store that somebody has forged: whatever it says and links to, nothing beside it is written or deleted."""

import json
import re
import shutil
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from csip import tables
from csip.config import Experiment
from csip.errors import StoreError
from csip.evaluation.write_report import write_report
from csip.ingest.mot import write_mot
from csip.maintenance.collect import collect
from csip.maintenance.snapshots import list_snapshots
from csip.maintenance.verify import verify
from csip.models.checkpoints import CheckpointHeader, save_checkpoint
from csip.tables import TableRef
from csip.training.state import keep_checkpoint
from csip.types import Output, Progress, ResultsRef, Snapshot
from flows.child import run_stage

METRIC = {"run_id": "r", "name": "loss", "stage": "s", "value": 0.5}
LEADS_OUT = "leads out of the store"


def put(store, steps):
    for step in steps:
        tables.upsert(store, "metrics", tables.from_rows("metrics", [METRIC | {"step": step}]))


def put_snapshot(store, name, **changes):
    row = {"name": name, "digest": "d", "tables": "{}", "config": "{}", "counts": "{}", "videos": "[]"}
    row |= {"created": "2099-01-01T00:00:00.000+00:00"} | changes
    tables.upsert(store, "snapshots", tables.from_rows("snapshots", [row]))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("paths") / "store")
    tables.prepare_store(path)
    put(path, range(3))
    return path


@pytest.fixture
def store(made, tmp_path):
    return str(shutil.copytree(made, tmp_path / "store"))


@pytest.fixture
def beside(made, tmp_path):
    """What lies beside the store: a file of every kind that anything here would delete, and a store."""
    folder = tmp_path / "beside"
    folder.mkdir()
    names = ("page.html", "0101.lance", "half.part", "left.state", "9.manifest", "snapshot-x.json", "w.safetensors")
    for name in names:
        (folder / name).write_text("precious")
    shutil.copytree(made, folder / "store")
    return folder


def tree(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def in_place_of(path, target):
    """Put a link where a store has a folder or a file."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "x/../../y"])
def test_a_name_that_is_more_than_a_name_is_no_file_of_a_store(store, name):
    with pytest.raises(StoreError, match=r"expected a plain name in checkpoints or reports"):
        tables.inside(store, "reports", name)
    with pytest.raises(StoreError, match=r"expected a plain name in checkpoints or reports"):
        tables.inside(store, name, "page.html")


@pytest.mark.parametrize("name", ["page.html", ".half.part", "Straße 1.html", "a..b", "..."])
def test_a_plain_name_is_a_file_of_the_store(store, name):
    assert tables.inside(store, "reports", name) == Path(store, "reports", name)


def test_a_file_that_a_run_names_is_looked_for_in_this_store_alone(store, beside):
    page = Path(store, "reports", "page.html")
    page.parent.mkdir()
    page.write_text("ours")
    for path in (str(page), "/where/it/was/reports/page.html", "reports/page.html"):
        assert tables.known_file(store, path) == page
    strange = (str(beside / "page.html"), "/anything/../page.html", "reports/..", "page.html", "", "reports/none.html")
    assert [tables.known_file(store, path) for path in strange] == [None] * len(strange)


def test_a_folder_or_file_that_is_a_link_out_is_refused_and_one_within_the_store_is_not(store, beside, tmp_path):
    in_place_of(Path(store, "reports"), beside)
    for ask in (
        lambda: tables.folder(store, "reports"),
        lambda: tables.inside(store, "reports", "new.html"),
        lambda: tables.known_file(store, "reports/page.html"),
    ):
        with pytest.raises(StoreError, match=LEADS_OUT):
            ask()
    in_place_of(Path(store, "checkpoints", "page.html"), beside / "page.html")
    with pytest.raises(StoreError, match=LEADS_OUT):
        tables.inside(store, "checkpoints", "page.html")
    in_place_of(Path(store, "reports"), Path(store, "checkpoints"))
    assert tables.folder(store, "reports") == Path(store, "reports")
    (tmp_path / "other name").symlink_to(store)
    assert tables.folder(str(tmp_path / "other name"), "checkpoints").samefile(Path(store, "checkpoints"))


@pytest.mark.parametrize("inner", ["", "data", "_versions", "_transactions"])
def test_a_table_that_is_a_link_out_is_neither_written_nor_cleaned_up(store, beside, inner):
    whole = Path(store, "metrics.lance", inner)
    in_place_of(whole, beside / "store" / "metrics.lance" / inner)
    before = tree(beside)
    versions = list(tables.list_versions(store, "metrics"))
    for write in (
        lambda: tables.prepare_store(store),
        lambda: put(store, [7]),
        lambda: tables.delete(store, "metrics", "true"),
        lambda: tables.FragmentWriter(store, "metrics"),
        lambda: tables.compact(tables.current(store, "metrics"), ()),
        lambda: tables.untag(store, "metrics", "x"),
        lambda: tables.clean_up(store, "metrics", versions[:-1], dry_run=False, alone=True),
        lambda: collect(store, dry_run=False, older_than=timedelta(0)),
    ):
        with pytest.raises(StoreError, match=LEADS_OUT):
            write()
    assert tree(beside) == before


@pytest.mark.parametrize("inner", ["data/more", "_versions/more", "_deletions", "_refs", "_indices/a/b"])
def test_lance_is_kept_from_cleaning_up_behind_a_link(store, beside, inner):
    link = Path(store, "metrics.lance", inner)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(beside)
    before = tree(beside)
    with pytest.raises(StoreError, match=LEADS_OUT):
        tables.clean_up(store, "metrics", [1, 2], dry_run=False, alone=True)
    assert tree(beside) == before
    # Lance would not have stopped there.
    link.unlink()
    link.mkdir()
    tables.clean_up(store, "metrics", [1, 2], dry_run=False, alone=True)


@pytest.mark.parametrize("kind", ["checkpoints", "reports"])
def test_a_clean_up_takes_no_lost_files_out_of_a_folder_that_is_a_link_out(store, beside, kind):
    in_place_of(Path(store, kind), beside)
    before = tree(beside)
    with pytest.raises(StoreError, match=LEADS_OUT):
        collect(store, dry_run=False, older_than=timedelta(0))
    assert tree(beside) == before


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("../../evil", {}, r"expected a name of letters"),
        ("/etc/evil", {}, r"expected a name of letters"),
        ("evil", {"tables": '{"../../etc": 1}'}, r"names version 1 of a table"),
        ("evil", {"videos": '["/../../../evil"]'}, r"names the video '/\.\./\.\./\.\./evil', expected a SHA-256"),
        ("evil", {"created": "yesterday"}, r"was published at 'yesterday', expected a time with its zone"),
        ("evil", {"created": "2026-11-29T10:00:00"}, r"was published at '2026-11-29T10:00:00', expected a time with"),
    ],
)
def test_a_forged_row_is_opened_by_no_name_and_goes_with_a_clean_up(store, name, changes, told):
    put_snapshot(store, name, **changes)
    for ask in (lambda: tables.open_snapshot(store, name), lambda: tables.newest_snapshot(store)):
        with pytest.raises(StoreError, match=rf"{told}.*not written by CSIP; publish it again.*--drop"):
            ask()
    for heard in (found.text for found in verify(store)), (one.problem for one in list_snapshots(store)[0]):
        assert any(re.search(rf"{told}.*not written by CSIP", text) for text in heard)
    with pytest.raises(StoreError, match=rf"{told}.*not written by CSIP"):
        collect(store, dry_run=False, older_than=timedelta(0))
    collect(store, dry_run=True, drop=[name], force=True)
    collect(store, dry_run=False, drop=[name], force=True, older_than=timedelta(0))
    with pytest.raises(StoreError, match="found no snapshot"):
        tables.newest_snapshot(store)


@pytest.mark.parametrize(
    ("snapshot", "run_id"), [("../../evil", "run-1"), ("street", "/../../../evil"), ("street", "x/../../../evil")]
)
def test_a_report_is_written_under_no_forged_name(store, beside, snapshot, run_id):
    results = ResultsRef(TableRef(tables.table_uri(store, "results"), 1), run_id)
    stage = write_report(Output(store, "run-2"), results, Snapshot(snapshot, store, {}, "d"), Experiment(name="x"))
    with pytest.raises(StoreError, match="expected a plain name"):
        next(stage)
    assert not Path(store, "reports").exists()


def test_a_report_overwrites_nothing_through_a_link(store, beside):
    in_place_of(Path(store, "reports", "street-run-1.html"), beside / "page.html")
    results = ResultsRef(TableRef(tables.table_uri(store, "results"), 1), "run-1")
    stage = write_report(Output(store, "run-2"), results, Snapshot("street", store, {}, "d"), Experiment(name="x"))
    with pytest.raises(StoreError, match=LEADS_OUT):
        next(stage)
    assert (beside / "page.html").read_text() == "precious"


def test_a_checkpoint_is_written_through_no_link(tmp_path, beside, monkeypatch):
    monkeypatch.setattr("csip.models.checkpoints.to_plain", lambda _: {})
    network, header = nn.Linear(1, 1), CheckpointHeader({}, "stage1", parent="", config={})
    folder = tmp_path / "checkpoints"
    ref = save_checkpoint(network, header, folder)
    monkeypatch.setattr("os.getpid", lambda: 77)
    name = Path(ref.path).name
    in_place_of(folder / f".{name}-77.part", beside / "w.safetensors")
    in_place_of(folder / name, beside / "w.safetensors")
    assert save_checkpoint(network, header, folder) == ref
    assert (beside / "w.safetensors").read_text() == "precious"
    assert not (folder / name).is_symlink()


def test_a_forged_state_of_a_training_deletes_nothing_outside_of_its_folder(tmp_path, beside, monkeypatch):
    training = SimpleNamespace(at=SimpleNamespace(kept={1: {"path": str(beside / "w.safetensors"), "sha256": "0"}}))
    monkeypatch.setattr("csip.training.state.save_checkpoint", lambda *_: {"path": "x", "sha256": "1"})
    keep_checkpoint(training, None, SimpleNamespace(epoch=2), tmp_path, every=0, best=2)
    assert (beside / "w.safetensors").read_text() == "precious"
    assert list(training.at.kept) == [2]


def test_curves_go_through_no_link(store, beside):
    in_place_of(Path(store, "tensorboard"), beside)
    before = tree(beside)

    def stage():
        yield Progress("stage1", 1, 1, "epochs", {"loss": 1.0})

    with pytest.raises(StoreError, match=LEADS_OUT):
        run_stage(stage(), Output(store, "run-1"), "stage1", lambda _: None)
    assert tree(beside) == before


@pytest.mark.parametrize("path", ["..", "/", "", "/a/../..", "a/b/../../../x.mp4", "\n/x", ".hidden"])
def test_tracks_are_written_into_the_folder_that_was_named_whatever_a_video_is_called(tmp_path, store, path):
    video = {"bytes": 9, "codec": "h264", "width": 4, "height": 4, "fps": 25.0, "expected_frames": 4, "num_frames": 4}
    video |= {"duration": 0.2, "status": "ok", "reason": "", "path": path}
    shas = ["a" * 64, "b" * 64]
    tables.upsert(store, "videos", tables.from_rows("videos", [video | {"video_sha": sha} for sha in shas]))
    pins = {name: tables.current(store, name).version for name in ("videos", "tracklets", "crops")}
    put_snapshot(store, "films", tables=json.dumps(pins), videos=json.dumps(shas))
    out = tmp_path / "out"
    files = write_mot(tables.open_snapshot(store, "films"), out)
    assert len(set(files)) == 2
    assert all(file.parent == out and file.is_file() for file in files)
