"""The files that a user's sources name, to a list of videos known by their content, and which of them are to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig
from csip.errors import SourceError, VideoError
from csip.ingest.decoder import Decoder
from csip.ingest.find import SHOWN, Found, Named, expand_all, real_path
from csip.ingest.known_files import FileState, KnownFiles, look_at
from csip.ingest.plan import make_plan
from csip.ingest.records import extract_digests, finished_ever, finished_videos
from csip.ingest.video import VideoInfo
from csip.ingest.video_rows import (
    QUARANTINED,
    Row,
    named_by_content,
    named_by_place,
    quarantined_row,
    read_row,
    record_rows,
    written,
)
from csip.maintenance.forget import FORGOTTEN
from csip.tables import any_of, quote
from csip.types import ExtractDigests, Outcome, Output, Progress, SourceVideo, Stage, VideoList

_LOG = logging.getLogger(__name__)

Size = tuple[int, int]
"""Of a video's frames: height and width, pixels."""


def list_videos(
    out: Output, sources: tuple[str, ...], camera: str, config: ExtractConfig, runtime: RuntimeConfig
) -> Stage[VideoList]:
    """Stage `list_videos`: find the files, know them by content, and say which are still to do.

    A video that is extracted already, and whose file looks as it did when it was last read (`csip.ingest.known_files`),
    is not read.

    Args:
        out: the store.
        sources: videos, folders of videos, or manifests (a .csv with the columns path and camera). What is no readable
            video is quarantined: it has a row in `videos` that says why, and stops none of the others.
        camera: the name of the camera that took all of them; empty: every file is a camera of its own.
        config: decides, with the video's content, whether a video is done.
        runtime: how videos are batched, and how long their decoder is waited for.

    Raises:
        SourceError: a source names nothing to read, or no file in them is a video.
    """
    tables.prepare_store(out.store)
    found = expand_all(sources, camera)
    looking = _Looking(out.store, config, extract_digests(config), runtime)
    with Decoder(runtime) as decoder:
        for i, one in enumerate(found.files):
            yield Progress("list_videos", i, len(found.files), "files")
            looking.look(one, decoder)
    looking.write()
    yield Progress("list_videos", len(found.files), len(found.files), "files")
    looking.require_some(len(found.files))
    every = tuple(looking.videos[sha] for sha in sorted(looking.videos))
    listed, counted = list_to_do(out.store, every, looking.digests, runtime, looking.sizes)
    counts = {"files": len(found.files), **counted, **looking.counts(found)}
    return Outcome(listed, counts, looking.digests.weights)


class _Looking:
    """Looks at files one by one, and takes note of what they are.

    Attributes:
        videos: those to build from, by SHA-256.
        sizes: of the frames of those that were read.
        digests: of the extraction that is asked for.
    """

    def __init__(self, store: str, config: ExtractConfig, digests: ExtractDigests, runtime: RuntimeConfig) -> None:
        self._store, self._config, self._runtime = store, config, runtime
        self.digests = digests
        self._known_files = KnownFiles()
        held: list[Row] = tables.read(tables.current(store, "videos")).to_pylist()
        self._rows = {row["video_sha"]: row for row in held}
        self._gone = {sha for sha, row in self._rows.items() if row["status"] == FORGOTTEN}
        self._done = finished_videos(store, digests.track)
        self._stood_on = finished_ever(store)
        self._changed: dict[str, Row] = {}
        self._places: dict[str, str] = {}  # of videos, as table `videos` writes them -> SHA-256
        self._contents: dict[str, str] = {}  # of all that was looked at: written place -> SHA-256, or key by its place
        self._readable: set[str] = set()  # keys that these would have had if they could not be read
        self._reasons: list[str] = []
        self._duplicates = self._refused = 0
        self.videos: dict[str, SourceVideo] = {}
        self.sizes: dict[str, Size] = {}

    def look(self, one: Named, decoder: Decoder) -> None:
        """Take a file in: as a video, or counted as what it is instead."""
        state = look_at(one.path)
        sha = self._known_files.digest_of(state)
        if sha in self._gone:
            self._refused += 1
            return
        if sha and state and self._is_settled(sha, state.bytes):
            self._add(one, sha, self._rows[sha]["duration"])
            return
        try:
            info = decoder.probe(one.path)
        except VideoError as error:
            self._look_at_unreadable(one, state, f"{one.told}: {error}" if one.told else str(error))
            return
        self._known_files.remember(one.path, state, info.sha256)
        if info.sha256 in self._gone:
            self._refused += 1
            return
        self.sizes[info.sha256] = (info.height, info.width)
        self._add(one, info.sha256, info.duration)
        self._mend(info)

    def _is_settled(self, sha: str, size: int) -> bool:
        """Tell whether all there is to know of a video is in the store."""
        row = self._rows.get(sha)
        return sha in self._done and row is not None and row["status"] != QUARANTINED and row["bytes"] == size

    def _look_at_unreadable(self, one: Named, state: FileState | None, reason: str) -> None:
        sha = self._known_files.digest_of(state)
        if not sha:
            sha = named_by_content(one.path, self._runtime.decode_stall_seconds)
            if sha != named_by_place(one.path):
                self._known_files.remember(one.path, state, sha)
        self._contents[written(one.path)] = sha
        if sha in self._gone:
            self._refused += 1
        elif state is not None and self._is_settled(sha, state.bytes):
            # All that is wanted of it is in the store.
            _LOG.warning("Extracted before, and unreadable now: %s", reason)
            self._add(one, sha, self._rows[sha]["duration"])
        else:
            self._reasons.append(reason)
            if sha not in self._stood_on:
                self._changed[sha] = quarantined_row(sha, one.path, reason)

    def _add(self, one: Named, sha: str, duration: float) -> None:
        self._duplicates += sha in self.videos
        self.videos.setdefault(sha, SourceVideo(sha, str(real_path(one.path)), one.camera, duration))
        self._places[written(one.path)] = self._contents[written(one.path)] = sha
        self._readable.add(named_by_place(one.path))

    def _mend(self, info: VideoInfo) -> None:
        """Make the row of a finished video good that another build has taken for unreadable."""
        row = self._rows.get(info.sha256)
        if info.sha256 in self._done and (row is None or row["status"] == QUARANTINED):
            video = self.videos[info.sha256]
            mended = read_row(make_plan(self._store, video, info, self.digests, self._config.detect))
            if mended is not None:
                self._rows[info.sha256] = self._changed[info.sha256] = mended

    def write(self) -> None:
        """Bring table `videos` up to what was seen."""
        for sha, video in self.videos.items():
            row, place = self._rows.get(sha), written(Path(video.path))
            if row is not None and row["status"] != QUARANTINED and row["path"] != place and not self._lies_there(row):
                self._changed[sha] = row | {"path": place}
        record_rows(self._store, self._changed.values())
        outdated = {sha for sha, row in self._rows.items() if self._is_outdated(sha, row)}
        if outdated:
            # Another build may have finished one of them meanwhile.
            where = f"{any_of('video_sha', outdated)} AND status = {quote(QUARANTINED)}"
            tables.delete(self._store, "videos", where)

    def _is_outdated(self, sha: str, row: Row) -> bool:
        """Tell whether a row says that a file cannot be read which can be by now, or which holds something else."""
        if row["status"] != QUARANTINED or sha in self._changed or sha in self._stood_on:
            return False
        return sha in self._readable or self._contents.get(row["path"], sha) != sha

    def _lies_there(self, row: Row) -> bool:
        """Tell whether a video is still where it was when it was last read."""
        held = self._places.get(row["path"])
        if held is not None:
            return held == str(row["video_sha"])
        seen = look_at(Path(row["path"]))
        held = self._known_files.digest_of(seen)
        return held == row["video_sha"] if held else seen is not None and seen.bytes == int(row["bytes"])

    def require_some(self, files: int) -> None:
        """Refuse to go on with nothing.

        Raises:
            SourceError: there is no video to build from.
        """
        if not self.videos and self._refused:
            raise SourceError(
                f"Found {files} files, of which {self._refused} were forgotten here (`csip forget`), and none is left "
                "to build from. Build them into another store if that is meant."
            )
        if not self.videos:
            raise SourceError(
                f"Found {files} files, none of them a readable video. The first: {self._reasons[0]} "
                "Expected at least one video that FFmpeg can read."
            )

    def counts(self, found: Found) -> dict[str, object]:
        """Count what is not built from, with its reasons."""
        reasons = [*self._reasons, *found.closed][:SHOWN]
        return {
            "duplicate_files": self._duplicates,
            "forgotten_files": self._refused,
            "unreadable_files": len(self._reasons),
            "unreadable_folders": len(found.closed),
            "other_files": dict(found.others),
            **{f"unreadable {i}": reason for i, reason in enumerate(reasons, 1)},
        }


def list_to_do(
    store: str,
    videos: tuple[SourceVideo, ...],
    digests: ExtractDigests,
    runtime: RuntimeConfig,
    sizes: Mapping[str, Size] | None = None,
) -> tuple[VideoList, dict[str, int]]:
    """Say which of a build's videos are still to be extracted, and count.

    Args:
        store: where it is said what is done.
        videos: of the build.
        digests: of the extraction.
        runtime: how they are batched.
        sizes: video_sha -> size of its frames. Videos of one size go one after the other, since the pose model is
            loaded anew for another one.
    """
    done = finished_videos(store, digests.track)
    todo = [video for video in videos if video.video_sha not in done]
    todo.sort(key=lambda video: ((sizes or {}).get(video.video_sha, (0, 0)), video.video_sha))
    counts = {"videos": len(videos), "already_extracted": len(videos) - len(todo)}
    return VideoList(videos, _batches(todo, runtime.video_batch_seconds), digests), counts


def _batches(videos: Sequence[SourceVideo], seconds: float) -> tuple[tuple[SourceVideo, ...], ...]:
    """Join short videos until they fill `seconds`, so that one process serves them; a long one stands alone."""
    batches: list[list[SourceVideo]] = []
    filled = seconds
    for video in videos:
        if filled + video.duration > seconds:
            batches.append([])
            filled = 0.0
        batches[-1].append(video)
        filled += video.duration
    return tuple(tuple(batch) for batch in batches)
