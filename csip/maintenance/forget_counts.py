"""What snapshots and runs count without those who are forgotten."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csip import tables
from csip.maintenance.forget_traces import FORGOTTEN, Tracklets, own_tracklets, read_parts
from csip.maintenance.snapshots import extractions
from csip.tables import RunRecord

_EVER = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """What leaves, as far as it was counted.

    Attributes:
        tracklets: by name: their video_sha, track_digest, num_frames and pid.
        frames: tracklet -> frame_index of each of its crops, ascending.
        videos: SHA-256 of the videos of which all goes.
        detections: video_sha and detect_digest -> frame_index of each detection that goes, ascending.
    """

    tracklets: Tracklets
    frames: Mapping[str, Sequence[int]]
    videos: Sequence[str]
    detections: Mapping[tuple[str, str], Sequence[int]]


def snapshot_counts(store: str, row: Mapping[str, Any], runs: Sequence[RunRecord], gone: Gone) -> dict[str, Any]:
    """Give what a snapshot counts without them."""
    counts, made, own = dict(row["counts"]), extractions(row, runs), own_tracklets(row, runs, gone.tracklets)
    left_out = [sha for sha in row["videos"] if sha in gone.videos]
    behind = {(sha, run.outputs["detect_digest"]) for sha, run in made.items()}
    fewer = {
        "tracklets": len(own),
        ("crops" if "crops" in counts else "frames"): sum(one["num_frames"] for one in own.values()),
        "detections": sum(len(frames) for pair, frames in gone.detections.items() if pair in behind),
        "videos": len(left_out),
    }
    if row["videos"]:
        fewer["frames"] = sum(made[sha].counts["frames"] for sha in left_out if sha in made)
    counts = _without(counts, fewer | _fewer_parts(store, row, gone.tracklets))
    before = counts.get(FORGOTTEN, {}).get("tracklets", 0)
    return counts | {FORGOTTEN: {"tracklets": before + len(own), "when": tables.now()[:10]}}


def _without(counts: Mapping[str, Any], fewer: Mapping[str, int]) -> dict[str, Any]:
    known = {name: number for name, number in fewer.items() if isinstance(counts.get(name), int)}
    return dict(counts) | {name: max(0, counts[name] - number) for name, number in known.items()}


def _fewer_parts(store: str, row: Mapping[str, Any], gone: Tracklets) -> dict[str, int]:
    """Count the people and parts that leave; as a snapshot does, under the first protocol and split."""
    table = read_parts(store, row)
    named = list(zip(*(table[n].to_pylist() for n in ("protocol", "split", "tracklet_id", "pid", "role")), strict=True))
    first = [one[2:] for one in named if one[:2] == named[0][:2]]
    out: dict[str, int] = {}
    left = [one for one in first if one[0] not in gone]
    out["train_people"] = len(_people(first, "train")) - len(_people(left, "train"))
    out["test_people"] = len(_tested(first)) - len(_tested(left))
    for role in ("train", "query", "gallery"):
        out[f"{role}_parts"] = sum(name in gone and one == role for name, _, one in first)
    return out


def _people(parts: Sequence[tuple[str, int, str]], role: str) -> set[int]:
    return {pid for _, pid, one in parts if one == role}


def _tested(parts: Sequence[tuple[str, int, str]]) -> set[int]:
    return _people(parts, "query") | (_people(parts, "gallery") - {0})  # distractors are nobody


def run_counts(runs: Sequence[RunRecord], gone: Gone) -> dict[str, dict[str, Any]]:
    """Give what the passes over videos count without them: run_id -> counts, where these are others.

    A pass over a segment counts its own detections; one that tracks counts all that it has seen of the video so far.
    """
    segments, out = _Segments(runs), {}
    for run in (run for run in runs if run.stage in ("detect_video", "track_segment", "track_video")):
        sha, detect = run.outputs["video_sha"], run.outputs["detect_digest"]
        first, end = segments.of(run)
        seen = gone.detections.get((sha, detect), ())
        if run.stage == "detect_video":
            fewer = {"detections": _between(seen, first, end)}
        else:
            pair = sha, run.outputs["track_digest"]
            mine = [n for n, row in gone.tracklets.items() if (row["video_sha"], row["track_digest"]) == pair]
            frames = [gone.frames.get(name, ()) for name in mine]
            so_far = [_between(some, 0, end) for some in frames]
            fewer = {
                "detections": _between(seen, 0, end),
                "tracklets": sum(number > 0 for number in so_far),
                "crops": sum(so_far),
                "segment_crops": sum(_between(some, first, end) for some in frames),
            }
        new = _without(run.counts, fewer)
        if new != run.counts:
            out[run.run_id] = new
    return out


def _between(frames: Sequence[int], first: int, end: int) -> int:
    return bisect_left(frames, end) - bisect_left(frames, first)


class _Segments:
    """Which frames a pass looked at: from the one after the pass before, to its own last."""

    def __init__(self, runs: Sequence[RunRecord]) -> None:
        # A segment that was done twice is one; a pass that saw no frame has no detection.
        passes = {run.key: run for run in runs if run.stage == "detect_video" and run.counts.get("frames")}
        self._ends: dict[tuple[str, str], list[int]] = {}
        self._end_at: dict[tuple[str, str], dict[int, int]] = {}
        for run in sorted(passes.values(), key=lambda run: int(run.counts["end_frame"])):
            pair = run.outputs["video_sha"], run.outputs["detect_digest"]
            ends, end_at = self._ends.setdefault(pair, []), self._end_at.setdefault(pair, {})
            ends.append(int(run.counts["end_frame"]))
            end_at[max(end_at, default=0) + int(run.counts["frames"])] = ends[-1]

    def of(self, run: RunRecord) -> tuple[int, int]:
        """Give a pass's first frame, and the first behind it; of the last pass over a video, one that is behind all."""
        pair = run.outputs["video_sha"], run.outputs["detect_digest"]
        if run.stage == "detect_video":
            end = int(run.counts.get("end_frame", 0)) if run.counts.get("frames") else 0
        else:
            # It says how many frames were seen so far, which says where it ended.
            end = self._end_at.get(pair, {}).get(int(run.counts.get("frames", 0)), _EVER)
        first = max((one for one in self._ends.get(pair, ()) if one < end), default=0)
        return first, _EVER if run.stage == "track_video" else end
