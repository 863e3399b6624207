"""Deployments as people operate them: the real `prefect`, a real server and worker; and the words they type."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ParameterTypeError, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

import flows
from csip.errors import StoreError
from csip.plain import to_plain
from flows import serve as serving_module
from flows.build_skeletons import build_skeletons
from flows.deploy import CHAINED, Deployed, Plan, deploy
from flows.evaluate_csip import evaluate_csip
from flows.lost import LOST, RULES
from flows.prefect_plugin import spell_out
from flows.recipes import RECIPES
from flows.train_csip import train_csip

from .test_flows import artifacts, ask, flow_runs, free_port

ROOT = Path(flows.__file__).resolve().parent.parent
PREFECT = Path(sys.executable).with_name("prefect")
CSIP = Path(sys.executable).with_name("csip")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("prefect deployment run build-skeletons", "prefect deployment run build-skeletons/build-skeletons"),
        ("/usr/bin/prefect deployments run train-csip --watch", "... deployments run train-csip/train-csip --watch"),
        ("-m deployment run evaluate-csip", "... deployment run evaluate-csip/evaluate-csip"),
        ("prefect --no-prompt deployment run train-csip", "... --no-prompt deployment run train-csip/train-csip"),
        ("prefect deployment run build-skeletons/build-skeletons", None),
        ("prefect deployment run another", None),
        ("prefect deployment inspect build-skeletons", None),
        ("prefect deployment run", None),
        ("pytest deployment run build-skeletons", None),
        ("", None),
    ],
)
def test_one_name_is_spelt_out_where_prefect_is_to_run_it_and_nowhere_else(typed, meant):
    words = typed.split()
    expected = words if meant is None else [words[0], *meant.split()[1:]]
    assert spell_out(words) == expected


@pytest.fixture(scope="module")
def deployed(server, tmp_path_factory):
    """The deployments, made twice, on this process's server."""
    store = str(tmp_path_factory.mktemp("deployed") / "store")
    for chained in (True, True):
        done = deploy(Plan(RECIPES["demo"](), ("/videos",), store, "gate", "pool-a", chained))
    yield store, done
    # Other tests' builds on this server start no trainings.
    deploy(Plan(RECIPES["demo"](), ("/videos",), store, "gate", "pool-a", False))


def read(name):
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(f"{name}/{name}")


def test_deploying_again_changes_what_is_there_and_makes_nothing_twice(deployed):
    with get_client(sync_client=True) as client:
        assert client.read_work_pool("pool-a").type == "process"
        names = (*RULES, CHAINED)
        assert [len(client.read_automations_by_name(name)) for name in names] == [1, 1, 1, 1, 1]
        deploy(Plan(RECIPES["demo"](), ("/videos",), deployed[0], "gate", "pool-a", False))
        assert [len(client.read_automations_by_name(name)) for name in names] == [1, 1, 1, 1, 0]
        deploy(Plan(RECIPES["demo"](), ("/videos",), deployed[0], "gate", "pool-a", True))


def test_deploying_again_leaves_rules_alone_that_wait_for_something(deployed, server):
    """Prefect gives a trigger that is written another number, under which it waits for nothing."""

    def triggers():
        return {one["name"]: one["trigger"]["id"] for one in ask(server, "automations/filter", {})}

    before = triggers()
    deploy(Plan(RECIPES["demo"](), ("/videos",), deployed[0], "gate", "pool-a", True))
    assert triggers() == before
    assert len(before) == 5
    # One that somebody has changed is put right.
    with get_client(sync_client=True) as client:
        (lost,) = client.read_automations_by_name(LOST)
        client.pause_automation(lost.id)
        deploy(Plan(RECIPES["demo"](), ("/videos",), deployed[0], "gate", "pool-a", True))
        assert client.read_automations_by_name(LOST)[0].enabled


def test_deploying_again_leaves_schedules_alone(deployed):
    with get_client(sync_client=True) as client:
        build = read("build-skeletons")
        (made,) = client.create_deployment_schedules(build.id, [(CronSchedule(cron="30 2 * * *"), True)])
        deploy(Plan(RECIPES["demo"](), ("/videos",), deployed[0], "gate", "pool-a", True))
        there = read("build-skeletons").schedules
        assert [(one.id, one.schedule.cron, one.active) for one in there] == [(made.id, "30 2 * * *", True)]
        client.delete_deployment_schedule(build.id, made.id)


def test_a_deployment_knows_what_to_run_where_it_is_told_nothing(deployed):
    store, done = deployed
    build = read("build-skeletons")
    assert build.parameters == to_plain(done.parameters["build-skeletons"])
    assert (build.parameters["sources"], build.parameters["camera"]) == (["/videos"], "gate")
    assert build.parameters["config"]["detect"]["image_size"] == RECIPES["demo"]().detect.image_size
    train = read("train-csip")
    assert (train.parameters["store"], train.parameters["snapshot"]) == (store, "")
    assert train.parameters["experiment"] == to_plain(RECIPES["demo"]())
    evaluate = read("evaluate-csip")
    for name in ("data", "embed", "evaluate", "skeleton", "runtime"):
        assert evaluate.parameters[name] == train.parameters["experiment"][name]
    assert evaluate.parameters["evaluate"]["ranks"] == [1, 5, 10], "the demo's, not everybody's"
    for one in (build, train, evaluate):
        assert one.work_pool_name == "pool-a"
        # A worker that Prefect itself starts has none of our commands' environment.
        assert one.job_variables["env"] == {"DO_NOT_TRACK": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}


def test_every_field_of_the_forms_says_what_it_is(deployed):
    for name in ("build-skeletons", "train-csip", "evaluate-csip"):
        schema = read(name).parameter_openapi_schema
        silent = [one for one, field in schema["properties"].items() if not field.get("description")]
        for section, definition in schema["definitions"].items():
            assert "Attributes:" not in definition.get("description", "")
            silent += [
                f"{section}.{one}" for one, field in definition["properties"].items() if "description" not in field
            ]
            # What only who reads the code could look up.
            silent += [f"{section}.{one}" for one, field in definition["properties"].items() if "see `" in str(field)]
        assert silent == []
    fields = read("build-skeletons").parameter_openapi_schema["definitions"]["DetectConfig"]["properties"]
    assert "pixels" in fields["image_size"]["description"]


BUILD, TRAIN, EVALUATE = "build-skeletons", "train-csip", "evaluate-csip"


@pytest.mark.parametrize(
    ("flow", "change", "told"),
    [
        (BUILD, {"sources": "street.mp4"}, "sources"),
        (BUILD, {"sources": []}, "sources"),
        (BUILD, {"store": ""}, "store"),
        # Under a worker's own folder, which is deleted with the run.
        (BUILD, {"store": "store"}, "store"),
        (TRAIN, {"store": "../store"}, "store"),
        (EVALUATE, {"store": "gs://store"}, "store"),
        (BUILD, {"sources": ["street.mp4"]}, "sources"),
        (BUILD, {"sources": ["mars:data"]}, "sources"),
        (BUILD, {"config": {"detect": {"stride": "often"}}}, "stride"),
        (BUILD, {"config": {"detect": {"stride": -5}}}, "stride"),
        (BUILD, {"config": {"detect": {"confidence": 7.0}}}, "confidence"),
        (BUILD, {"config": {"detect": {"image_size": 12}}}, "image_size"),
        (BUILD, {"config": {"dataset": "../x y"}}, "dataset"),
        (BUILD, {"config": {"detcet": {}}}, "detcet"),
        (BUILD, {"runtime": {"pose_engine": "abacus"}}, "abacus"),
        (BUILD, {"runtime": {"device": "abacus"}}, "abacus"),
        (TRAIN, {"experiment": {"name": "x", "stage2": {"epochs": -3}}}, "epochs"),
        (TRAIN, {"experiment": {"name": "x", "evaluate": {"ranks": [0, -1]}}}, "ranks"),
        (EVALUATE, {"evaluate": {"ranks": []}}, "ranks"),
        (EVALUATE, {"sha256": "zz"}, "sha256"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_run(deployed, server, flow, change, told):
    with get_client(sync_client=True) as client, pytest.raises(PrefectHTTPStatusError) as caught:
        client.create_flow_run_from_deployment(read(flow).id, parameters=change)
    assert told in caught.value.response.text


@pytest.mark.parametrize(
    "change",
    [
        {"sources": ["/videos/a.mp4", "/videos/b: the second.mp4"]},
        {"sources": ["walkers:"]},
        {"sources": ["mars:/data/mars"], "store": "s3://cameras"},
    ],
)
def test_what_is_absolute_or_needs_no_place_is_taken(deployed, server, change):
    with get_client(sync_client=True) as client:
        client.delete_flow_run(client.create_flow_run_from_deployment(read(BUILD).id, parameters=change).id)


def test_a_relative_store_is_refused_in_python_too():
    with pytest.raises(ParameterTypeError, match="store"):
        train_csip.validate_parameters({"snapshot": "x", "store": "store", "experiment": RECIPES["demo"]()})


def test_a_run_tracks_again_also_where_its_deployment_builds_a_benchmark(tmp_path):
    with pytest.raises(StoreError, match="found no table 'snapshots'"):
        build_skeletons.fn(("mars:/nowhere",), str(tmp_path), retrack="video-12345678")


@pytest.fixture
def planned(command, monkeypatch):
    """Run `csip deploy` up to where a server is needed: what is said, and the plan."""
    plans = []
    monkeypatch.setattr("flows.operate.deploy", lambda plan: plans.append(plan) or Deployed("", (), (), {}))

    def run(*words):
        done = command("deploy", "--no-plugin", "--json", *words)
        return SimpleNamespace(code=done.code, err=done.err, plan=plans[-1] if plans else None)

    return run


def test_sources_that_are_deployed_are_absolute(planned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert planned("street.mp4", "/b.mp4").plan.sources == (f"{tmp_path}/street.mp4", "/b.mp4")
    assert planned("mars:data").plan.sources == (f"mars:{tmp_path}/data",)
    assert planned("mars:/data").plan.sources == ("mars:/data",)
    assert planned("walkers:").plan.sources == ("walkers:",)


def test_who_deploys_needs_no_gpu_and_who_serves_does(planned, command, tmp_path):
    done = planned("--set", "runtime.device=cuda:99")
    assert (done.code, done.plan.experiment.runtime.device) == (0, "cuda:99"), done.err
    served = command("serve", "--store", tmp_path / "store", "--set", "runtime.device=cuda:99")
    assert served.code == 1
    assert "got 'cuda:99', which is device 99 here" in served.err


def test_a_form_shows_what_a_number_may_be(deployed):
    fields = read(BUILD).parameter_openapi_schema["definitions"]["DetectConfig"]["properties"]
    assert (fields["stride"]["minimum"], fields["stride"]["maximum"]) == (1, 10_000)
    assert fields["stride"]["description"].endswith(" [1 to 10000]")
    # What lies between is refused.
    assert fields["image_size"]["description"].endswith(" [0, or 64 to 8192]")


def test_everything_a_run_needs_has_a_default(deployed, server):
    with get_client(sync_client=True) as client:
        for flow in (BUILD, TRAIN, EVALUATE):
            run = client.create_flow_run_from_deployment(read(flow).id)
            client.delete_flow_run(run.id)


@pytest.mark.parametrize(
    ("flow", "given", "changed"),
    [
        (build_skeletons, {"config": {"detect": {"stride": 2}}}, ("config", "detect", "stride")),
        (train_csip, {"experiment": {"stage2": {"epochs": 7}}}, ("experiment", "stage2", "epochs")),
        (evaluate_csip, {"evaluate": {"ranks": [1]}}, ("evaluate", "ranks")),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_what_a_run_says_of_a_section_goes_over_what_the_deployment_has(
    deployed, server, monkeypatch, flow, given, changed
):
    deployment = read(flow.name)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment.id, parameters=given)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(run.id))
    # As Prefect does it in the process of the run.
    found = flow.validate_parameters(run.parameters)
    expected = json.loads(json.dumps(deployment.parameters))
    at, value = expected, given
    for name in changed[:-1]:
        at, value = at[name], value[name]
    assert at[changed[-1]] != value[changed[-1]]
    at[changed[-1]] = value[changed[-1]]
    assert {name: to_plain(found[name]) for name in expected} == expected


@pytest.mark.parametrize("folder", ["the repository", "elsewhere"])
def test_one_name_is_enough_in_the_repository_though_no_profile_says_so(deployed, server, tmp_path, folder):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [PREFECT, "deployment", "run", TRAIN],
        cwd=ROOT if folder == "the repository" else tmp_path,
        env=inherited | {"PREFECT_HOME": str(tmp_path / "fresh"), "PREFECT_API_URL": server},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # Elsewhere `csip deploy` would have put it into the profile.
    told = "Created flow run" if folder == "the repository" else "Expected format: <FLOW_NAME>/<DEPLOYMENT_NAME>"
    assert told in done.stdout + done.stderr


def test_a_port_that_is_taken_is_said_and_nothing_is_started(command, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = command("serve", "--port", port, "--store", tmp_path / "store")
    assert done.code == 1
    assert f"Port {port} of 127.0.0.1: cannot be had" in done.err
    assert "--port" in done.err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("words", [["serve"], ["worker"], ["join", "127.0.0.1:29500"]])
def test_what_runs_until_it_is_stopped_has_no_one_document(command, words):
    done = command(*words, "--json")
    assert done.code == 2
    assert "has no one document to print" in done.err


class Serving:
    """`csip serve` in a process of its own, with a Prefect of its own."""

    def __init__(self, folder, *words, **more):
        self.port, self.folder = free_port(), folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        own = {"PREFECT_HOME": str(folder / "home"), "PREFECT_WORKER_QUERY_SECONDS": "2", **more}
        self.environment = kept | own
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.log = folder / "serve.log"
        command = [CSIP, "serve", "--port", self.port, *words]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self, text, seconds=180):
        end = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.5)

    def processes(self):
        """Everything that has this server's address in its environment."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and self.url.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def kill(self):
        """End it and everything that it has started."""
        self.process.kill()
        self.process.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def prefect(self, *words, **more):
        done = subprocess.run(
            list(map(str, [PREFECT, *words])),
            cwd=self.folder,
            env=self.environment | {"PREFECT_API_URL": self.url, **more},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.log.read_text()
        return done.stdout


@pytest.fixture
def serving(tmp_path):
    """Start `csip serve`; whatever it has started is gone at the end."""
    made = []

    def start(*words, **more):
        made.append(Serving(tmp_path, *words, **more))
        made[-1].wait("Worker 'ProcessWorker")
        return made[-1]

    yield start
    for one in made:
        one.kill()


def stop(serving, how):
    """End it by a signal; nothing that it has started may be left."""
    assert len(serving.processes()) >= 2
    serving.process.send_signal(how)
    assert serving.process.wait(90) == 0, serving.log.read_text()
    assert serving.processes() == []


@pytest.mark.slow
def test_one_command_serves_builds_and_trains_and_ctrl_c_leaves_nothing_running(
    serving, street, settings, browser, shoot, tmp_path
):
    store = tmp_path / "store"
    # Enough epochs for curves.
    longer = settings.sets(["pretrain.epochs=8", "stage1.epochs=8", "stage2.epochs=6"])
    served = serving(street, "--store", store, "--recipe", "demo", "--train-after-builds", *settings.small, *longer)
    told = served.log.read_text()
    assert f"http://127.0.0.1:{served.port}" in told
    assert f"server           {served.url}" in told
    # From a folder that knows nothing of CSIP: the profile has the plugin.
    assert "'Completed'" in served.prefect("deployment", "run", "build-skeletons", "--watch")
    (built,) = [run for run in flow_runs(served.url, store) if run["deployment_id"]][:1]
    assert built["state_name"] == "Completed"
    end = time.monotonic() + 300
    while True:
        runs = flow_runs(served.url, store)
        if len(runs) == 2 and runs[1]["state_type"] in ("COMPLETED", "FAILED", "CRASHED"):
            break
        assert time.monotonic() < end, json.dumps(runs, indent=1) + served.log.read_text()
        time.sleep(1)
    assert (runs[1]["created_by"]["type"], runs[1]["state_name"]) == ("AUTOMATION", "Completed")
    assert runs[1]["parameters"]["snapshot"]
    (report,) = (store / "reports").iterdir()
    (told,) = (one for one in artifacts(served.url, runs[1]) if one["key"] == "write-report-page")
    # Scores, curves that are drawn, and where the page with people in it lies.
    browser.go(f"http://127.0.0.1:{served.port}/artifacts/artifact/{told['id']}", "95 % interval", str(report))
    drawn = "[...document.querySelectorAll('img[src^=data]')].filter(e => e.naturalWidth == 488).map(e => e.alt)"
    assert browser.run(drawn) == ["pretrain_visual", "stage1", "stage2"]
    shoot("report")
    stop(served, signal.SIGINT)


class Refuses(BaseHTTPRequestHandler):
    """A server that lets nobody in."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


Refuses.do_POST = Refuses.do_GET


def test_a_server_that_asks_for_a_password_is_told_from_one_that_is_not_there(command):
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{one.server_port}/api"
        try:
            with temporary_settings({PREFECT_API_URL: url}):
                done = command("deploy", "--no-plugin")
        finally:
            one.shutdown()
    assert done.code == 1
    assert f"Prefect's server at {url}: cannot be used" in done.err
    assert "set PREFECT_API_AUTH_STRING to what the server has as PREFECT_SERVER_API_AUTH_STRING" in done.err
    assert "csip serve" not in done.err.partition("cannot be used")[2]


@pytest.mark.slow
def test_who_serves_knows_the_servers_password_and_so_do_its_runs(serving, street, settings, tmp_path):
    served = serving(
        *(street, "--store", tmp_path / "store", *settings.extract), PREFECT_SERVER_API_AUTH_STRING="csip:secret"
    )
    words = ("deployment", "run", "build-skeletons", "--watch")
    assert "'Completed'" in served.prefect(*words, PREFECT_API_AUTH_STRING="csip:secret")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        flow_runs(served.url, tmp_path / "store")


def test_a_worker_has_as_long_to_end_as_a_run_may_take_to_save(tmp_path, monkeypatch):
    def start(module, words, settings):
        script = f"trap 'sleep 2; touch {module}-saved; exit' TERM; touch {module}; while :; do sleep 0.1; done"
        return subprocess.Popen(["sh", "-c", script], cwd=tmp_path, start_new_session=True)

    def stop():
        while not (tmp_path / "flows").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(serving_module, "start", start)
    monkeypatch.setattr(serving_module, "_wait", lambda *_: None)
    monkeypatch.setattr(serving_module, "_END_SECONDS", 0.2)
    threading.Thread(target=stop, daemon=True).start()
    serving_module.serve(free_port(), "boxes", 1, 60.0, lambda url: None)
    # The server has nothing to save, and is killed where it does not end.
    assert {path.name for path in tmp_path.iterdir()} >= {"flows-saved"}
    assert not (tmp_path / "prefect-saved").exists()


@pytest.mark.slow
def test_a_service_manager_ends_what_serves_too(serving, tmp_path):
    stop(serving("--store", tmp_path / "store"), signal.SIGTERM)
