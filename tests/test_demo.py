"""The main job as a user runs it: `csip demo` on the whole shipped video, in a process of its own."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)


def csip(*arguments):
    done = subprocess.run([sys.executable, "-m", "flows", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def only(told):
    """What the one training, or evaluation, of a command told, beside what the command told."""
    (one,) = told.get("trained") or told["evaluated"]
    return told | one


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "store"


@pytest.fixture(scope="module")
def demo(store):
    told = json.loads(csip("demo", "--json", "--out", str(store)))
    return told | {"train": only(told["train"])}


def test_the_demo_counts_what_it_saw(demo):
    counts = demo["build"]["counts"]
    assert counts["frames"] == 795
    # ultralytics' own ByteTrack, fed the same weights at this size, finds 50 tracks, 38 of them of 8 frames or more.
    # Links make fewer of them, and by eye there are 18 stays of people in view.
    assert 18 <= counts["tracklets"] < 38
    dropped = sum(counts["dropped"].values())
    linked = counts["rules"]["tracks linked"]
    assert linked > 5
    assert 40 <= counts["tracklets"] + dropped + linked <= 60
    assert counts["rules"]["boxes interpolated"] == 0
    assert 0.7 < counts["keypoint_confidence"] < 0.85
    left_out = counts["left_out_of_protocol"]["tracklets too short for two parts"]
    assert counts["train_people"] + counts["test_people"] + left_out == counts["tracklets"]
    assert demo["build"]["listed"]["already_extracted"] == 0


def test_every_score_says_what_kind_it_is(demo):
    for text in demo["train"]["described"].values():
        assert text.startswith("self-labelled, same camera")
    assert set(demo["train"]["scores"]) == {"trained", "untrained", "hsv-histogram"}
    for row in demo["train"]["scores"].values():
        assert row["num_valid_queries"] == row["num_queries"] == demo["build"]["counts"]["test_people"]


def test_a_second_run_does_nothing_again_and_says_so(demo, store):
    text = csip("demo", "--out", str(store))
    assert "nothing was extracted again" in text
    for stage in ("pretrain_visual", "stage1", "stage2", "evaluate"):
        assert any(line.split()[:3] == [stage, "nothing", "to"] for line in text.splitlines()), (stage, text)
    again = json.loads(csip("demo", "--json", "--out", str(store)))
    assert only(again["train"])["scores"] == demo["train"]["scores"]
    assert again["build"]["tables"] == demo["build"]["tables"]


def test_the_lineage_of_a_score_ends_at_the_video(demo, store):
    text = csip("lineage", demo["train"]["run_id"], "--store", str(store))
    for word in (
        "results",
        "embeddings",
        "stage2",
        "stage1",
        "pretrain_visual",
        "snapshot",
        "video",
        "yolo11n-pose.pt",
    ):
        assert word in text, word


@pytest.mark.parametrize("seed", SEEDS)
def test_training_helps_on_people_it_never_saw(demo, store, seed):
    name = demo["build"]["snapshot"]
    words = ("--store", str(store), "--snapshot", name, "--set", f"seed={seed}")
    told = only(json.loads(csip("train-csip", "demo", "--json", *words)))
    assert told["scores"]["trained"]["mean_ap"] > told["scores"]["untrained"]["mean_ap"]
    for stage in ("pretrain_visual", "stage1", "stage2"):
        losses = told["losses"][stage]
        third = len(losses) // 3
        assert sum(losses[-third:]) < sum(losses[:third]), (stage, losses)


def test_the_report_shows_in_a_browser(demo, store, chromium):
    dom = chromium(demo["train"]["report"]["path"], "--dump-dom")
    for text in ("self-labelled, same camera", "HSV colour histogram", demo["build"]["snapshot"], "stage2"):
        assert text in dom, text
