"""A Prefect server for the session, a few seconds of the shipped video, and one small build and training of it."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import av
import pytest

import csip
from csip import tables
from flows import environment
from flows.__main__ import main
from tests.browser import Browser, find_chromium

# As the command line does: before Prefect is imported.
environment.prepare()
# The tests call tasks outside of flows, too.
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")

SHIPPED = Path(csip.__file__).parent / "assets" / "pedestrians.mp4"
# The third group of pictures, where an image size of 640 finds four people that last.
FIRST, TICKS = 500, 1024

EXTRACT = (
    "detect.image_size=640",
    "track.interpolate_seconds=0",  # as in the demo's recipe
    "split.min_part_frames=4",
    "split.gap_seconds=0.2",
    "runtime.pose_engine=pytorch",
    "runtime.device=cpu",
)
TRAIN = (
    *("clip.frames=4", "clip.height=64", "clip.width=32"),
    *("model.image_encoder=vit_tiny_patch16_224", "model.image_weights=none", "model.width=32"),
    *("model.image_depth=1", "model.image_width=32", "model.image_heads=2"),
    *("model.joint_layers=1", "model.joint_heads=2", "model.graph_positions=4"),
    *("model.prototype_layers=1", "model.prototype_heads=2", "model.temporal_heads=2"),
    *("pretrain.epochs=1", "pretrain.identities=2", "pretrain.clips_per_identity=2"),
    *("stage1.epochs=2", "stage1.batch_clips=4"),
    *("stage2.epochs=1", "stage2.identities=2", "stage2.clips_per_identity=2", "stage2.milestones=1"),
    *("evaluate.ranks=1,2", "report.queries=1", "runtime.device=cpu"),
    # A process that reads clips takes seconds to start.
    "runtime.workers=1",
)


def copy_packets(target, count, *, faststart=True):
    """Copy at least `count` frames from the middle of the shipped video, packet by packet: the pictures stay equal."""
    flags = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(SHIPPED)) as source, av.open(str(target), "w", options=flags) as made:
        stream = source.streams.video[0]
        copied = made.add_stream_from_template(stream)
        held = []
        for packet in source.demux(stream):
            # From the key frame on, and no further than to where no frame between is missing.
            if packet.pts is None or packet.pts < FIRST * TICKS or not (held or packet.is_keyframe):
                continue
            held.append(packet)
            if len(held) >= count and max(p.pts for p in held) == (FIRST + len(held) - 1) * TICKS:
                break
        for packet in held:
            packet.pts, packet.dts, packet.stream = packet.pts - FIRST * TICKS, packet.dts - FIRST * TICKS, copied
            made.mux(packet)
    return target


def _sets(assignments):
    return [word for assignment in assignments for word in ("--set", f"{assignment}")]


@pytest.fixture(scope="session")
def settings():
    """Words for the command line: --set for each assignment, and those that make the street and its training small."""
    return SimpleNamespace(sets=_sets, extract=_sets(EXTRACT), small=_sets((*EXTRACT, *TRAIN)))


def _isolated(home):
    return {"CSIP_CACHE": str(home / "cache"), "YOLO_OFFLINE": "true", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session", autouse=True)
def server(tmp_path_factory):
    """One temporary Prefect server for all flows that run in this process, and no network."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with pytest.MonkeyPatch.context() as patch:
        for name, value in _isolated(tmp_path_factory.mktemp("home")).items():
            patch.setenv(name, value)
        patch.delenv("CSIP_STORE", raising=False)
        with prefect_test_harness(server_startup_timeout=120):
            yield PREFECT_API_URL.value()


@pytest.fixture
def command(capfd):
    """Run `csip` in this process: its exit code and what it wrote to standard output and standard error."""

    def run(*words):
        capfd.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        told = capfd.readouterr()
        return SimpleNamespace(code=code, out=told.out, err=told.err)

    return run


class FreshCommand:
    """Runs the installed `csip` in a process of its own, with a Prefect server of its own or the one named."""

    def __init__(self, home):
        self._home = home

    def start(self, *words, **environment):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        program = Path(sys.executable).with_name("csip")
        return subprocess.Popen(
            [str(program), *map(str, words)],
            cwd=self._home,
            env=inherited | {"PREFECT_HOME": str(self._home / "prefect"), **_isolated(self._home), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *words, **environment):
        process = self.start(*words, **environment)
        try:
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
        return SimpleNamespace(code=process.returncode, out=out, err=err)


@pytest.fixture(scope="session")
def fresh_command(tmp_path_factory):
    return FreshCommand(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def toys():
    """The toy stages, importable here and in the children."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        import toy_stages

        yield toy_stages


@pytest.fixture
def store(tmp_path):
    """An empty store."""
    tables.prepare_store(str(tmp_path / "store"))
    return str(tmp_path / "store")


@pytest.fixture
def browser(tmp_path):
    """A page of a real browser, which calls nobody but this machine, and whose server can be reached."""
    with Browser(find_chromium(), tmp_path / "profile") as opened:
        yield opened
        assert "Can't connect" not in opened.text()
        # Fonts and pictures inside of the page's own files have addresses without a host.
        assert {urlsplit(one).hostname for one in opened.asked} - {None} == {"127.0.0.1"}


@pytest.fixture
def shoot(browser, tmp_path):
    """Keep a picture of what the browser shows, once what moves has come to rest; CSIP_SCREENSHOTS names a folder."""
    folder = Path(os.environ.get("CSIP_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    def keep(name):
        time.sleep(3)
        browser.shoot(folder / f"{name}.png")

    return keep


@pytest.fixture(scope="session")
def cut_video():
    """Write frames of the shipped video to a file."""
    return copy_packets


@pytest.fixture(scope="session")
def street(tmp_path_factory):
    """Six seconds of the shipped video, with four people that last."""
    return copy_packets(tmp_path_factory.mktemp("street") / "street.mp4", 60)


@pytest.fixture(scope="session")
def built(fresh_command, street, settings, tmp_path_factory):
    """The street, built by a fresh `csip build-skeletons`; read-only."""
    store = tmp_path_factory.mktemp("built") / "store"
    done = fresh_command("build-skeletons", street, "--store", store, "--json", *settings.extract)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    return SimpleNamespace(store=store, snapshot=told["snapshot"], told=told, done=done)


@pytest.fixture
def own_store(built, tmp_path):
    """A copy of the built store to write to."""
    return Path(shutil.copytree(built.store, tmp_path / "own-store"))


@pytest.fixture(scope="session")
def demo(built, street, settings, tmp_path_factory):
    """What `csip demo` leaves behind, the street in the place of the shipped video.

    Who trains again on it adds runs that find their work done, and nothing else: the demo's own are those it told.
    """
    assets = tmp_path_factory.mktemp("package") / "assets"
    assets.mkdir()
    shutil.copy(street, assets / SHIPPED.name)
    store = Path(shutil.copytree(built.store, tmp_path_factory.mktemp("demo") / "store"))
    words = ["demo", "--out", str(store), "--json", *settings.small]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr("flows.commands.files", lambda _: assets.parent)
        assert main(words) == 0
    told = json.loads(out.getvalue())
    (one,) = told["train"]["trained"]
    return SimpleNamespace(
        store=store, snapshot=told["build"]["snapshot"], build=told["build"], train=told["train"] | one
    )
