import pytest

from csip import config
from csip.config import EvaluateConfig, ModelConfig, RuntimeConfig, Stage1Config, Stage2Config


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
