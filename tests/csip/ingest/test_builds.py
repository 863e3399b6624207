"""Whole builds in processes of their own: killed, two at once, out of space. All with the real pose model."""

import shutil
import subprocess
import sys

import pytest

from csip import tables
from csip.maintenance.verify import verify
from tests import kill_builds as builds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A published snapshot in a store; the videos of a second build, and the rows and runs of an undisturbed one."""
    folder = tmp_path_factory.mktemp("builds")
    first, others = builds.make_videos(folder)
    base, whole = folder / "base", folder / "whole"
    snapshot = builds.build(str(base), [str(first)])
    shutil.copytree(base, whole)
    builds.build(str(whole), [str(path) for path in others])
    return base, others, snapshot, builds.rows(whole), builds.finished_runs(whole)


def faults(store):
    return [one for one in verify(str(store)) if one.kind == "fault"]


def test_a_build_killed_at_any_point_is_made_good_by_the_next(tmp_path):
    told = []
    assert builds.kill_many(tmp_path, 25, seed=5, tell=told.append) >= 5
    assert sum("killed" in line for line in told) == 25


def test_two_builds_at_once_make_no_row_twice_and_lose_none(made, tmp_path):
    base, others, snapshot, expected, runs = made
    for number in range(3):
        store = tmp_path / f"store-{number}"
        shutil.copytree(base, store)
        before = builds.published(store, snapshot)
        both = [builds.start(store, others), builds.start(store, others[::-1])]
        for one in both:
            _, told = one.communicate(timeout=300)
            assert one.returncode == 0, told
        assert builds.rows(store) == expected
        # Both may have done the same work, and then say the same of it.
        done = builds.finished_runs(store)
        assert [one for i, one in enumerate(done) if one not in done[:i]] == runs
        assert builds.published(store, snapshot) == before
        assert faults(store) == []


def test_two_builds_of_different_videos_at_once_both_publish(made, tmp_path):
    base, others, _, expected, _ = made
    store = tmp_path / "store"
    shutil.copytree(base, store)
    both = [builds.start(store, [one]) for one in others]
    for one in both:
        _, told = one.communicate(timeout=300)
        assert one.returncode == 0, told
    found = builds.rows(store)
    for name in ("videos", "detections", "tracklets", "crops", "skeletons"):
        assert found[name] == expected[name]
    assert len(found["snapshots"]) == 3
    assert faults(store) == []


def test_a_full_disk_ends_a_build_in_plain_words_and_space_lets_it_complete(made, tmp_path):
    base, others, snapshot, expected, runs = made
    store, kept = tmp_path / "store", tmp_path / "kept"
    shutil.copytree(base, kept)
    size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    videos = " ".join(map(str, others))
    script = (
        f"mkdir {store} && mount -t tmpfs -o size={size * 3 // 2 + 400_000} none {store} && cp -r {kept}/. {store} && "
        f"{{ {sys.executable} -m tests.kill_builds --build {store} {videos}; code=$?; }}; "
        f"rm -rf {kept} && cp -r {store} {kept}; exit $code"
    )
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
    if shutil.which("unshare") is None or subprocess.run([*command[:-1], "true"], check=False).returncode:
        pytest.skip("this system lets a user make no mounts (unshare --map-root-user --mount)")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=builds.ROOT)
    assert done.returncode
    assert "StoreError" in done.stderr
    assert "free space" in done.stderr
    assert faults(kept) == []
    assert builds.published(kept, snapshot) == builds.published(base, snapshot)
    builds.build(str(kept), [str(path) for path in others])
    assert builds.rows(kept) == expected
    assert builds.finished_runs(kept) == runs
    assert tables.open_snapshot(str(kept), snapshot).name == snapshot
