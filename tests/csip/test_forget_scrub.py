"""What runs say after somebody was forgotten: nothing of them, and all of everybody else."""

import pytest

from csip.maintenance.forget_plan import Plan
from csip.maintenance.forget_scrub import Scrub
from csip.tables import RunRecord

FILM, OTHER, THIRD = (f"{n:064d}" for n in (7, 8, 9))
WEDDING = "/films/anna/wedding.mp4"
NAMES = ("5f3a9c0d1e2b-00001",)


@pytest.fixture
def scrub():
    return Scrub(
        Plan(kind="video", shas=("0",), videos=(FILM,), paths=(WEDDING,), tracklets=NAMES, files=("reports/a.html",)),
        {"crops": 12},
    )


def run(**parts):
    rest = {"run_id": "r", "stage": "list_videos", "key": "k", "inputs": {}, "outputs": {}, "config": {}, "counts": {}}
    rest |= {"weights": {}, "source_digest": "s", "git_commit": "", "device": "cpu", "started": "", "seconds": 1.0}
    return RunRecord(**rest | parts)


def video(sha, path, camera="door"):
    return {"video_sha": sha, "path": path, "camera": camera, "duration": 1.0}


@pytest.mark.parametrize(
    "path",
    [
        "/films/bert/wedding.mp4",  # the same name in another folder
        WEDDING,  # the same place, where another film lay before
        "wedding.mp4",
        "/films/anna/wedding.mp4.old.mp4",
        "/backup/films/anna/wedding.mp4",
    ],
)
def test_another_videos_path_and_camera_stay_whatever_it_is_called(scrub, path):
    before = run(outputs={"videos": [video(OTHER, path, "wedding")]}, inputs={"video": video(THIRD, path, "wedding")})
    assert scrub(before) == before


def test_a_forgotten_videos_path_and_camera_go_wherever_it_is_named(scrub):
    outputs = {"videos": [video(FILM, "/elsewhere/copy.mp4", "copy"), video(OTHER, "/films/bert/wedding.mp4")]}
    assert scrub(run(outputs=outputs)).outputs == {
        "videos": [video(FILM, "", ""), video(OTHER, "/films/bert/wedding.mp4")]
    }


SOURCES = {
    WEDDING: "",
    "wedding.mp4": "",
    "./wedding.mp4": "",
    "../anna/wedding.mp4": "",
    "anna/../anna/wedding.mp4": "",
    "~/link/wedding.mp4": "",  # no other video is called so
    "bert/wedding.mp4": "bert/wedding.mp4",
    "/films/bert/wedding.mp4": "/films/bert/wedding.mp4",
    "../films/bert/wedding.mp4": "../films/bert/wedding.mp4",
    "/films": "/films",
    "anna": "anna",
    "mywedding.mp4": "mywedding.mp4",
    "/films/anna/wedding.mp4.csv": "/films/anna/wedding.mp4.csv",
}


@pytest.mark.parametrize("typed", SOURCES)
def test_what_was_typed_for_a_forgotten_video_goes_and_what_was_typed_for_another_stays(scrub, typed):
    outputs = {"videos": [video(FILM, WEDDING), video(OTHER, "/films/bert/wedding.mp4")]}
    found = scrub(run(config={"sources": [typed, "/films/carl.mp4"], "camera": ""}, outputs=outputs))
    assert found.config == {"sources": [SOURCES[typed], "/films/carl.mp4"], "camera": ""}


def test_what_was_typed_for_other_builds_stays(scrub):
    before = run(
        config={"sources": ["wedding.mp4", "../link/wedding.mp4"]}, outputs={"videos": [video(OTHER, "/a/wedding.mp4")]}
    )
    assert scrub(before) == before


TEXTS = {
    f"{WEDDING}: cannot be decoded.": ": cannot be decoded.",
    f"Left out: {WEDDING}.": "Left out: .",
    f"'{WEDDING}'": "''",
    "anna/wedding.mp4: cannot be decoded.": ": cannot be decoded.",
    "wedding.mp4: cannot be decoded.": ": cannot be decoded.",
    "bert/wedding.mp4: cannot be decoded.": "bert/wedding.mp4: cannot be decoded.",
    "/films/bert/wedding.mp4: is empty.": "/films/bert/wedding.mp4: is empty.",
    f"/backup{WEDDING}: is empty.": f"/backup{WEDDING}: is empty.",
    f"{WEDDING}.part: is empty.": f"{WEDDING}.part: is empty.",
    f"{NAMES[0]}@17 is odd": "@17 is odd",
    f"{NAMES[0]}7 is odd": f"{NAMES[0]}7 is odd",
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_that_runs_count_name_neither_the_video_nor_its_people(scrub, text):
    assert scrub(run(counts={"unreadable 1": text, "files": 3})).counts == {"unreadable 1": TEXTS[text], "files": 3}


def test_tables_and_files_are_those_that_are_left(scrub):
    outputs = [
        {"uri": "/old/place/crops.lance", "version": 3},
        {"uri": "/old/place/metrics.lance", "version": 3},
        {"path": "/old/place/reports/a.html", "sha256": "a1"},
        {"path": "/old/place/reports/b.html", "sha256": "b1"},
    ]
    assert scrub(run(outputs=outputs)).outputs == [
        {"uri": "/old/place/crops.lance", "version": 12},
        outputs[1],
        {"forgotten": "a1"},
        outputs[3],
    ]


def test_a_plan_without_videos_leaves_paths_alone():
    before = run(config={"sources": ["", "a b"]}, counts={"x": "/films/anna/wedding.mp4: fine."})
    assert Scrub(Plan(kind="tracklet", shas=("0",), tracklets=NAMES), {})(before) == before


def test_counts_of_the_plan_are_taken():
    plan = Plan(kind="tracklet", shas=("0",), tracklets=NAMES, runs={"r": {"crops": 1, "worst": list(NAMES)}})
    assert Scrub(plan, {})(run(counts={"crops": 2})).counts == {"crops": 1, "worst": [""]}
