"""Records survive the way through JSON, and digests see every field."""

import dataclasses
import hashlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from csip import config, types
from csip.config import ClipConfig, Experiment, Stage1Config
from csip.plain import digest, from_plain, to_plain
from csip.types import (
    CheckpointRef,
    EmbeddingsRef,
    ExtractDigests,
    ExtractedVideo,
    FileRef,
    Outcome,
    Output,
    Progress,
    ResultsRef,
    Snapshot,
    SourceVideo,
    TableRef,
    TrackletPart,
    VideoList,
)
from flows.recipes import RECIPES

SECTIONS = [
    kind
    for _, kind in inspect.getmembers(config, inspect.isclass)
    if dataclasses.is_dataclass(kind) and kind is not Experiment
]
# Of a section one of whose fields asks for another one too.
WHOLE = {"RuntimeConfig": {"rendezvous": "head:29500"}}
VIDEO = SourceVideo("a" * 64, "/videos/a.mp4", "a", 12.5)
TABLE = TableRef("/store/crops.lance", 3)
CHECKPOINT = CheckpointRef("/store/checkpoints/x.safetensors", "c" * 64)
SNAPSHOT = Snapshot("street", "/store", {"crops": 3, "splits": 1}, "d" * 64)
DIGESTS = ExtractDigests("e" * 64, "t" * 64, {"yolo.pt": "a" * 64}, "/yolo.pt")
RECORDS = [
    TABLE,
    SNAPSHOT,
    CHECKPOINT,
    FileRef("/report.html", "f" * 64),
    VIDEO,
    DIGESTS,
    VideoList((VIDEO, VIDEO), ((VIDEO,), (VIDEO,)), DIGESTS),
    ExtractedVideo("a" * 64, "t" * 64, "run"),
    EmbeddingsRef(TABLE, "e" * 64, "trained", "c" * 64),
    ResultsRef(TABLE, "run"),
    Progress("stage1", 3, 120, "epochs", {"loss": 1.5}, "a note"),
    Output("/store", "run"),
    TrackletPart("t", 3, 9, 7, 0),
]
OUTCOMES = [
    (Outcome[CheckpointRef], Outcome(CHECKPOINT, {"clips": 12}, {"yolo.pt": "a" * 64})),
    (Outcome[TableRef], Outcome(TABLE)),
    (Outcome[Snapshot], Outcome(SNAPSHOT, {"people": 3, "reason": "none", "dropped": {"short": 2}})),
    (Outcome[VideoList], Outcome(VideoList((VIDEO,), ((VIDEO,),), DIGESTS))),
    (Outcome[tuple[ExtractedVideo, ...]], Outcome((ExtractedVideo("a" * 64, "t" * 64, "run"),))),
]


def other(value):
    """Some value of the same type that differs; for words, the caller picks."""
    if isinstance(value, bool | None):
        return not value
    if isinstance(value, tuple):
        return (*value[:-1], value[-1] + 1) if value else ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    return value / 2 if isinstance(value, float) and value else value + 1


def changed(section, field):
    """The section with one field changed, by trying values until one is accepted."""
    old, hint = getattr(section, field.name), get_type_hints(type(section))[field.name]
    if isinstance(old, str):
        candidates = [word for word in get_args(hint) if word != old] or [old + "x"]
    elif dataclasses.is_dataclass(old):
        candidates = [changed(old, dataclasses.fields(old)[0])]
    else:
        candidates = [other(old), *([old * 2 or 640] if isinstance(old, int | float) else [])]
    for value in candidates:
        try:
            return dataclasses.replace(section, **{field.name: value})
        except ValueError:
            continue
    pytest.fail(f"no other value found for {field.name}")


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_a_section_survives_the_way_through_json(section):
    one = section(**WHOLE.get(section.__name__, {}))
    assert from_plain(section, json.loads(json.dumps(to_plain(one)))) == one
    for field in dataclasses.fields(section):
        two = changed(one, field)
        assert from_plain(section, json.loads(json.dumps(to_plain(two)))) == two


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_the_way_through_json(name):
    assert from_plain(Experiment, json.loads(json.dumps(to_plain(RECIPES[name]())))) == RECIPES[name]()


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_the_way_through_json(record):
    assert from_plain(type(record), json.loads(json.dumps(to_plain(record)))) == record


@pytest.mark.parametrize(("kind", "outcome"), OUTCOMES, ids=lambda one: type(getattr(one, "value", one)).__name__)
def test_an_outcome_survives_the_way_through_json(kind, outcome):
    # As a stage's process writes it, the type of its value unsaid, and as its parent reads it.
    again = from_plain(kind, json.loads(json.dumps(to_plain(outcome))))
    assert again == outcome
    assert type(again.value) is type(outcome.value)


def test_every_record_without_arrays_is_tried_above():
    arrays = {"Frames", "People", "Tracklet", "ClipBatch", "Scores"}
    kinds = {
        name
        for name, kind in inspect.getmembers(types, inspect.isclass)
        if dataclasses.is_dataclass(kind) and kind.__module__ == "csip.types"
    }
    assert kinds == arrays | {type(record).__name__ for record in RECORDS} | {"Outcome"}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Stage1Config, {"epoch": 3}, r"Stage1Config: epoch: Unexpected keyword argument"),
        (Stage1Config, {"epochs": "many"}, r"Stage1Config: epochs: .*valid integer"),
        (Experiment, {"name": "x", "stage1": {"epochs": "many"}}, r"Experiment: stage1\.epochs: .*valid integer"),
        (Experiment, {}, r"Experiment: name: .*required"),
        (TableRef, {"uri": "x"}, r"TableRef: version: .*required"),
        (TableRef, {"uri": "x", "version": 0}, r"TableRef x: got version 0, expected 1 or more"),
        (CheckpointRef, {"path": "x", "sha256": "abc"}, r"CheckpointRef x: got sha256 'abc', expected 64 digits"),
        (ClipConfig, {"frames": 0}, r"ClipConfig\.frames: got 0, expected 1 to 4096"),
    ],
)
def test_json_that_does_not_fit_is_refused_by_name(kind, value, message):
    with pytest.raises(ValueError, match=message):
        from_plain(kind, value)


def test_a_digest_is_that_of_the_canonical_json():
    # A list of what was digested, keys sorted, no spaces.
    assert digest({"b": [1, 2.5], "a": "x"}) == hashlib.sha256(b'[{"a":"x","b":[1,2.5]}]').hexdigest()


def test_a_digest_does_not_hang_on_how_a_mapping_was_filled():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    one = dataclasses.replace(SNAPSHOT, tables={"splits": 1, "crops": 3})
    assert digest(one) == digest(SNAPSHOT)


def test_a_digest_tells_where_one_value_ends():
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest(["ab", "c"])}) == 4


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_a_digest_changes_with_every_field(section):
    one = section(**WHOLE.get(section.__name__, {}))
    digests = [digest(one), *(digest(changed(one, field)) for field in dataclasses.fields(section))]
    assert len(set(digests)) == len(digests)


def test_an_experiments_digest_changes_with_every_section():
    one = Experiment(name="x")
    digests = [digest(one), *(digest(changed(one, field)) for field in dataclasses.fields(Experiment))]
    assert len(set(digests)) == len(digests)


def test_a_digest_is_the_same_under_every_hash_seed():
    code = (
        "from csip.plain import digest\n"
        "from csip.types import Snapshot\n"
        "from flows.recipes import RECIPES\n"
        "print(digest(RECIPES['demo'](), Snapshot('n', 's', {'b': 1, 'a': 2}, 'd'), {'x': {'q', 'r', 's'} & {'q'}}))"
    )
    root = Path(__file__).resolve().parents[2]
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    ]
    assert printed[0] == printed[1]
    assert len(printed[0].strip()) == 64
