"""Do tracklets, crops and skeletons of a snapshot fit together, frame by frame?

They are joined on numbers made of their keys, 16 bytes a crop; one pass reads each table.
Shapes: T tracklets, N crops.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, UnidentifiedImageError

from csip import tables
from csip.extractors import read_extractors
from csip.joints import LAYOUTS
from csip.maintenance import keys
from csip.maintenance.look import Look
from csip.maintenance.values import BoolArray, odd_boxes, odd_keypoints
from csip.types import IntArray, TableRef
from storage_schemas import TABLES
from storage_schemas.tracklets import BEGINS, ENDS

_IMAGES = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP", "image/bmp": "BMP"}
_BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
_PICTURES = 256
_ROWS = 8192


def check_tracklets(look: Look, ref: TableRef) -> None:
    """Read all tracklets of a pinned version, which number them, and look whether each one's frames add up."""
    columns = ["tracklet_id", "video_sha", "track_digest", "first_frame", "last_frame", "num_frames"]
    columns += ["first_time", "last_time", "begins", "ends", "interpolated_frames"]
    whole = pa.Table.from_batches(tables.stream(ref, columns), _schema("tracklets", columns))
    numbered = look.numbers.of([whole["tracklet_id"].combine_chunks()])
    _, first = np.unique(numbered, return_index=True)
    twice = np.delete(numbered, first)
    look.say_some("tracklets", [look.name(int(n)) for n in twice], "rows have the key of another one")
    look.tracklets = whole.take(pa.array(first))
    begin, end, count = (look.column(name) for name in ("first_frame", "last_frame", "num_frames"))
    odd = (begin > end) | (count < 1) | (count > end - begin + 1)
    look.say_some("tracklets", look.names(odd), "rows have frames that do not add up")
    filled = look.column("interpolated_frames")
    odd = (filled < 0) | (filled >= np.maximum(count, 1))
    look.say_some("tracklets", look.names(odd), "rows have more interpolated frames than frames, or less than none")
    first_time, last_time = (np.asarray(look.tracklets[name], np.float64) for name in ("first_time", "last_time"))
    odd = ~(np.isfinite(first_time) & np.isfinite(last_time) & (first_time <= last_time))
    look.say_some("tracklets", look.names(odd), "rows end before they begin, by their time")
    for name, words in (("begins", BEGINS), ("ends", ENDS)):
        strange = [
            f"{i} ({word!r})"
            for i, word in zip(look.texts("tracklet_id"), look.texts(name), strict=True)
            if word not in words
        ]
        look.say_some("tracklets", strange, f"rows have another word in `{name}` than {', '.join(words)}")


def check_crops(look: Look, ref: TableRef) -> None:
    """Look whether each tracklet has a crop a frame, each once, all within it; `look.deep`, whether all decode.

    Of a video, the crops of interpolated boxes, whose score is zero, are as many as the tracklet says.
    """
    columns = ["tracklet_id", "frame_index", "score", "box", *(("media_type", "image") if look.deep else ())]
    parts, broken, filled, odd = [], [], [], []
    for batch in tables.stream(ref, columns, batch_rows=_PICTURES if look.deep else _ROWS):
        parts.append(keys.pack(look.numbers, batch, ["tracklet_id"], ["frame_index"]))
        filled.append(parts[-1][np.asarray(batch.column("score")) == 0])
        odd.append(parts[-1][odd_boxes(batch.column("box"))])
        if look.deep:
            bad = np.array([not _is_picture(*pair) for pair in _pairs(batch)], np.bool_)
            broken.append(parts[-1][bad])
    look.crops = np.sort(keys.join(parts))
    look.say_some("crops", look.frames_of(keys.repeated(look.crops)), "keys stand in several rows")
    look.say_some("crops", look.frames_of(np.sort(keys.join(broken))), "rows have no whole picture of their media type")
    look.say_some("crops", look.frames_of(np.sort(keys.join(odd))), "rows have boxes that are inverted or not finite")
    count = _counted(look, "crops", look.crops)
    expected = look.column("num_frames")
    wanted = ~_skeleton_only(look) | _per_generation(look, count > 0)
    _say_counts(look, "crops", wanted, count, expected)
    number, _ = keys.split_frames(keys.join(filled))
    unseen = np.bincount(number[number < len(wanted)], minlength=len(wanted))
    wrong = _of_videos(look) & (count == expected) & (unseen != look.column("interpolated_frames"))
    told = zip(look.names(wrong), unseen[wrong], look.column("interpolated_frames")[wrong], strict=True)
    names = [f"{name} (found {found}, expected {number})" for name, found, number in told]
    look.say_some("crops", names, "tracklets have not as many crops of score 0 as interpolated frames")


def check_skeletons(look: Look, ref: TableRef) -> None:
    """Look whether layouts are known, and whether there is one row for each crop, or each frame where there is none."""
    columns = ["tracklet_id", "frame_index", "extractor_digest", "layout", "keypoints"]
    parts, odd, makers, layouts = [], [], keys.Numbers(), set()
    for batch in tables.stream(ref, columns):
        parts.append(keys.pack(look.numbers, batch, ["tracklet_id"], ["frame_index"]))
        makers.of([batch.column("tracklet_id"), batch.column("extractor_digest")])
        odd.append(parts[-1][odd_keypoints(batch.column("keypoints"))])
        joints = pc.list_value_length(batch.column("keypoints"))
        layouts |= set(zip(batch.column("layout").to_pylist(), joints.to_pylist(), strict=True))
    for layout, joints in sorted(layouts):
        expected = len(LAYOUTS[layout].joints) if layout in LAYOUTS else None
        if expected != joints:
            told = f"expected {expected} joints" if expected else f"expected a layout of {sorted(LAYOUTS)}"
            look.say("skeletons", f"found rows of layout {layout!r} with {joints} joints, {told}.")
    look.say_some("skeletons", look.frames_of(np.sort(keys.join(odd))), "rows have keypoints that are not finite")
    look.poses = np.sort(keys.join(parts))
    names = look.frames_of(keys.repeated(look.poses))
    several = len(makers) > len({tracklet for tracklet, _ in makers.names})
    look.say_some("skeletons", names, "frames have several rows" + (", of several extractors" if several else ""))
    _pair(look, _counted(look, "skeletons", look.poses))


def _pair(look: Look, count: IntArray) -> None:
    """Compare skeletons with crops, frame by frame, or with the tracklets where there are no crops."""
    facts = _extractors(look)
    told = np.array([one in facts for one in look.texts("track_digest")], np.bool_)
    wanted = _of_videos(look) | told | _per_generation(look, count > 0)
    number, _ = keys.split_frames(look.crops)
    seen = np.bincount(number[number < len(wanted)], minlength=len(wanted)) > 0
    _say_counts(look, "skeletons", wanted & ~seen, count, look.column("num_frames"))
    both = [_only(look, some, wanted & seen) for some in (look.crops, look.poses)]
    crops, poses = (np.setdiff1d(a, b) for a, b in (both, both[::-1]))
    look.say_some("skeletons", look.frames_of(crops), "frames with a crop have no row")
    look.say_some("skeletons", look.frames_of(poses), "rows have no crop")


def _counted(look: Look, table: str, found: keys.UIntArray) -> IntArray:
    """Count rows by tracklet, and say which lie outside of their tracklet or have none: (T,)."""
    number, frame = keys.split_frames(found)
    own = number < len(look.tracklets)
    if not own.all():
        text = f"{int((~own).sum())} rows of {len(np.unique(number[~own]))} tracklets that are not in `tracklets`: "
        look.say(table, text + "a build had not finished them.", "leftover")
    number, frame = number[own], frame[own]
    out = (frame < look.column("first_frame")[number]) | (frame > look.column("last_frame")[number])
    look.say_some(table, look.frames_of(found[own][out]), "rows lie outside of their tracklet's frames")
    return np.bincount(number, minlength=len(look.tracklets))


def _say_counts(look: Look, table: str, wanted: BoolArray, count: IntArray, expected: IntArray) -> None:
    wrong = np.flatnonzero(wanted & (count != expected))
    names = [f"{look.name(int(n))} (found {count[n]}, expected {expected[n]})" for n in wrong]
    look.say_some(table, names, "tracklets have not one row a frame")


def _of_videos(look: Look) -> BoolArray:
    """Tell of each tracklet whether it was tracked in a video, and not imported: (T,)."""
    return np.array([bool(sha) for sha in look.texts("video_sha")], np.bool_)


def _per_generation(look: Look, has: BoolArray) -> BoolArray:
    """Tell of each tracklet whether any tracklet of its extraction or import has what `has` says: (T,)."""
    number = keys.Numbers().of([look.tracklets["track_digest"].combine_chunks()])
    return np.isin(number, np.unique(number[has]))


def _skeleton_only(look: Look) -> BoolArray:
    """Tell of each tracklet whether its import said that its joints are in 3D, and so without pictures: (T,)."""
    facts = _extractors(look)
    third = {name: LAYOUTS[one].third for name, one in facts.items() if one in LAYOUTS}
    return np.array([third.get(one) == "z" for one in look.texts("track_digest")], np.bool_)


def _extractors(look: Look) -> dict[str, str]:
    """Read what `skeletons` says of those who made them: digest -> layout."""
    if "skeletons" not in look.refs:
        return {}
    return {digest: str(facts.get("layout", "")) for digest, facts in read_extractors(look.refs["skeletons"]).items()}


def _only(look: Look, some: keys.UIntArray, wanted: BoolArray) -> keys.UIntArray:
    number, _ = keys.split_frames(some)
    own = number < len(wanted)
    return np.unique(some[own][wanted[number[own]]])


def _schema(table: str, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([pa.field(name, TABLES[table].field(name).type, nullable=False) for name in columns])


def _pairs(batch: pa.RecordBatch) -> list[tuple[str, bytes]]:
    return list(zip(batch.column("media_type").to_pylist(), batch.column("image").to_pylist(), strict=True))


def _is_picture(media_type: str, image: bytes) -> bool:
    """Decode a picture to its end, at an eighth of its size where its format lets that be."""
    kind = _IMAGES.get(media_type)
    if kind is None:
        return False
    try:
        with warnings.catch_warnings():
            # No frame is as large: to decode what says so would fill the memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(image), formats=[kind])
            picture.draft("L", (1, 1))
            picture.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, *_BOMBS):
        return False
    return min(picture.size) > 0
