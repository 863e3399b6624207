"""A store in object storage: what it can, against servers that speak S3, and what it says it cannot."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from csip import tables
from csip.config import DetectConfig, EmbedConfig, EvaluateConfig, Stage2Config, TrackConfig, ValidateConfig
from csip.errors import StoreError
from csip.evaluation.embed import embed
from csip.evaluation.score import evaluate
from csip.ingest.pose import Seen
from csip.maintenance.collect import collect
from csip.maintenance.files import unnamed_files
from csip.maintenance.verify import verify
from csip.training.features import cache_features
from csip.training.pretrain import initialise
from csip.training.stage2 import stage2
from csip.types import Output, People, Snapshot
from flows.__main__ import main
from tests import kill_builds as builds

KEY, SECRET = "csip-key", "csip-secret-that-nobody-may-see"
SECONDS_TO_START = 120

UPSERT = """
import sys
from csip import tables
store, number = sys.argv[1:]
row = {"tracklet_id": "t", "encoder_digest": "d", "feature": [float(number)]}
print("ready", flush=True)
sys.stdin.readline()
for i in range(5):
    rows = tables.from_rows("frame_features", [row | {"frame_index": 5 * i + j} for j in range(5)])
    tables.upsert(store, "frame_features", rows)
"""


def executable(name):
    """Find a server's program beside this Python's, or on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: install the extra `test`")
    return found


def free_ports(count):
    """Ports that nobody listens on, of those whose number plus 10000 (weed's gRPC) is one, too."""
    held, ports = [], []
    for port in range(21000, 30000):
        pair = [socket.socket(), socket.socket()]
        try:
            for one, number in zip(pair, (port, port + 10000), strict=True):
                one.bind(("127.0.0.1", number))
        except OSError:
            continue
        finally:
            held += pair
        ports.append(port)
        if len(ports) == count:
            break
    for one in held:
        one.close()
    return ports


def moto(folder):
    (port,) = free_ports(1)
    return port, [executable("moto_server"), "-H", "127.0.0.1", "-p", str(port)]


def weed(folder):
    s3, master, volume, filer = free_ports(4)
    may = [{"name": "csip", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}]
    (folder / "s3.json").write_text(json.dumps({"identities": may}))
    at = {"s3.port": s3, "master.port": master, "volume.port": volume, "filer.port": filer}
    off = {"s3.port.iceberg": 0, "s3.port.lance": 0, "master.telemetry": "false"}
    small = {"volume.max": 20, "master.volumeSizeLimitMB": 64, "s3.config": folder / "s3.json", "dir": folder}
    options = {"ip": "127.0.0.1", "ip.bind": "127.0.0.1", **at, **off, **small}
    return s3, [executable("weed"), "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]


def make_bucket(endpoint, child):
    until = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            port = int(endpoint.rpartition(":")[2])
            socket.create_connection(("127.0.0.1", port), 1).close()
            files = fs.S3FileSystem(
                endpoint_override=endpoint,
                access_key=KEY,
                secret_key=SECRET,
                region="us-east-1",
                scheme="http",
                allow_bucket_creation=True,
            )
            files.create_dir("csip")
            return
        except OSError as error:
            if time.monotonic() > until or child.poll() is not None:
                pytest.fail(f"no bucket at {endpoint}: {error}; the server ended with {child.poll()}")
            time.sleep(0.1)


@pytest.fixture(scope="module", params=[moto, pytest.param(weed, marks=pytest.mark.slow)], ids=lambda s: s.__name__)
def bucket(request, tmp_path_factory):
    """The environment that leads to an empty bucket `csip` on a server of its own."""
    folder = tmp_path_factory.mktemp("server")
    port, command = request.param(folder)
    endpoint = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            make_bucket(endpoint, child)
            yield {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": "us-east-1",
            }
        finally:
            child.kill()
            child.wait()


@pytest.fixture
def store(bucket, monkeypatch, request):
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    path = f"s3://csip/{request.node.originalname}"
    tables.prepare_store(path)
    return path


def features(frames, value=0.0):
    rows = [{"tracklet_id": "t", "frame_index": f, "encoder_digest": "d", "feature": [value]} for f in frames]
    return tables.from_rows("frame_features", rows)


def found(ref):
    return tables.read(ref, [])["frame_index"].to_pylist()


def test_a_store_in_object_storage_does_what_one_in_a_folder_does(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = tables.upsert(store, "frame_features", features(range(6)))
    assert first.uri == f"{store}/frame_features.lance"
    with tables.FragmentWriter(store, "frame_features") as writer:
        writer.write(features([4, 5, 6], 1.0))
    ref = tables.commit_fragments(store, "frame_features", [writer.fragments], replace="frame_index = 0")
    assert found(ref) == [1, 2, 3, 4, 5, 6]
    assert found(first) == [0, 1, 2, 3, 4, 5]
    assert tables.Rows(ref).keys()["frame_index"].to_pylist() == [1, 2, 3, 4, 5, 6]
    tables.delete(store, "frame_features", "frame_index = 1")
    tables.describe(store, "frame_features", {"csip.a": "b"})
    now = tables.current(store, "frame_features")
    assert tables.described(now) == {"csip.a": "b"}
    snapshot = Snapshot("street", store, {"frame_features": now.version}, "d")
    tables.publish(snapshot, config={}, counts={}, videos=[])
    assert tables.open_snapshot(store, "street") == snapshot
    assert tables.list_tags(store, "frame_features")["snapshot-street"][0] == now.version
    tables.prepare_store(store)
    assert tables.current(store, "frame_features") == now
    # What is not tagged goes; what is tagged stays.
    tables.upsert(store, "frame_features", features([9]))
    versions = tables.list_versions(store, "frame_features")
    tables.clean_up(store, "frame_features", list(versions)[:-1], dry_run=False)
    assert not tables.exists(first)
    assert found(now) == [2, 3, 4, 5, 6]
    assert list(tmp_path.iterdir()) == [], "no folder called s3:"


@pytest.mark.slow
def test_the_commands_that_need_tables_only_take_an_address(
    store, capsys, monkeypatch, tmp_path, publish_tiny, tiny_snapshot
):
    monkeypatch.chdir(tmp_path)
    snapshot = publish_tiny(store)
    found = verify(tiny_snapshot.store, deep=True)
    assert verify(store, deep=True) == found, "what is wrong with it is wrong with one in a folder"
    assert main(["snapshots", "--store", store, "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["snapshots"]] == [snapshot.name]
    faults = sum(one.kind == "fault" for one in found)
    assert main(["verify", "--store", store + "/", "--json"]) == int(faults > 0)
    text = capsys.readouterr().out
    assert json.loads(text)["faults"] == faults
    assert SECRET not in text
    assert main(["diff", "tiny", "tiny", "--store", store]) == 0
    assert main(["gc", "--store", store, "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []


class TwoPeople:
    """A pose model that sees two people walk side by side, one of whom leaves after eight frames."""

    device, engine, image_size, lanes = "cpu", "told", 640, 1

    def start(self, frames):
        job = Future()
        job.set_result(Seen([self.people(int(index)) for index in frames.frame_index], 0.0))
        return [job]

    def people(self, index):
        left = np.array([[100, 100], [300, 100]], np.float32)[: 2 if index < 8 else 1] + np.float32(index)
        boxes = np.concatenate([left, left + np.float32([40, 100])], axis=1)
        keypoints = np.concatenate(
            [np.repeat(left[:, None] + 20, 17, axis=1), np.full((len(left), 17, 1), 0.9)], axis=2
        )
        return People(boxes, np.full(len(left), 0.8, np.float32), keypoints.astype(np.float32))


WALK = replace(builds.CONFIG, detect=DetectConfig(image_size=640), track=TrackConfig(min_seconds=0.4, min_frames=4))


@pytest.fixture
def street(tmp_path_factory, monkeypatch):
    """A video of twelve frames at ten a second, with what the pose model sees in it."""
    monkeypatch.setattr("csip.ingest.detect_pass.PoseModel", lambda *_, **__: TwoPeople())
    pictures = [np.full((240, 400, 3), 10 * n, np.uint8) for n in range(12)]
    return str(builds.write_video(tmp_path_factory.mktemp("street") / "street.mp4", pictures))


@pytest.fixture
def command(store, capsys, monkeypatch, tmp_path):
    """Run `csip` on the store: what it says as JSON, after it has ended well and left no folder called s3:."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([*words, "--store", store, "--json"])
        out = capsys.readouterr().out
        assert (code, list(tmp_path.iterdir()), SECRET in out) == (0, [], False)
        return json.loads(out)

    return run


@pytest.mark.slow
def test_a_store_in_object_storage_is_built_cleaned_up_verified_and_forgets(store, bucket, street, command):
    first = builds.build(store, [street], WALK)
    assert sorted(row["num_frames"] for row in read(store, "tracklets")) == [8, 12]
    second = builds.build(store, [street], replace(WALK, track=TrackConfig(min_seconds=0.5, min_frames=4)))
    assert sorted(row["num_frames"] for row in read(store, "tracklets")) == [8, 8, 12, 12]
    told = command("gc", "--older-than", "0", "--drop", first)
    assert (told["dropped"], told["extractions"], told["moved"]) == ([first], 1, [second])
    rows = {name: work["rows"] for name, work in told["tables"].items() if work["rows"]}
    assert rows == {"tracklets": 2, "crops": 20, "skeletons": 20}
    short, long = sorted(read(store, "tracklets"), key=lambda row: row["num_frames"])
    told = command("forget", "--tracklet", short["tracklet_id"], "--yes")
    assert (told["done"], told["snapshots"], told["rows"]["crops"]) == (True, [second], 8)
    assert {row["tracklet_id"] for row in read(store, "crops")} == {long["tracklet_id"]}
    files, name = storage(bucket), short["tracklet_id"].encode()
    assert [path for path in listed(store, bucket) if name in files.open_input_file(path).read()] == []
    assert command("verify", "--deep")["faults"] == 0


@pytest.mark.slow
def test_bytes_come_back_from_object_storage(store, bucket, street, command):
    first = builds.build(store, [street], WALK)
    assert command("verify", "--deep")["findings"] == []
    before = listed(store, bucket)
    second = builds.build(store, [street], replace(WALK, track=TrackConfig(min_seconds=0.5, min_frames=4)))
    told = command("gc", "--older-than", "0", "--drop", first, "--dry-run")
    assert command("gc", "--older-than", "0", "--drop", first) == told | {"dry_run": False}
    while told["tables"]:
        told = command("gc", "--older-than", "0")
    crops = lambda files: sum(size for path, size in files.items() if "/crops.lance/data/" in path)  # noqa: E731
    assert crops(listed(store, bucket)) == pytest.approx(crops(before), rel=0.1)
    assert command("verify", second, "--deep")["findings"] == []
    assert builds.build(store, [street], WALK) == first
    assert command("verify", "--deep")["findings"] == []


def read(store, table):
    return tables.read(tables.current(store, table)).to_pylist()


def storage(bucket):
    return fs.S3FileSystem(
        endpoint_override=bucket["AWS_ENDPOINT_URL"], access_key=KEY, secret_key=SECRET, scheme="http"
    )


def listed(store, bucket):
    """The objects of a store, and their bytes."""
    found = storage(bucket).get_file_info(fs.FileSelector(store.removeprefix("s3://"), recursive=True))
    return {one.path: one.size for one in found if one.is_file}


def test_processes_that_write_one_table_in_object_storage_lose_nothing(store):
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", UPSERT, store, number],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )
        for number in "12"
    ]
    for child in crowd:
        assert child.stdout.readline() == "ready\n"
    for child in crowd:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in crowd:
        _, problems = child.communicate(timeout=120)
        assert child.returncode == 0, problems
    assert found(tables.current(store, "frame_features")) == list(range(25))


def test_what_may_enter_is_written_nowhere(store, bucket):
    tables.upsert(store, "frame_features", features([1]))
    contents = [storage(bucket).open_input_file(path).read() for path in listed(store, bucket)]
    assert len(contents) > 2 * len(tables.TABLES)
    assert [text for text in contents if SECRET.encode() in text or KEY.encode() in text] == []


@pytest.mark.slow
def test_a_store_that_is_not_there_or_cannot_be_entered_is_named(store, monkeypatch):
    with pytest.raises(StoreError, match=r"Store s3://csip/elsewhere: found no table 'crops' there"):
        tables.current("s3://csip/elsewhere", "crops")
    with pytest.raises(StoreError, match=r"cannot be opened .*404 Not Found: NoSuchBucket: [^<>]*\)\. Restore"):
        tables.current("s3://no-such-bucket/x", "crops")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match=r"cannot be opened .*the AWS_\* variables") as caught:
        tables.current("s3://csip/other", "crops")
    assert SECRET not in str(caught.value)


def train(store, snapshot, tiny, run):
    """Train, embed and score on a snapshot of a store; give the checkpoint and the scores."""
    out = Output(store, "run-1")
    stage2_config = Stage2Config(epochs=2, identities=2, clips_per_identity=2, warmup_epochs=0, milestones=())
    untrained = run(initialise(out, snapshot, tiny.clip, tiny.model, ValidateConfig(), tiny.seed))[1].value
    features = run(cache_features(out, untrained, snapshot, tiny.runtime))[1].value
    given = (untrained, features, snapshot, stage2_config, ValidateConfig(), tiny.seed, tiny.runtime)
    # Left after an epoch, its state is in the store's place for files.
    stage = stage2(out, *given)
    while not next(stage).values:
        pass
    stage.close()
    assert [path.suffix for path in tables.files_in(store, "checkpoints")] == [".safetensors", ".state"]
    outcome = run(stage2(out, *given))[1]
    embeddings = run(embed(out, outcome.value, snapshot, EmbedConfig(), "trained", tiny.runtime))[1].value
    results = run(evaluate(out, (embeddings,), snapshot, EvaluateConfig(), tiny.runtime))[1].value
    scores = tables.read(results.table).select(["name", "value"]).sort_by("name").to_pylist()
    return outcome.value, scores


@pytest.mark.usefixtures("one_thread")
def test_a_training_in_object_storage_is_that_in_a_folder_and_its_files_lie_where_csip_files_says(
    store, tiny, tiny_store, publish_tiny, run, tmp_path, monkeypatch
):
    monkeypatch.setenv("CSIP_FILES", str(tmp_path / "files"))
    monkeypatch.chdir(tmp_path)
    checkpoint, scores = train(store, publish_tiny(store), tiny, run)
    alone, expected = train(tiny_store.store, tiny_store, tiny, run)
    assert (checkpoint.sha256, scores) == (alone.sha256, expected)
    own = tmp_path / "files" / store.removeprefix("s3://")
    assert Path(checkpoint.path).parent == own / "checkpoints"
    assert tables.inside(store, "reports", "page.html") == own / "reports" / "page.html"
    # Those who look after the store find them there.
    unnamed = {path.name for path, _ in unnamed_files(store, [])}
    assert unnamed == {path.name for path in (own / "checkpoints").iterdir()} > {Path(checkpoint.path).name}
    assert {path.name for path in tmp_path.iterdir()} == {"files", "tiny-store"}, "no folder called s3:"


def test_files_of_a_store_in_object_storage_are_told_of_and_cleaned_up(store, tmp_path, monkeypatch):
    monkeypatch.setenv("CSIP_FILES", str(tmp_path))
    left = tables.folder(store, "checkpoints") / "left.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"xyz")
    assert left.is_relative_to(tmp_path)
    told = [(one.where, one.text) for one in verify(store)]
    assert told == [("checkpoints/left.part", "a file that was not written to its end, 3 bytes.")]
    assert collect(store, dry_run=False, older_than=timedelta(0)).files == {"checkpoints/left.part": 3}
    assert not left.exists()


@pytest.mark.parametrize("command", [["train-csip", "video", "--snapshot", "x"], ["import-checkpoint", "c.pth"]])
def test_commands_that_write_files_want_to_know_where(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSIP_FILES", raising=False)
    assert main([*command, "--store", "s3://csip/x"]) == 1
    told = capsys.readouterr().err
    assert "Store s3://csip/x: checkpoints are files, and object storage has tables only. Set CSIP_FILES" in told
    assert tables.files_in("s3://csip/x", "checkpoints") == []
    assert tables.folder("/a/b", "checkpoints") == Path("/a/b/checkpoints")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("store", ["s3://csip/../../etc", "s3://csip//x", "s3://..", "s3://csip/./x"])
def test_an_address_leads_nowhere_else(store, tmp_path, monkeypatch):
    monkeypatch.setenv("CSIP_FILES", str(tmp_path))
    with pytest.raises(StoreError, match="found a part of the address that is no plain name"):
        tables.folder(store, "checkpoints")


@pytest.mark.parametrize("store", ["s3://key:secret@bucket/x", "s3://", "s3:///x", "gs://bucket/x", "http://host/x"])
def test_an_address_of_another_kind_or_with_a_secret_in_it_is_refused_and_not_repeated(store, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["snapshots", "--store", store])
    told = capsys.readouterr().err
    assert "expected a folder, or s3://BUCKET/PREFIX" in told
    assert "secret" not in told
