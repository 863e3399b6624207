"""The rows of table `videos`: how far each file that was offered could be read, or why not.

What was forgotten stays forgotten, and a row that a finished run stands on is not taken back because a file, its disk
or its decoder failed one day. A video's row is written again whenever it is finished: another build may have failed
over it in the meantime.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from csip import tables
from csip.ingest.known_files import look_at
from csip.ingest.plan import VideoPlan
from csip.ingest.records import finished_ever
from csip.maintenance.forget import FORGOTTEN
from csip.tables import any_of, quote

OK, PARTIAL, QUARANTINED = "ok", "partial", "quarantined"

_BLOCK = 1 << 20

Row = dict[str, Any]


def read_row(plan: VideoPlan) -> Row | None:
    """Make the row of a video that was read as far as it goes; None where it was not yet."""
    decoded, info = plan.decoded(), plan.info
    if decoded is None:
        return None
    return {
        "video_sha": info.sha256,
        "path": written(info.path),
        "bytes": info.bytes,
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "fps": info.fps,
        "expected_frames": info.announced_frames,
        "num_frames": decoded[0],
        "duration": info.duration,
        "status": PARTIAL if decoded[1] else OK,
        "reason": decoded[1],
    }


def quarantined_row(sha256: str, path: Path, reason: str) -> Row:
    """Make the row of a file that cannot be worked on."""
    seen = look_at(path)
    row: Row = dict.fromkeys(("bytes", "width", "height", "expected_frames", "num_frames"), 0)
    row |= {"video_sha": sha256, "path": written(path), "codec": "", "fps": 0.0, "duration": 0.0}
    return row | {"bytes": seen.bytes if seen else 0, "status": QUARANTINED, "reason": reason}


def record_read(store: str, plan: VideoPlan) -> None:
    """Write the row of a video that was read as far as it goes."""
    row = read_row(plan)
    record_rows(store, [] if row is None else [row])


def record_quarantine(store: str, sha256: str, path: Path, reason: str) -> None:
    """Write the row of a file that cannot be worked on, unless a finished run stands on it."""
    if sha256 not in finished_ever(store):
        record_rows(store, [quarantined_row(sha256, path, reason)])


def record_rows(store: str, rows: Iterable[Row]) -> None:
    """Write rows in one commit; none is made where they are there already."""
    wanted = {row["video_sha"]: row for row in rows}
    if not wanted:
        return
    where = any_of("video_sha", wanted)
    for held in tables.read(tables.current(store, "videos"), where=where).to_pylist():
        if held["status"] == FORGOTTEN or held == wanted[held["video_sha"]]:
            del wanted[held["video_sha"]]
    if wanted:
        rows_left = tables.from_rows("videos", list(wanted.values()))
        # It may be forgotten at this very moment.
        tables.upsert(store, "videos", rows_left, keep=f"target.status = {quote(FORGOTTEN)}")


def written(path: Path) -> str:
    """Write where a file really lies, as the table has it."""
    return os.path.realpath(path).encode(errors="backslashreplace").decode()


def named_by_place(path: Path) -> str:
    """Make the key of a file that cannot be read out of where it lies."""
    return hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()


def named_by_content(path: Path, stall: float) -> str:
    """Make the key of a file that is no video: of its bytes, or by its place where it does not give them.

    Args:
        path: of the file.
        stall: seconds without a byte after which its disk or network is given up.
    """
    if look_at(path) is None:
        return named_by_place(path)  # To open a pipe is to wait for whoever writes to it.
    signs: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
                    signs.put("")
            signs.put(digest.hexdigest())
        except OSError:
            signs.put(named_by_place(path))

    # Should it hang for good, it does not keep this process from ending.
    threading.Thread(target=read, name="digest", daemon=True).start()
    try:
        while not (key := signs.get(timeout=stall)):
            pass
    except Empty:
        return named_by_place(path)
    return key
