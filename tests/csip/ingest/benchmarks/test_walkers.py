"""Synthetic people against geometry worked out by hand, and against their own settings."""

import io
import json
import os
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csip.config import WalkersConfig
from csip.errors import TooLittleDataError
from csip.ingest.benchmarks import walkers_camera
from csip.ingest.benchmarks.walkers import (
    FPS,
    WALKERS_VERSION,
    coco17,
    deal,
    keypoints_2d,
    make_scene,
    make_tracklet,
    render_frame,
    skeletons_3d,
    walkers,
)
from csip.ingest.benchmarks.walkers_camera import HEIGHT, WIDTH, Camera, look, make_camera
from csip.ingest.benchmarks.walkers_drawing import figure, hidden, render
from csip.ingest.benchmarks.walkers_gait import JOINTS, walk
from csip.ingest.benchmarks.walkers_people import ANKLE_HEIGHT, draw, make_person
from csip.joints import COCO17, H36M17
from csip.plain import digest

ROOT = Path(__file__).resolve().parents[4]
GOLDEN = ROOT / "tests" / "golden" / "walkers.json"
TINY = WalkersConfig(people=6, twins=0.67, cameras=2, frames=4)
EXACT = replace(TINY, joint_noise=0, scale_noise=0, keypoint_noise=0, box_noise=0, missing_joints=0, occlusion=0)
TIME = np.arange(0, 4, 0.01)


def at(joints, name):
    return joints[:, JOINTS.index(name)]


def pixels(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def plain_camera(position, target, focal=500.0):
    position, target = np.array(position, float), np.array(target, float)
    return Camera("plain", position, look(position, target), focal, np.ones(3), 1.0, 0.0, 0.5)


def test_a_point_comes_where_a_pinhole_puts_it():
    # From 2 m up, looking along +y: 10 m ahead, 1 m to the right and 1 m lower is 500 / 10 = 50 pixels each.
    camera = plain_camera((0, 0, 2), (0, 5, 2))
    assert camera.project(np.array([1.0, 10.0, 1.0])) == pytest.approx([WIDTH / 2 + 50, HEIGHT / 2 + 50, 10])
    # Turned to look along -x, what lies at +y is on its right.
    camera = plain_camera((4, 0, 1), (0, 0, 1))
    assert camera.project(np.array([-1.0, 1.0, 2.0])) == pytest.approx([WIDTH / 2 + 100, HEIGHT / 2 - 100, 5])


def test_a_camera_that_looks_down_sees_its_target_in_the_middle():
    # 3 m up, the target 4 m ahead on the floor: 5 m away along the axis.
    camera = plain_camera((0, 0, 3), (0, 4, 0))
    assert camera.project(np.array([0.0, 4.0, 0.0])) == pytest.approx([WIDTH / 2, HEIGHT / 2, 5])
    assert camera.rotation @ camera.rotation.T == pytest.approx(np.eye(3))
    assert np.linalg.det(camera.rotation) == pytest.approx(1)


@pytest.mark.parametrize("pid", range(4))
def test_bones_keep_the_length_that_the_body_says(pid):
    person = make_person(0, pid, None)
    joints, body = walk(person, TIME, 0.3), person.body
    for side in ("left", "right"):
        for start, end, length in (
            ("hip", "knee", body.thigh),
            ("knee", "ankle", body.shank),
            ("shoulder", "elbow", body.upper_arm),
            ("elbow", "wrist", body.forearm),
        ):
            bone = at(joints, f"{side}_{end}") - at(joints, f"{side}_{start}")
            assert np.linalg.norm(bone, axis=1) == pytest.approx(length, abs=1e-9)
        assert np.linalg.norm(at(joints, f"{side}_hip") - at(joints, "pelvis"), axis=1) == pytest.approx(body.hip)
    for start, end, length in (("pelvis", "spine", body.spine), ("spine", "thorax", body.chest),
                               ("thorax", "neck", body.neck), ("neck", "head", body.skull)):  # fmt: skip
        assert np.linalg.norm(at(joints, end) - at(joints, start), axis=1) == pytest.approx(length)


def test_a_person_walks_ahead_at_stride_times_cadence():
    person = make_person(0, 1, None)
    joints = walk(person, TIME, 0.0)
    way = at(joints, "pelvis")[-1, 0] - at(joints, "pelvis")[0, 0]
    assert way / (TIME[-1] - TIME[0]) == pytest.approx(person.gait.stride * person.gait.cadence)
    assert person.gait.speed == pytest.approx(person.gait.stride * person.gait.cadence)
    # After one cycle everything is as it was, one stride further on.
    later = walk(person, TIME + 1 / person.gait.cadence, 0.0)
    assert later - joints == pytest.approx(np.broadcast_to([person.gait.stride, 0, 0], joints.shape))


@pytest.mark.parametrize("pid", range(6))
def test_left_is_left_and_knees_and_elbows_bend_the_right_way(pid):
    joints = walk(make_person(0, pid, None), TIME, 0.0)
    for name in ("hip", "shoulder", "ear", "eye", "ankle"):
        assert (at(joints, f"left_{name}")[:, 1] > at(joints, f"right_{name}")[:, 1]).all()
    assert (at(joints, "nose")[:, 0] > at(joints, "left_ear")[:, 0]).all()
    for side in ("left", "right"):
        hip, knee, ankle = (at(joints, f"{side}_{n}") for n in ("hip", "knee", "ankle"))
        shoulder, elbow, wrist = (at(joints, f"{side}_{n}") for n in ("shoulder", "elbow", "wrist"))
        # Seen from the person's left, hip -> knee -> ankle turns back and shoulder -> elbow -> wrist turns ahead.
        assert (np.cross(knee - hip, ankle - knee)[:, 1] >= -1e-9).all()
        assert (np.cross(elbow - shoulder, wrist - elbow)[:, 1] <= 1e-3).all()


@pytest.mark.parametrize("pid", range(6))
def test_feet_alternate_stand_still_and_stay_on_the_floor(pid):
    person = make_person(0, pid, None)
    joints = walk(person, TIME, 0.0)
    ahead = at(joints, "left_ankle")[:, 0] - at(joints, "right_ankle")[:, 0]
    changes = np.count_nonzero(np.diff(np.sign(ahead)))
    assert changes == pytest.approx(2 * person.gait.cadence * TIME[-1], abs=1.5)
    for side in ("left", "right"):
        lowest = np.minimum(at(joints, f"{side}_toe")[:, 2], at(joints, f"{side}_heel")[:, 2])
        assert lowest.min() > -0.01
        ankle = at(joints, f"{side}_ankle")
        standing = ankle[:, 2] < ANKLE_HEIGHT + 1e-6
        both = standing[1:] & standing[:-1]
        assert both.mean() > 0.2
        assert np.abs(np.diff(ankle[:, 0])[both]).max() < 1e-5  # metres in a hundredth of a second
    # Somebody always stands.
    low = np.minimum(at(joints, "left_ankle")[:, 2], at(joints, "right_ankle")[:, 2])
    assert low.max() < ANKLE_HEIGHT + 0.08


def test_nothing_jumps():
    for pid in range(6):
        speed = np.linalg.norm(np.diff(walk(make_person(0, pid, None), TIME, 0.0), axis=0), axis=2) / 0.01
        assert speed.max() < 7  # metres a second; a swinging foot is the fastest


def test_h36m_and_coco_agree_where_they_share_joints():
    joints = walk(make_person(0, 0, None), TIME[:5], 0.0)
    coco, shared = coco17(joints), set(COCO17.joints) & set(H36M17.joints)
    assert len(shared) == 12
    for name in shared:
        assert (coco[:, COCO17.joints.index(name)] == joints[:, H36M17.joints.index(name)]).all()
    assert JOINTS[: len(H36M17.joints)] == H36M17.joints


def test_twins_wear_the_same_and_are_built_differently():
    people = deal(WalkersConfig())
    pairs = [(a, b) for a, b in enumerate(people.twin) if b is not None and a < b]
    assert len(pairs) == 15
    for a, b in pairs:
        one, other = make_person(0, a, b), make_person(0, b, a)
        assert one.clothes == other.clothes
        measures = np.array([astuple(p.body) + astuple(p.gait) for p in (one, other)])
        assert (np.abs(np.diff(measures, axis=0)) / np.abs(measures).max(axis=0)).mean() > 0.08
        assert people.twin[b] == a
        assert (a in people.test) == (b in people.test)
    clothes = {astuple(make_person(0, pid, twin).clothes) for pid, twin in enumerate(people.twin)}
    assert len(clothes) == 60 - 15


@pytest.mark.parametrize(
    ("people", "twins", "fraction"), [(60, 0.5, 0.5), (7, 1.0, 0.5), (10, 0.0, 0.3), (4, 1.0, 0.5)]
)
def test_people_are_dealt_as_the_settings_say(people, twins, fraction):
    dealt = deal(WalkersConfig(people=people, twins=twins, test_fraction=fraction))
    assert len(dealt.test) == pytest.approx(people * fraction, abs=1)
    with_twin = {pid for pid, twin in enumerate(dealt.twin) if twin is not None}
    assert len(with_twin) == pytest.approx(people * twins, abs=1)
    assert len(with_twin & dealt.test) == pytest.approx(len(with_twin) * fraction, abs=2)


def test_too_few_people_on_one_side_are_refused():
    with pytest.raises(TooLittleDataError, match=r"4 people with test_fraction 0\.1: 4 to train on and 0 to test on"):
        walkers(WalkersConfig(people=4, test_fraction=0.1))


def test_one_pass_asks_and_the_others_answer():
    config = replace(TINY, passes=3)
    rows = walkers(config).splits
    test = deal(config).test
    assert len(rows) == len({row.tracklet_id for row in rows}) == 6 * 2 * 3
    for row in rows:
        own = [one.role for one in rows if (one.pid, one.camid) == (row.pid, row.camid)]
        assert own == (["query", "gallery", "gallery"] if row.pid in test else ["train"] * 3)
        assert row.camera == f"camera-{row.camid}"
        assert (row.group == "twins") == (deal(config).twin[row.pid] is not None)


def everything(config, name):
    tracklet = walkers(config).load(name)
    arrays = (tracklet.boxes, tracklet.keypoints, tracklet.score, tracklet.has_skeleton)
    return digest([array.tolist() for array in arrays], [image.hex() for image in tracklet.images])


def test_a_tracklet_does_not_hang_on_what_was_made_before_it():
    names = [row.tracklet_id for row in walkers(TINY).splits[:3]]
    forwards = {name: everything(TINY, name) for name in names}
    assert {name: everything(TINY, name) for name in reversed(names)} == forwards
    assert len(set(forwards.values())) == 3


def test_another_seed_makes_other_people():
    one, other = walkers(TINY), walkers(replace(TINY, seed=1))
    assert one.digest != other.digest
    assert {r.tracklet_id for r in one.splits}.isdisjoint(r.tracklet_id for r in other.splits)
    assert make_person(0, 0, None) != make_person(1, 0, None)
    assert make_camera(0, 0).focal != make_camera(1, 0).focal


def test_a_tracklet_is_the_same_under_every_hash_seed():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_walkers import TINY, everything, walkers\n"
        "print(everything(TINY, walkers(TINY).splits[5].tracklet_id))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert printed == {everything(TINY, walkers(TINY).splits[5].tracklet_id) + "\n"}


@pytest.fixture(params=[(0, 0, 0), (3, 1, 1)], ids=str)
def scene(request):
    pid, camid, number = request.param
    return make_scene(EXACT, make_person(0, pid, None), camid, number)


def test_a_box_holds_all_joints_and_little_else(scene):
    tracklet = make_tracklet(EXACT, "x", scene.person, scene.camid, 1 if scene.camid else 0)
    points = scene.camera.project(scene.joints)[:, :, :2]
    assert (points >= tracklet.boxes[:, None, :2]).all()
    assert (points <= tracklet.boxes[:, None, 2:]).all()
    height = tracklet.boxes[:, 3] - tracklet.boxes[:, 1]
    assert (np.ptp(points[:, :, 1], axis=1) > 0.8 * height).all()
    assert (height > 70).all()
    assert (height < 180).all()


def test_a_crop_is_a_region_of_its_frame(scene):
    covered = replace(scene, bar=(scene.bar or (370, 0, 385, HEIGHT)))
    drawn = figure(covered)
    whole = render(covered, drawn, 2, (0, 0, WIDTH, HEIGHT))
    assert whole.shape == (HEIGHT, WIDTH, 3)
    for x1, y1, x2, y2 in ((360, 200, 421, 333), (0, 0, 30, 41), (700, 550, WIDTH, HEIGHT)):
        assert (render(covered, drawn, 2, (x1, y1, x2, y2)) == whole[y1:y2, x1:x2]).all()


def test_the_stored_crops_show_their_boxes_of_the_frame():
    person = make_person(0, 2, None)
    tracklet = make_tracklet(replace(TINY, jpeg_quality=100), "x", person, 1, 0)
    x1, y1, x2, y2 = tracklet.boxes[3].astype(int)
    region = render_frame(TINY, person, 1, 0, 3)[y1:y2, x1:x2].astype(int)
    crop = pixels(tracklet.images[3]).astype(int)
    assert crop.shape == region.shape
    # What differs is JPEG's, whose colours have half the resolution.
    assert np.abs(crop.mean(axis=2) - region.mean(axis=2)).mean() < 3


def test_a_person_stands_before_the_background_in_its_own_colours():
    # A red shirt at the middle of the back, brighter or darker as the light has it, but red.
    person = make_person(0, 0, None)
    red = replace(person.clothes, top=(200, 30, 30), stripe="none", long_hair=False)
    scene = make_scene(EXACT, replace(person, clothes=red), 0, 0)
    x, y, _ = scene.camera.project(scene.joints[0, JOINTS.index("spine")]).astype(int)
    shirt = render(scene, figure(scene), 0, (x - 2, y - 2, x + 3, y + 3)).astype(int)
    assert (shirt[:, :, 0] > 2 * shirt[:, :, 1:].max(axis=2)).all()


def test_cameras_differ_in_view_and_light():
    cameras = [make_camera(0, camid) for camid in range(4)]
    # They see a walker (along +y) come, pass by, come askance, and go.
    along = [camera.rotation @ np.array([0.0, 1.0, 0.0]) for camera in cameras]
    assert along[0][2] < -0.85
    assert abs(along[1][0]) > 0.95
    assert 0.4 < abs(along[2][0]) < 0.9
    assert along[3][2] > 0.85
    assert len({camera.gamma for camera in cameras}) == 4
    places = [walkers_camera.background(0, camid) for camid in (0, 1)]
    assert np.abs(places[0].astype(int) - places[1]).mean() > 5


def test_3d_noise_is_as_large_as_the_settings_say():
    config = replace(EXACT, frames=40, joint_noise=0.02)
    person = make_person(0, 0, None)
    scenes = [make_scene(config, person, 0, number) for number in range(40)]
    noise = np.stack([skeletons_3d(config, s, draw(0, "n", i)) - skeletons_3d(EXACT, s, draw(0, "n", i))
                      for i, s in enumerate(scenes)])  # fmt: skip
    # 40 passes x 51 coordinates stay, 40 times as many change: the deviation is known to about 2 %.
    assert noise.std() == pytest.approx(0.02, rel=0.06)
    assert abs(noise.mean()) < 0.002
    # Half of the variance is a pass's own.
    assert noise.mean(axis=1).std() == pytest.approx(0.02 * np.sqrt(0.5 + 0.5 / 40), rel=0.06)


def test_a_3d_skeleton_is_the_body_turned_into_the_cameras_axes():
    scene = make_scene(EXACT, make_person(0, 0, None), 1, 0)
    skeleton = skeletons_3d(EXACT, scene, draw(0, "n"))
    pelvis, thorax = (H36M17.joints.index(n) for n in ("pelvis", "thorax"))
    assert (skeleton[:, pelvis] == 0).all()
    assert (skeleton[:, thorax, 1] < -0.3).all()  # y points down
    lengths = [np.linalg.norm(s[:, thorax] - s[:, pelvis], axis=1) for s in (skeleton, scene.joints)]
    assert lengths[0] == pytest.approx(lengths[1])
    scaled = replace(EXACT, scale_noise=0.1)
    ratio = skeletons_3d(scaled, scene, draw(0, "n"))[:, thorax] / skeleton[:, thorax]
    assert ratio == pytest.approx(ratio[0, 0])
    assert ratio[0, 0] != 1


def test_2d_noise_is_as_large_as_the_settings_say_and_hidden_joints_are_worse():
    config = replace(EXACT, frames=40, keypoint_noise=0.02)
    person = make_person(0, 0, None)
    errors, covers, sure = [], [], []
    for number in range(20):
        scene = make_scene(config, person, 1, number)
        drawn = figure(scene)
        seen = keypoints_2d(config, scene, drawn, draw(0, "n", number))
        height = (drawn.extent()[:, 3] - drawn.extent()[:, 1])[:, None, None]
        errors.append((seen[:, :, :2] - scene.camera.project(coco17(scene.joints))[:, :, :2]) / height)
        covers.append(hidden(scene, drawn, COCO17.joints))
        sure.append(seen[:, :, 2])
    errors, covers, sure = map(np.concatenate, (errors, covers, sure))
    assert errors[~covers].std() == pytest.approx(0.02, rel=0.1)
    assert errors[covers].std() == pytest.approx(0.05, rel=0.15)
    assert sure[~covers].mean() - sure[covers].mean() > 0.2
    # From the side, one ear lies behind the head.
    ears = covers[:, [COCO17.joints.index("left_ear"), COCO17.joints.index("right_ear")]]
    assert (ears.mean(axis=0) > 0.9).sum() == 1


def test_a_face_is_hidden_from_behind_and_seen_from_ahead():
    nose = (COCO17.joints.index("nose"),)
    for camid, expected in ((0, False), (3, True)):
        scene = make_scene(EXACT, make_person(0, 0, None), camid, 0)
        assert (hidden(scene, figure(scene), COCO17.joints)[:, nose] == expected).all()


def test_missing_joints_are_as_many_as_the_settings_say_and_unsure():
    config = replace(EXACT, frames=40, missing_joints=0.2, missing_frames=0, layout="coco17", keypoint_noise=0.01)
    made = [make_tracklet(config, "x", make_person(0, pid, None), 0, 0) for pid in range(2)]
    confidence = np.concatenate([one.keypoints[:, :, 2] for one in made])
    unsure = confidence < 0.2
    assert 0.2 < unsure.mean() < 0.4  # hidden joints are missed three times as often
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert made[0].keypoint_confidence == pytest.approx(made[0].keypoints[:, :, 2].mean())


def test_some_frames_have_no_skeleton():
    config = replace(EXACT, frames=40, missing_frames=0.5)
    tracklet = make_tracklet(config, "x", make_person(0, 0, None), 0, 0)
    assert 8 < tracklet.has_skeleton.sum() < 32
    assert (tracklet.keypoints[~tracklet.has_skeleton] == 0).all()
    assert np.abs(tracklet.keypoints[tracklet.has_skeleton]).max() > 0.3
    assert tracklet.keypoint_confidence == pytest.approx(tracklet.has_skeleton.mean())
    assert tracklet.time == pytest.approx(np.arange(40) / FPS)


def test_a_post_stands_before_as_many_passes_as_the_settings_say_and_hides_joints():
    config = replace(EXACT, occlusion=0.3)
    person = make_person(0, 0, None)
    scenes = [make_scene(config, person, 0, number) for number in range(200)]
    behind = [scene for scene in scenes if scene.bar is not None]
    assert len(behind) == pytest.approx(60, abs=20)
    joints = behind[0].camera.project(coco17(behind[0].joints))[:, :, 0]
    x1, _, x2, _ = behind[0].bar
    inside = (joints >= x1) & (joints < x2)
    seen = keypoints_2d(config, behind[0], figure(behind[0]), draw(0, "n"))
    assert inside.any()
    assert seen[:, :, 2][inside].mean() < 0.7
    # Whatever else is in the picture, the post is of one colour from top to bottom.
    column = render(replace(behind[0], camera=replace(behind[0].camera, blur=0.0)), figure(behind[0]), 0,
                    (x1 + 1, 100, x1 + 2, 500))  # fmt: skip
    assert column.astype(int).std(axis=0).max() < 8


def test_rows_are_those_of_this_version():
    # Written by `WALKERS_GOLDEN=1 pytest tests/csip/ingest/benchmarks/test_walkers.py -k rows_are_those`.
    bench = walkers(TINY)
    tracklets = [bench.load(bench.splits[i].tracklet_id) for i in (1, 22)]
    now = {
        "version": WALKERS_VERSION,
        "boxes": [t.boxes.tolist() for t in tracklets],
        "keypoints": [np.round(t.keypoints[::3].astype(float), 5).tolist() for t in tracklets],
        "colours": [[pixels(image).mean(axis=(0, 1)).round(2).tolist() for image in t.images] for t in tracklets],
    }
    if os.environ.get("WALKERS_GOLDEN"):
        GOLDEN.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    then = json.loads(GOLDEN.read_text(encoding="utf-8"))
    said = "the rows changed: raise WALKERS_VERSION and write the golden file again"
    assert now["version"] == then["version"], said
    for name, tolerance in (("boxes", 1.01), ("keypoints", 1e-4), ("colours", 1.0)):
        assert np.asarray(now[name]) == pytest.approx(np.asarray(then[name]), abs=tolerance), said
