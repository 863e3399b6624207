"""The three trainings on the tiny snapshot, called by name, and what they come to."""

import dataclasses
from types import SimpleNamespace

import pytest

from csip.config import PretrainConfig, Stage1Config, Stage2Config, ValidateConfig
from csip.training.pretrain import pretrain_visual
from csip.training.stage1 import stage1
from csip.training.stage2 import stage2

CONFIGS = {
    "pretrain_visual": PretrainConfig(epochs=2, learning_rate=1e-3, identities=2, clips_per_identity=2),
    "stage1": Stage1Config(epochs=2, batch_clips=2, learning_rate=1e-3, warmup_epochs=0),
    "stage2": Stage2Config(
        epochs=2,
        identities=2,
        clips_per_identity=2,
        learning_rate=1e-3,
        head_factor=2,
        warmup_epochs=0,
        milestones=(2,),
    ),
}


@pytest.fixture
def begin(tiny, tiny_snapshot, untrained, tiny_features, out):
    """Make a training's generator: by its name, with changes of its section, or of what else it is given."""

    def make(
        name,
        *,
        out=out,
        snapshot=tiny_snapshot,
        checkpoint=untrained,
        features=tiny_features,
        validate=None,
        save_seconds=120,
        **changes,
    ):
        config = dataclasses.replace(CONFIGS[name], **changes)
        runtime = dataclasses.replace(tiny.runtime, save_seconds=save_seconds)
        if name == "pretrain_visual":
            return pretrain_visual(out, checkpoint, snapshot, config, tiny.seed, runtime)
        if name == "stage1":
            return stage1(out, checkpoint, features, snapshot, config, tiny.seed, runtime)
        return stage2(out, checkpoint, features, snapshot, config, validate or ValidateConfig(), tiny.seed, runtime)

    return make


@pytest.fixture
def finish(run):
    """Run a training to its end: every epoch's figures but the speed, the checkpoint's bytes, and the counts."""

    def end(stage):
        records, outcome = run(stage)
        figures = [{k: v for k, v in record.values.items() if k != "clips_per_second"} for record in records]
        return SimpleNamespace(
            figures=figures,
            epochs=[record.done for record in records],
            sha=outcome.value.sha256,
            counts=dict(outcome.counts),
            outcome=outcome,
        )

    return end
