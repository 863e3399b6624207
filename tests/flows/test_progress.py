"""How often progress goes to Prefect, which keeps an event of every update."""

from itertools import pairwise
from types import SimpleNamespace

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL, temporary_settings

from csip.types import Progress
from flows import progress
from flows.progress import LISTENER, Reporter


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "http://10.0.0.1/api",
            r"server at http://10\.0\.0\.1/api: cannot be used \(gone\).*csip serve.*unset PREFECT_API_URL",
        ),
        (None, r"server of this process: cannot be used \(gone\).*or set PREFECT_API_URL"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_with_what_to_do(url, told):
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(progress.ServerError, match=told),
        progress.server_needed(),
    ):
        raise httpx.ConnectError("gone")


def test_an_error_of_anybody_else_is_none_of_the_server():
    with pytest.raises(RuntimeError, match="ours"), progress.server_needed():
        raise RuntimeError("ours")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set, and the updates that go to Prefect, as the time of each."""
    now, sent = [1000.0], []
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(progress.Reporter, "_send", lambda self, percent, text: sent.append(now[0]))
    return now, sent


def test_a_long_task_tells_prefect_less_and_less_often(clock):
    now, sent = clock
    reporter = Reporter("stage2")
    for second in range(4 * 3600):
        now[0] = 1000.0 + second
        reporter(Progress("stage2", second, 4 * 3600, "epochs"))
    pauses = [after - before for before, after in pairwise(sent)]
    # Two seconds in the first hundred, two in a hundred of what has passed, half a minute from 25 minutes on.
    assert pauses[:50] == [2.0] * 50
    assert {pause for at, pause in zip(sent, pauses, strict=False) if at > 1000 + 1530} == {30.0}
    assert len(sent) < 700


def test_a_bar_moves_within_an_epoch(monkeypatch):
    sent = []
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_UPDATES", 0.0)
    monkeypatch.setattr(progress.Reporter, "_send", lambda self, percent, text: sent.append((percent, text)))
    reporter = Reporter("stage2")
    for done, part in ((0, 0.25), (0, 0.5), (1, 0.0), (1, 0.5)):
        reporter(Progress("stage2", done, 4, "epochs", part=part))
    assert [percent for percent, _ in sent] == [6.25, 12.5, 25.0, 37.5]
    assert [text.partition(",")[0] for _, text in sent] == [
        *("stage2: 0.2 of 4 epochs", "stage2: 0.5 of 4 epochs", "stage2: 1 of 4 epochs", "stage2: 1.5 of 4 epochs")
    ]


@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow")
def test_an_outage_of_the_server_is_told_once_and_what_comes_after_it_is_shown(caplog, monkeypatch):
    now, notes = [1000.0], []
    # The client of Prefect keeps the real clock.
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    token = LISTENER.set(lambda record: notes.append(record.note))
    try:
        reporter = Reporter("an outage")
    finally:
        LISTENER.reset(token)

    def tell(done):
        now[0] += 5
        reporter(Progress("stage2", done, 8, "epochs"))

    def outage(*numbers):
        # Port 9 is "discard"; nobody listens there.
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
            for done in numbers:
                tell(done)

    outage(1, 2)
    tell(3)
    outage(4, 5, 6)
    tell(7)
    told = [note for note in notes if note]
    assert [text.partition(" (")[0] for text in told] == ["Prefect's server could not be told how it goes"] * 2
    assert told == [record.getMessage() for record in caplog.records if record.name == "flows.progress"]
    # Asked for by name: of all that a session's tests made the server gives 200.
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["an-outage"]))
    shown = get_client(sync_client=True).read_artifacts(artifact_filter=wanted)
    assert [float(one.data) for one in shown] == [87.5]
