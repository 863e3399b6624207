import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from csip import tables
from csip.errors import StoreError
from csip.lineage import History, flatten, source_digest
from csip.tables import RunRecord

ROOT = Path(__file__).resolve().parents[2]

# Modules of our own in a copy of the package: alpha reaches beta, and gamma from inside a function; delta is alone.
ALPHA = '''"""Alpha."""
from csip.beta import double
from csip.config import ClipConfig

def quadruple(x):
    """Four times."""
    from csip import gamma
    return double(double(x)) + gamma.ZERO + ClipConfig().frames
'''
BETA = '''"""Beta."""

def double(x):
    """Twice."""
    return 2 * x
'''
GAMMA = "ZERO = 0\n"
DELTA = "ONE = 1\n"
# Each change to the copy, and whether alpha's digest must change with it.
CHANGES = {
    "a comment in a reachable module": ("beta.py", BETA.replace("return", "# why\n    return"), False),
    "a docstring of a reachable function": ("beta.py", BETA.replace("Twice.", "Two times."), False),
    "a docstring of its own": ("alpha.py", ALPHA.replace("Four times.", "Twice twice."), False),
    "layout": ("beta.py", BETA.replace("2 * x", "(2   *   x)"), False),
    "a module that is not reached": ("delta.py", "ONE = 2\n", False),
    "the config, whose values are inputs": ("config.py", None, False),
    "a reachable helper": ("beta.py", BETA.replace("2 * x", "x + x"), True),
    "a number in a module reached inside a function": ("gamma.py", "ZERO = 1\n", True),
    "its own code": ("alpha.py", ALPHA.replace("double(double(x))", "double(x)"), True),
    "what it imports": ("alpha.py", ALPHA + "\nfrom csip.delta import ONE\n", True),
    "a string that is no docstring": ("beta.py", BETA + '\nNAME = "beta"\n', True),
}
DIGESTS = """
import json, sys
from pathlib import Path
import csip
from csip import lineage
here = Path(csip.__file__).parent
def digest():
    lineage._parse_module.cache_clear()
    return lineage.source_digest("csip.alpha")
out = {"folder": str(here), "before": digest(), "commit": lineage.git_commit()}
for what, (file, text, _) in json.load(sys.stdin).items():
    old = (here / file).read_text()
    (here / file).write_text(old + "\\nUNUSED = 1\\n" if text is None else text)
    out[what] = digest()
    (here / file).write_text(old)
out["after"] = digest()
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def digests(tmp_path_factory):
    """Digests of alpha under each change, made in a copy of the package: one process for all of them."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("csip", "storage_schemas"):
        ignored = shutil.ignore_patterns("__pycache__", "assets")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for name, text in (("alpha", ALPHA), ("beta", BETA), ("gamma", GAMMA), ("delta", DELTA)):
        (folder / "csip" / f"{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        input=json.dumps(CHANGES),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    out = json.loads(done.stdout)
    assert out["folder"] == str(folder / "csip")
    return out


@pytest.mark.parametrize("what", CHANGES)
def test_a_source_digest_changes_with_the_code_that_is_reached_and_with_nothing_else(digests, what):
    assert (digests[what] != digests["before"]) == CHANGES[what][2]


def test_a_source_digest_comes_back_when_the_code_does(digests):
    assert digests["after"] == digests["before"]


def test_code_outside_a_checkout_has_no_commit(digests):
    assert digests["commit"] == ""


def test_the_schemas_belong_to_the_source_of_what_writes_tables():
    # `tables` reaches every schema; `errors` reaches nothing.
    assert source_digest("csip.tables") != source_digest("csip.errors")
    assert len(source_digest("csip.tables")) == 64


def test_a_module_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"found no source of module 'csip\.nothing'"):
        source_digest("csip.nothing")


# A history as `flows` would record it, by hand: two videos, a snapshot of both, and a training on it.
VIDEOS = ["a" * 64, "b" * 64]
START, TRAINED, PRETRAINED = "1" * 64, "2" * 64, "3" * 64
ENCODER = "e" * 64


def checkpoint(sha):
    return {"path": f"/store/checkpoints/{sha[:4]}.safetensors", "sha256": sha}


def table(name, version):
    return {"uri": f"/store/{name}.lance", "version": version}


def video(sha):
    return {"video_sha": sha, "path": f"/videos/{sha[0]}.mp4", "camera": sha[0], "duration": 8.0}


def snapshot(digest="d1"):
    return {"name": "street", "store": "/store", "tables": {"crops": 4}, "digest": digest}


def embeddings(version=3):
    return {"table": table("embeddings", version), "encoder_digest": ENCODER, "encoder": "trained"} | {
        "checkpoint_sha": TRAINED
    }


RESULTS = {"table": table("results", 2), "run_id": "run-evaluate"}
RUNS = [
    ("run-track-a", "track_video", {"video": video(VIDEOS[0])}, {"video_sha": VIDEOS[0], "track_digest": "t"}),
    ("run-track-b", "track_video", {"video": video(VIDEOS[1])}, {"video_sha": VIDEOS[1], "track_digest": "t"}),
    ("run-publish", "publish", {"videos": [{"video_sha": sha, "run_id": "x"} for sha in VIDEOS]}, snapshot()),
    ("run-initialise", "initialise", {"snapshot": snapshot()}, checkpoint(START)),
    (
        "run-features",
        "cache_features",
        {"checkpoint": checkpoint(START), "snapshot": snapshot()},
        table("frame_features", 2),
    ),
    (
        "run-stage1",
        "stage1",
        {"checkpoint": checkpoint(START), "features": table("frame_features", 2), "snapshot": snapshot()},
        checkpoint(PRETRAINED),
    ),
    (
        "run-stage2",
        "stage2",
        {"checkpoint": checkpoint(PRETRAINED), "features": table("frame_features", 2), "snapshot": snapshot()},
        checkpoint(TRAINED),
    ),
    ("run-embed", "embed", {"checkpoint": checkpoint(TRAINED), "snapshot": snapshot()}, embeddings()),
    ("run-evaluate", "evaluate", {"embeddings": [embeddings()], "snapshot": snapshot()}, RESULTS),
    (
        "run-report",
        "write_report",
        {"results": RESULTS, "snapshot": snapshot()},
        {"path": "/store/report.html", "sha256": "9" * 64},
    ),
]


def record(store, number, run_id, stage, inputs, outputs):
    tables.record_run(
        store,
        RunRecord(
            run_id=run_id,
            stage=stage,
            key=run_id,
            inputs=inputs,
            outputs=outputs,
            config={},
            counts={},
            weights={},
            source_digest="s",
            git_commit="",
            device="cpu",
            started=f"2026-01-01T00:{number:02d}:00.000+00:00",
            seconds=1.0,
        ),
    )


@pytest.fixture
def store(tmp_path):
    path = str(tmp_path / "store")
    tables.prepare_store(path)
    for number, run in enumerate(RUNS):
        record(path, number, *run)
    row = {name: 0 for name in tables.TABLES["tracklets"].names}
    row |= {
        "tracklet_id": "t-00001",
        "video_sha": VIDEOS[1],
        "track_digest": "t",
        "pid": None,
        "begins": "",
        "ends": "",
    }
    tables.upsert(path, "tracklets", tables.from_rows("tracklets", [row]))
    return path


def chain(node):
    """The first path of runs from a thing to where it ends."""
    out = []
    while node is not None:
        out.append((node.kind, node.made_by.run_id if node.made_by else None))
        node = node.sources[0] if node.sources else None
    return out


def test_a_score_is_walked_back_to_the_videos(store):
    node = History(store).find("run-evaluate")
    assert chain(node) == [
        ("results", "run-evaluate"),
        ("embeddings", "run-embed"),
        ("checkpoint", "run-stage2"),
        ("checkpoint", "run-stage1"),
        ("checkpoint", "run-initialise"),
        ("snapshot", "run-publish"),
        ("video", "run-track-a"),
    ]
    everything = {(n.kind, n.name) for n in flatten(node)}
    assert everything == {
        ("results", "run-evaluate"),
        ("embeddings", ENCODER),
        ("checkpoint", TRAINED),
        ("checkpoint", PRETRAINED),
        ("checkpoint", START),
        ("table", "frame_features@2"),
        ("snapshot", "street"),
        ("video", VIDEOS[0]),
        ("video", VIDEOS[1]),
    }


def test_each_thing_is_listed_once_from_the_root(store):
    listed = [(n.kind, n.name) for n in flatten(History(store).find("run-report"))]
    assert len(listed) == len(set(listed))
    assert listed[:2] == [("file", "9" * 64), ("results", "run-evaluate")]


def test_the_features_of_a_training_are_its_sources(store):
    node = History(store).find(TRAINED)
    assert [(s.kind, s.name) for s in node.sources] == [
        ("checkpoint", PRETRAINED),
        ("table", "frame_features@2"),
        ("snapshot", "street"),
    ]
    features = node.sources[1]
    assert features.made_by.run_id == "run-features"
    assert [s.name for s in features.sources] == [START, "street"]


@pytest.mark.parametrize(
    ("ref", "kind", "name"),
    [
        ("run-embed", "embeddings", ENCODER),
        ("street", "snapshot", "street"),
        (TRAINED, "checkpoint", TRAINED),
        (TRAINED[:6], "checkpoint", TRAINED),
        (VIDEOS[0][:12], "video", VIDEOS[0]),
        ("frame_features@2", "table", "frame_features@2"),
        ("t-00001", "video", VIDEOS[1]),
        (ENCODER[:8], "embeddings", ENCODER),
    ],
)
def test_a_thing_is_found_by_what_people_call_it(store, ref, kind, name):
    node = History(store).find(ref)
    assert (node.kind, node.name) == (kind, name)


def test_a_file_is_found_by_its_content_wherever_it_lies(store, tmp_path):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(b"weights")
    sha = hashlib.sha256(b"weights").hexdigest()
    record(store, 30, "run-x", "stage2", {"snapshot": snapshot()}, checkpoint(sha))
    node = History(store).find(str(moved))
    assert (node.kind, node.made_by.run_id) == ("checkpoint", "run-x")


def test_an_unknown_name_is_refused_with_what_was_expected(store):
    with pytest.raises(StoreError, match=r"'nowhere' names nothing; expected one snapshot, run, tracklet, checkpoint"):
        History(store).find("nowhere")


def test_a_few_letters_are_not_enough_to_guess_from(store):
    with pytest.raises(StoreError, match="'222' names nothing"):
        History(store).find("222")


def test_an_ambiguous_beginning_is_refused_with_its_candidates(store):
    record(store, 31, "run-y", "stage2", {"snapshot": snapshot()}, checkpoint("2" * 6 + "f" * 58))
    with pytest.raises(StoreError, match=r"'222222' names checkpoint 2222222222222222, checkpoint 222222ffffffffff"):
        History(store).find("222222")
    assert History(store).find("2222222").name == TRAINED


def test_what_a_run_read_was_made_before_it(store):
    # The snapshot is published again, with other rows, after the training that read its first edition.
    record(store, 40, "run-publish-2", "publish", {"videos": [{"video_sha": VIDEOS[0]}]}, snapshot("d2"))
    history = History(store)
    assert history.find("street").made_by.run_id == "run-publish-2"
    trained = {n.kind: n.made_by.run_id for n in flatten(history.find("run-evaluate")) if n.kind == "snapshot"}
    assert trained == {"snapshot": "run-publish"}


def test_what_came_from_outside_was_made_by_no_run(store):
    foreign = embeddings(9) | {"encoder_digest": "x"}
    record(store, 50, "run-foreign", "embed", {"checkpoint": checkpoint("7" * 64)}, foreign)
    node = History(store).find("7" * 64)
    assert (node.made_by, node.sources) == (None, ())


def test_a_run_that_names_its_own_output_as_input_ends_the_walk(store):
    # A stage that finds nothing to do gives back the version it was given.
    features = table("frame_features", 2)
    record(store, 60, "run-again", "cache_features", {"features": features}, features)
    node = History(store).find("frame_features@2")
    assert (node.made_by.run_id, node.sources) == ("run-again", ())
