"""Stores for the tests of `csip.maintenance`."""

import shutil

import pytest

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig, WalkersConfig
from csip.ingest.benchmarks.importing import import_benchmark
from csip.types import Output
from tests.csip.maintenance.stores import FIRST, NEW, OLD, SECOND, extract, show


@pytest.fixture
def store(tiny, tmp_path):
    """A store with one faultless snapshot, `whole`, of two tracklets: frames 10 11 12 15 16 17 18, and 0 to 4."""
    walks = (
        tiny.Walk("a", 4, 0, "train", (10, 11, 12, 15, 16, 17, 18)),
        tiny.Walk("b", 7, 1, "gallery", tuple(range(5)), parts=((0, 1), (3, 4))),
    )
    tiny.publish(str(tmp_path / "store"), walks, "whole")
    return str(tmp_path / "store")


@pytest.fixture(scope="session")
def imported(tmp_path_factory, run):
    """The walkers, imported; read-only."""
    store = str(tmp_path_factory.mktemp("imported") / "store")
    config = ExtractConfig(walkers=WalkersConfig(people=4, twins=1, cameras=2, frames=3, missing_frames=0.2))
    return run(import_benchmark(Output(store, "run-1"), "walkers:", config, RuntimeConfig()))[1].value


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """Two films under old settings, and one of them under new ones: the snapshots `old` and `new`; read-only."""
    path = str(tmp_path_factory.mktemp("films") / "films")
    tables.prepare_store(path)
    for sha in (FIRST, SECOND):
        extract(path, sha, OLD)
    show(path, "old", [FIRST, SECOND], OLD)
    extract(path, SECOND, NEW, people=3)
    show(path, "new", [SECOND], NEW)
    return path


@pytest.fixture
def filmed(films, tmp_path):
    """The same, of one's own."""
    return str(shutil.copytree(films, tmp_path / "films"))
