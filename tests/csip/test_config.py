import dataclasses
import hashlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from csip import config, types
from csip.config import (
    ClipConfig,
    EvaluateConfig,
    Experiment,
    ModelConfig,
    RuntimeConfig,
    Stage1Config,
    Stage2Config,
    digest,
    from_plain,
    to_plain,
    with_overrides,
)
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
    if dataclasses.is_dataclass(kind) and kind.__module__ == "csip.config" and kind is not Experiment
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
    old, hint = getattr(section, field.name), inspect.get_annotations(type(section), eval_str=True)[field.name]
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


def test_an_override_changes_one_field_and_reads_it_as_its_own_type():
    base = Experiment(name="x")
    got = with_overrides(
        base,
        [
            "seed=7",
            "stage1.learning_rate=1e-2",
            "stage2.milestones=12,17",
            "stage2.temporal=false",
            "stage2.prototypes=gate",
            "track.min_frames=4",
            "evaluate.exclude_same_camera=true",
            "runtime.stall_seconds=inf",
            "evaluate.ranks=1,3",
            "embed.histogram_bins=8,2,2",
        ],
    )
    assert (got.seed, got.stage1.learning_rate, got.stage2.milestones) == (7, 0.01, (12, 17))
    assert (got.stage2.temporal, got.stage2.prototypes) == (False, "gate")
    assert (got.track.min_frames, got.evaluate.ranks, got.embed.histogram_bins) == (4, (1, 3), (8, 2, 2))
    assert (got.evaluate.exclude_same_camera, got.runtime.stall_seconds) == (True, float("inf"))
    assert with_overrides(got, ["evaluate.exclude_same_camera=none"]).evaluate.exclude_same_camera is None
    # Everything else is as it was, and so is what it was made from.
    assert dataclasses.replace(got.stage1, learning_rate=base.stage1.learning_rate) == base.stage1
    assert got.clip == base.clip
    assert base == Experiment(name="x")


def test_overrides_that_go_together_may_come_in_any_order():
    both = ["runtime.nodes=2", "runtime.rendezvous=head:29500"]
    assert with_overrides(Experiment(name="x"), both) == with_overrides(Experiment(name="x"), both[::-1])
    with pytest.raises(ValueError, match=r"rendezvous: got '', expected HOST:PORT with runtime\.nodes=2"):
        with_overrides(Experiment(name="x"), both[:1])


def test_the_last_of_two_overrides_holds():
    assert with_overrides(Experiment(name="x"), ["seed=1", "seed=2"]).seed == 2


def test_an_empty_tuple_can_be_written():
    assert with_overrides(Experiment(name="x"), ["stage2.milestones="]).stage2.milestones == ()


def test_corners_of_a_region_are_written_as_json():
    got = with_overrides(Experiment(name="x"), ["detect.region=[[0,0.5],[1,0.5],[1,1]]", "stage2.milestones=[3,7]"])
    assert got.detect.region == ((0, 0.5), (1, 0.5), (1, 1))
    assert all(isinstance(share, float) for corner in got.detect.region for share in corner)
    assert got.stage2.milestones == (3, 7)
    assert with_overrides(got, ["detect.region="]).detect.region == ()
    assert from_plain(Experiment, to_plain(got)) == got


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stage3.epochs=1", r"--set stage3\.epochs: found 'stage3', expected one of: name, seed, .*stage1, stage2"),
        ("stage1.epoch=1", r"found 'epoch', expected one of: epochs, batch_clips, learning_rate"),
        ("stage1=3", r"stage1 is a section; name one of its fields: epochs, batch_clips"),
        ("track=3", r"track is a section; name one of its fields: tracker"),
        ("seed.x=3", r"seed is a number or a word, not a section"),
        ("stage1.epochs", r"--set stage1\.epochs: expected section\.field=value"),
        ("=3", r"--set =3: expected section\.field=value"),
        ("stage1.epochs=many", r"--set stage1\.epochs=many: int: value: .*valid integer"),
        ("stage1.epochs=1.5", r"--set stage1\.epochs=1\.5: int"),
        ("stage2.prototypes=best", r"--set stage2\.prototypes=best: .*'pfu'.*'none'"),
        ("stage2.temporal=perhaps", r"--set stage2\.temporal=perhaps: bool"),
        ("model.temporal=false", r"--set model\.temporal: found 'temporal', expected one of: image_encoder"),
        ("validate.select=best", r"--set validate\.select=best: .*'last', 'validation' or 'test'"),
        ("runtime.processes=0", r"RuntimeConfig\.processes: got 0, expected 1 to 1024"),
        ("stage1.precision=half", r"--set stage1\.precision=half: .*'auto'.*'float16'"),
        ("embed.histogram_bins=8,2", r"--set embed\.histogram_bins=8,2"),
        ("stage1.learning_rate=-1", r"Stage1Config\.learning_rate: got -1\.0, expected 0 to 10"),
        ("stage1.learning_rate=nan", r"Stage1Config\.learning_rate: got nan, expected 0 to 10"),
        ("clip.std=1,0,1", r"ClipConfig\.std: got \(1\.0, 0\.0, 1\.0\), expected positive"),
        ("detect.region=[[0,0.5],[1,0.5]", r"detect\.region=.*: Expecting"),
        ("detect.region=[[0,0.5],[1]]", r"detect\.region=.*: region|detect\.region=.*1\.1"),
        ("detect.region=0,0.5,1", r"detect\.region=0,0\.5,1: .*valid tuple"),
        ("detect.image_size=32", r"DetectConfig\.image_size: got 32, expected 64 to 8192"),
        ("detect.stride=0", r"DetectConfig\.stride: got 0, expected 1 to 10000"),
        ("detect.min_box_height=-1", r"DetectConfig\.min_box_height: got -1\.0, expected 0 to"),
        ("detect.precision=half", r"detect\.precision=half: .*'float32', 'float16' or 'int8'"),
        ("stage2.milestones=30,10", r"Stage2Config\.milestones: got \(30, 10\), expected ascending"),
        ("evaluate.ranks=0,1", r"EvaluateConfig\.ranks: got \(0, 1\), expected positive"),
        ("model.joint_heads=7", r"ModelConfig\.joint_heads: got 7, expected a divisor of width=512"),
        ("embed.histogram_bins=0,1,1", r"EmbedConfig\.histogram_bins: got \(0, 1, 1\), expected 1 or more"),
    ],
)
def test_a_wrong_override_says_what_there_is(assignment, message):
    with pytest.raises(ValueError, match=message):
        with_overrides(Experiment(name="x"), [assignment])


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
        "from csip.config import digest\n"
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RuntimeConfig(pose_batch=0), r"RuntimeConfig\.pose_batch: got 0, expected 1 to 4096"),
        (lambda: RuntimeConfig(processes=0), r"RuntimeConfig\.processes: got 0, expected 1 to 1024"),
        (lambda: RuntimeConfig(save_seconds=-1), r"RuntimeConfig\.save_seconds: got -1, expected 0 to inf"),
        (lambda: RuntimeConfig(stop_seconds=-1), r"RuntimeConfig\.stop_seconds: got -1, expected 0 to 3600"),
        (lambda: Stage1Config(accumulate=0), r"Stage1Config\.accumulate: got 0, expected 1 to 100000"),
        (lambda: Stage2Config(accumulate=0), r"Stage2Config\.accumulate: got 0, expected 1 to 100000"),
        (lambda: Stage2Config(keep_every=-1), r"Stage2Config\.keep_every: got -1, expected 0 to 1000000"),
        (lambda: config.ValidateConfig(fraction=0), r"ValidateConfig\.fraction: got 0, expected 1e-06 to 0\.9"),
        (lambda: config.ValidateConfig(every=0), r"ValidateConfig\.every: got 0, expected 1 to 1000000"),
        (lambda: RuntimeConfig(workers=-1), r"RuntimeConfig\.workers: got -1, expected 0 to 256"),
        (lambda: ModelConfig(prototype_heads=3), r"ModelConfig\.prototype_heads: got 3, expected a divisor"),
        (lambda: Stage2Config(identities=1), r"Stage2Config\.identities: got 1, expected 2 to 4096"),
        (lambda: EvaluateConfig(ranks=()), r"EvaluateConfig\.ranks: got \(\), expected positive"),
        (lambda: config.ExtractConfig(dataset="a/b"), r"ExtractConfig\.dataset: got 'a/b', expected letters"),
        (lambda: config.TrackConfig(jpeg_quality=101), r"TrackConfig\.jpeg_quality: got 101, expected 1 to 100"),
        (lambda: config.SplitConfig(max_parts=1), r"SplitConfig\.max_parts: got 1, expected 2"),
        (lambda: config.DetectConfig(iou=1.5), r"DetectConfig\.iou: got 1\.5, expected 0 to 1"),
        (lambda: config.PretrainConfig(label_smoothing=1), r"PretrainConfig\.label_smoothing: got 1"),
        (lambda: config.ReportConfig(gallery=0), r"ReportConfig\.gallery: got 0, expected 1 to 1000"),
    ],
)
def test_a_number_out_of_range_is_refused_when_it_is_written(make, message):
    with pytest.raises(ValueError, match=message):
        make()
