"""What the command line draws of things that need no flow to be there."""

from csip.lineage import Node
from flows.terminal import lineage_text


def test_a_tree_shows_digests_by_their_first_letters_and_of_many_runs_the_first():
    runs = [f"run{i}" for i in range(5)]
    detections = Node("detections", "a/b", {"frames": 30, "runs": runs}, None, ())
    facts = {"track_digest": "0123456789ab" + "c" * 52, "path": "/videos/a.mp4", "tables": {"crops": 1}}
    text = lineage_text(Node("video", "f" * 64, facts, None, (detections,)), 10_000)
    assert text.splitlines() == [
        "video ffffffffffff  track digest 0123456789ab, path /videos/a.mp4",
        "└── detections a/b  frames 30, runs run0, run1, run2 and 2 more",
    ]


def test_a_tree_of_a_given_width_loses_no_word():
    detections = Node("detections", "a/b", {"frames": 30, "camera": "gate"}, None, ())
    video = Node("video", "f" * 64, {"path": "/videos/a.mp4"}, None, (detections,))
    assert lineage_text(video, 30).splitlines() == [
        "video ffffffffffff  path",
        "/videos/a.mp4",
        "└── detections a/b  frames 30,",
        "    camera gate",
    ]
