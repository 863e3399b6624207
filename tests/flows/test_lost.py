"""Runs that are not heard: which are lost, which are found again, which are handed out, and how often."""

import json
import os
import signal
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.schemas.objects import State, StateType

from csip.errors import StageError
from flows import lost
from flows.stage import stage

from .test_flows import ask, flow_runs, processes_of_runs, running_server, wait_for

CSIP = Path(sys.executable).with_name("csip")
# Prefect looks at what did not happen a minute late; here, where somebody waits for it, a few seconds late.
SOON = {"PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "PT5S"}
ON_THE_WAY = ("Scheduled", "Late", "Pending", "Submitting")
SOMEBODY_ELSES = """
import time
from prefect import flow

@flow(name="somebody-elses")
def sleep():
    time.sleep(150)

sleep()
"""


def states(url, run):
    """Names of a run's states so far, oldest first, without those on its way to a worker."""
    with urllib.request.urlopen(f"{url}/flow_run_states/?flow_run_id={run}", timeout=30) as answer:
        told = sorted(json.loads(answer.read()), key=lambda state: state["timestamp"])
    return [state["name"] for state in told if state["name"] not in ON_THE_WAY]


@pytest.fixture
def endless(built, own_store, settings):
    """Words of a training that goes on for hours."""
    words = ("--store", own_store, *settings.small, *settings.sets(("pretrain.epochs=100000",)))
    return SimpleNamespace(store=own_store, snapshot=built.snapshot, words=words)


@pytest.mark.slow
def test_neither_a_run_of_the_command_line_nor_anybody_elses_is_lost_while_it_lives(tmp_path, endless):
    with running_server(tmp_path / "server", **SOON) as server:
        processes, url = server.processes, server.url
        processes.run(CSIP, "deploy", "--no-plugin", "--store", endless.store)
        theirs = processes.start(sys.executable, "-c", SOMEBODY_ELSES)
        ours = processes.start(CSIP, "train-csip", "demo", "--snapshot", endless.snapshot, *endless.words)
        begun = time.monotonic()
        assert theirs.wait(timeout=240) == 0
        # Long enough for a rule that looks at 95 seconds.
        assert time.monotonic() - begun > 140
        assert ours.poll() is None
        ours.send_signal(signal.SIGINT)
        ours.wait(60)
        found = {run["name"]: run["id"] for run in ask(url, "flow_runs/filter", {})}
        (mine,) = flow_runs(url, endless.store)
        assert mine["tags"] == [lost.TAG]
        histories = [states(url, one) for one in found.values()]
        assert sorted(history[0] for history in histories) == ["Running", "Running"]
        assert not [history for history in histories if "Lost" in history]


@pytest.mark.slow
def test_a_run_that_was_only_not_heard_for_a_while_goes_on_and_has_no_second_copy(tmp_path, endless):
    with running_server(tmp_path / "server", **SOON) as server:
        processes, url = server.processes, server.url
        processes.run(CSIP, "deploy", "--no-plugin", "--recipe", "demo", *endless.words)
        worker = processes.start(CSIP, "worker")
        (log,) = processes.folder.glob("*-csip.log")
        name = json.dumps(endless.snapshot)
        processes.run(server.prefect, "deployment", "run", "train-csip/train-csip", "--param", f"snapshot={name}")

        def history():
            return states(url, flow_runs(url, endless.store)[0]["id"])

        def signal_all(how):
            for pid in processes_of_runs(url):
                os.kill(pid, how)

        wait_for(lambda: history() == ["Running"] and processes_of_runs(url), 180, log.read_text)
        time.sleep(40)  # for heartbeats
        # As a machine whose network is away: the run lives, and is not heard.
        signal_all(signal.SIGSTOP)
        wait_for(lambda: history()[-1] == "Lost", 180, log.read_text)
        signal_all(signal.SIGCONT)
        wait_for(lambda: history()[-1] == "Running", 60, log.read_text)
        time.sleep(10)  # Prefect's events follow its states
        # Then it is the server that is away, longer than a run may be silent.
        os.killpg(server.process.pid, signal.SIGKILL)
        time.sleep(130)
        server.serve()
        # Longer than a run that is gone waits before it is handed out.
        time.sleep(120)
        assert history() in (["Running", "Lost", "Running"], ["Running", "Lost", "Running", "Lost", "Running"])
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        worker.wait(120)


@pytest.fixture
def handed_out(monkeypatch, toys, store):
    """Run a stage in a flow run with a history: how often it was handed out, and by whom at last."""

    def run(*messages):
        told = [State(type=StateType.SCHEDULED, name="AwaitingRetry", message=message) for message in messages]
        told = [state for pair in ((one, State(type=StateType.RUNNING)) for one in told) for state in pair]
        read = "prefect.client.orchestration.SyncPrefectClient.read_flow_run_states"
        monkeypatch.setattr(read, lambda *_: told[::-1])
        monkeypatch.setattr(lost.runtime.flow_run, "__getattr__", {"id": str(uuid4()), "run_count": len(told)}.get)

        @flow
        def one():
            return stage(toys.say, work=None, cached=False)(store)

        return one(return_state=True)

    return run


def test_a_run_that_is_lost_again_and_again_is_given_up(handed_out):
    by_rule = lost.watch_over_runs()[2].actions[0].message
    assert handed_out(*[by_rule] * 3).is_completed()
    with pytest.raises(StageError, match=r"has lost its worker 4 times, expected 3 at most(.|\n)*run it again"):
        handed_out(*[by_rule] * 4).result()
    # Somebody has seen to it, and runs it again by hand.
    assert handed_out(*[by_rule] * 4, "Retry from the UI", by_rule).is_completed()


def test_what_lives_longer_than_the_patience_of_the_rules_has_sent_heartbeats():
    # The figures that must fit together: a lost heartbeat alone is no reason for an alarm.
    from flows.environment import HEARTBEAT_SECONDS

    alarm, found, again = (rule.trigger for rule in lost.watch_over_runs())
    assert alarm.within.total_seconds() > 3 * HEARTBEAT_SECONDS
    assert again.within.total_seconds() >= 2 * HEARTBEAT_SECONDS
    # Once it is handed out, a heartbeat is perhaps the other one's.
    assert again.within.total_seconds() < found.within.total_seconds() < again.within.total_seconds() + 60
