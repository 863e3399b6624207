"""How a lineage is drawn."""

from csip.lineage import Node
from csip.tables import RunRecord
from flows.tree import lineage_text


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


def run(stage, config, run_id="r1"):
    facts = {
        "key": "k",
        "inputs": {},
        "outputs": {},
        "counts": {},
        "weights": {},
        "source_digest": "s",
        "device": "cpu",
    }
    return RunRecord(run_id=run_id, stage=stage, config=config, git_commit="c" * 40, started="", seconds=1.0, **facts)


def test_each_step_shows_once_what_it_was_set_to_beside_the_defaults_and_beside_the_steps_behind_it():
    detect, track = {"image_size": 960, "stride": 1}, {"min_seconds": 0.5, "tracker": "bytetrack"}
    whole = {"config": {"detect": detect, "track": track, "dataset": "street"}}
    seen = Node("detections", "a/b", {}, run("detect_video", {"detect": detect}), ())
    video = Node("video", "f" * 64, {}, run("track_video", {"detect": detect, "track": track}), (seen,))
    snapshot = Node("snapshot", "street", {}, run("publish", whole), (video,))
    again = Node("snapshot", "again", {}, run("publish", {"config": {"detect": detect, "track": track}}), (video,))
    embedded = Node(
        "embeddings", "e", {"encoder": "raw"}, run("embed", {"encoder": "raw", "seed": 0}), (snapshot, again)
    )
    old = Node("table", "crops@1", {}, run("made", {}), (embedded, snapshot))
    lines = lineage_text(old, 10_000).splitlines()
    by = f"1.0 s, commit {'c' * 12})"
    assert lines == [
        f"table crops@1  by made (run r1, {by}",
        f"├── embeddings e  encoder raw  by embed (run r1, {by}",
        "│   set: defaults",
        f"│   ├── snapshot street  by publish (run r1, {by}",
        "│   │   set: dataset=street",
        f"│   │   └── video {'f' * 12}  by track_video (run r1, {by}",
        "│   │       set: track.min_seconds=0.5",
        f"│   │       └── detections a/b  by detect_video (run r1, {by}",
        "│   │           set: detect.image_size=960",
        f"│   └── snapshot again  by publish (run r1, {by}",
        "│       set: as what it was made from",
        f"│       └── video {'f' * 12}  by track_video (run r1, {by}",
        "│           └── (as above)",
        f"└── snapshot street  by publish (run r1, {by}",
        "    └── (as above)",
    ]


def test_settings_fold_into_the_tree_at_a_hundred_columns():
    config = {"config": {"detect": {"image_size": 960, "min_box_height": 60.0, "region": [[0, 0.5], [1, 0.5], [1, 1]]}}}
    made = run(
        "detect_video", config | {"track": {f"{name}_seconds": 7.5 for name in ("buffer", "link", "interpolate")}}
    )
    node = Node("results", "r", {}, None, (Node("detections", "a/b", {}, made, ()),))
    lines = lineage_text(node, 100).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[2:] == [
        "    set: detect.image_size=960  detect.min_box_height=60.0  detect.region=[[0,0.5],[1,0.5],[1,1]]",
        "    track.buffer_seconds=7.5  track.link_seconds=7.5  track.interpolate_seconds=7.5",
    ]
