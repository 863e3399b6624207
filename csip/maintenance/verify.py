"""Is everything there that a store says it has, and does it fit together? Nothing is changed.

Crops are joined with tracklets and skeletons on numbers made of their keys, 16 bytes a crop; one pass reads each table
of a snapshot, and leaves the pictures alone unless asked to look into them.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, UnidentifiedImageError

from csip import tables
from csip.errors import StoreError
from csip.joints import LAYOUTS
from csip.lineage import History
from csip.maintenance import keys
from csip.maintenance.files import check_runs, find_leftovers
from csip.maintenance.findings import Finding, Kind
from csip.maintenance.snapshots import extractions, generations, published
from csip.tables import RunRecord, table_uri
from csip.types import TableRef
from storage_schemas import TABLES

_ROLES = ("train", "query", "gallery")
_IMAGES = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP", "image/bmp": "BMP"}
_EXTRACTOR = "csip.extractor."
_PICTURES = 256
IntArray = npt.NDArray[np.int64]


def verify(store: str, snapshots: Sequence[str] = (), *, deep: bool = False) -> list[Finding]:
    """Look a store over.

    Args:
        store: the store's folder.
        snapshots: look at these only, and neither at runs nor for leftovers; empty: at all there is.
        deep: also look into every crop, whether it begins as a picture of its kind.

    Returns:
        What is wrong ("fault"), and what lies about without harm ("leftover").

    Raises:
        StoreError: there is no such store or snapshot.
    """
    rows = published(store, snapshots)
    runs = History(store).runs
    found = [finding for row in rows.values() for finding in _Check(store, row, runs, deep=deep).run()]
    if not snapshots:
        found += check_runs(store, runs, set(rows))
        found += find_leftovers(store, runs, set(rows))
    return found


@dataclass(slots=True)
class _Check:
    """One snapshot under examination; T tracklets, N crops."""

    store: str
    row: Mapping[str, Any]
    runs: Sequence[RunRecord]
    deep: bool
    found: list[Finding] = field(default_factory=list)
    refs: dict[str, TableRef] = field(default_factory=dict)
    numbers: keys.Numbers = field(default_factory=keys.Numbers)
    tracklets: pa.Table = None
    crops: keys.UIntArray = field(default_factory=lambda: keys.join([]))
    poses: keys.UIntArray = field(default_factory=lambda: keys.join([]))

    def say(self, where: str, text: str, kind: Kind = "fault") -> None:
        self.found.append(Finding(kind, self.row["name"], where, text))

    def say_some(self, where: str, names: Sequence[str], text: str) -> None:
        if names:
            self.say(where, f"{len(names)} {text}: {keys.shorten(names)}.")

    def run(self) -> list[Finding]:
        self.open()
        if self.look("tracklets", self.check_tracklets):
            self.look("crops", self.check_crops)
            self.look("skeletons", self.check_skeletons)
            self.look("splits", self.check_splits)
            self.look("videos", self.check_videos)
            self.look("detections", self.check_detections)
            self.check_counts()
        return self.found

    def look(self, name: str, check: Any) -> bool:
        """Check one table, if the snapshot pins it; False where nothing more can be said of the others."""
        if name not in self.refs:
            return False
        try:
            check(self.refs[name])
        except StoreError as error:
            self.say(name, str(error))
            return False
        return True

    def open(self) -> None:
        """Find the pinned versions, and whether a tag protects them from clean-up."""
        for name, version in self.row["tables"].items():
            if name not in TABLES:
                self.say(name, f"the snapshot names a table that CSIP does not know; expected one of {list(TABLES)}.")
                continue
            ref = TableRef(table_uri(self.store, name), version)
            try:
                tables.extent(ref)
                tag = tables.list_tags(self.store, name).get(tables.snapshot_tag(self.row["name"]))
            except StoreError as error:
                self.say(name, str(error))
                continue
            self.refs[name] = ref
            if tag is None or tag[0] != version:
                told = "no tag" if tag is None else f"a tag on version {tag[0]}"
                self.say(name, f"found {told}, expected one that protects version {version} from clean-up.")
        for name in ("tracklets", "crops", "skeletons", "splits"):
            if name not in self.row["tables"]:
                self.say(name, "the snapshot names no version of it.")

    def name(self, number: int) -> str:
        return self.numbers.names[number][0]

    def column(self, name: str) -> IntArray:
        return np.asarray(self.tracklets[name], np.int64)

    def check_tracklets(self, ref: TableRef) -> None:
        columns = ["tracklet_id", "video_sha", "track_digest", "first_frame", "last_frame", "num_frames"]
        whole = pa.Table.from_batches(tables.stream(ref, columns), _schema("tracklets", columns))
        numbered = self.numbers.of([whole["tracklet_id"].combine_chunks()])
        _, first = np.unique(numbered, return_index=True)
        twice = np.delete(numbered, first)
        self.say_some("tracklets", [self.name(int(n)) for n in twice], "rows have the key of another one")
        self.tracklets = whole.take(pa.array(first))
        begin, end, count = (self.column(name) for name in ("first_frame", "last_frame", "num_frames"))
        odd = np.flatnonzero((begin > end) | (count < 1) | (count > end - begin + 1))
        self.say_some("tracklets", [self.name(int(n)) for n in odd], "rows have frames that do not add up")

    def per_generation(self, has: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Tell of each tracklet whether any tracklet of its extraction or import has what `has` says: (T,)."""
        number = keys.Numbers().of([self.tracklets["track_digest"].combine_chunks()])
        return np.isin(number, np.unique(number[has]))

    def counted(self, table: str, found: keys.UIntArray) -> IntArray:
        """Count rows by tracklet, and say which lie outside of their tracklet or have none: (T,)."""
        number, frame = keys.split_frames(found)
        own = number < len(self.tracklets)
        if not own.all():
            text = f"{int((~own).sum())} rows of {len(np.unique(number[~own]))} tracklets that are not in `tracklets`: "
            self.say(table, text + "a build had not finished them.", "leftover")
        number, frame = number[own], frame[own]
        out = (frame < self.column("first_frame")[number]) | (frame > self.column("last_frame")[number])
        names = [f"{self.name(n)} frame {f}" for n, f in zip(number[out].tolist(), frame[out].tolist(), strict=True)]
        self.say_some(table, names, "rows lie outside of their tracklet's frames")
        return np.bincount(number, minlength=len(self.tracklets))

    def frames_of(self, some: keys.UIntArray) -> list[str]:
        number, frame = keys.split_frames(some)
        return [f"{self.name(n)} frame {f}" for n, f in zip(number.tolist(), frame.tolist(), strict=True)]

    def check_crops(self, ref: TableRef) -> None:
        columns = ["tracklet_id", "frame_index", *(("media_type", "image") if self.deep else ())]
        parts, broken = [], []
        for batch in tables.stream(ref, columns, batch_rows=_PICTURES if self.deep else 8192):
            parts.append(keys.pack(self.numbers, batch, ["tracklet_id"], ["frame_index"]))
            if self.deep:
                bad = np.array([not _is_picture(*pair) for pair in _pairs(batch)], np.bool_)
                broken.append(parts[-1][bad])
        self.crops = np.sort(keys.join(parts))
        self.say_some("crops", self.frames_of(keys.repeated(self.crops)), "keys stand in several rows")
        self.say_some("crops", self.frames_of(np.sort(keys.join(broken))), "rows have no picture of their media type")
        count = self.counted("crops", self.crops)
        expected = self.column("num_frames")
        wanted = ~self.skeleton_only() | self.per_generation(count > 0)
        self.say_counts("crops", wanted, count, expected)

    def skeleton_only(self) -> npt.NDArray[np.bool_]:
        """Tell of each tracklet whether its import said that its joints are in 3D, and so without pictures: (T,)."""
        facts = self.extractors()
        third = {name: LAYOUTS[one].third for name, one in facts.items() if one in LAYOUTS}
        return np.array([third.get(one) == "z" for one in self.tracklets["track_digest"].to_pylist()], np.bool_)

    def extractors(self) -> dict[str, str]:
        """Read what `skeletons` says of those who made them: digest -> layout."""
        if "skeletons" not in self.refs:
            return {}
        known = tables.described(self.refs["skeletons"])
        facts = {name.removeprefix(_EXTRACTOR): text for name, text in known.items() if name.startswith(_EXTRACTOR)}
        return {digest: str(json.loads(text).get("layout", "")) for digest, text in facts.items()}

    def say_counts(self, table: str, wanted: npt.NDArray[np.bool_], count: IntArray, expected: IntArray) -> None:
        wrong = np.flatnonzero(wanted & (count != expected))
        names = [f"{self.name(int(n))} (found {count[n]}, expected {expected[n]})" for n in wrong]
        self.say_some(table, names, "tracklets have not one row a frame")

    def check_skeletons(self, ref: TableRef) -> None:
        columns = ["tracklet_id", "frame_index", "extractor_digest", "layout", "keypoints"]
        parts, makers, layouts = [], keys.Numbers(), set()
        for batch in tables.stream(ref, columns):
            parts.append(keys.pack(self.numbers, batch, ["tracklet_id"], ["frame_index"]))
            makers.of([batch.column("tracklet_id"), batch.column("extractor_digest")])
            joints = pc.list_value_length(batch.column("keypoints"))
            layouts |= set(zip(batch.column("layout").to_pylist(), joints.to_pylist(), strict=True))
        for layout, joints in sorted(layouts):
            expected = len(LAYOUTS[layout].joints) if layout in LAYOUTS else None
            if expected != joints:
                told = f"expected {expected} joints" if expected else f"expected a layout of {sorted(LAYOUTS)}"
                self.say("skeletons", f"found rows of layout {layout!r} with {joints} joints, {told}.")
        self.poses = np.sort(keys.join(parts))
        names = self.frames_of(keys.repeated(self.poses))
        several = len(makers) > len({tracklet for tracklet, _ in makers.names})
        self.say_some("skeletons", names, "frames have several rows" + (", of several extractors" if several else ""))
        self.pair(self.counted("skeletons", self.poses))

    def pair(self, count: IntArray) -> None:
        """Compare skeletons with crops, frame by frame, or with the tracklets where there are no crops."""
        filled = np.array([bool(sha) for sha in self.tracklets["video_sha"].to_pylist()], np.bool_)
        facts = self.extractors()
        told = np.array([one in facts for one in self.tracklets["track_digest"].to_pylist()], np.bool_)
        wanted = filled | told | self.per_generation(count > 0)
        number, _ = keys.split_frames(self.crops)
        seen = np.bincount(number[number < len(wanted)], minlength=len(wanted)) > 0
        self.say_counts("skeletons", wanted & ~seen, count, self.column("num_frames"))
        both = [self.only(some, wanted & seen) for some in (self.crops, self.poses)]
        crops, poses = (np.setdiff1d(a, b) for a, b in (both, both[::-1]))
        self.say_some("skeletons", self.frames_of(crops), "frames with a crop have no row")
        self.say_some("skeletons", self.frames_of(poses), "rows have no crop")

    def only(self, some: keys.UIntArray, wanted: npt.NDArray[np.bool_]) -> keys.UIntArray:
        number, _ = keys.split_frames(some)
        own = number < len(wanted)
        return np.unique(some[own][wanted[number[own]]])

    def check_splits(self, ref: TableRef) -> None:
        """Check the parts: each names a tracklet, lies inside it, and has frames there."""
        columns = ["protocol", "split", "tracklet_id", "first_frame", "last_frame", "role"]
        rows = tables.read(ref, columns, f"dataset = {tables.quote(self.row['name'])}")
        if not len(rows) and self.row["counts"].get("train_people"):
            self.say(
                "splits", f"found no part, expected those of {self.row['counts']['train_people']} people and more."
            )
        each = list(zip(*(rows[name].to_pylist() for name in columns), strict=True))
        names = [f"{i} frames {a}..{b} ({protocol}, split {split})" for protocol, split, i, a, b, _ in each]
        same = len(each) - len({one[:4] for one in each})
        if same:
            self.say("splits", f"{same} rows have the key of another one.")
        self.say_some("splits", [n for n, one in zip(names, each, strict=True) if one[5] not in _ROLES], "odd roles")
        number = np.array([self.numbers.find(one[2]) for one in each], np.int64)
        known = (number >= 0) & (number < len(self.tracklets))
        self.say_some("splits", [names[i] for i in np.flatnonzero(~known)], "parts of tracklets that are not there")
        at = number[known]
        begin, end = (np.asarray(rows[name], np.int64)[known] for name in ("first_frame", "last_frame"))
        outside = (begin < self.column("first_frame")[at]) | (end > self.column("last_frame")[at]) | (begin > end)
        left = [name for name, one in zip(names, known, strict=True) if one]
        self.say_some("splits", [left[i] for i in np.flatnonzero(outside)], "parts lie outside of their tracklet")
        frames = np.union1d(self.crops, self.poses)
        lower, upper = (keys.of_frames(at, np.maximum(frame, 0)) for frame in (begin, end))
        inside = np.searchsorted(frames, upper, "right") - np.searchsorted(frames, lower)
        self.say_some("splits", [left[i] for i in np.flatnonzero(~outside & (inside < 1))], "parts have no frames")

    def check_videos(self, ref: TableRef) -> None:
        shas = [sha for batch in tables.stream(ref, ["video_sha"]) for sha in batch.column(0).to_pylist()]
        if len(shas) != len(set(shas)):
            self.say("videos", f"{len(shas) - len(set(shas))} rows have the key of another one.")
        gone = sorted(set(self.row["videos"]) - set(shas))
        self.say_some("videos", [sha[:12] for sha in gone], "videos of the snapshot are not there")
        gone = sorted(set(self.tracklets["video_sha"].to_pylist()) - set(shas) - {""})
        self.say_some("videos", [sha[:12] for sha in gone], "videos that tracklets name are not there")

    def check_detections(self, ref: TableRef) -> None:
        numbers, parts = keys.Numbers(), []
        for batch in tables.stream(ref, ["video_sha", "detect_digest", "frame_index", "n"]):
            parts.append(keys.pack(numbers, batch, ["video_sha", "detect_digest"], ["frame_index", "n"]))
        found = np.sort(keys.join(parts))
        if len(keys.repeated(found)):
            self.say("detections", f"{len(keys.repeated(found))} keys stand in several rows.")
        names, counts = np.unique((found >> np.uint64(keys.FRAME_BITS + 10)).astype(np.int64), return_counts=True)
        have = dict(zip((numbers.names[n] for n in names.tolist()), counts.tolist(), strict=True))
        for sha, run in extractions(self.row, self.runs).items():
            there, expected = have.get((sha, run.outputs["detect_digest"]), 0), run.counts["detections"]
            if there != expected:
                self.say("detections", f"video {sha[:12]}: found {there} rows, expected {expected} (run {run.run_id}).")

    def check_counts(self) -> None:
        """Compare rows with what the snapshot and the runs behind it counted."""
        digests = self.tracklets["track_digest"].to_pylist()
        videos = self.tracklets["video_sha"].to_pylist()
        have: dict[tuple[str, str], list[int]] = {}
        for key, frames in zip(zip(videos, digests, strict=True), self.column("num_frames").tolist(), strict=True):
            one = have.setdefault(key, [0, 0])
            one[0], one[1] = one[0] + 1, one[1] + frames
        for sha, run in extractions(self.row, self.runs).items():
            found = have.get((sha, run.outputs["track_digest"]), [0, 0])
            expected = [run.counts["tracklets"], run.counts["crops"]]
            if found != expected:
                self.say("tracklets", f"video {sha[:12]}: {_compare(found, expected)} (run {run.run_id}).")
        own = generations(self.row, self.runs)
        mine = [one for (sha, digest), one in have.items() if digest in own and sha in {"", *self.row["videos"]}]
        counts = self.row["counts"]
        expected = [counts.get("tracklets"), counts.get("crops", counts.get("frames"))]
        found = [sum(one[0] for one in mine), sum(one[1] for one in mine)]
        if None not in expected and found != expected:
            self.say("tracklets", f"the snapshot counted otherwise: {_compare(found, expected)}.")


def _compare(found: Sequence[Any], expected: Sequence[Any]) -> str:
    return f"found {found[0]} tracklets of {found[1]} frames, expected {expected[0]} tracklets of {expected[1]} frames"


def _schema(table: str, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([pa.field(name, TABLES[table].field(name).type, nullable=False) for name in columns])


def _pairs(batch: pa.RecordBatch) -> list[tuple[str, bytes]]:
    return list(zip(batch.column("media_type").to_pylist(), batch.column("image").to_pylist(), strict=True))


def _is_picture(media_type: str, image: bytes) -> bool:
    """Read a picture's header; its pixels are not decoded."""
    kind = _IMAGES.get(media_type)
    if kind is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            size = Image.open(io.BytesIO(image), formats=[kind]).size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return min(size) > 0
