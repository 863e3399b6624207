"""Full and read-only disks, broken tables, names that lead elsewhere: said plainly, and nothing is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import pytest

from csip import tables
from csip.errors import SchemaMismatchError, StoreError
from csip.maintenance.verify import verify
from csip.types import Snapshot
from storage_schemas import TABLES

ROWS = """
import json, resource, sys
from csip import tables
from csip.errors import CsipError
from csip.types import Snapshot

def rows(frames, width=1):
    row = {"tracklet_id": "t", "encoder_digest": "d"}
    made = [row | {"frame_index": f, "feature": [float(f * i) for i in range(width)]} for f in frames]
    return tables.from_rows("frame_features", made)

def fragments():
    with tables.FragmentWriter(store, "frame_features") as writer:
        writer.write(rows(range(200), 5000))
    tables.commit_fragments(store, "frame_features", [writer.fragments])

store = sys.argv[1]
snapshot = Snapshot("street", store, {"frame_features": 1}, "d")
"""

# Each way to write, and what it says: one line of JSON.
TRY = """
ways = {
    "upsert": lambda: tables.upsert(store, "frame_features", rows(range(200), 5000)),
    "fragments": fragments,
    "delete": lambda: tables.delete(store, "frame_features", "true"),
    "describe": lambda: tables.describe(store, "frame_features", {"a": "b" * 100_000}),
    "publish": lambda: tables.publish(snapshot, config={"long": "x" * 100_000}, counts={}, videos=[]),
    "untag": lambda: tables.untag(store, "frame_features", "snapshot-street"),
}
told = {}
for name in sys.argv[2:]:
    try:
        ways[name]()
        told[name] = ""
    except CsipError as error:
        told[name] = str(error)
told["read"] = tables.read(tables.current(store, "frame_features"))["frame_index"].to_pylist()
print(json.dumps(told))
"""

SMALL_FILES = "\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"


def run(code, *args, before=()):
    done = subprocess.run(
        [*before, sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def mounted(*command):
    """A prefix that runs a command among mounts of its own; skips where the system gives users none."""
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("this system lets a user make no mounts (unshare --map-root-user --mount)")
    return [*prefix, " && ".join([*command, 'exec "$@"']), "sh"]


@pytest.fixture
def store(tmp_path):
    path = str(tmp_path / "store")
    tables.prepare_store(path)
    row = {"tracklet_id": "t", "encoder_digest": "d", "feature": [0.0]}
    rows = [row | {"frame_index": f} for f in (1000, 1001)]
    tables.upsert(path, "frame_features", tables.from_rows("frame_features", rows))
    version = tables.current(path, "frame_features").version
    tables.publish(Snapshot("street", path, {"frame_features": version}, "d"), config={}, counts={}, videos=[])
    return path


def test_a_file_that_cannot_grow_leaves_the_table_as_it_was_and_the_next_run_completes(store):
    before = {name: tables.current(store, name) for name in TABLES}
    ways = ("upsert", "fragments", "describe", "publish")
    told = run(ROWS + SMALL_FILES + TRY, store, *ways)
    for way in ways:
        assert "could not be written (" in told[way], way
        assert "File too large" in told[way]
        assert "free space or mend the permissions and run the same command again" in told[way]
        assert ".rs:" not in told[way]
    assert told["read"] == [1000, 1001]
    assert {name: tables.current(store, name) for name in TABLES} == before
    assert tables.list_tags(store, "frame_features")["snapshot-street"][0] in (1, before["frame_features"].version)
    assert run(ROWS + TRY, store, *ways) == dict.fromkeys(ways, "") | {"read": [*range(200), 1000, 1001]}


def test_a_full_disk_leaves_the_table_as_it_was_and_space_lets_the_next_run_complete(store):
    ways = ("upsert", "fragments")
    small = mounted(
        f"cp -r {store} {store}-away", f"mount -t tmpfs -o size=2m none {store}", f"cp -r {store}-away/. {store}"
    )
    told = run(ROWS + TRY, store, *ways, before=small)
    for way in ways:
        assert "200 rows could not be written (No space left on device" in told[way]
    assert told["read"] == [1000, 1001]
    large = [small[0], *small[1:-2], small[-2].replace("cp -r", "true", 1).replace("2m", "64m"), small[-1]]
    told = run(ROWS + TRY, store, *ways, before=large)
    assert told == dict.fromkeys(ways, "") | {"read": [*range(200), 1000, 1001]}


def test_a_read_only_store_is_read_and_says_why_it_is_not_written(store):
    ways = ("upsert", "fragments", "delete", "describe", "publish", "untag")
    read_only = mounted(f"mount --bind {store} {store}", f"mount -o remount,ro,bind {store}")
    told = run(ROWS + TRY, store, *ways, before=read_only)
    for way in ways:
        assert "Read-only file system" in told[way], way
        assert "mend the permissions" in told[way]
    assert told["read"] == [1000, 1001]


def test_a_read_only_place_for_a_new_store_is_named(tmp_path):
    read_only = mounted(f"mount --bind {tmp_path} {tmp_path}", f"mount -o remount,ro,bind {tmp_path}")
    code = """
import json, sys
from csip import tables
from csip.errors import StoreError
try:
    tables.prepare_store(sys.argv[1])
except StoreError as error:
    print(json.dumps(str(error)))
"""
    told = run(code, str(tmp_path / "new"), before=read_only)
    assert "cannot be written" in told
    assert "name another with --store or CSIP_STORE" in told


def test_a_data_file_that_is_gone_is_named_by_every_reader(store):
    ref = tables.current(store, "frame_features")
    (data,) = Path(ref.uri, "data").iterdir()
    data.unlink()
    for ask in (
        lambda: tables.read(ref),
        lambda: list(tables.stream(ref, ["feature"])),
        lambda: tables.Rows(ref).keys(),
        lambda: tables.Rows(ref).take(np.array([0]), ["feature"]),
    ):
        with pytest.raises(StoreError, match=r"frame_features\.lance version 2: cannot be read .*Restore the table's"):
            ask()


def test_a_table_whose_versions_are_gone_is_not_made_anew_over_its_data(store):
    folder = Path(tables.table_uri(store, "frame_features"))
    shutil.rmtree(folder / "_versions")
    data = sorted((folder / "data").iterdir())
    with pytest.raises(StoreError, match=r"found data files and no version .*Restore its folder `_versions`"):
        tables.prepare_store(store)
    assert sorted((folder / "data").iterdir()) == data
    assert not (folder / "_versions").exists()


def test_a_published_version_whose_manifest_is_gone_is_found(store):
    ref = tables.current(store, "frame_features")
    newest = min(Path(ref.uri, "_versions").glob("*.manifest"))  # Lance counts them down
    newest.unlink()
    assert not tables.exists(ref)
    with pytest.raises(StoreError, match=r"version 2 cannot be opened .*build the snapshot again"):
        tables.read(ref)
    assert any(finding.kind == "fault" and "version 2" in finding.text for finding in verify(store))


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "", ".", "..", ".hidden", "a..b", "-rf", "a b", "a."),
        *("x.lock", "x" * 201, "s3://x", "Straße"),
    ],
)
def test_a_name_that_could_lead_out_of_the_store_is_not_published(store, name):
    before = {one: tables.current(store, one) for one in TABLES}
    with pytest.raises(ValueError, match=r"expected a name of letters a to z"):
        tables.publish(Snapshot(name, store, {}, "d"), config={}, counts={}, videos=[])
    assert {one: tables.current(store, one) for one in TABLES} == before


@pytest.mark.parametrize("name", ["street", "mars-v2_1.0", "2026", "_x", "x" * 200])
def test_a_plain_name_is_published_and_is_a_tag(store, name):
    version = tables.current(store, "crops").version
    snapshot = Snapshot(name, store, {"crops": version}, "d")
    tables.publish(snapshot, config={}, counts={}, videos=[])
    assert tables.open_snapshot(store, name) == snapshot
    assert tables.list_tags(store, "crops")[f"snapshot-{name}"][0] == version


@pytest.mark.parametrize("versions", [{"../../etc": 1}, {"crops": "1"}, {"crops": True}, {"crops.lance/../runs": 1}])
def test_a_row_that_names_what_is_no_table_is_refused_when_written_and_when_read(store, versions):
    snapshot = Snapshot("evil", store, versions, "d")
    with pytest.raises(ValueError, match=r"Snapshot evil: names version .* expected numbers for some of"):
        tables.publish(snapshot, config={}, counts={}, videos=[])
    row = {"name": "evil", "digest": "d", "created": "2026", "config": "{}", "counts": "{}", "videos": "[]"}
    row["tables"] = json.dumps(versions)
    tables.upsert(store, "snapshots", tables.from_rows("snapshots", [row]))
    with pytest.raises(StoreError, match=r"Snapshot evil: .*not written by CSIP; publish it again"):
        tables.open_snapshot(store, "evil")


def test_a_table_that_csip_does_not_know_is_not_opened(store):
    uri = tables.table_uri(store, "strange")
    lance.write_dataset(TABLES["crops"].empty_table(), uri)
    with pytest.raises(SchemaMismatchError, match=r"strange\.lance version 1: found a table that CSIP does not know"):
        tables.read(tables.TableRef(uri, 1))
