"""CSIP in Prefect's UI, in a real browser: what it shows, and what its buttons do; `shoot` keeps pictures of it."""

import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser import Browser, find_chromium
from tests.flows.test_deploy import Serving
from tests.flows.test_flows import artifacts, ask, flow_runs

pytestmark = pytest.mark.slow

# Value and range of the box for `stride`, the only one of this range.
STRIDES = """[...document.querySelectorAll('input[type=number]')].filter(e => e.min == '1' && e.max == '10000')
    .map(e => [e.value, e.min, e.max]).slice(0, 1)"""


@pytest.fixture(scope="module")
def serving(street, settings, tmp_path_factory):
    """`csip serve` with a training that would take hours."""
    folder = tmp_path_factory.mktemp("serving")
    store = folder / "store"
    words = (street, "--store", store, "--recipe", "demo", *settings.small, *settings.sets(["pretrain.epochs=100000"]))
    made = Serving(folder, *words)
    made.store = store
    try:
        made.wait("Worker 'ProcessWorker")
        yield made
    finally:
        made.process.send_signal(signal.SIGINT)
        try:
            made.process.wait(90)
        finally:
            made.kill()


@pytest.fixture(scope="module")
def built(serving):
    """A run of build-skeletons, as the API has it."""
    assert "'Completed'" in serving.prefect("deployment", "run", "build-skeletons", "--watch")
    return flow_runs(serving.url, serving.store)[0]


def page(serving, path):
    return f"http://127.0.0.1:{serving.port}/{path}"


def deployment(serving, name):
    (found,) = [one for one in ask(serving.url, "deployments/filter", {}) if one["name"] == name]
    return found


def test_a_build_shows_its_steps_counts_and_lineage(serving, built, browser, shoot):
    browser.go(page(serving, f"runs/flow-run/{built['id']}"), "Completed", "3 Task runs", "extract_videos: street.mp4")
    shoot("build")
    browser.click("Artifacts")
    for key in ("extract-videos-street-mp4-counts", "publish-lineage"):
        browser.wait_for(key)
    found = {one["key"]: one["id"] for one in artifacts(serving.url, built)}
    browser.go(page(serving, f"artifacts/artifact/{found['publish-lineage']}"), "csip lineage", "└── video")
    shoot("lineage")
    counts = page(serving, f"artifacts/artifact/{found['extract-videos-street-mp4-counts']}")
    browser.go(counts, "tracklets", "quarantined", "seconds: model")
    progress = page(serving, f"artifacts/artifact/{found['extract-videos-street-mp4']}")
    browser.go(progress, "extract_videos: street.mp4: done", "100%")


def test_the_runs_page_names_flow_deployment_and_state(serving, built, browser):
    browser.go(page(serving, "runs"), built["name"], "3 Task runs")
    lines = browser.text().splitlines()
    at = lines.index(built["name"])
    assert lines[at - 1] == "build-skeletons"
    assert {"csip", "Completed"} <= set(lines[at:])


def test_the_form_of_a_run_explains_every_field(serving, browser, shoot):
    path = f"deployments/deployment/{deployment(serving, 'build-skeletons')['id']}/run"
    browser.go(
        page(serving, path), "videos, folders of videos, or .csv manifests", "every so many frames one is looked"
    )
    shoot("form")
    shown = browser.text()
    for name in ("Image Size", "Min Box Height", "Per Device"):
        assert name in shown
    # Words that may be chosen, and the default of a field.
    assert "bytetrack" in shown
    assert "botsort" in shown
    boxes = browser.run("[...document.querySelectorAll('input, textarea')].map(e => e.value)")
    assert str(serving.store) in boxes
    assert "every so many frames one is looked at. [1 to 10000]" in shown


def test_prefects_newer_ui_shows_forms_bars_tables_and_text_too(serving, built, tmp_path):
    # What a plain `prefect server start` opens. It asks a host outside for its own settings, also where telemetry
    # is off, which is why `csip serve` opens the other one; here it finds nobody.
    alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    found = {one["key"]: one["id"] for one in artifacts(serving.url, built)}
    with Browser(find_chromium(), tmp_path / "newer", alone) as browser:
        browser.go(page(serving, f"v2/runs/flow-run/{built['id']}"), "Completed", "3 Task runs", "Switch to V1 UI")
        counts = found["extract-videos-street-mp4-counts"]
        browser.go(page(serving, f"v2/artifacts/artifact/{counts}"), "what was kept, dropped and why", "quarantined")
        browser.go(page(serving, f"v2/artifacts/artifact/{found['extract-videos-street-mp4']}"), "Progress: 100%")
        lineage = found["publish-lineage"]
        browser.go(page(serving, f"v2/artifacts/artifact/{lineage}"), "csip lineage", "└── video", "Table versions:")
        form = f"v2/deployments/deployment/{deployment(serving, 'build-skeletons')['id']}/run"
        browser.go(page(serving, form), "every so many frames one is looked at", "Min Box Height", "bytetrack")
        assert "Detect (Optional)" in browser.text()
        assert str(serving.store) in browser.run("[...document.querySelectorAll('textarea')].map(e => e.value)")
        assert browser.run(STRIDES) == [["1", "1", "10000"]]
        outside = {urlsplit(one).hostname for one in browser.asked} - {None, "127.0.0.1"}
    assert outside <= {"sr-client-cfg.amplitude.com"}


def test_a_failed_run_says_what_was_wrong(serving, browser, shoot):
    words = ("deployment", "run", "build-skeletons", "--param", 'sources=["/nowhere/cameras"]')
    serving.prefect(*words)
    end = time.monotonic() + 120
    while not (failed := [one for one in flow_runs(serving.url, serving.store) if one["state_type"] == "FAILED"]):
        assert time.monotonic() < end
        time.sleep(1)
    told = "/nowhere/cameras: no such file or folder. Name a video, or a folder that holds videos."
    browser.go(page(serving, f"runs/flow-run/{failed[0]['id']}"), "Failed", told)
    # It stands above the traceback.
    shown = browser.text()
    assert shown.index(told) < shown.index("Traceback")
    browser.click("Details")
    browser.wait_for("Flow run encountered an exception: SourceError: /nowhere/cameras: no s")
    browser.click("See More")
    browser.wait_for(told)
    shoot("failed")


def test_cancel_stops_a_training_which_saves_itself_and_goes_on_when_it_is_run_again(serving, built, browser, shoot):
    def start():
        serving.prefect("deployment", "run", "train-csip")
        end = time.monotonic() + 300
        while True:
            run = flow_runs(serving.url, serving.store)[-1]
            if run["state_name"] == "Running" and any(
                one["key"] == "pretrain-visual" and one["data"] for one in artifacts(serving.url, run)
            ):
                return run
            assert time.monotonic() < end, serving.log.read_text()
            time.sleep(1)

    def cancel(run):
        browser.go(page(serving, f"runs/flow-run/{run['id']}"), "Running", "Cancel")
        shoot("training")
        browser.click("Cancel")
        browser.wait_for("Cancel Flow Run")
        browser.click("Confirm")
        return time.time()

    def states():
        return list((serving.store / "checkpoints").glob("pretrain_visual-*.state"))

    def at_work():
        return [pid for pid in serving.processes() if b"flows.child" in cmdline(pid)]

    idle = set(serving.processes())
    run = start()
    assert at_work()
    clicked = cancel(run)
    end = time.monotonic() + 120
    while at_work():
        assert time.monotonic() < end, "the training goes on"
        time.sleep(0.2)
    (state,) = states()
    assert state.stat().st_mtime >= clicked - 1
    browser.wait_for("Cancelled")
    assert ask(serving.url, "flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})[0]["state_name"] == (
        "Cancelled"
    )
    # Nothing is left of the run: server and worker are as they were before it.
    end = time.monotonic() + 120
    while not set(serving.processes()) <= idle:
        assert time.monotonic() < end, [cmdline(pid) for pid in set(serving.processes()) - idle]
        time.sleep(0.2)
    run = start()
    browser.go(page(serving, f"runs/flow-run/{run['id']}"), "pretrain_visual goes on after epoch")
    cancel(run)
    browser.wait_for("Cancelled")


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
