import io

import numpy as np
import pytest
from PIL import Image

from csip.config import EvaluateConfig
from csip.evaluation.charts import Curve
from csip.evaluation.page import (
    Artifact,
    BreakdownRow,
    CountRow,
    Crop,
    LineageStep,
    LossChart,
    RankedItem,
    RankedQuery,
    Report,
    ScoreRow,
    TableRow,
    TrackletStrip,
)
from csip.evaluation.protocol import LABEL, describe, rules
from csip.protocols import SELF_LABELLED

# A person standing straight in a box of 40 x 100 pixels: x and y of COCO-17, from the nose to the ankles.
STANDING = (
    *((20, 10), (22, 8), (18, 8), (24, 9), (16, 9), (28, 22), (12, 22), (31, 36), (9, 36), (32, 50), (8, 50)),
    *((25, 52), (15, 52), (25, 72), (15, 72), (25, 94), (15, 94)),
)


@pytest.fixture
def jpeg():
    """Encode (H, W, 3) uint8 as a JPEG."""

    def encode(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=95)
        return buffer.getvalue()

    return encode


@pytest.fixture
def box():
    """Where the standing person's box lies in its frame."""
    return np.array([300, 200, 340, 300], dtype=np.float32)


@pytest.fixture
def keypoints(box):
    """The standing person in frame pixels, every joint of confidence 0.9."""
    points = np.array(STANDING, dtype=np.float32) + box[:2]
    return np.concatenate([points, np.full((17, 1), 0.9, dtype=np.float32)], axis=1)


@pytest.fixture
def sample_report(jpeg, box, keypoints):
    """A report in which every part is filled."""

    def crop(shade, with_skeleton=True):
        pixels = np.full((100, 40, 3), shade, dtype=np.uint8)
        pixels[20:55, 8:32] = (200 - shade, shade, 120)
        return Crop(jpeg(pixels), 7, box, keypoints if with_skeleton else None)

    items = tuple(RankedItem(crop(40 * i, False), f"person {i}, frames 4-9", 0.25 * i, i != 1) for i in range(4))
    step = LineageStep(
        stage="evaluate",
        run_id="run-" + "7" * 20,
        inputs=(Artifact("street.avi", "", "a1" * 32), Artifact("crops", "@4")),
        outputs=(Artifact("mAP", "62.5 %"),),
        config_digest="c0" * 32,
        git_commit="f3" * 20 + "+",
        seconds=83.4,
        device="cpu",
    )
    return Report(
        dataset="street",
        snapshot="street-2",
        recipe="demo",
        created="2026-01-14 10:22 UTC",
        label=LABEL,
        protocol=describe(rules(EvaluateConfig(), SELF_LABELLED), SELF_LABELLED),
        ranks=(1, 5, 20),
        scores=(
            ScoreRow("trained", 0.625, (0.5, 0.75, 1.0), 5, 4, True, (0.5, 0.7125), 0.6, 0.4375, "first frames"),
            ScoreRow("untrained encoder", 0.25, (0.0, 0.25, 0.5), 5, 4, ranked="first frames"),
            ScoreRow("HSV colour histogram", 0.375, (0.25, 0.5, 0.75), 5, 4, ranked="all frames"),
        ),
        breakdown=(BreakdownRow("gate to hall", 3, 2, 0.75, 0.5), BreakdownRow("1 to 15 frames", 2, 0, None, None)),
        losses=(
            LossChart("Stage 1", "epoch", "loss (nats)", (Curve("both", (1, 2, 3), (3.0, 2.0, 1.5)),)),
            LossChart("Stage 2", "epoch", "loss (nats)", (Curve("total", (), ()),)),
        ),
        counts=(CountRow("frames", 1234), CountRow("tracklets too short for two parts", 3, is_left_out=True)),
        tracklets=(TrackletStrip("5e" * 12, "0", 31, 0.87, (crop(30), crop(90)), "train"),),
        queries=(RankedQuery(crop(10, False), "person 0, frames 0-3", items),),
        lineage=(step,),
        tables=(TableRow("crops", 4, 3911),),
        lineage_command="csip lineage 7777",
        confidence=0.9,
    )
