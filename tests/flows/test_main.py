"""The command line on good, bad and broken input: exit codes, plain words, one JSON document, a store left whole."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import time
import wave
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from csip import tables
from csip.config import ClipConfig, ModelConfig
from csip.evaluation.protocol import LABEL
from csip.models import published as importer
from csip.models.checkpoints import ModelSpec, initial
from csip.models.published_names import from_ours, names
from flows import terminal
from flows.__main__ import _end_server, main
from flows.commands import _show_stages

# ---------------------------------------------------------------------------------------------------------- helpers


def write_black(path, frames=24):
    """Write a video in which nobody is to be seen."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for _ in range(frames):
            picture = np.zeros((240, 320, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_sound(path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(struct.pack("<800h", *range(800)))
    return path


def half(source, target):
    data = source.read_bytes()
    target.write_bytes(data[: len(data) // 2])
    return target


def rows(store, name, where=None):
    return tables.read(tables.current(str(store), name), where=where).to_pylist()


def published(store):
    """Everything that a reader of a store's snapshots sees: each snapshot's row, and the rows of all it pins."""
    out = {}
    for row in rows(store, "snapshots"):
        snapshot = tables.open_snapshot(str(store), row["name"])
        pinned = {name: tables.read(tables.pinned(snapshot, name)).to_pylist() for name in snapshot.tables}
        out[row["name"]] = (row, pinned)
    return out


def extractions(store):
    return [row["run_id"] for row in rows(store, "runs", "stage = 'detect_video' OR stage = 'track_video'")]


def is_plain(done, command, code=1):
    """The command failed and said so in one message: no traceback, nothing on standard output."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert f"csip {command}: " in done.err or code == 2
    return True


@pytest.fixture
def unharmed(own_store):
    """A store that must show the same published data after the test as before."""
    before = published(own_store)
    assert before
    yield own_store
    assert published(own_store) == before


# ------------------------------------------------------------------------------------------------------ wrong usage


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["config", "nobody"], "found no recipe 'nobody'; there are: demo, video"),
        (["build-skeletons", "a.mp4", "--recipe", "nobody"], "found no recipe 'nobody'"),
        (["build-skeletons"], "name SOURCEs, or --retrack SNAPSHOT, and not both"),
        (["build-skeletons", "a.mp4", "--retrack", "x"], "name SOURCEs, or --retrack SNAPSHOT, and not both"),
        (["build-skeletons", "--retrack", "x", "--set", "detect.iou=0.5"], "--retrack: takes detections as they are"),
        (["train-csip", "demo"], "required: --snapshot"),
        (["config", "demo", "--js"], "unrecognized arguments: --js"),
        (["config", "demo", "--set", "stage1"], "expected section.field=value"),
        (["config", "demo", "--set", "stage9.epochs=1"], "found 'stage9', expected one of: name, seed"),
        (["config", "demo", "--set", "stage1.epoch=1"], "found 'epoch', expected one of: epochs, batch_clips"),
        (["config", "demo", "--set", "stage1=1"], "stage1 is a section; name one of its fields: epochs"),
        (["config", "demo", "--set", "seed.value=1"], "seed is a number or a word, not a section"),
        (["config", "demo", "--set", "stage1.epochs=many"], "--set stage1.epochs=many"),
        (["config", "demo", "--set", "stage1.epochs=-1"], "Stage1Config.epochs: got -1, expected 0 to 1000000"),
        (["config", "demo", "--set", "stage2.prototypes=magic"], "--set stage2.prototypes=magic"),
        (["config", "demo", "--set", "embed.histogram_bins=1,2"], "--set embed.histogram_bins=1,2"),
        (["config", "demo", "--set", "dataset=a/b"], "expected letters, digits"),
        (["train-csip", "demo", "--snapshot", "x", "--set", "runtime.device=abacus"], "got 'abacus', expected 'auto'"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_was_expected(command, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    done = command(*words)
    assert is_plain(done, "", code=2)
    assert done.err.startswith("usage: csip")
    assert told in " ".join(done.err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_process_ends_with_2_on_wrong_usage(fresh_command):
    done = fresh_command("config", "nobody")
    assert is_plain(done, "config", code=2)
    assert "found no recipe 'nobody'" in done.err


# ----------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("demo", ()),
        ("video", ()),
        ("ilids", ()),
        (
            "demo",
            (
                *("evaluate.exclude_same_camera=true", "evaluate.query_in_gallery=false", "evaluate.ranks=3"),
                *("stage2.milestones=", "embed.histogram_bins=5,6,7", "clip.mean=0,1e-07,1", "clip.std=1,2,1e+20"),
                *("stage1.learning_rate=1e-9", "detect.weights=/a b/c  # d=[red]e[/red].pt", "runtime.workers=2"),
                *("stage2.temporal=false", "seed=123456789012345678", "stage2.prototypes=none"),
            ),
        ),
    ],
    ids=["demo", "video", "ilids", "changed"],
)
def test_every_line_of_config_can_be_given_back(command, settings, recipe, changes):
    said = command("config", recipe, *settings.sets(changes))
    expected = json.loads(command("config", recipe, "--json", *settings.sets(changes)).out)["values"]
    lines = [line.rpartition("  # ")[0].rstrip() for line in said.out.splitlines()]
    fields = sum(len(value) if isinstance(value, dict) else 1 for value in expected.values())
    assert len(lines) == len({line.partition("=")[0] for line in lines}) == fields
    # Onto another recipe, in which most lines change something.
    other = "video" if recipe == "demo" else "demo"
    assert json.loads(command("config", other, "--json", *settings.sets(lines)).out)["values"] == expected


def test_what_config_prints_is_what_was_set(command):
    done = command(
        "config", "video", "--json", "--set", "evaluate.exclude_same_camera=true", "--set", "stage2.milestones="
    )
    told = json.loads(done.out)
    assert told["values"]["evaluate"]["exclude_same_camera"] is True
    assert told["values"]["stage2"]["milestones"] == []
    assert told["sources"]["evaluate.exclude_same_camera"] == told["sources"]["stage2.milestones"] == "--set"
    lines = command("config", "video").out.splitlines()
    assert "evaluate.exclude_same_camera=none" in {line.partition("  # ")[0].rstrip() for line in lines}


def test_config_says_beside_each_number_where_it_comes_from(command):
    words = ("config", "lsvid", "--set", "stage2.epochs=80", "--set", "detect.weights=/far/away/model.pt")
    lines = command(*words).out.splitlines()
    told = {line.partition("=")[0]: line.rpartition("  # ")[2] for line in lines}
    assert len({line.rindex("  # ") for line in lines}) == 1, "in one column"
    assert told == json.loads(command(*words, "--json").out)["sources"]
    assert told["stage2.learning_rate"] == "CSIP-ReID, stage 2"
    assert told["stage2.head_factor"] == "CSIP-ReID on LS-VID"
    assert told["stage2.epochs"] == told["detect.weights"] == "--set"
    assert told["dataset"] == "recipe lsvid"
    assert told["report.queries"].startswith("csip: ")


# ---------------------------------------------------------------------------------------------- published checkpoints


@pytest.fixture
def published_file(tmp_path, monkeypatch):
    """A checkpoint under the published names and its size table's row, so small that it is written in no time."""
    tower = dataclasses.replace(importer.TOWERS[0], token_width=32, depth=1, heads=2, height=32, width=16)
    monkeypatch.setattr(importer, "TOWERS", (tower,))
    model = ModelConfig(
        **{"image_encoder": tower.name, "image_depth": 1, "image_width": 32, "image_heads": 2},
        **{"image_weights": "none", "width": 16, "joint_layers": 1, "prototype_layers": 1},
    )
    clip = ClipConfig(height=32, width=16)
    spec = ModelSpec(
        model=model, clip=clip, layout="h36m17", cameras=("a", "b"), pids=(0, 1, 2), prototypes="pfu", temporal=True
    )
    network, _ = initial(spec, 0)
    own = network.state_dict()
    state = {theirs: from_ours(theirs, own[ours]) for theirs, ours in names(spec).items()}
    torch.save(state | {"VTU.alpha": torch.ones(1)}, tmp_path / "mars.pth")
    return SimpleNamespace(path=tmp_path / "mars.pth", network=network)


def only(told):
    """What the one training, or evaluation, of a command told, beside what the command told."""
    (one,) = told.get("trained") or told["evaluated"]
    return told | one


@pytest.mark.slow
def test_a_published_checkpoint_is_imported_scored_and_traced(command, built, own_store, published_file, settings):
    words = ("import-checkpoint", published_file.path, "--store", own_store)
    done = command(*words, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    checkpoint = told["checkpoint"]["path"]
    parameters = sum(p.numel() for p in published_file.network.parameters())
    assert Path(checkpoint).parent == own_store / "checkpoints"
    assert Path(checkpoint).name.startswith("imported-")
    assert (told["report"]["parameters"], told["report"]["unused"]) == (parameters, ["VTU.alpha"])
    shown = command(*words).out
    assert f"csip evaluate-csip {checkpoint} --store {own_store} --snapshot NAME" in shown
    assert f"{parameters} in" in shown
    assert "1: VTU.alpha" in shown
    done = command(
        "evaluate-csip", checkpoint, "--snapshot", built.snapshot, "--store", own_store, "--json", *settings.small
    )
    assert done.code == 0, done.err
    scored = only(json.loads(done.out))
    assert set(scored["scores"]) == {"imported", "hsv-histogram"}
    tree = json.loads(command("lineage", scored["run_id"], "--store", own_store, "--json").out)
    sha = hashlib.sha256(published_file.path.read_bytes()).hexdigest()
    assert {("checkpoint", told["checkpoint"]["sha256"]), ("file", sha)} <= set(names_in(tree))


def test_a_file_that_is_no_published_checkpoint_is_said_and_leaves_nothing(command, tmp_path):
    (tmp_path / "notes.pth").write_text("Dear diary, no tensors today.")
    done = command("import-checkpoint", tmp_path / "notes.pth", "--store", tmp_path / "store")
    assert is_plain(done, "import-checkpoint")
    assert "notes.pth: found 29 bytes that hold something else than plain tensors" in done.err
    assert not (tmp_path / "store").exists()


# ------------------------------------------------------------------------------------------------------ bad sources


def not_a_video(folder):
    (folder / "notes.mp4").write_text("Dear diary, no video today.\n" * 50)
    return folder / "notes.mp4", "notes.mp4: 1400 bytes that cannot be read as a video"


def zero_bytes(folder):
    (folder / "zero.avi").touch()
    return folder / "zero.avi", "zero.avi: the file is empty (0 bytes)"


def sound(folder):
    return write_sound(folder / "sound.mp4"), "sound.mp4: found audio, expected a video stream"


def folder_without_videos(folder):
    (folder / "readme.txt").write_text("nothing")
    return folder, "found no videos and 1 other files"


def missing(folder):
    return folder / "nowhere.mp4", "nowhere.mp4: no such file or folder"


def benchmark(folder):
    return f"mars:{folder}", "found 3 things that are wrong (3 missing folders)"


def manifest_without_columns(folder):
    (folder / "list.csv").write_text("file,place\na.mp4,gate\n")
    return folder / "list.csv", "found columns ['file', 'place'], expected path and camera"


def manifest_without_lines(folder):
    (folder / "list.csv").write_text("path,camera\n")
    return folder / "list.csv", "found no lines below the header"


def manifest_without_a_camera(folder):
    (folder / "list.csv").write_text("path,camera\na.mp4,\n")
    return folder / "list.csv", "line 2: found"


def manifest_with_a_short_line(folder):
    (folder / "list.csv").write_text("path,camera\na.mp4\n")
    return folder / "list.csv", "line 2: found"


def manifest_of_a_missing_file(folder):
    (folder / "list.csv").write_text("path,camera\na.mp4,gate\n")
    return folder / "list.csv", "a.mp4: no such file or folder"


def manifest_in_another_encoding(folder):
    (folder / "list.csv").write_bytes("path,camera\na.mp4,Straße\n".encode("latin-1"))
    return folder / "list.csv", "list.csv"


@pytest.mark.parametrize(
    "make",
    [
        *(not_a_video, zero_bytes, sound, folder_without_videos, missing, benchmark, manifest_without_columns),
        *(manifest_without_lines, manifest_without_a_camera, manifest_with_a_short_line, manifest_of_a_missing_file),
        manifest_in_another_encoding,
    ],
    ids=lambda make: make.__name__,
)
def test_a_source_that_holds_no_video_cannot_be_built(command, unharmed, tmp_path, settings, make):
    folder = tmp_path / "sources"
    folder.mkdir()
    source, told = make(folder)
    done = command("build-skeletons", source, "--store", unharmed, "--json", *settings.extract)
    assert is_plain(done, "build-skeletons")
    assert told in done.err
    listed = [row for row in rows(unharmed, "videos") if str(folder) in row["path"]]
    if make in (not_a_video, zero_bytes, sound):
        assert [(row["status"], row["num_frames"]) for row in listed] == [("quarantined", 0)]
        assert told in listed[0]["reason"]
    else:
        assert listed == []


def test_a_file_whose_index_was_cut_off_cannot_be_built(command, unharmed, tmp_path, settings, cut_video):
    whole = cut_video(tmp_path / "whole.mp4", 30, faststart=False)
    cut = half(whole, tmp_path / "cut.mp4")
    done = command("build-skeletons", cut, "--store", unharmed, *settings.extract)
    assert is_plain(done, "build-skeletons")
    assert f"cut.mp4: {cut.stat().st_size} bytes that cannot be read as a video" in done.err
    assert [row["status"] for row in rows(unharmed, "videos", f"path = '{cut}'")] == ["quarantined"]


def test_a_fresh_process_says_a_users_mistake_in_one_message(fresh_command, server, tmp_path):
    source, told = not_a_video(tmp_path)
    words = ("build-skeletons", source, "--store", tmp_path / "store", "--json")
    done = fresh_command(*words, PREFECT_API_URL=server)
    assert is_plain(done, "build-skeletons")
    assert told in done.err
    assert done.err.count("\n") == 1
    assert rows(tmp_path / "store", "snapshots") == []


# ---------------------------------------------------------------------------------------------------- mixed folders


@pytest.fixture(scope="module")
def mixed(built, street, cut_video, settings, tmp_path_factory):
    """A folder of good and bad files, built into a store that knows the good one already; read-only."""
    root = tmp_path_factory.mktemp("mixed")
    folder, store = root / "videos", root / "store"
    folder.mkdir()
    shutil.copytree(built.store, store)
    shutil.copy(street, folder / "good.mp4")
    shutil.copy(street, folder / "same-as-good.mp4")
    half(street, folder / "broken-off.mp4")
    half(cut_video(root / "whole.mp4", 30, faststart=False), folder / "without-index.mp4")
    write_black(folder / "empty-street.mp4")
    (folder / "zero.mp4").touch()
    (folder / "notes.txt").write_text("not looked at")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(["build-skeletons", str(folder), "--store", str(store), "--json", *settings.extract])
    return SimpleNamespace(folder=folder, store=store, code=code, told=json.loads(out.getvalue()))


def test_a_mixed_folder_is_built_as_far_as_it_can_be_and_the_rest_is_counted(mixed):
    assert mixed.code == 0
    listed = mixed.told["listed"]
    counted = ("files", "videos", "already_extracted", "duplicate_files", "unreadable_files")
    assert {name: listed[name] for name in counted} == {
        "files": 6,
        "videos": 3,
        "already_extracted": 1,
        "duplicate_files": 1,
        "unreadable_files": 2,
    }
    assert "without-index.mp4" in listed["unreadable 1"]
    assert "zero.mp4: the file is empty" in listed["unreadable 2"]
    assert mixed.told["counts"]["videos"] == 3
    assert mixed.told["counts"]["videos_left_out"] == 0


def test_each_offered_file_has_a_row_that_says_how_far_it_came(mixed):
    found = {Path(row["path"]).name: row for row in rows(mixed.store, "videos")}
    status = {name: row["status"] for name, row in found.items() if name != "street.mp4"}
    assert {name: status[name] for name in ("broken-off.mp4", "empty-street.mp4", "without-index.mp4", "zero.mp4")} == {
        "broken-off.mp4": "partial",
        "empty-street.mp4": "ok",
        "without-index.mp4": "quarantined",
        "zero.mp4": "quarantined",
    }
    broken = found["broken-off.mp4"]
    assert 0 < broken["num_frames"] < 63
    assert f"read {broken['num_frames']} of 63 frames" in broken["reason"]
    assert found["empty-street.mp4"]["reason"] == ""


def test_a_partial_video_says_how_many_frames_its_container_promised(mixed):
    (broken,) = [row for row in rows(mixed.store, "videos") if row["status"] == "partial"]
    assert broken["expected_frames"] == 63


def test_what_a_broken_video_still_shows_is_kept(mixed, built):
    good = built.told["counts"]
    counts = mixed.told["counts"]
    assert counts["tracklets"] > good["tracklets"]
    part = next(row for row in rows(mixed.store, "videos") if row["status"] == "partial")
    frames = [row["frame_index"] for row in rows(mixed.store, "detections", f"video_sha = '{part['video_sha']}'")]
    assert max(frames) < part["num_frames"]
    assert counts["frames"] == good["frames"] + part["num_frames"] + 24


def test_the_earlier_snapshot_of_a_store_is_not_changed_by_a_later_one(mixed, built):
    assert published(mixed.store)[built.snapshot] == published(built.store)[built.snapshot]


def test_a_video_without_people_alone_cannot_be_built(command, mixed, settings):
    before = published(mixed.store)
    done = command("build-skeletons", mixed.folder / "empty-street.mp4", "--store", mixed.store, *settings.extract)
    assert is_plain(done, "build-skeletons")
    assert "Found no tracklet in 1 videos (24 frames, 0 detections" in done.err
    assert published(mixed.store) == before


def test_a_manifest_names_the_cameras(command, mixed, settings, tmp_path):
    listing = tmp_path / "list.csv"
    lines = [f"{mixed.folder / 'good.mp4'},gate", f"{mixed.folder / 'broken-off.mp4'},yard"]
    listing.write_text("camera,note,path\n" + "".join(f"{c},x,{p}\n" for p, c in (li.rsplit(",", 1) for li in lines)))
    before = extractions(mixed.store)
    done = command("build-skeletons", listing, "--store", mixed.store, "--json", *settings.extract)
    assert done.code == 0, done.err
    assert extractions(mixed.store) == before
    told = json.loads(done.out)
    assert told["counts"]["cameras"] == 2
    assert told["snapshot"] != mixed.told["snapshot"]
    parts = rows(mixed.store, "splits", f"dataset = '{told['snapshot']}'")
    # Cameras are numbered by name.
    assert {(row["camera"], row["camid"]) for row in parts} <= {("gate", 0), ("yard", 1)}
    videos = {row["video_sha"]: Path(row["path"]).name for row in rows(mixed.store, "videos")}
    owner = {row["tracklet_id"]: videos[row["video_sha"]] for row in rows(mixed.store, "tracklets")}
    assert {row["camera"] for row in parts if owner[row["tracklet_id"]] == "broken-off.mp4"} <= {"yard"}
    assert {row["camera"] for row in parts if owner[row["tracklet_id"]] != "broken-off.mp4"} == {"gate"}


# ------------------------------------------------------------------------------------------------- a build that works


def test_a_fresh_process_prints_one_json_document_and_nothing_else(built, street):
    assert built.done.code == 0
    assert json.loads(built.done.out) == built.told
    assert built.done.err == ""
    assert built.told["counts"]["tracklets"] == 4
    assert built.told["counts"]["frames"] == 63
    assert built.told["store"] == str(built.store)
    assert set(built.told["tables"]) == {"videos", "detections", "tracklets", "crops", "skeletons", "splits"}
    assert [stage["stage"] for stage in built.told["stages"]] == [
        *("list_videos", "extract_videos", "detect_video", "track_video", "publish")
    ]
    (video,) = rows(built.store, "videos")
    assert (video["status"], video["num_frames"], video["path"]) == ("ok", 63, str(street))


def test_a_second_build_extracts_nothing_again_and_says_so(command, own_store, built, street, settings):
    before, runs = published(own_store), extractions(own_store)
    done = command("build-skeletons", street, "--store", own_store, *settings.extract)
    assert done.code == 0
    assert "1 (0 extracted now, 1 already in the store: nothing was extracted again)" in done.out
    assert built.snapshot in done.out
    assert extractions(own_store) == runs
    assert published(own_store) == before


def test_a_video_under_another_name_is_known_by_its_content(command, own_store, built, street, settings, tmp_path):
    moved = shutil.copy(street, tmp_path / "moved.mkv")
    runs = extractions(own_store)
    done = command("build-skeletons", moved, "--camera", "street", "--store", own_store, "--json", *settings.extract)
    assert json.loads(done.out)["snapshot"] == built.snapshot
    assert extractions(own_store) == runs


def test_a_camera_that_is_named_goes_for_all_videos(command, own_store, built, street, settings):
    done = command("build-skeletons", street, "--camera", "gate", "--store", own_store, "--json", *settings.extract)
    named = json.loads(done.out)["snapshot"]
    assert named != built.snapshot
    assert {row["camera"] for row in rows(own_store, "splits", f"dataset = '{named}'")} == {"gate"}
    # Without it, a file is its own camera.
    assert {row["camera"] for row in rows(own_store, "splits", f"dataset = '{built.snapshot}'")} == {"street"}


def test_a_snapshot_is_tracked_again_with_what_was_detected_and_its_tracks_are_written(
    command, own_store, built, tmp_path
):
    tracks = tmp_path / "tracks.txt"
    detected = len(rows(own_store, "runs", "stage = 'detect_video'"))
    words = ["--retrack", built.snapshot, "--set", "track.min_seconds=2.5", "--set", "split.min_part_frames=4"]
    done = command("build-skeletons", *words, "--store", own_store, "--mot-out", tracks, "--profile")
    assert done.code == 0, done.err
    assert len(rows(own_store, "runs", "stage = 'detect_video'")) == detected
    assert "share of the pose model 0.0%" in " ".join(done.out.split())
    assert str(tracks) in done.out
    (name,) = {row["name"] for row in rows(own_store, "snapshots")} - {built.snapshot}
    assert name in done.out
    lines = [line.split(",") for line in tracks.read_text(encoding="ascii").splitlines()]
    assert {len(line) for line in lines} == {10}
    digests = {row["track_digest"] for row in rows(own_store, "tracklets") if row["num_frames"] >= 25}
    kept = [row for row in rows(own_store, "tracklets") if row["track_digest"] in digests]
    assert 0 < len({line[1] for line in lines}) < len(kept)
    # Once more, as JSON: nothing is left to do, and the file is the same.
    told = json.loads(command("build-skeletons", *words, "--store", own_store, "--mot-out", tracks, "--json").out)
    assert (told["snapshot"], told["mot"]) == (name, [str(tracks)])
    assert told["listed"]["already_extracted"] == 1


def test_too_few_tracklets_to_train_are_published_and_said(command, own_store, street, settings):
    done = command(
        "build-skeletons", street, "--store", own_store, *settings.extract, "--set", "split.min_part_frames=30"
    )
    assert done.code == 0
    assert "not enough to train" in done.out
    assert "Found 4 tracklets, 0 of them long enough" in done.out
    (name,) = [row["name"] for row in rows(own_store, "snapshots") if "no_protocol" in json.loads(row["counts"])]
    assert name in done.out
    before = published(own_store)
    done = command("train-csip", "demo", "--snapshot", name, "--store", own_store, *settings.small)
    assert is_plain(done, "train-csip")
    assert f"Snapshot {name}: found no protocol in it, expected one. Found 4 tracklets, 0 of them long" in done.err
    assert published(own_store) == before


# ------------------------------------------------------------------------------------ stores, snapshots, checkpoints


@pytest.mark.parametrize("kind", ["file", "proc", "below a file"])
def test_a_store_that_cannot_be_written_is_said(command, tmp_path, street, settings, kind):
    (tmp_path / "taken").write_text("a file")
    store = {"file": tmp_path / "taken", "proc": "/proc/x", "below a file": tmp_path / "taken" / "store"}[kind]
    done = command("build-skeletons", street, "--store", store, *settings.extract)
    assert is_plain(done, "build-skeletons")
    assert f"Store {store}: cannot be written" in done.err
    assert "--store or CSIP_STORE" in done.err


@pytest.mark.parametrize("words", [["lineage", "x"], ["train-csip", "demo", "--snapshot", "x"]], ids=lambda w: w[0])
@pytest.mark.parametrize("kind", ["file", "nothing"])
def test_a_store_that_is_none_is_said_and_not_made(command, tmp_path, words, kind):
    store = tmp_path / "store"
    if kind == "file":
        store.write_text("a file")
    done = command(*words, "--store", store)
    assert is_plain(done, words[0])
    assert str(store) in done.err
    assert store.exists() == (kind == "file")


def test_a_damaged_table_is_said(command, own_store, built, settings):
    for path in (own_store / "snapshots.lance" / "_versions").glob("*.manifest"):
        path.write_bytes(path.read_bytes()[:60])
    done = command("train-csip", "demo", "--snapshot", built.snapshot, "--store", own_store, *settings.small)
    assert is_plain(done, "train-csip")
    assert "snapshots.lance: cannot be opened" in done.err


def test_missing_weights_without_a_network_are_said(command, unharmed, street, settings):
    words = ("--store", unharmed, *settings.extract, "--set", "detect.weights=nowhere.pt")
    done = command("build-skeletons", street, *words)
    assert is_plain(done, "build-skeletons")
    assert "weights nowhere.pt: not found in" in done.err
    assert "YOLO_OFFLINE is set" in done.err


def test_an_unknown_snapshot_is_said_with_those_there_are(command, unharmed, built):
    done = command("train-csip", "demo", "--snapshot", "street-0", "--store", unharmed)
    assert is_plain(done, "train-csip")
    assert f"found no snapshot 'street-0'; there are: {built.snapshot}" in done.err


@pytest.mark.parametrize("kind", ["missing", "text", "cut"])
def test_a_wrong_checkpoint_is_said(command, unharmed, built, demo, tmp_path, kind):
    path = tmp_path / "net.safetensors"
    if kind == "text":
        path.write_text("these are no weights" * 10)
    if kind == "cut":
        half(Path(demo.train["checkpoint"]["path"]), path)
    done = command("evaluate-csip", path, "--snapshot", built.snapshot, "--store", unharmed)
    assert is_plain(done, "evaluate-csip")
    assert f"Checkpoint {path}: {'found no such file' if kind == 'missing' else 'cannot be read'}" in done.err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.image_encoder=nonsense", "Unknown model (nonsense)"),
        ("clip.height=100", "multiples of its patches, 16x16"),
        ("model.image_weights=/nowhere.pt", "/nowhere.pt"),
        ("runtime.device=cuda:99", "got 'cuda:99', which is device 99 here, but torch finds"),
    ],
)
def test_a_setting_that_this_machine_or_network_cannot_take_is_said(command, unharmed, built, settings, change, told):
    done = command(
        "train-csip", "demo", "--snapshot", built.snapshot, "--store", unharmed, *settings.small, "--set", change
    )
    assert is_plain(done, "train-csip")
    assert told in done.err


@pytest.mark.slow
def test_a_dead_prefect_server_is_said(fresh_command, tmp_path, street):
    # Port 9 is "discard"; nobody listens there.
    url = "http://127.0.0.1:9/api"
    done = fresh_command("build-skeletons", street, "--store", tmp_path / "store", PREFECT_API_URL=url)
    assert is_plain(done, "build-skeletons")
    assert f"Prefect's server at {url}: cannot be used" in done.err
    assert "`prefect server start`" in done.err


def test_the_store_comes_from_the_environment_or_lies_in_the_working_directory(
    command, built, own_store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = command("lineage", built.snapshot)
    assert is_plain(done, "lineage")
    assert f"Store {tmp_path / 'csip-store'}: found no table" in done.err
    assert not (tmp_path / "csip-store").exists()
    monkeypatch.setenv("CSIP_STORE", str(own_store))
    assert command("lineage", built.snapshot).code == 0
    monkeypatch.setenv("CSIP_STORE", "own-store")
    assert command("lineage", built.snapshot).code == 0, "relative to the working directory"
    assert command("lineage", built.snapshot, "--store", tmp_path / "other").code == 1, "what is typed goes first"


def children_at_work(pid):
    """Stage processes of a process: their ids."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"flows.child" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_ctrl_c_ends_a_build_within_seconds_and_the_next_one_goes_on(
    fresh_command, command, built, street, settings, tmp_path
):
    words = ("build-skeletons", street, "--store", tmp_path / "store", *settings.extract)
    process = fresh_command.start(*words)
    try:
        end = time.monotonic() + 120
        while not children_at_work(process.pid):
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < end, "no stage came to work"
            time.sleep(0.1)
        (child,) = children_at_work(process.pid)
        # As a terminal does: to the stage's process and to Prefect's temporary server as well.
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.count("csip build-skeletons: interrupted. What was committed stays") == 1
    assert not Path(f"/proc/{child}").exists()
    done = command(*words, "--json")
    assert done.code == 0
    assert json.loads(done.out)["counts"] == built.told["counts"]


def test_leaving_soon_ends_prefects_temporary_server(monkeypatch):
    from prefect.server.api.server import SubprocessASGIServer

    # A signal to this process alone does not reach it, and nothing else would end it.
    server = subprocess.Popen(["sleep", "600"])
    monkeypatch.setattr(SubprocessASGIServer, "_instances", {None: SimpleNamespace(server_process=server)})
    try:
        _end_server()
        assert server.wait(timeout=10) == -signal.SIGTERM
    finally:
        server.kill()
        server.wait()


# ---------------------------------------------------------------------------------------- demo, training, evaluation


def test_the_demo_trains_on_what_it_built(demo, built):
    # The demo's own data set name makes it a snapshot of its own; the rows are the same.
    assert demo.snapshot.startswith("demo-")
    assert demo.build["listed"]["already_extracted"] == 1
    assert demo.build["counts"] == built.told["counts"]
    assert set(demo.train["losses"]) == {"pretrain_visual", "stage1", "stage2"}
    assert [len(curve) for curve in demo.train["losses"].values()] == [1, 2, 1]
    assert set(demo.train["scores"]) == {"trained", "untrained", "hsv-histogram"}
    for figures in demo.train["scores"].values():
        assert 0 < figures["mean_ap"] <= 1
        assert (figures["num_queries"], figures["num_gallery"]) == (2, built.told["counts"]["gallery_parts"])
        assert {"rank-1", "rank-2", "cmc-001", "cmc-002"} <= set(figures)
    assert all(text.startswith(LABEL) for text in demo.train["described"].values())
    assert Path(demo.train["checkpoint"]["path"]).is_file()
    assert Path(demo.train["report"]["path"]).is_file()


def train_again(command, demo, settings, *words):
    return command("train-csip", "demo", "--snapshot", demo.snapshot, "--store", demo.store, *settings.small, *words)


@pytest.mark.parametrize("words", [(), ("--set", "runtime.encode_batch=7", "--set", "runtime.stall_seconds=60")])
def test_a_training_that_is_done_is_not_done_again(command, demo, settings, words):
    before = rows(demo.store, "runs")
    done = train_again(command, demo, settings, "--json", *words)
    assert done.code == 0
    told = only(json.loads(done.out))
    # These two look again: weights may change under their name, a page's template is no Python.
    assert {run["stage"] for run in told["stages"]} == {"initialise", "write_report"}
    assert {run["stage"] for run in told["reused"]} >= {"pretrain_visual", "stage1", "stage2", "embed"}
    same = ("run_id", "checkpoint", "report", "scores", "losses")
    assert {name: told[name] for name in same} == {name: demo.train[name] for name in same}
    known = {run["run_id"] for run in before}
    new = [run["stage"] for run in rows(demo.store, "runs") if run["run_id"] not in known]
    assert sorted(new) == ["initialise", "write_report"]


def test_a_training_tells_losses_scores_and_the_command_that_shows_its_lineage(command, demo, settings):
    done = train_again(command, demo, settings)
    assert done.code == 0
    assert "nothing to do, done before by run" in done.out
    assert f"Scores ({LABEL})" in done.out
    for word in ("mAP", "rank-1", "rank-2", "trained", "untrained", "hsv-histogram", "stage1", "stage2"):
        assert word in done.out
    assert f"{100 * demo.train['scores']['trained']['mean_ap']:.1f} %" in done.out
    (line,) = [line.split("lineage", 1)[1].split() for line in done.out.splitlines() if "csip lineage" in line]
    words = line[line.index("csip") + 1 :]
    shown = command(*words)
    assert shown.code == 0
    (video,) = rows(demo.store, "videos")
    assert f"video {video['video_sha'][:12]}" in shown.out
    # Whole lines, not cut to a terminal's width.
    assert demo.train["checkpoint"]["path"] in shown.out


def test_a_checkpoint_is_scored_again_on_a_snapshot(command, demo, settings, tmp_path):
    store = Path(shutil.copytree(demo.store, tmp_path / "store"))
    checkpoint = demo.train["checkpoint"]["path"]
    done = command(
        "evaluate-csip", checkpoint, "--snapshot", demo.snapshot, "--store", store, "--json", *settings.small
    )
    assert done.code == 0, done.err
    told = only(json.loads(done.out))
    assert told["scores"] == {name: demo.train["scores"][name] for name in ("trained", "hsv-histogram")}
    assert told["run_id"] != demo.train["run_id"]


# ---------------------------------------------------------------------------------------------------------- lineage


def names_in(node):
    yield node["kind"], node["name"]
    for source in node["sources"]:
        yield from names_in(source)


@pytest.mark.parametrize(
    "kind", ["results", "mAP", "checkpoint", "checkpoint file", "report file", "snapshot", "tracklet", "crop"]
)
def test_the_lineage_of_everything_reaches_the_video(command, demo, kind):
    (video,) = rows(demo.store, "videos")
    crop = rows(demo.store, "crops")[0]
    ref = {
        "mAP": f"{demo.train['run_id']}:mAP",
        "crop": f"{crop['tracklet_id']}@{crop['frame_index']}",
        "results": demo.train["run_id"],
        "checkpoint": demo.train["checkpoint"]["sha256"][:16],
        "checkpoint file": demo.train["checkpoint"]["path"],
        "report file": demo.train["report"]["path"],
        "snapshot": demo.snapshot,
        "tracklet": rows(demo.store, "tracklets")[0]["tracklet_id"],
    }[kind]
    done = command("lineage", ref, "--store", demo.store, "--json")
    assert done.code == 0, done.err
    tree = json.loads(done.out)
    assert ("video", video["video_sha"]) in set(names_in(tree))
    shown = command("lineage", ref, "--store", demo.store)
    assert shown.code == 0
    assert video["video_sha"][:12] in shown.out


def test_a_video_is_found_by_the_start_of_its_digest(command, demo):
    (video,) = rows(demo.store, "videos")
    done = command("lineage", video["video_sha"][:8], "--store", demo.store, "--json")
    node = json.loads(done.out)
    assert (node["kind"], node["name"]) == ("video", video["video_sha"])
    assert Path(node["facts"]["path"]).name == "pedestrians.mp4", "as it was offered last"


def test_the_lineage_of_a_checkpoint_names_every_stage_before_it_in_order(command, demo):
    tree = json.loads(command("lineage", demo.train["checkpoint"]["path"], "--store", demo.store, "--json").out)
    stages, node = [], tree
    while node is not None:
        stages.append(node["made_by"]["stage"])
        node = next((n for n in node["sources"] if n["kind"] == "checkpoint"), None)
    assert stages == ["stage2", "stage1", "pretrain_visual", "initialise"]


def test_a_table_version_is_traced_by_its_name(command, demo):
    (run,) = [run for run in rows(demo.store, "runs") if run["stage"] == "cache_features"]
    name = f"frame_features@{json.loads(run['outputs'])['version']}"
    tree = json.loads(command("lineage", name, "--store", demo.store, "--json").out)
    assert tree["made_by"]["run_id"] == run["run_id"]
    assert ("snapshot", demo.snapshot) in set(names_in(tree))


def test_a_name_that_nothing_has_is_said(command, demo):
    done = command("lineage", "nothing-here", "--store", demo.store)
    assert is_plain(done, "lineage")
    assert "'nothing-here' names nothing; expected one snapshot, run, RUN:FIGURE, tracklet" in done.err


# ------------------------------------------------------------------------------------------------- what is on screen


def test_scores_are_shown_whole_however_many_ranks_there_are(capsys):
    figures = {"mean_ap": 1.0, "num_queries": 1190, "num_valid_queries": 1189}
    values = {name: figures | {f"rank-{k}": 1.0 for k in (1, 5, 10, 20, 50)} for name in ("trained", "hsv-histogram")}
    terminal.OUT.print(terminal.scores(values | {"untrained": values["trained"] | {"mean_ap": 0.5}}, "a label"))
    title, header, *lines = capsys.readouterr().out.rstrip().splitlines()
    assert title == "Scores (a label)"
    names = "encoder mAP rank-1 rank-5 rank-10 rank-20 rank-50 valid queries"
    assert header.split() == names.split()
    whole = ["100.0", "%"] * 6 + ["1189", "of", "1190"]
    assert sorted(line.split() for line in lines[:2]) == [["hsv-histogram", *whole], ["trained", *whole]]
    # The best encoder comes first.
    assert lines[2].split() == ["untrained", "50.0", *whole[1:]]


def test_the_interval_on_screen_says_of_which_confidence_it_is(capsys):
    figures = {"mean_ap": 0.5, "low/mean_ap": 0.25, "high/mean_ap": 0.75, "confidence": 0.9}
    counts = {"num_queries": 2, "num_valid_queries": 2}
    terminal.OUT.print(terminal.scores({"trained": figures | counts}, "a label"))
    _, header, line = capsys.readouterr().out.rstrip().splitlines()
    assert " ".join(header.split()) == "encoder mAP 90 % interval valid queries"
    assert " ".join(line.split()) == "trained 50.0 % 25.0..75.0 2 of 2"


def test_a_stage_that_ran_many_times_has_one_line(capsys):
    runs = [{"stage": "detect_video", "seconds": 0.25, "device": "cpu"} for _ in range(1000)]
    _show_stages([{"stage": "list_videos", "seconds": 1.0, "device": "cpu"}, *runs], [])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines == ["Stages", "list_videos 1.0 s on cpu", "detect_video 250.0 s on cpu in 1000 runs"]
