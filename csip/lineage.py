"""Where a result came from: what people call a thing, to the chain of runs back to the videos."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from csip import tables
from csip.errors import StoreError
from csip.files import digest_file
from csip.references import Key, Thing, things_in
from csip.walk import Node, Walk, flatten

__all__ = ["History", "Node", "flatten"]

_FIGURES = {"mAP": "mean_ap", "mINP": "mean_inp"}
_ENOUGH = 6
"""Letters of a digest that may stand for all of it."""
_OF_A_PASS = {"run_id", "track_digest", "detect_digest"}
"""What is said of a video's rows, and not of the video."""


class History:
    """All runs of a store, read once, to be walked backwards."""

    def __init__(self, store: str) -> None:
        self.store = store
        self.runs = tables.find_runs(store, "true")
        self._walk = Walk(self.runs)

    def find(self, ref: str) -> Node:
        """Resolve what a user typed.

        A run id, a snapshot, table@version, or (the start of) the SHA-256 of a checkpoint, video or embeddings'
        encoder; the path of a file with that content, or where a video, checkpoint or report lay; RUN:FIGURE, as in
        3f2a56b7c8d9:mAP, and RUN:FIGURE@PROTOCOL/SPLIT where a run has several; a tracklet; TRACKLET@FRAME, one of its
        crops. What the store calls by that name goes before a file that happens to be called so.

        Raises:
            StoreError: nothing, or more than one thing, goes by that name.
        """
        run = self._walk.run(ref)
        if run is not None:
            return self._walk.from_run(run)
        known = self._known()
        found = [thing for thing in known.values() if thing.name == ref]
        if not found:
            rows = self._figure(ref) or self._version(ref, known) or self._crop(ref) or self._tracklet(ref)
            if rows is not None:
                return rows
            found = self._of_file(ref, known)
        if len(found) != 1:
            names = ", ".join(sorted(f"{t.kind} {t.name[:16]}" for t in found)) or "nothing"
            raise StoreError(
                f"Store {self.store}: {ref!r} names {names}; expected one snapshot, run, RUN:FIGURE, tracklet, "
                "TRACKLET@FRAME, video or checkpoint (path or SHA-256), embeddings digest or table@version. "
                "`csip train-csip` prints them at its end."
            )
        (thing,) = found
        if thing.kind == "table":
            return self._version(ref, known) or self._walk.from_thing(thing)
        return self._walk.from_thing(thing)

    def _known(self) -> dict[Key, Thing]:
        """List all that runs have made or read, what is published and every video that was offered."""
        known = dict(self._of_runs)
        for name, row in tables.read_snapshots(tables.current(self.store, "snapshots")).items():
            facts = {"digest": row["digest"], "tables": row["tables"]}
            known.setdefault(("snapshot", name), Thing("snapshot", name, facts))
        columns = ["path", "status", "reason"]
        for row in tables.read(tables.current(self.store, "videos"), columns).to_pylist():
            key = "video", row["video_sha"]
            why = {} if row["status"] == "ok" else {"status": row["status"], "reason": row["reason"]}
            told = known[key].facts if key in known else {"path": row["path"]}
            known[key] = Thing(*key, {**told, **why})
        return known

    @functools.cached_property
    def _of_runs(self) -> Mapping[Key, Thing]:
        """List what runs have made or read, as it was called last."""
        known: dict[Key, Thing] = {}
        for thing in (one for run in self.runs for one in (*things_in(run.outputs), *things_in(run.inputs))):
            facts: Mapping[str, Any] = thing.facts
            if thing.kind == "video":
                before = known[thing.key].facts if thing.key in known else {}
                facts = {**before, **{name: fact for name, fact in facts.items() if name not in _OF_A_PASS}}
            known[thing.key] = Thing(*thing.key, facts)
        return known

    def _of_file(self, ref: str, known: Mapping[Key, Thing]) -> list[Thing]:
        """List what goes by a file's content, the start of a digest, or where it lay when it was last read."""
        sha = _content(Path(ref))
        found = [thing for thing in known.values() if sha and thing.name == sha]
        found = found or [t for t in known.values() if len(ref) >= _ENOUGH and t.name.startswith(ref)]
        if found:
            return found
        lay = self._lay_at(ref, known)
        if sha and lay:
            told = ", ".join(f"{thing.kind} {thing.name[:16]}" for thing in lay)
            raise StoreError(
                f"Store {self.store}: {ref} holds a file of SHA-256 {sha[:16]} now, which this store does not know; "
                f"recorded there: {told}. Name that one by its SHA-256, or restore the file."
            )
        return lay

    def _lay_at(self, ref: str, known: Mapping[Key, Thing]) -> list[Thing]:
        """List the videos that lay there when they were last read, or what else runs say lay there."""
        places = {_spell(place) for place in (ref, os.path.realpath(ref), Path(ref).absolute())}
        rows = tables.read(tables.current(self.store, "videos"), ["path"]).to_pylist()
        videos = [known["video", row["video_sha"]] for row in rows if row["path"] in places]
        return videos or [thing for thing in known.values() if thing.facts.get("path") in places]

    def _figure(self, ref: str) -> Node | None:
        """Find one figure of a run: a score of an evaluation, by encoder, or a training's figure over its epochs."""
        run_id, _, rest = ref.partition(":")
        run = self._walk.run(run_id)
        if run is None:
            return None
        where = f"run_id = {tables.quote(run_id)}"
        scores = tables.read(tables.current(self.store, "results"), ["value"], where).to_pylist()
        epochs = tables.read(tables.current(self.store, "metrics"), ["value"], where).to_pylist()
        names = {row["name"] for row in (*scores, *epochs)}
        name, _, place = (rest, "", "") if _FIGURES.get(rest, rest) in names else rest.rpartition("@")
        facts = self._score(ref, f"{run_id}:{name}", place, scores)
        steps = sorted((row["step"], row["value"]) for row in epochs if row["name"] == name)
        if steps:
            facts |= {"epochs": len(steps), "first": steps[0][1], "last": steps[-1][1]}
        if not facts:
            told = ", ".join(sorted(names)) or "none"
            raise StoreError(f"Store {self.store}: run {run_id} has no figure {name or rest!r}; it has: {told}.")
        return Node("figure", ref, facts, None, (self._walk.from_run(run),))

    def _score(self, ref: str, figure: str, place: str, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Gather a score's values under one protocol and split, by encoder; nothing where a run has no such score."""
        name = figure.partition(":")[2]
        own = [row for row in scores if row["name"] == _FIGURES.get(name, name)]
        places = list(dict.fromkeys((row["protocol"], row["split"]) for row in own))
        wanted = [one for one in places if place in ("", *one, "/".join(one))]
        if not own:
            return {}
        if len(wanted) != 1:
            told = ", ".join(f"{figure}@{'/'.join(one)}" for one in places)
            raise StoreError(
                f"Store {self.store}: {ref!r} names {len(wanted)} of {len(places)} values, expected one of: {told}."
            )
        protocol, split = wanted[0]
        mine = {row["encoder"]: row["value"] for row in own if (row["protocol"], row["split"]) == wanted[0]}
        return {"protocol": protocol, "split": split, **mine}

    def _version(self, ref: str, known: Mapping[Key, Thing]) -> Node | None:
        """Find a version of a table that a run left or read, or that snapshots pin."""
        name, _, version = ref.partition("@")
        if name not in tables.TABLES or not version.isdecimal():
            return None
        rows = tables.read_snapshots(tables.current(self.store, "snapshots"))
        pins = [one for one, row in rows.items() if row["tables"].get(name) == int(version)]
        thing = known.get(("table", ref))
        if thing is None and not pins:
            return None
        node = self._walk.from_thing(thing or Thing("table", ref, {}))
        facts = {**node.facts, **({"pinned_by": ", ".join(pins)} if pins else {})}
        behind = () if node.made_by else tuple(self._walk.from_thing(known["snapshot", one]) for one in pins)
        return Node(node.kind, node.name, facts, node.made_by, (*node.sources, *behind))

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
        known = self._of_runs
        video = known.get(("video", facts.pop("video_sha")))
        if video is None:
            behind = [self._walk.from_thing(one) for one in self._snapshots_with(ref, known.values())]
            return Node("tracklet", ref, facts, None, tuple(behind))
        # A video may have been tracked several times: the run that made this tracklet, not the newest.
        made = self._walk.tracked(video, facts["track_digest"])
        return Node("tracklet", ref, facts, None, (self._walk.from_video(video, made),))

    def _snapshots_with(self, tracklet: str, known: Iterable[Thing]) -> list[Thing]:
        """Find what stands behind a tracklet that no video does: the snapshots that an import made of it."""
        where = f"tracklet_id = {tables.quote(tracklet)}"
        names = set(tables.read(tables.current(self.store, "splits"), [], where)["dataset"].to_pylist())
        return [thing for thing in known if thing.kind == "snapshot" and thing.name in names]


def _content(path: Path) -> str:
    """Digest a file; empty where there is none, or none that can be read."""
    try:
        return digest_file(path) if path.is_file() else ""
    except OSError:
        return ""


def _spell(path: str | Path) -> str:
    """Write a path as `videos` has it."""
    return str(path).encode(errors="backslashreplace").decode()
