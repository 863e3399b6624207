"""Stage `import_benchmark`: a benchmark's tracklets become rows, and its protocol a published snapshot.

Shapes: T frames of a tracklet, J joints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from csip import tables
from csip.config import ExtractConfig, RuntimeConfig
from csip.errors import SourceError, StoreError
from csip.extractors import describe_extractor
from csip.ingest.benchmarks.biwi import biwi
from csip.ingest.benchmarks.crop_pose import PoseSkeletons
from csip.ingest.benchmarks.crops import NoSkeletons, SidecarSkeletons, SkeletonSource
from csip.ingest.benchmarks.ias import ias
from csip.ingest.benchmarks.ilids import ilids
from csip.ingest.benchmarks.ilids import sidecar_folder as ilids_sidecars
from csip.ingest.benchmarks.labelled import labelled
from csip.ingest.benchmarks.lsvid import lsvid
from csip.ingest.benchmarks.lsvid import sidecar_folder as lsvid_sidecars
from csip.ingest.benchmarks.mars import mars
from csip.ingest.benchmarks.records import Benchmark, BenchmarkTracklet, SplitRow
from csip.ingest.benchmarks.walkers import walkers
from csip.ingest.prefetch import meanwhile, prefetch
from csip.plain import digest, to_plain
from csip.tables import quote
from csip.types import Outcome, Output, Progress, Snapshot, Stage
from storage_schemas import TABLES

IMPORT_VERSION = 1
"""Raise it when a change to this file changes the rows that it makes of the same tracklets."""

_COMMIT_FRAMES = 4_000
_COMMIT_BYTES = 64 * 1024**2  # of pictures: those of one's own data set may be large
_LOADED_AHEAD = 1
_SECONDS_BETWEEN_RECORDS = 1.0
_PINNED = ("tracklets", "crops", "skeletons", "splits")


Opener = Callable[[str, str, ExtractConfig, RuntimeConfig], Benchmark]


def _walkers(rest: str, source: str, config: ExtractConfig, runtime: RuntimeConfig) -> Benchmark:
    if rest:
        raise SourceError(
            f"Source {source}: found {rest!r} behind the colon, expected nothing there. The people are made "
            "here; what they are like is set with --set walkers.FIELD=VALUE."
        )
    return walkers(config.walkers)


def _mars(rest: str, source: str, config: ExtractConfig, runtime: RuntimeConfig) -> Benchmark:
    root = _folder(rest, source)
    skeletons = _skeletons(root / config.benchmark.skeleton_folder, source, config, runtime)
    return mars(root, source, skeletons, config.benchmark)


def _lsvid(rest: str, source: str, config: ExtractConfig, runtime: RuntimeConfig) -> Benchmark:
    root = _folder(rest, source)
    beside = lsvid_sidecars(root, config.benchmark)
    return lsvid(root, source, _skeletons(beside, source, config, runtime), config.benchmark)


def _ilids(rest: str, source: str, config: ExtractConfig, runtime: RuntimeConfig) -> Benchmark:
    root = _folder(rest, source)
    beside = ilids_sidecars(root, config.benchmark)
    return ilids(root, source, _skeletons(beside, source, config, runtime), config.benchmark)


def _biwi(rest: str, source: str, config: ExtractConfig, runtime: RuntimeConfig) -> Benchmark:
    return biwi(_folder(rest, source), source)


def _ias(rest: str, source: str, config: ExtractConfig, runtime: RuntimeConfig) -> Benchmark:
    return ias(_folder(rest, source), source)


def _labelled(rest: str, source: str, config: ExtractConfig, runtime: RuntimeConfig) -> Benchmark:
    path = _existing(rest, source)
    root = path if path.is_dir() else path.parent
    skeletons = _skeletons(root / config.benchmark.skeleton_folder, source, config, runtime)
    return labelled(path, source, skeletons, config, runtime)


_OPENERS: Mapping[str, Opener] = {
    **{"mars": _mars, "lsvid": _lsvid, "ilids": _ilids, "biwi": _biwi, "ias": _ias},
    **{"labelled": _labelled, "walkers": _walkers},
}


def _existing(rest: str, source: str) -> Path:
    try:
        path = Path(rest).expanduser().resolve()
    except RuntimeError as error:  # no such user, or links in a circle
        raise SourceError(
            f"Source {source}: {error} Expected a path; name the data set's folder by its own."
        ) from error
    if not rest or not path.exists():
        kind = source.partition(":")[0]
        raise SourceError(
            f"Source {source}: found nothing there, expected the data set as it is distributed. Name it behind the "
            f"colon: {kind}:/path/to/it."
        )
    return path


def _folder(rest: str, source: str) -> Path:
    path = _existing(rest, source)
    if not path.is_dir():
        raise SourceError(f"Source {source}: found a file, expected the data set's folder. Unpack it first.")
    return path


def _skeletons(beside: Path, source: str, config: ExtractConfig, runtime: RuntimeConfig) -> SkeletonSource:
    """Choose where crops get their skeletons from.

    Args:
        beside: where side-car files would be.
        source: as the user named it.
        config: `benchmark.skeletons` says which; the pose model is that of `detect`.
        runtime: of the pose model.
    """
    choice = config.benchmark.skeletons
    if choice == "auto":
        choice = "files" if beside.is_dir() else "pose"
    if choice == "files" and not beside.is_dir():
        raise SourceError(
            f"Source {source}: found no folder {beside}, expected side-car files with skeletons there. Name the folder "
            "with --set benchmark.skeleton_folder=NAME, or let the pose model find them: "
            "--set benchmark.skeletons=pose."
        )
    if choice == "files":
        return SidecarSkeletons()
    return NoSkeletons() if choice == "none" else PoseSkeletons(config, runtime)


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


def check_place(source: str) -> None:
    """Look whether there is something where a benchmark's source says, and open none of it.

    Raises:
        SourceError: there is nothing, or a file in the place of a folder.
    """
    kind, _, rest = source.partition(":")
    if kind == "labelled":
        _existing(rest, source)
    elif kind != "walkers":
        _folder(rest, source)


def open_benchmark(source: str, config: ExtractConfig, runtime: RuntimeConfig) -> Benchmark:
    """Find and check the benchmark that a source names, `kind:` and what that kind wants behind it.

    Raises:
        SourceError: no such kind (the message lists those there are), or the data set is not as it should be, or may
            not be read.
    """
    kind, colon, rest = source.partition(":")
    if not colon or kind not in _OPENERS:
        known = ", ".join(f"{name}:" for name in sorted(_OPENERS))
        raise SourceError(
            f"Source {source!r}: found no benchmark of that name, expected one that begins with: {known}. "
            "Name one of those, or build from videos with `csip build-skeletons`."
        )
    try:
        return _OPENERS[kind](rest, source, config, runtime)
    except OSError as error:
        # Folders are listed in many places, and none of them knows what to do about this.
        raise SourceError(
            f"Source {source}: {error.filename} cannot be read ({error.strerror}). Expected files and folders that "
            "this user may read, on a disk that is there; mend that and run the same command again."
        ) from error


def count_benchmark(benchmark: Benchmark) -> dict[str, object]:
    """Count what a checked benchmark has, before any of it is loaded."""
    return {
        "data set": benchmark.name,
        "digest": benchmark.digest,
        "cameras": len({row.camid for row in benchmark.splits}),
        "tracklets": len({row.tracklet_id for row in benchmark.splits}),
        "joints": _made_by(benchmark),
        **_count_roles(benchmark.splits),
        **benchmark.counts,
    }


def import_benchmark(out: Output, source: str, config: ExtractConfig, runtime: RuntimeConfig) -> Stage[Snapshot]:
    """Check a benchmark, write its rows in commits of a bounded number of crops, and publish it with its protocols.

    The snapshot's name follows from what decides its rows. One that is published already is given back as it is;
    tracklets that are in the store already are not loaded again, so that an interrupted import goes on.

    Args:
        out: the store.
        source: such as `mars:/data/mars`; see `open_benchmark`.
        config: the sections that say how it becomes rows.
        runtime: device and batch of the pose model, where crops need one.

    Raises:
        SourceError: the source names no benchmark, or the data set is not as it should be; nothing is written then.
        StoreError: another snapshot has this name.
    """
    nothing_yet = Progress("import_benchmark", 0, 0, "tracklets")
    yield nothing_yet
    benchmark = yield from meanwhile(
        lambda: open_benchmark(source, config, runtime), _SECONDS_BETWEEN_RECORDS, nothing_yet
    )
    tables.prepare_store(out.store)
    content = digest(IMPORT_VERSION, benchmark.digest)
    name = f"{benchmark.name}-{content[:8]}"
    known = {row["name"]: row for row in tables.read(tables.current(out.store, "snapshots"), ["digest"]).to_pylist()}
    if name in known and known[name]["digest"] != content:
        raise StoreError(
            f"Store {out.store}: a snapshot {name} of other content is published there already, by a rare accident of "
            "names. Build into another store."
        )
    if name not in known:
        yield from _write_tracklets(out.store, benchmark, content)
        if benchmark.layout:
            describe_extractor(out.store, content, {"layout": benchmark.layout, **benchmark.extractor})
        counts = _write_splits(out.store, name, benchmark, content)
        versions = {table: tables.current(out.store, table).version for table in _PINNED}
        snapshot = Snapshot(name, out.store, versions, content)
        tables.publish(snapshot, config=to_plain(config), counts=counts, videos=[])
    total = len({row.tracklet_id for row in benchmark.splits})
    yield Progress("import_benchmark", total, total, "tracklets")
    return Outcome(tables.open_snapshot(out.store, name), tables.snapshot_row(out.store, name)["counts"])


def _write_tracklets(store: str, benchmark: Benchmark, content: str) -> Iterator[Progress]:
    """Load and write the tracklets that the store lacks; a tracklet's own row comes last and says it is whole."""
    # An older IMPORT_VERSION gave its skeletons to the same tracklets, and readers expect one a frame. Snapshots of it
    # keep theirs: they pin versions.
    older = f"starts_with(tracklet_id, {quote(benchmark.digest[:12] + '-')}) AND extractor_digest != {quote(content)}"
    tables.delete(store, "skeletons", older)
    names = sorted({row.tracklet_id for row in benchmark.splits})
    have = tables.read(tables.current(store, "tracklets"), [], _own(content))["tracklet_id"].to_pylist()
    todo = sorted(set(names) - set(have))
    waiting: list[BenchmarkTracklet] = []
    frames = size = 0
    done = len(names) - len(todo)
    with _loading(benchmark, todo) as loaded:
        for tracklet in loaded:
            yield Progress("import_benchmark", done, len(names), "tracklets")
            if tracklet is None:
                continue
            done += 1
            waiting.append(tracklet)
            frames, size = frames + len(tracklet), size + sum(map(len, tracklet.images))
            if frames >= _COMMIT_FRAMES or size >= _COMMIT_BYTES:
                _commit(store, waiting, content)
                waiting, frames, size = [], 0, 0
    if waiting:
        _commit(store, waiting, content)


@contextmanager
def _loading(benchmark: Benchmark, names: Sequence[str]) -> Iterator[Iterator[BenchmarkTracklet | None]]:
    """Load tracklets a step ahead of who writes them; None while one takes long, as behind hours of video it may."""
    with ExitStack() as stack:
        loads = (benchmark.load(name) for name in names)
        if benchmark.decoder:
            stack.enter_context(benchmark.decoder)
        loaded = stack.enter_context(closing(prefetch(loads, _LOADED_AHEAD, _SECONDS_BETWEEN_RECORDS)))
        if benchmark.decoder:
            # Whoever stops early does not wait for a decoder that may hang.
            stack.callback(benchmark.decoder.interrupt)
        yield loaded


def _own(content: str) -> str:
    return f"track_digest = {quote(content)}"


def _commit(store: str, tracklets: Sequence[BenchmarkTracklet], content: str) -> None:
    with_crops = [tracklet for tracklet in tracklets if tracklet.images]
    if with_crops:
        tables.upsert(store, "crops", _crop_rows(with_crops))
    with_skeletons = [tracklet for tracklet in tracklets if tracklet.layout]
    if with_skeletons:
        tables.upsert(store, "skeletons", _skeleton_rows(with_skeletons, content))
    rows = [_tracklet_row(tracklet, content) for tracklet in tracklets]
    tables.upsert(store, "tracklets", tables.from_rows("tracklets", rows))


def _ids(tracklets: Sequence[BenchmarkTracklet]) -> pa.Array:
    return pa.array([name for t in tracklets for name in [t.tracklet_id] * len(t)], pa.string())


def _crop_rows(tracklets: Sequence[BenchmarkTracklet]) -> pa.Table:
    return pa.table(
        [
            _ids(tracklets),
            pa.array(np.concatenate([t.frame_index for t in tracklets]), pa.int64()),
            pa.array(np.concatenate([t.time for t in tracklets]), pa.float64()),
            tables.boxes_column(np.concatenate([t.boxes for t in tracklets])),
            pa.array(np.concatenate([t.score for t in tracklets]), pa.float32()),
            pa.array([kind for t in tracklets for kind in t.media_types], pa.string()),
            pa.array([image for t in tracklets for image in t.images], pa.binary()),
        ],
        schema=TABLES["crops"],
    )


def _skeleton_rows(tracklets: Sequence[BenchmarkTracklet], content: str) -> pa.Table:
    """A frame without a skeleton keeps its row, and says so."""
    total = sum(map(len, tracklets))
    return pa.table(
        [
            _ids(tracklets),
            pa.array(np.concatenate([t.frame_index for t in tracklets]), pa.int64()),
            pa.array([content] * total, pa.string()),
            pa.array(np.concatenate([t.has_skeleton for t in tracklets]), pa.bool_()),
            pa.array([layout for t in tracklets for layout in [t.layout] * len(t)], pa.string()),
            tables.keypoints_column(np.concatenate([t.keypoints for t in tracklets])),
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
        "begins": "unknown",
        "ends": "unknown",
        "interpolated_frames": 0,
    }


def _write_splits(store: str, name: str, benchmark: Benchmark, content: str) -> dict[str, object]:
    """Write who trains, asks and answers; return how many there are of each."""
    columns = ["first_frame", "last_frame", "num_frames", "keypoint_confidence"]
    table = tables.read(tables.current(store, "tracklets"), columns, _own(content)).to_pylist()
    facts = {row["tracklet_id"]: row for row in table}
    rows = [
        {
            "dataset": name,
            "protocol": row.protocol,
            "split": row.split,
            "tracklet_id": row.tracklet_id,
            "first_frame": row.frames[0] if row.frames else facts[row.tracklet_id]["first_frame"],
            "last_frame": row.frames[1] if row.frames else facts[row.tracklet_id]["last_frame"],
            "role": row.role,
            "group": row.group,
            "pid": row.pid,
            "camid": row.camid,
            "camera": row.camera,
        }
        for row in benchmark.splits
    ]
    tables.upsert(store, "splits", tables.from_rows("splits", rows), replace=f"dataset = {quote(name)}")
    frames = sum(row["num_frames"] for row in facts.values())
    sure = sum(row["num_frames"] * row["keypoint_confidence"] for row in facts.values())
    seen = {"keypoint_confidence": round(sure / frames, 4)} if benchmark.layout else {}
    return count_benchmark(benchmark) | {"frames": frames} | seen


def _made_by(benchmark: Benchmark) -> str:
    if not benchmark.layout:
        return "none"
    return f"{benchmark.layout} from {benchmark.extractor.get('name', 'the data set')}"


def _count_roles(splits: Sequence[SplitRow]) -> dict[str, object]:
    """Count people and parts under the first split of the first protocol, and name all protocols there are."""
    names = list(dict.fromkeys((row.protocol, row.split) for row in splits))
    rows = [row for row in splits if (row.protocol, row.split) == names[0]]
    parts = Counter(row.role for row in rows)
    people = {role: {row.pid for row in rows if row.role == role} for role in ("train", "query", "gallery")}
    # Where nobody asks for person 0, that is what distractors are called, and no person.
    tested = people["query"] | (people["gallery"] - {0})
    several = Counter(protocol for protocol, _ in names)
    groups = Counter(group for group, _ in {(row.group, row.pid) for row in rows} if group)
    return {
        "protocols": ", ".join(f"{name} ({n} splits)" if n > 1 else name for name, n in several.items()),
        "train_people": len(people["train"]),
        "test_people": len(tested),
        **{f"{role}_parts": parts[role] for role in ("train", "query", "gallery")},
        **{f"{group}_people": number for group, number in sorted(groups.items())},
    }
