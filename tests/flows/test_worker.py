"""`csip worker`: what it says when Prefect's worker ends by itself, and that it waits for what that one leaves."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import flows

ROOT = Path(flows.__file__).resolve().parent.parent

WORK = """
import sys
from flows import environment, worker
environment.prepare()
sys.executable = sys.argv[1]
try:
    worker.work("boxes", 3, healthcheck=True)
except worker.WorkerError as error:
    sys.exit(str(error))
"""


def start(folder, script):
    """Run `work` in a process of its own, with a shell script in the place of Prefect's worker."""
    fake = folder / "fake-worker"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_LOGGING_")}
    environment = kept | {"PYTHONPATH": str(ROOT), "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "ERROR"}
    return subprocess.Popen(
        [sys.executable, "-c", WORK, fake], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_worker_that_ends_by_itself_is_an_error_once_all_that_it_left_has_ended(tmp_path):
    process = start(tmp_path, '(sleep 3; echo saved > mark) & echo "$@" > words; env > environment; exit 7')
    assert "ended by itself (code 7). Its runs go on and are waited for" in process.stderr.readline()
    assert not (tmp_path / "mark").exists(), "it is said at once"
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Prefect's worker ended by itself (code 7)" in told
    assert (tmp_path / "mark").read_text() == "saved\n"
    words = "-m prefect worker start --pool boxes --type process --limit 3 --with-healthcheck\n"
    assert (tmp_path / "words").read_text() == words
    # Its log is for people: as the user has it, and not as it is quietened for commands that show progress.
    told = (tmp_path / "environment").read_text().splitlines()
    assert [one for one in told if "LOGGING" in one] == ["PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL=ERROR"]


def test_a_worker_that_is_told_to_end_is_no_error_and_what_it_left_is_waited_for(tmp_path):
    process = start(tmp_path, "(sleep 1; echo saved > mark) & touch ready; exec sleep 600")
    wait_for(tmp_path / "ready")
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "")
    assert (tmp_path / "mark").read_text() == "saved\n"


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for it")
def test_prefects_worker_is_told_to_end_where_ours_is_killed(tmp_path):
    script = "trap 'echo told > mark; exit' TERM; touch ready; while :; do sleep 0.1; done"
    process = start(tmp_path, script)
    wait_for(tmp_path / "ready")
    process.kill()
    process.wait(60)
    wait_for(tmp_path / "mark")


def test_what_a_worker_left_that_ended_by_itself_is_told_to_end_too(tmp_path):
    left = "trap 'echo saved > mark; exit' TERM; touch ready; while :; do sleep 0.1; done"
    process = start(tmp_path, f"({left}) & exit 7")
    assert "Its runs go on" in process.stderr.readline()
    wait_for(tmp_path / "ready")
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "")
    assert (tmp_path / "mark").read_text() == "saved\n"


def test_what_runs_until_it_is_stopped_has_no_one_document(command):
    done = command("worker", "--json")
    assert done.code == 2
    assert "has no one document to print" in done.err
