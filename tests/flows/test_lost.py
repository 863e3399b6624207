"""Runs that are not heard: which are lost, which are found again, which are handed out, and how often."""

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from contextvars import copy_context
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.events import Event
from prefect.settings import PREFECT_API_URL, temporary_settings

from csip.errors import CsipError, StageError
from flows import lost, recipes
from flows.ablate_csip import ablate_csip
from flows.build_skeletons import build_skeletons
from flows.deploy import Plan, deploy
from flows.evaluate_csip import evaluate_csip
from flows.stage import stage
from flows.train_csip import train_csip

from .test_flows import ask, flow_runs, free_port, processes_of_runs, running_server, wait_for

CSIP = Path(sys.executable).with_name("csip")
KINDS = {
    "Pending": StateType.PENDING,
    "Submitting": StateType.PENDING,
    "Running": StateType.RUNNING,
    "Lost": StateType.CRASHED,
    "Late": StateType.SCHEDULED,
    "AwaitingConcurrencySlot": StateType.SCHEDULED,
}
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
    with running_server(tmp_path / "server") as server:
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
    with running_server(tmp_path / "server") as server:
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
        time.sleep(160)
        assert history() in (["Running", "Lost", "Running"], ["Running", "Lost", "Running", "Lost", "Running"])
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        worker.wait(120)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A server whose rules wait for seconds, and what a worker, a run and its owner tell it; nothing is really run."""
    for name in ("SILENCE_SECONDS", "_PATIENCE_SECONDS"):
        monkeypatch.setattr(lost, name, 15)
    for name in ("_BEGIN_SECONDS", "_END_SECONDS"):
        monkeypatch.setattr(lost, name, 15)
    with running_server(tmp_path / "server") as server, temporary_settings({PREFECT_API_URL: server.url}):
        deploy(Plan(recipes.demo(), ("walkers:",), str(tmp_path / "store"), "", "csip", False))
        with get_client(sync_client=True) as client:
            training = client.read_deployment_by_name("train-csip/train-csip").id

            def taken(*names):
                run = client.create_flow_run_from_deployment(training).id
                become(run, *names)
                return run

            def become(run, *names):
                for name in names:
                    client.set_flow_run_state(run, State(type=KINDS.get(name, name.upper()), name=name))

            def beat(run):
                event = Event(
                    event="prefect.flow-run.heartbeat",
                    resource={"prefect.resource.id": f"prefect.flow-run.{run}"},
                    related=[{"prefect.resource.id": "prefect.tag.csip", "prefect.resource.role": "tag"}],
                )
                httpx.post(f"{server.url}/events", json=[event.model_dump(mode="json")]).raise_for_status()

            def begun():
                run = taken("Pending", "Running")
                beat(run)
                return run

            def told(run):
                # Prefect may apply a rule twice.
                return [name for name, _ in groupby(states(server.url, run))]

            yield SimpleNamespace(taken=taken, begun=begun, become=become, beat=beat, states=told)


@pytest.mark.slow
def test_each_rule_sees_the_runs_that_it_is_for_and_no_others(quick):
    unbegun, waiting = quick.taken("Pending", "Submitting"), quick.taken("Pending", "AwaitingConcurrencySlot")
    living, gone, back, last, unwanted = (quick.begun() for _ in range(5))
    quick.become(unwanted, "Cancelling")
    deeds = {}

    def once(run, last, *names):
        """Let a run be heard, and become something, when it first stands so."""
        if run not in deeds and quick.states(run)[-1:] == [last]:
            deeds[run] = time.monotonic()
            quick.become(run, *names[:-1])
            quick.beat(run)
            quick.become(run, *names[-1:])

    end = time.monotonic() + 200
    while len(deeds) < 3 or time.monotonic() < max(deeds.values()) + 45:
        assert time.monotonic() < end, [quick.states(run) for run in (gone, back, last)]
        quick.beat(living)
        # The process that it was handed to is heard, and fails at once.
        once(gone, "AwaitingRetry", "Pending", "Running", "Failed")
        # It lives, and is gone then.
        once(back, "Lost", "Running")
        # It is heard once more, and is gone.
        once(last, "Lost")
        time.sleep(1)
    assert quick.states(gone) == ["Running", "Lost", "AwaitingRetry", "Running", "Failed"]
    assert quick.states(back)[:4] == ["Running", "Lost", "Running", "Lost"]
    assert quick.states(last)[:3] == ["Running", "Lost", "AwaitingRetry"]
    assert quick.states(unbegun)[:2] == ["Lost", "AwaitingRetry"]
    assert quick.states(unwanted) == ["Running", "Cancelling", "Cancelled"]
    assert (quick.states(living), quick.states(waiting)) == (["Running"], ["AwaitingConcurrencySlot"])


def test_a_run_that_lives_says_so_when_it_was_taken_for_lost_and_is_otherwise_let_alone(server, monkeypatch):
    monkeypatch.setattr(lost, "HEARTBEAT_SECONDS", 0.1)

    @flow
    def one():
        run = UUID(lost.runtime.flow_run.id)
        with get_client(sync_client=True) as client, lost.coming_back():
            assert "coming back" in [thread.name for thread in threading.enumerate()]
            client.set_flow_run_state(run, State(type=StateType.CRASHED, name="Lost"), force=True)
            wait_for(lambda: states(server, run)[-1] == "Running", 60, lambda: states(server, run))
            client.set_flow_run_state(run, State(type=StateType.SCHEDULED, name="AwaitingRetry"), force=True)
            time.sleep(1)
            seen = states(server, run)
        assert "coming back" not in [thread.name for thread in threading.enumerate()]
        return seen

    with temporary_settings({PREFECT_API_URL: server}):
        found = one()
    assert found == ["Running", "Lost", "Running", "AwaitingRetry"]


def test_every_flow_says_so(server, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(lost, "_come_back", lambda run, over: asked.append(run))
    calls = [
        lambda: build_skeletons([str(tmp_path / "nowhere.mp4")], str(tmp_path / "store")),
        lambda: train_csip("nothing-1", str(tmp_path / "store"), recipes.demo()),
        lambda: evaluate_csip("nowhere.safetensors", "nothing-1", str(tmp_path / "store")),
        lambda: ablate_csip("nothing-1", str(tmp_path / "store"), recipes.demo(), (0,), ("a",)),
    ]
    for call in calls:
        with pytest.raises(CsipError, match=r"nowhere|nothing-1"):
            call()
    assert len(set(asked)) == len(calls)


def test_a_run_that_cannot_ask_asks_again(server, monkeypatch, caplog):
    monkeypatch.setattr(lost, "HEARTBEAT_SECONDS", 0.1)
    for url in (server, f"http://127.0.0.1:{free_port()}/api"):  # no such run; nobody there
        over = threading.Event()
        with temporary_settings({PREFECT_API_URL: url}):
            asking = threading.Thread(target=copy_context().run, args=(lost._come_back, uuid4(), over))
            asking.start()
            time.sleep(1)
            assert asking.is_alive()
            over.set()
            asking.join()
    assert caplog.text == ""


@pytest.fixture
def handed_out(monkeypatch, toys, store):
    """Run a stage in a flow run that was lost, with what came then: messages of what is scheduled, names of others."""

    def run(*later):
        told = [State(type=StateType.RUNNING), State(type=StateType.CRASHED, name="Lost")]
        for one in later:
            kind = KINDS.get(one, StateType.SCHEDULED)
            told.append(State(type=kind, name=one) if one in KINDS else State(type=kind, message=one))
        read = "prefect.client.orchestration.SyncPrefectClient.read_flow_run_states"
        monkeypatch.setattr(read, lambda *_: told[::-1])
        monkeypatch.setattr(lost.runtime.flow_run, "__getattr__", {"id": str(uuid4()), "run_count": len(told)}.get)

        @flow
        def one():
            return stage(toys.say, work=None, cached=False)(store)

        return one(return_state=True)

    return run


BY_RULE = next(rule.actions[0].message for rule in lost.watch_over_runs() if rule.name == lost.AGAIN)
AGAIN_AND_LOST = (BY_RULE, "Pending", "Running", "Lost")


def test_a_run_that_is_lost_again_and_again_is_given_up(handed_out):
    assert handed_out(*AGAIN_AND_LOST * 3).is_completed()
    with pytest.raises(StageError, match=r"has lost its worker 4 times, expected 3 at most(.|\n)*run it again"):
        handed_out(*AGAIN_AND_LOST * 4).result()
    # Somebody has seen to it, and runs it again by hand.
    assert handed_out(*AGAIN_AND_LOST * 4, "Retry from the UI", "Running", "Lost", BY_RULE).is_completed()


def test_a_hand_out_counts_once_however_long_the_run_then_waits(handed_out):
    # Prefect may apply a rule twice, and a run may be late, or wait for its turn, before somebody takes it.
    twice = (BY_RULE, *AGAIN_AND_LOST)
    assert handed_out(*twice * 3).is_completed()
    waiting = (BY_RULE, "Late", "Pending", "AwaitingConcurrencySlot", "Pending", "Running", "Lost")
    with pytest.raises(StageError, match="has lost its worker 4 times"):
        handed_out(*waiting * 4).result()


def test_the_rules_figures_fit_each_other_and_what_a_run_sends():
    from flows.environment import HEARTBEAT_SECONDS

    rules = {rule.name: rule.trigger for rule in lost.watch_over_runs()}
    alarm, again, unbegun, ended = (rules[name] for name in lost.RULES)
    # A lost heartbeat alone is no reason for an alarm; no heartbeat at all is one.
    assert alarm.within.total_seconds() > 3 * HEARTBEAT_SECONDS
    assert alarm.after == {"prefect.flow-run.heartbeat", "prefect.flow-run.Running"}
    # A run that lives looks at itself as often as it sends heartbeats.
    assert again.within.total_seconds() >= 2 * HEARTBEAT_SECONDS
    # A run that saves itself is heard meanwhile.
    assert ended.within.total_seconds() > 3 * HEARTBEAT_SECONDS
    # A busy machine takes a minute to start a run.
    assert unbegun.within.total_seconds() >= 300
    assert "process" in [one.root.get("prefect.work-pool.type") for one in unbegun.match_related]
