"""Stage `import_benchmark`: a benchmark's tracklets become rows, and its protocol a published snapshot.

Shapes: T frames of a tracklet, J joints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig, digest, to_plain
from csip.errors import SourceError, StoreError
from csip.ingest.benchmarks.records import Benchmark, BenchmarkTracklet
from csip.ingest.benchmarks.walkers import walkers
from csip.tables import quote
from csip.types import Outcome, Output, Progress, Snapshot, Stage
from storage_schemas import TABLES

IMPORT_VERSION = 1
"""Raise it when a change to this file changes the rows that it makes of the same tracklets."""

_COMMIT_CROPS = 4_000
_PINNED = ("tracklets", "crops", "skeletons", "splits")


def _walkers(rest: str, config: ExtractConfig) -> Benchmark:
    if rest:
        raise SourceError(
            f"Source walkers:{rest}: found {rest!r} behind the colon, expected nothing there. The people are made "
            "here; what they are like is set with --set walkers.FIELD=VALUE."
        )
    return walkers(config.walkers)


_OPENERS: Mapping[str, Callable[[str, ExtractConfig], Benchmark]] = {"walkers": _walkers}


def benchmark_name(source: str) -> str:
    """Name the benchmark that a source begins with; empty for anything else, such as a path."""
    kind, colon, _ = source.partition(":")
    return kind if colon and kind in _OPENERS else ""


def is_benchmark(sources: Sequence[str]) -> bool:
    """Tell whether a build's sources are one benchmark.

    Raises:
        SourceError: a benchmark stands among other sources.
    """
    named = [source for source in sources if benchmark_name(source)]
    if named and len(sources) > 1:
        raise SourceError(
            f"Sources {', '.join(sources)}: found the benchmark {named[0]} among others, expected it alone. "
            "Build it by itself: a benchmark has its own protocol."
        )
    return bool(named)


def open_benchmark(source: str, config: ExtractConfig) -> Benchmark:
    """Describe the benchmark that a source names, `kind:` and what that kind wants behind it.

    Raises:
        SourceError: no such kind; the message lists those there are.
    """
    kind, colon, rest = source.partition(":")
    if not colon or kind not in _OPENERS:
        known = ", ".join(f"{name}:" for name in sorted(_OPENERS))
        raise SourceError(
            f"Source {source!r}: found no benchmark of that name, expected one that begins with: {known}. "
            "Name one of those, or build from videos with `csip build-skeletons`."
        )
    return _OPENERS[kind](rest, config)


def import_benchmark(out: Output, source: str, config: ExtractConfig, runtime: RuntimeConfig) -> Stage[Snapshot]:
    """Write a benchmark's rows, in commits of a bounded number of crops, and publish it with its protocol.

    The snapshot's name follows from what decides its rows. One that is published already is given back as it is;
    tracklets that are in the store already are not loaded again, so that an interrupted import goes on.

    Args:
        out: the store.
        source: `walkers:`.
        config: the section of that benchmark.
        runtime: nothing of it is read: loading is not worth a second process.

    Raises:
        SourceError: the source names no benchmark.
        StoreError: another snapshot has this name.
    """
    tables.prepare_store(out.store)
    benchmark = open_benchmark(source, config)
    content = digest(IMPORT_VERSION, benchmark.digest)
    name = f"{benchmark.name}-{content[:8]}"
    known = {row["name"]: row for row in tables.read(tables.current(out.store, "snapshots"), ["digest"]).to_pylist()}
    if name in known and known[name]["digest"] != content:
        raise StoreError(
            f"Store {out.store}: a snapshot {name} of other content is published there already, by a rare accident of "
            "names. Build into another store, or change walkers.seed."
        )
    if name not in known:
        yield from _write_tracklets(out.store, benchmark, content)
        counts = _write_splits(out.store, name, benchmark, content)
        versions = {table: tables.current(out.store, table).version for table in _PINNED}
        snapshot = Snapshot(name, out.store, versions, content)
        tables.publish(snapshot, config=to_plain(config), counts=counts, videos=[])
    total = len({row.tracklet_id for row in benchmark.splits})
    yield Progress("import_benchmark", total, total, "tracklets")
    return Outcome(tables.open_snapshot(out.store, name), tables.snapshot_row(out.store, name)["counts"])


def _write_tracklets(store: str, benchmark: Benchmark, content: str) -> Iterator[Progress]:
    """Load and write the tracklets that the store lacks; a tracklet's own row comes last and says it is whole."""
    names = sorted({row.tracklet_id for row in benchmark.splits})
    have = tables.read(tables.current(store, "tracklets"), [], _own(content))["tracklet_id"].to_pylist()
    todo = sorted(set(names) - set(have))
    waiting: list[BenchmarkTracklet] = []
    for i, name in enumerate(todo):
        yield Progress("import_benchmark", len(names) - len(todo) + i, len(names), "tracklets")
        waiting.append(benchmark.load(name))
        if sum(map(len, waiting)) >= _COMMIT_CROPS:
            _commit(store, waiting, content)
            waiting = []
    if waiting:
        _commit(store, waiting, content)


def _own(content: str) -> str:
    return f"track_digest = {quote(content)}"


def _commit(store: str, tracklets: Sequence[BenchmarkTracklet], content: str) -> None:
    rows = [row for tracklet in tracklets for row in _crop_rows(tracklet)]
    tables.upsert(store, "crops", tables.from_rows("crops", rows))
    tables.upsert(store, "skeletons", _skeleton_rows(tracklets, content))
    rows = [_tracklet_row(tracklet, content) for tracklet in tracklets]
    tables.upsert(store, "tracklets", tables.from_rows("tracklets", rows))


def _crop_rows(tracklet: BenchmarkTracklet) -> Iterator[dict[str, object]]:
    for i, image in enumerate(tracklet.images):
        yield {
            "tracklet_id": tracklet.tracklet_id,
            "frame_index": int(tracklet.frame_index[i]),
            "time": float(tracklet.time[i]),
            "box": tracklet.boxes[i].tolist(),
            "score": float(tracklet.score[i]),
            "media_type": tracklet.media_type,
            "image": image,
        }


def _skeleton_rows(tracklets: Sequence[BenchmarkTracklet], content: str) -> pa.Table:
    """A frame without a skeleton has no row."""
    seen = [(t, int(i)) for t in tracklets for i in np.flatnonzero(t.has_skeleton)]
    return pa.table(
        [
            pa.array([t.tracklet_id for t, _ in seen], pa.string()),
            pa.array([int(t.frame_index[i]) for t, i in seen], pa.int64()),
            pa.array([content] * len(seen), pa.string()),
            pa.array([t.layout for t, _ in seen], pa.string()),
            tables.keypoints_column(np.concatenate([t.keypoints[t.has_skeleton] for t in tracklets])),
        ],
        schema=TABLES["skeletons"],
    )


def _tracklet_row(tracklet: BenchmarkTracklet, content: str) -> dict[str, object]:
    return {
        "tracklet_id": tracklet.tracklet_id,
        "video_sha": "",
        "track_digest": content,
        "first_frame": int(tracklet.frame_index[0]),
        "last_frame": int(tracklet.frame_index[-1]),
        "first_time": float(tracklet.time[0]),
        "last_time": float(tracklet.time[-1]),
        "num_frames": len(tracklet),
        "keypoint_confidence": tracklet.keypoint_confidence,
        "pid": tracklet.pid,
    }


def _write_splits(store: str, name: str, benchmark: Benchmark, content: str) -> dict[str, object]:
    """Write who trains, asks and answers; return how many there are of each."""
    columns = ["first_frame", "last_frame", "num_frames", "keypoint_confidence"]
    table = tables.read(tables.current(store, "tracklets"), columns, _own(content)).to_pylist()
    facts = {row["tracklet_id"]: row for row in table}
    rows = [
        {
            "dataset": name,
            "protocol": benchmark.name,
            "split": row.split,
            "tracklet_id": row.tracklet_id,
            "first_frame": facts[row.tracklet_id]["first_frame"],
            "last_frame": facts[row.tracklet_id]["last_frame"],
            "role": row.role,
            "group": row.group,
            "pid": row.pid,
            "camid": row.camid,
            "camera": row.camera,
        }
        for row in benchmark.splits
    ]
    tables.upsert(store, "splits", tables.from_rows("splits", rows), replace=f"dataset = {quote(name)}")
    parts = Counter(row.role for row in benchmark.splits)
    train = {row.pid for row in benchmark.splits if row.role == "train"}
    crops = sum(row["num_frames"] for row in facts.values())
    sure = sum(row["num_frames"] * row["keypoint_confidence"] for row in facts.values())
    return {
        "cameras": len({row.camid for row in benchmark.splits}),
        "tracklets": len(facts),
        "crops": crops,
        "keypoint_confidence": round(sure / crops, 4),
        "train_people": len(train),
        "test_people": len({row.pid for row in benchmark.splits} - train),
        **{f"{role}_parts": parts[role] for role in ("train", "query", "gallery")},
        **{f"{group}_people": number for group, number in sorted(_groups(benchmark).items())},
    }


def _groups(benchmark: Benchmark) -> Counter[str]:
    return Counter(group for group, _ in {(row.group, row.pid) for row in benchmark.splits} if group)
