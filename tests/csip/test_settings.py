"""What a step was set to, read back from its record in the spelling of --set."""

import dataclasses

import pytest

from csip.config import ClipConfig, DetectConfig, Experiment, ExtractConfig, Stage2Config
from csip.origins import leaves
from csip.plain import to_plain
from csip.settings import settings_of, spell
from flows.overrides import with_overrides
from flows.recipes import RECIPES

SET = {
    "detect.image_size": "960",
    "detect.region": "[[0,0.5],[1,0.5],[1,1]]",
    "stage2.milestones": "3,7",
    "stage2.temporal": "false",
    "evaluate.exclude_same_camera": "true",
    "dataset": "street",
    "seed": "3",
}


def test_what_was_set_is_told_as_it_was_set_and_the_rest_is_not():
    experiment = with_overrides(Experiment(name="video"), [f"{name}={value}" for name, value in SET.items()])
    told = settings_of({"experiment": to_plain(experiment)})
    assert told == SET | {"detect.region": "[[0.0,0.5],[1.0,0.5],[1.0,1.0]]", "name": "video"}
    assert settings_of({"config": to_plain(ExtractConfig())}) == settings_of({}) == {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_told_by_what_it_changes_and_set_again_by_that(recipe):
    experiment = RECIPES[recipe]()
    told = settings_of(to_plain(experiment))
    defaults = leaves(Experiment(name=recipe))
    assert set(told) - {"name"} == {name for name, value in leaves(experiment).items() if value != defaults[name]}
    words = [f"{name}={value}" for name, value in told.items()]
    assert with_overrides(Experiment(name=recipe), words) == experiment


def test_a_section_is_known_by_its_fields_whatever_a_stage_calls_it():
    config = to_plain(Stage2Config(epochs=7))
    for recorded in ({"config": config}, {"section": config, "seed": 0}, config):
        assert settings_of(recorded) == {"stage2.epochs": "7"}
    # Alone, as `detect_video` records it.
    assert settings_of(to_plain(DetectConfig(stride=2))) == {"detect.stride": "2"}


def test_no_two_sections_have_the_same_fields():
    sections = [one.default_factory() for one in dataclasses.fields(Experiment) if dataclasses.is_dataclass(one.default)
                or one.default_factory is not dataclasses.MISSING]  # fmt: skip
    names = [frozenset(f.name for f in dataclasses.fields(one)) for one in sections]
    assert len(names) == len(set(names)) > 10


def test_what_this_version_does_not_know_is_told_as_it_is():
    config = {"clip": to_plain(ClipConfig(frames=4)) | {"colour": "grey"}, "tone": "warm", "rest": {"a": 1}, "none": ""}
    assert settings_of(config) == {"clip.frames": "4", "clip.colour": "grey", "tone": "warm", "rest.a": "1"}


def test_values_are_spelled_as_the_command_line_reads_them():
    assert [spell(v) for v in (None, True, 0.5, "x", [1, 2], [])] == ["none", "true", "0.5", "x", "1,2", ""]
