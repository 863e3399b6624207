"""What --set says is read as its field's own type, and refused by name."""

import dataclasses

import pytest

from csip.config import Experiment
from csip.plain import from_plain, to_plain
from flows.overrides import with_overrides


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
