"""Nobody hears of the user's machine: looked at from an environment where nobody has set anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flows
from flows import environment

ROOT = Path(flows.__file__).resolve().parent.parent
CSIP = Path(sys.executable).with_name("csip")

IN_EFFECT = """
import json
from flows.__main__ import main
main(["config", "demo", "--json"])
from prefect._internal.analytics.enabled import is_telemetry_enabled
from prefect.settings import get_current_settings
settings = get_current_settings()
told = [is_telemetry_enabled(), settings.server.analytics_enabled, settings.flows.heartbeat_frequency]
print("\\n", json.dumps(told))
"""
# Python loads a module of this name by itself, in every process that finds it: here all of the command's.
SPY = """
import os, socket
look_up = socket.getaddrinfo
def write_down(host, *rest, **more):
    name = host.decode() if isinstance(host, bytes) else str(host)
    with open(os.environ["SPY"], "a") as asked:
        asked.write(name + chr(10))
    if name not in ("127.0.0.1", "localhost", "::1", socket.gethostname(), "None"):
        raise socket.gaierror(-2, "no network in this test")
    return look_up(host, *rest, **more)
socket.getaddrinfo = write_down
"""
# Prefect's client tells of itself where somebody sits before a terminal.
ON_A_TERMINAL = """
import os, pty, sys
status = pty.spawn(sys.argv[1:], lambda terminal: os.read(terminal, 65536))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def nothing(home, **more):
    """The environment of somebody who has set nothing."""
    home.mkdir()
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TERM": "xterm", **more}


def test_telemetry_is_off_and_heartbeats_are_short_where_nobody_has_said_so(tmp_path):
    told = subprocess.run(
        [sys.executable, "-c", IN_EFFECT],
        cwd=tmp_path,
        env=nothing(tmp_path / "home", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(told.stdout.splitlines()[-1]) == [False, False, 30]


def test_heartbeats_come_as_often_as_the_rules_expect_them_whatever_the_user_has_set(monkeypatch, capsys):
    name = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
    monkeypatch.setenv(name, "180")
    assert environment.of_runs()[name] == "30", "also where nobody has prepared anything"
    environment.prepare()
    assert os.environ[name] == "30"
    assert f"{name}=180: runs of CSIP send one every 30 s all the same." in capsys.readouterr().err
    environment.prepare()
    assert capsys.readouterr().err == ""


def asked(folder, **more):
    """Whom a build that comes to nothing asks for an address, on a terminal."""
    (folder / "spy").mkdir(parents=True)
    (folder / "spy" / "sitecustomize.py").write_text(SPY)
    (folder / "notes.mp4").write_text("no video")
    variables = nothing(folder / "home", PYTHONPATH=str(folder / "spy"), SPY=str(folder / "asked"), **more)
    command = [CSIP, "build-skeletons", folder / "notes.mp4", "--store", folder / "store"]
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL, *map(str, command)],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, "cannot be read as a video" in done.stdout) == (1, True), done.stdout
    return set((folder / "asked").read_text().split())


@pytest.mark.slow
def test_no_address_but_this_machines_is_asked_for_unless_the_user_wants_it(tmp_path):
    assert asked(tmp_path / "quiet") == {"127.0.0.1"}
    # The look-out sees what it must see.
    wanted = {"DO_NOT_TRACK": "0", "PREFECT_SERVER_ANALYTICS_ENABLED": "true"}
    assert any("amplitude" in name for name in asked(tmp_path / "talking", **wanted))
