"""Which extractions of videos nothing uses any more, and what says that they are done.

An extraction is a video under one `track_digest` (its tracklets, crops and skeletons) or one `detect_digest` (its raw
detections). `runs` says which are done, so that no build does them twice: whoever takes rows away has to take that back
first, else a later build would find nothing to do and no rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from csip.maintenance.snapshots import possible_extractions, recorded_digests
from csip.references import GIVEN_BACK
from csip.tables import RunRecord, any_of, quote

Pair = tuple[str, str]
"""A video's SHA-256 and the digest of an extraction."""

DETECTS, FINISHES = ("detect_video",), ("track_video",)
TRACKS = ("track_segment", *FINISHES)
_LISTS = ("list_videos", "list_snapshot")


@dataclass(frozen=True, slots=True)
class Used:
    """Extractions that snapshots show, or that somebody has worked on lately.

    Attributes:
        tracked: by their track digest.
        detected: by their detect digest.
        videos: of which nobody knows which extraction is used: all may be.
    """

    tracked: frozenset[Pair] = frozenset()
    detected: frozenset[Pair] = frozenset()
    videos: frozenset[str] = frozenset()

    def has_tracked(self, pair: Pair) -> bool:
        """Tell whether somebody uses an extraction's tracklets."""
        return pair in self.tracked or pair[0] in self.videos

    def has_detected(self, pair: Pair) -> bool:
        """Tell whether somebody uses, or could track again, an extraction's raw detections."""
        return pair in self.detected or pair[0] in self.videos

    def __or__(self, other: Used) -> Used:
        """Join what two have found."""
        return Used(self.tracked | other.tracked, self.detected | other.detected, self.videos | other.videos)


def used_by_snapshots(rows: Iterable[Mapping[str, Any]], runs: Sequence[RunRecord]) -> Used:
    """Find the extractions that snapshots show; where a snapshot does not say which, all that it may be."""
    tracked: set[Pair] = set()
    detected: set[Pair] = set()
    unknown: set[str] = set()
    for row in rows:
        digests = recorded_digests(row)
        if digests:
            tracked.update((sha, digests["track"]) for sha in row["videos"])
            detected.update((sha, digests["detect"]) for sha in row["videos"])
        else:
            possible = possible_extractions(row, runs)
            tracked |= done_by(possible, "track_digest")
            detected |= done_by(possible, "detect_digest")
            unknown |= set(row["videos"]) - {run.outputs["video_sha"] for run in possible}
    return Used(frozenset(tracked), frozenset(detected), frozenset(unknown))


def used_lately(runs: Sequence[RunRecord], since: datetime) -> Used:
    """Find the extractions that were done since then, and all of a build that has done one of its own since.

    A build lists its videos first. What it has done, or has found done, waits until it is through with the last one.
    """
    young = [run for run in runs if run.stage in (*DETECTS, *TRACKS) and ended(run) > since]
    tracked, detected = (done_by(young, name) for name in ("track_digest", "detect_digest"))
    builds = []
    for run in runs:
        if run.stage in _LISTS and "digests" in run.outputs:
            shas, digests = {video["video_sha"] for video in run.outputs["videos"]}, run.outputs["digests"]
            own = {(sha, digests["track"]) for sha in shas}
            if ended(run) > since or own & tracked:
                builds.append((own, {(sha, digests["detect"]) for sha in shas}))
    return Used(
        frozenset(tracked.union(*(own for own, _ in builds))), frozenset(detected.union(*(own for _, own in builds)))
    )


def of_pass(run: RunRecord, name: str) -> Pair:
    """Tell which extraction a pass over a video has done, by "track_digest" or "detect_digest"."""
    return run.outputs["video_sha"], run.outputs[name]


def done_by(runs: Iterable[RunRecord], name: str) -> set[Pair]:
    """List the extractions that passes over videos have done, those that have such a digest."""
    return {of_pass(run, name) for run in runs if name in run.outputs}


_DIGESTS = {"tracklets": "track_digest", "detections": "detect_digest"}


def where_pairs(table: str, pairs: Iterable[Pair]) -> str:
    """Write the condition that a row of `tracklets` or `detections` is of one of these extractions; at least one."""
    videos: dict[str, list[str]] = {}
    for sha, one in pairs:
        videos.setdefault(one, []).append(sha)
    each = (f"{_DIGESTS[table]} = {quote(one)} AND {any_of('video_sha', shas)}" for one, shas in sorted(videos.items()))
    return " OR ".join(f"({one})" for one in each)


def given_back(runs: Iterable[RunRecord], stages: Sequence[str], name: str) -> set[Pair]:
    """List the extractions that such passes had done, were given back, and have not been done again."""
    undone = done_by((run for run in runs if run.stage in [stage + GIVEN_BACK for stage in stages]), name)
    return undone - done_by((run for run in runs if run.stage in stages), name)


def give_back(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Let passes over videos say no more that they are done; what they did stays in the lineage."""
    return [dataclasses.replace(run, stage=run.stage + GIVEN_BACK) for run in runs]


def ended(run: RunRecord) -> datetime:
    """Tell when a run was done."""
    return datetime.fromisoformat(run.started) + timedelta(seconds=run.seconds)
