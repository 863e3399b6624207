"""The flows as Prefect sees them: named task runs, cached or failed states, artifacts; and equal rows on every run."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterId

import flows
from csip import tables
from csip.plain import from_plain
from csip.types import CheckpointRef, EmbeddingsRef, FileRef, ResultsRef, Snapshot, TableRef
from flows import progress
from flows.progress import artifact_key
from flows.stage import stage

ROOT = Path(flows.__file__).resolve().parent.parent
TRAINING = ["pretrain_visual", "cache_features", "stage1", "stage2"]
AFTER = ["embed: trained", "embed: untrained", "embed_histogram", "evaluate", "write_report"]
RETURNS = {
    "initialise": CheckpointRef,
    "pretrain_visual": CheckpointRef,
    "cache_features": TableRef,
    "stage1": CheckpointRef,
    "stage2": CheckpointRef,
    "embed": EmbeddingsRef,
    "embed_histogram": EmbeddingsRef,
    "evaluate": ResultsRef,
    "write_report": FileRef,
}


def ask(url, path, query):
    """Ask a Prefect API: POST some JSON, get some JSON."""
    request = urllib.request.Request(
        f"{url}/{path}", json.dumps(query).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def ask_all(url, path, query):
    """Ask for a list of any length: the server gives 200 at once at most, and a session's tests make more."""
    found, more = [], [None]
    while more:
        more = ask(url, path, query | {"offset": len(found)})
        found += more
    return found


def flow_runs(url, store):
    """Flow runs on a store, oldest first; the events that make their states are recorded a little later."""
    found = ask_all(url, "flow_runs/filter", {"sort": "START_TIME_ASC"})
    return [run for run in found if run["parameters"].get("store") == str(store)]


def task_runs(url, flow_run, count):
    """Names and state names of a flow run's tasks, in the order they started; they are recorded a little later."""
    query = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
    for _ in range(60):
        found = ask(url, "task_runs/filter", query)
        if len(found) >= count and all(run["state_type"] in ("COMPLETED", "FAILED") for run in found):
            break
        time.sleep(0.5)
    return [(run["name"], run["state_name"]) for run in found]


def artifacts(url, flow_run):
    return ask(url, "artifacts/filter", {"flow_runs": {"id": {"any_": [flow_run["id"]]}}})


def test_each_step_of_a_training_is_a_named_task_run(server, demo):
    built, trained = flow_runs(server, demo.store)[:2]
    assert (built["state_name"], trained["state_name"]) == ("Completed", "Completed")
    # The street is in the store already, so no batch is extracted.
    assert task_runs(server, built, 2) == [("list_videos", "Completed"), ("publish", "Completed")]
    expected = [(name, "Completed") for name in ["initialise", *TRAINING, *AFTER]]
    assert task_runs(server, trained, len(expected)) == expected


def test_each_step_of_a_training_leaves_a_reference_that_opens(demo):
    mine = {run["run_id"] for run in demo.train["stages"]}
    runs = [run for run in tables.find_runs(str(demo.store), "true") if run.run_id in mine]
    for name, kind in RETURNS.items():
        found = [run for run in runs if run.stage == name]
        assert len(found) == (2 if name == "embed" else 1)
        for run in found:
            ref = from_plain(kind, run.outputs)
            if isinstance(ref, CheckpointRef | FileRef):
                assert Path(ref.path).is_file()
            else:
                table = ref if isinstance(ref, TableRef) else ref.table
                assert tables.count(table) > 0


def test_a_training_shows_its_progress_in_the_ui(server, demo):
    trained = flow_runs(server, demo.store)[1]
    found = {one["key"]: one["data"] for one in artifacts(server, trained) if one["type"] == "progress"}
    assert {"pretrain-visual", "stage1", "stage2", "embed-trained", "embed-untrained", "evaluate"} <= set(found)
    assert set(found.values()) == {100.0}


@pytest.mark.slow
def test_the_bar_of_an_extraction_moves_in_the_ui(server, street, settings, command, tmp_path, monkeypatch):
    shown = []
    update = progress.update_progress_artifact
    client = get_client(sync_client=True)

    def update_and_look(artifact, *given, **more):
        update(artifact, *given, **more)
        (one,) = client.read_artifacts(artifact_filter=ArtifactFilter(id=ArtifactFilterId(any_=[artifact])))
        shown.append((one.key, float(one.data), one.description))

    monkeypatch.setattr(progress, "update_progress_artifact", update_and_look)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_UPDATES", 0.2)
    done = command("build-skeletons", street, "--store", tmp_path / "store", "--json", *settings.extract)
    assert done.code == 0, done.err
    mine = [(value, text) for key, value, text in shown if key == "extract-videos-street-mp4"]
    values = [value for value, _ in mine]
    assert values == sorted(values)
    between = [(value, text) for value, text in mine if 0 < value < 100]
    assert between, values
    # As the text beside it says: seconds of a video of six.
    for value, text in between:
        seconds, whole = re.search(r": (\d+) of (\d+) seconds of video", text).groups()
        assert value == pytest.approx(100 * int(seconds) / int(whole))
    assert values[-1] == 100


def test_a_build_shows_its_counts_and_where_its_snapshot_comes_from_in_the_ui(server, demo):
    built = flow_runs(server, demo.store)[0]
    found = {one["key"]: one for one in artifacts(server, built)}
    counts = {row["counted"]: row["value"] for row in json.loads(found["publish-counts"]["data"])}
    told = demo.build["counts"]
    assert (counts["crops"], counts["tracklets"]) == (told["crops"], told["tracklets"])
    assert {counts[f"dropped: {reason.replace('_', ' ')}"] for reason in told["dropped"]} == set(
        told["dropped"].values()
    )
    text = found["publish-lineage"]["data"]
    assert f"Snapshot **{demo.snapshot}**" in text
    (video,) = {row["video_sha"] for row in tables.read(tables.current(str(demo.store), "videos")).to_pylist()}
    assert f"video {video[:12]}" in text


def test_a_training_shows_its_scores_and_what_they_come_from_in_the_ui(server, demo):
    trained = flow_runs(server, demo.store)[1]
    found = {one["key"]: one for one in artifacts(server, trained)}
    (key,) = (key for key in found if key.startswith("evaluate-scores-"))
    rows = {row["encoder"]: row for row in json.loads(found[key]["data"])}
    assert set(rows) == set(demo.train["scores"])
    for encoder, figures in demo.train["scores"].items():
        assert rows[encoder]["mAP"] == f"{100 * figures['mean_ap']:.1f} %"
        assert rows[encoder]["rank-1"] == f"{100 * figures['rank-1']:.1f} %"
    assert f"csip lineage {demo.train['run_id']}" in found["evaluate-lineage"]["data"]


def test_a_report_is_told_in_the_ui_with_figures_and_curves_and_without_a_picture_of_a_person(server, demo):
    trained = flow_runs(server, demo.store)[1]
    (told,) = (one["data"] for one in artifacts(server, trained) if one["key"] == "write-report-page")
    for encoder, figures in demo.train["scores"].items():
        assert f"| {encoder} | {100 * figures['mean_ap']:.1f} % |" in told
    pictures = re.findall(r"!\[(\w+)\]\(data:([^;]+);base64,([^)]+)\)", told)
    trainings = ("pretrain_visual", "stage1", "stage2")
    assert [picture[:2] for picture in pictures] == [(name, "image/svg+xml") for name in trainings]
    for name, _, coded in pictures:
        drawn = ElementTree.fromstring(base64.b64decode(coded))
        points = list(drawn.iter("{http://www.w3.org/2000/svg}circle"))
        assert len(points) == len(demo.train["losses"][name])
    # The page itself has people in it, and whom `csip forget` forgets must not live on in Prefect's database.
    page = Path(demo.train["report"]["path"])
    assert "data:image/jpeg" in page.read_text()
    assert told.count("data:") == len(pictures)
    assert "file:" not in told
    assert f"    {page}\n" in told


def test_what_the_library_logs_in_the_flows_own_process_is_in_the_runs_log(toys, server, tmp_path):
    said = stage(toys.say, work=None, cached=False)

    @flow(name="say")
    def run(store):
        said(store)

    state = run(str(tmp_path / "store"), return_state=True)
    assert state.is_completed()
    query = {"logs": {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}}}
    for _ in range(60):
        lines = [(one["level"], one["message"]) for one in ask(server, "logs/filter", query)]
        if len(lines) >= 2:
            break
        time.sleep(0.5)
    ours = sorted(line for line in lines if "csip.toy" in line[1])
    assert ours == [(20, "INFO csip.toy: looked at three"), (30, "WARNING csip.toy: left one out")]


def test_a_flow_called_again_gives_the_same_references_from_cached_states(server, demo, settings):
    from flows.overrides import with_overrides
    from flows.recipes import RECIPES
    from flows.train_csip import Trained, train_csip

    experiment = with_overrides(RECIPES["demo"](), settings.small[1::2])
    done = train_csip(demo.snapshot, str(demo.store), experiment)
    (trained,) = done.trained
    assert done.mean is None
    assert trained == Trained(
        CheckpointRef(**demo.train["checkpoint"]), trained.results, FileRef(**demo.train["report"])
    )
    assert isinstance(trained.results, ResultsRef)
    assert trained.results.run_id == demo.train["run_id"]
    again = flow_runs(server, demo.store)[-1]
    # These two look again: weights may change under their name, a page's template is no Python.
    looked_again = {"initialise", "write_report"}
    names = ["initialise", *TRAINING, *AFTER]
    expected = [(name, "Completed" if name in looked_again else "Cached") for name in names]
    assert task_runs(server, again, len(expected)) == expected


def test_a_build_gives_the_snapshot_it_published(own_store, built, street, settings):
    from flows.build_skeletons import build_skeletons
    from flows.overrides import with_overrides
    from flows.recipes import RECIPES

    experiment = with_overrides(RECIPES["video"](), settings.extract[1::2])
    snapshot = build_skeletons((str(street),), str(own_store), "", experiment.extract, experiment.runtime)
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.name, dict(snapshot.tables)) == (built.snapshot, built.told["tables"])


def test_a_flow_that_fails_says_why_in_its_state(server, tmp_path, command, settings):
    (tmp_path / "notes.mp4").write_text("no video")
    command("build-skeletons", tmp_path / "notes.mp4", "--store", tmp_path / "store", *settings.extract)
    (run,) = flow_runs(server, tmp_path / "store")
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run["id"]).state
    assert state.is_failed()
    assert "notes.mp4: 8 bytes that cannot be read as a video" in state.message
    assert task_runs(server, run, 1) == [("list_videos", "Failed")]


# ------------------------------------------------------------------------------------------------------ determinism


def only(done):
    """What a command told of its one training, beside what it told of itself."""
    told = json.loads(done.out)
    (one,) = told["trained"]
    return told | one


def everything(store, dataset):
    """What a build leaves, row for row, without what says when and where it ran."""
    out = {
        name: tables.read(tables.current(str(store), name)).to_pylist()
        for name in ("detections", "tracklets", "crops", "skeletons")
    }
    out["splits"] = tables.read(tables.current(str(store), "splits"), where=f"dataset = '{dataset}'").to_pylist()
    return out


@pytest.mark.slow
def test_equal_videos_give_equal_rows_and_equal_weights_in_any_order_and_hash_seed(
    fresh_command, server, cut_video, settings, tmp_path
):
    long, short = cut_video(tmp_path / "long.mp4", 60), cut_video(tmp_path / "short.mp4", 35)
    found = []
    for hash_seed, names in (("1", ("a.mp4", "b.mp4")), ("77", ("b.mp4", "a.mp4"))):
        home = tmp_path / f"run-{hash_seed}"
        (home / "videos").mkdir(parents=True)
        for video, name in zip((long, short), names, strict=True):
            shutil.copy(video, home / "videos" / name)
        common = {"PYTHONHASHSEED": hash_seed, "PREFECT_API_URL": server}
        words = ("--store", home / "store", "--json")
        built = fresh_command(
            *("build-skeletons", home / "videos", "--camera", "one", *words, *settings.extract), **common
        )
        assert built.code == 0, built.err
        name = json.loads(built.out)["snapshot"]
        trained = fresh_command("train-csip", "demo", "--snapshot", name, *words, *settings.small, **common)
        assert trained.code == 0, trained.err
        new_rate = ("--set", "stage2.learning_rate=1e-7")
        again = fresh_command("train-csip", "demo", "--snapshot", name, *words, *settings.small, *new_rate, **common)
        assert again.code == 0, again.err
        found.append(
            SimpleNamespace(
                name=name,
                rows=everything(home / "store", name),
                told=only(trained),
                again=only(again),
            )
        )
    one, other = found
    assert one.name == other.name
    for name in one.rows:
        assert one.rows[name], name
        assert one.rows[name] == other.rows[name], name
    assert one.told["checkpoint"]["sha256"] == other.told["checkpoint"]["sha256"]
    assert one.told["losses"] == other.told["losses"]
    assert one.told["scores"] == other.told["scores"]
    # A new rate of stage 2 does nothing again that comes before it; initial weights and page are looked at each time.
    stages = ["initialise", "stage2", "embed", "evaluate", "write_report"]
    assert [run["stage"] for run in one.again["stages"]] == stages
    assert one.again["checkpoint"]["sha256"] == other.again["checkpoint"]["sha256"] != one.told["checkpoint"]["sha256"]


# -------------------------------------------------------------------------------------------------- a server and worker


class Processes:
    """Programs started for a test, each in a group of its own, and ended with it."""

    def __init__(self, folder, environment):
        self.folder, self.environment, self._started = folder, environment, []

    def start(self, *words):
        log = (self.folder / f"{len(self._started)}-{Path(words[0]).name}.log").open("w")
        process = subprocess.Popen(
            list(map(str, words)),
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._started.append((process, log))
        return process

    def run(self, *words):
        done = subprocess.run(
            list(map(str, words)),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def end(self):
        for process, log in reversed(self._started):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            log.close()


def wait_for(condition, seconds, told):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, told()
        time.sleep(0.2)
    return found


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def running_server(folder, **more):
    """A Prefect server as a user starts it, with a database, a port and a home of its own, until the block ends."""
    port = free_port()
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        **more,
    }
    processes = Processes(folder, environment)
    prefect = Path(sys.executable).with_name("prefect")

    def serve():
        server = processes.start(prefect, "server", "start", "--host", "127.0.0.1", "--port", port)
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{environment['PREFECT_API_URL']}/health", timeout=5).close()
                return server
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < end, "the server did not answer"
                time.sleep(0.5)

    try:
        yield SimpleNamespace(
            url=environment["PREFECT_API_URL"],
            processes=processes,
            prefect=prefect,
            folder=folder,
            process=serve(),
            serve=serve,
        )
    finally:
        processes.end()


@pytest.fixture
def real_server(tmp_path):
    with running_server(tmp_path / "server") as server:
        yield server


@pytest.mark.slow
def test_a_build_shows_on_a_real_server_and_runs_on_a_worker(real_server, street, settings, tmp_path):
    processes, prefect, url = real_server.processes, real_server.prefect, real_server.url
    csip = Path(sys.executable).with_name("csip")
    typed = tmp_path / "typed"
    told = json.loads(processes.run(csip, "build-skeletons", street, "--store", typed, "--json", *settings.extract))
    (run,) = flow_runs(url, typed)
    assert run["state_name"] == "Completed"
    names = ("list_videos", f"extract_videos: {street.name}", "publish")
    assert task_runs(url, run, 3) == [(name, "Completed") for name in names]
    shown = {artifact["key"]: artifact for artifact in artifacts(url, run)}
    progress = shown[artifact_key(f"extract_videos: {street.name}")]
    assert (progress["type"], progress["data"]) == ("progress", 100.0)

    # The deployment has one half of the settings, and the run says the other.
    half = settings.sets(("detect.image_size=640", "split.gap_seconds=0.2", "runtime.device=cpu"))
    told_too = json.loads(processes.run(csip, "deploy", street, "--pool", "machines", "--no-plugin", "--json", *half))
    assert told_too["deployments"] == ["build-skeletons", "train-csip", "evaluate-csip"]
    processes.start(prefect, "worker", "start", "--pool", "machines")
    worked = tmp_path / "worked"
    parameters = {
        "sources": [str(street)],
        "store": str(worked),
        "config": {"track": {"interpolate_seconds": 0}, "split": {"min_part_frames": 4}},
        "runtime": {"pose_engine": "pytorch"},
    }
    words = [word for name, value in parameters.items() for word in ("--param", f"{name}={json.dumps(value)}")]
    processes.run(prefect, "deployment", "run", "build-skeletons/build-skeletons", "--watch", *words)
    (run,) = flow_runs(url, worked)
    assert run["state_name"] == "Completed"
    assert run["deployment_id"] is not None
    assert tables.open_snapshot(str(worked), told["snapshot"]).name == told["snapshot"]
    assert everything(worked, told["snapshot"]) == everything(typed, told["snapshot"])


def processes_of_runs(url):
    """Processes that work on a flow run of this server: theirs and their children's."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environ = (entry / "environ").read_bytes() if entry.name.isdecimal() else b""
        except OSError:
            continue
        if url.encode() in environ and b"PREFECT__FLOW_RUN_ID=" in environ:
            found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_run_that_was_killed_with_its_worker_does_not_stay_running(real_server, settings, tmp_path):
    processes, prefect, url = real_server.processes, real_server.prefect, real_server.url
    csip = Path(sys.executable).with_name("csip")
    store = tmp_path / "store"
    words = ("--store", store, "--pool", "machines", "--no-plugin")
    # The shipped video: minutes of work.
    processes.run(csip, "deploy", *words, *settings.sets(("detect.image_size=1280", "runtime.pose_engine=pytorch")))
    worker = processes.start(prefect, "worker", "start", "--pool", "machines")
    processes.run(prefect, "deployment", "run", "build-skeletons/build-skeletons")

    def state(seconds, *wanted):
        end = time.monotonic() + seconds
        while True:
            (run,) = flow_runs(url, store)
            if run["state_type"] in wanted:
                return run
            assert time.monotonic() < end, run
            time.sleep(1)

    run = state(120, "RUNNING")
    time.sleep(10)  # for a first heartbeat
    victims = processes_of_runs(url)
    assert victims, "\n".join(log.read_text() for log in processes.folder.glob("*.log"))
    for pid in (worker.pid, *victims):
        os.kill(pid, signal.SIGKILL)
    run = state(240, "CRASHED")
    assert "No heartbeat for 95 s" in run["state"]["message"]


@pytest.mark.slow
def test_a_server_that_is_gone_for_a_while_stops_no_training(real_server, built, own_store, settings):
    processes, csip = real_server.processes, Path(sys.executable).with_name("csip")
    words = ("train-csip", "demo", "--snapshot", built.snapshot, "--store", own_store, *settings.small)
    training = processes.start(csip, *words, *settings.sets(("pretrain.epochs=200",)))
    (log,) = processes.folder.glob("*-csip.log")

    def epochs():
        rows = tables.read(tables.current(str(own_store), "metrics"), ["step"], "stage = 'pretrain_visual'")
        return set(rows["step"].to_pylist())

    def at_work():
        assert training.poll() is None, log.read_text()
        return True

    wait_for(lambda: at_work() and epochs(), 120, log.read_text)
    os.killpg(real_server.process.pid, signal.SIGKILL)
    seen = epochs()
    wait_for(lambda: at_work() and epochs() > seen, 60, log.read_text)
    # Prefect's own client tries for a minute.
    wait_for(lambda: at_work() and "The work goes on." in log.read_text(), 150, log.read_text)
    real_server.serve()
    training.wait(timeout=300)
    assert training.returncode == 0, log.read_text()
    assert log.read_text().count("could not be told how it goes") == 1
    (run,) = flow_runs(real_server.url, own_store)
    assert run["state_type"] == "COMPLETED"
    assert epochs() == set(range(1, 201))
