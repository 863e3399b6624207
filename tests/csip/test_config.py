import dataclasses
import inspect
import json

import pytest
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from csip import config
from csip.config import EvaluateConfig, ModelConfig, RuntimeConfig, Stage1Config, Stage2Config
from csip.tables import check_name


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


@pytest.mark.parametrize("name", ["-foo", "größe", "a" * 101, "a.b", "", "a b", "a\n"])
def test_a_data_set_name_that_publishing_would_refuse_is_refused_when_it_is_written(name):
    with pytest.raises(ValueError, match=r"ExtractConfig\.dataset: got .*, expected letters, digits"):
        config.ExtractConfig(dataset=name)


@pytest.mark.parametrize("name", ["_", "7", "a-b_C", "a" * 100])
def test_a_data_set_name_that_is_accepted_can_be_published(name):
    check_name(f"{config.ExtractConfig(dataset=name).dataset}-0123abcd")


SECTIONS = [kind for _, kind in inspect.getmembers(config, inspect.isclass) if dataclasses.is_dataclass(kind)]
EDGES = (-1, 0, 0.1, 0.2, 0.9, 0.999, 1, 2, 3, 10, 40, 64, 100, 256, 1000, 4096, 8192, 65_536, 86_400)
STEPS = (-1, -0.01, -1e-7, 0, 1e-7, 0.01, 1)
NUMBERS = sorted({edge + step for edge in (*EDGES, 10**5, 10**6, 10**9) for step in STEPS})
TEXTS = ("", "a", "é-1_b", "a/b", "a\\b", "a b", "-", ".", "..", "...", "auto", "cuda:1")
CHOICES = ("Precision", "PosePrecision", "ChunkRule", "PrototypeChoice")
# What the schema of one field cannot say: it depends on another field, or on the machine.
BESIDE = {"RuntimeConfig": {"nodes", "device"}, "ModelConfig": {"width", "joint_heads", "prototype_heads"}}
BESIDE["SkeletonConfig"] = {"frames", "masked_frames", "transg_width", "transg_heads"}


def probes(field):
    """Values to try in the place of a field's default: of its type, at the edges of every bound there is."""
    default = field.default
    if "Literal" in field.type or field.type in CHOICES:
        return ()
    if isinstance(default, str):
        return TEXTS
    if isinstance(default, tuple):
        # Steps of one, so that they ascend; and equal ones.
        kind = float if "float" in field.type else int
        many = [tuple(map(kind, range(edge, edge + len(default)))) for edge in (-1, 0, 1, 4)]
        return [*many, (kind(2),) * len(default), *([()] if "..." in field.type else [])]
    if isinstance(default, bool) or not isinstance(default, int | float):
        return ()
    return [one for one in NUMBERS if isinstance(default, float) or one == int(one)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_what_a_form_refuses_is_what_a_section_refuses(section):
    """The schema by a validator of its own, against the section's constructor."""
    given = {"name": "x"} if section is config.Experiment else {}
    validator = Draft202012Validator(TypeAdapter(section).json_schema())
    outcomes = set()
    for field in dataclasses.fields(section):
        for value in () if field.name in BESIDE.get(section.__name__, ()) else probes(field):
            one = {**given, field.name: value}
            try:
                section(**one)
                admitted = True
            except ValueError:
                admitted = False
            assert validator.is_valid(json.loads(json.dumps(one))) == admitted, (field.name, value)
            outcomes.add(admitted)
    assert outcomes == ({True} if section is config.DataConfig else {True, False})


@pytest.mark.parametrize(("device", "admitted"), [("auto", True), ("cpu", True), ("cuda:12", True), ("abacus", False)])
def test_a_form_knows_what_a_device_is_called(device, admitted):
    assert Draft202012Validator(TypeAdapter(RuntimeConfig).json_schema()).is_valid({"device": device}) == admitted
