"""Where a result came from: the chain of runs back to the videos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csip import tables
from csip.errors import StoreError
from csip.files import digest_file
from csip.tables import RunRecord

TABLE = frozenset({"uri", "version"})
"""The keys of a reference to a table, in a run's inputs and outputs."""
FILE = frozenset({"path", "sha256"})
"""The keys of a reference to a file."""
_FIGURES = {"mAP": "mean_ap", "mINP": "mean_inp"}
_ENOUGH = 6
"""Letters of a digest that may stand for all of it."""


@dataclass(frozen=True, slots=True)
class Node:
    """A thing and what it was made from.

    Attributes:
        kind: "results", "embeddings", "checkpoint", "table", "snapshot", "video" or "file"; of rows "figure",
            "tracklet" or "crop".
        name: how `csip lineage` and people call it.
        facts: digests, settings, counts.
        made_by: the run that made it; None for what came from outside.
        sources: what that run read.
    """

    kind: str
    name: str
    facts: Mapping[str, Any]
    made_by: RunRecord | None
    sources: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class _Thing:
    kind: str
    name: str
    facts: Mapping[str, Any]


def _things(value: Any) -> Iterator[_Thing]:
    """Find the references in a run's inputs or outputs."""
    if isinstance(value, Mapping):
        keys = set(value)
        if {"table", "encoder_digest"} <= keys:
            facts = {"encoder": value["encoder"], "table": _table_name(value["table"])}
            yield _Thing("embeddings", value["encoder_digest"], facts)
        elif keys == {"table", "run_id"}:
            yield _Thing("results", value["run_id"], {"table": _table_name(value["table"])})
        elif keys == TABLE:
            yield _Thing("table", _table_name(value), {})
        elif is_snapshot(value):
            yield _Thing("snapshot", value["name"], {"digest": value["digest"], "tables": value["tables"]})
        elif "video_sha" in keys:
            facts = {k: v for k, v in value.items() if k != "video_sha"}
            yield _Thing("video", value["video_sha"], facts)
        elif keys == FILE:
            kind = "checkpoint" if value["path"].endswith(".safetensors") else "file"
            yield _Thing(kind, value["sha256"], {"path": value["path"]})
        else:
            for inner in value.values():
                yield from _things(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _things(inner)


def is_snapshot(value: Any) -> bool:
    """Tell whether a value of a run's inputs or outputs is a reference to a snapshot."""
    return isinstance(value, Mapping) and {"name", "tables", "digest"} <= set(value)


def _table_name(ref: Mapping[str, Any]) -> str:
    return f"{Path(ref['uri']).stem}@{ref['version']}"


class History:
    """All runs of a store, read once, to be walked backwards."""

    def __init__(self, store: str) -> None:
        self.store = store
        self.runs = tables.find_runs(store, "true")
        self._makers: dict[tuple[str, str], list[RunRecord]] = {}
        for run in self.runs:
            for thing in _things(run.outputs):
                if thing.kind == "video" and run.stage != "track_video":
                    continue  # others name it; its rows are the tracking pass's, whose record tells of the detections
                self._makers.setdefault((thing.kind, thing.name), []).append(run)

    def find(self, ref: str) -> Node:
        """Resolve what a user typed.

        A run id, a snapshot, table@version, or (the start of) the SHA-256 of a checkpoint, video or embeddings'
        encoder; the path of a file with that content, or where a video lay when it was read; RUN:FIGURE, as in
        3f2a56b7c8d9:mAP; a tracklet; TRACKLET@FRAME, one of its crops.

        Raises:
            StoreError: nothing, or more than one thing, goes by that name.
        """
        found = self._resolve(ref)
        if not found:
            rows = self._figure(ref) or self._crop(ref) or self._tracklet(ref)
            if rows is not None:
                return rows
        if len(found) != 1:
            names = ", ".join(sorted(f"{t.kind} {t.name[:16]}" for t in found)) or "nothing"
            raise StoreError(
                f"Store {self.store}: {ref!r} names {names}; expected one snapshot, run, RUN:FIGURE, tracklet, "
                "TRACKLET@FRAME, video or checkpoint (path or SHA-256), embeddings digest or table@version. "
                "`csip train-csip` prints them at its end."
            )
        return self._walk(found[0], None, frozenset())

    def _resolve(self, ref: str) -> list[_Thing]:
        """List what runs have made or read that goes by this name."""
        if Path(ref).is_file():
            ref = digest_file(Path(ref))
        known = self._known()
        exact = [t for t in known.values() if t.name == ref] or self._made_by(ref)
        found = exact or [t for t in known.values() if len(ref) >= _ENOUGH and t.name.startswith(ref)]
        return found or [known["video", sha] for sha in self._lay_at(ref) if ("video", sha) in known]

    def _lay_at(self, path: str) -> list[str]:
        """List the videos that lay there when they were last read."""
        where = f"path = {tables.quote(str(Path(path).absolute()))}"
        rows = tables.read(tables.current(self.store, "videos"), ["video_sha"], where).to_pylist()
        return [row["video_sha"] for row in rows]

    def _known(self) -> dict[tuple[str, str], _Thing]:
        return {(t.kind, t.name): t for run in self.runs for t in (*_things(run.outputs), *_things(run.inputs))}

    def _made_by(self, run_id: str) -> list[_Thing]:
        return [thing for run in self.runs if run.run_id == run_id for thing in _things(run.outputs)][:1]

    def _figure(self, ref: str) -> Node | None:
        """Find one figure of a run: a score of an evaluation, by encoder, or a training's figure over its epochs."""
        run_id, _, name = ref.rpartition(":")
        made = self._made_by(run_id)
        if not made:
            return None
        where = f"run_id = {tables.quote(run_id)}"
        scores = tables.read(tables.current(self.store, "results"), ["encoder", "name", "value"], where).to_pylist()
        epochs = tables.read(tables.current(self.store, "metrics"), ["step", "name", "value"], where).to_pylist()
        facts = {row["encoder"]: row["value"] for row in scores if row["name"] == _FIGURES.get(name, name)}
        steps = sorted((row["step"], row["value"]) for row in epochs if row["name"] == name)
        if steps:
            facts |= {"epochs": len(steps), "first": steps[0][1], "last": steps[-1][1]}
        if not facts:
            known = ", ".join(sorted({row["name"] for row in (*scores, *epochs)})) or "none"
            raise StoreError(f"Store {self.store}: run {run_id} has no figure {name!r}; it has: {known}.")
        return Node("figure", ref, facts, None, (self._walk(made[0], None, frozenset()),))

    def _crop(self, ref: str) -> Node | None:
        """Find one crop of a tracklet."""
        name, _, frame = ref.rpartition("@")
        owner = self._tracklet(name) if frame.isdecimal() else None
        if owner is None:
            return None
        where = f"tracklet_id = {tables.quote(name)} AND frame_index = {frame}"
        columns = ["frame_index", "time", "box", "score"]
        crops = tables.read(tables.current(self.store, "crops"), columns, where).to_pylist()
        if not crops:
            first, last = owner.facts["first_frame"], owner.facts["last_frame"]
            raise StoreError(
                f"Store {self.store}: tracklet {name} has no crop of frame {frame}; it was seen from {first} to {last}."
            )
        del crops[0]["tracklet_id"]
        facts = crops[0] | {"box": " ".join(f"{edge:.1f}" for edge in crops[0]["box"])}
        return Node("crop", ref, facts, None, (owner,))

    def _tracklet(self, ref: str) -> Node | None:
        """Find a tracklet, and the video it was seen in, or the snapshots that an import made of it."""
        where = f"tracklet_id = {tables.quote(ref)}"
        columns = ["video_sha", "track_digest", "first_frame", "last_frame", "first_time", "last_time", "num_frames"]
        rows = tables.read(tables.current(self.store, "tracklets"), columns, where).to_pylist()
        if not rows:
            return None
        facts = rows[0]
        del facts["tracklet_id"]
        known = self._known()
        video = known.get(("video", facts.pop("video_sha")))
        behind = [video] if video else self._snapshots_with(ref, known.values())
        # A video may have been tracked several times: the run that made this tracklet, not the newest.
        made = [run.started for run in self.runs if video and self._tracked(run, video.name, facts["track_digest"])]
        before = made[-1] if made else None
        return Node("tracklet", ref, facts, None, tuple(self._walk(one, before, frozenset()) for one in behind))

    @staticmethod
    def _tracked(run: RunRecord, video: str, digest: str) -> bool:
        outputs = run.outputs if isinstance(run.outputs, Mapping) else {}
        return run.stage == "track_video" and (outputs.get("video_sha"), outputs.get("track_digest")) == (video, digest)

    def _snapshots_with(self, tracklet: str, known: Iterable[_Thing]) -> list[_Thing]:
        """Find what stands behind a tracklet that no video does: the snapshots that an import made of it."""
        where = f"tracklet_id = {tables.quote(tracklet)}"
        names = set(tables.read(tables.current(self.store, "splits"), [], where)["dataset"].to_pylist())
        return [thing for thing in known if thing.kind == "snapshot" and thing.name in names]

    def _walk(self, thing: _Thing, before: str | None, above: frozenset[tuple[str, str]]) -> Node:
        key = (thing.kind, thing.name)
        makers = self._makers.get(key, []) if key not in above else []
        # A later run may give the same thing again, from another snapshot: the one that gave this very version made it.
        same = [run for run in makers if any(t == thing for t in _things(run.outputs))]
        makers = same or makers
        earlier = [run for run in makers if before is None or run.started <= before]
        run = (earlier or makers or [None])[-1]  # type: ignore[list-item]
        sources: list[Node] = []
        if run is not None:
            seen: set[tuple[str, str]] = set()
            for source in _things(run.inputs):
                if (source.kind, source.name) not in seen | {key}:
                    seen.add((source.kind, source.name))
                    sources.append(self._walk(source, run.started, above | {key}))
        return Node(thing.kind, thing.name, thing.facts, run, tuple(sources))


def flatten(root: Node) -> list[Node]:
    """List a thing and everything behind it, each once, in the order of a walk from the root."""
    seen: dict[tuple[str, str], Node] = {}
    todo = [root]
    while todo:
        node = todo.pop(0)
        if (node.kind, node.name) not in seen:
            seen[(node.kind, node.name)] = node
            todo.extend(node.sources)
    return list(seen.values())
