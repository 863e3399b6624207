"""The walk from a thing backwards: the run that made it, what that run read, and so on to the videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csip.references import GIVEN_BACK, Key, Thing, once_each, things_in
from csip.tables import RunRecord

_SHORT = 12  # letters of a digest


@dataclass(frozen=True, slots=True)
class Node:
    """A thing and what it was made from.

    Attributes:
        kind: "results", "embeddings", "checkpoint", "table", "snapshot", "video" or "file"; of rows "figure",
            "tracklet" or "crop"; "run" of one that left several things; of a video "detections", and "segments" of
            tracklets.
        name: how `csip lineage` and people call it.
        facts: digests, settings, counts.
        made_by: the run that made it; None for what came from outside.
        sources: what that run read; of a run, what it left.
    """

    kind: str
    name: str
    facts: Mapping[str, Any]
    made_by: RunRecord | None
    sources: tuple[Node, ...]


class Walk:
    """The runs of a store, oldest first, to be walked backwards."""

    def __init__(self, runs: Sequence[RunRecord]) -> None:
        self._runs = {run.run_id: run for run in runs}
        self._makers: dict[Key, list[RunRecord]] = {}
        self._passes: dict[str, list[RunRecord]] = {}
        for run in runs:
            for thing in things_in(run.outputs):
                if _stage(run) in ("detect_video", "track_segment"):
                    self._passes.setdefault(thing.name, []).append(run)
                elif thing.kind != "video" or _stage(run) == "track_video":
                    # Others name a video; its rows are the tracking pass's, whose record tells of the detections.
                    self._makers.setdefault(thing.key, []).append(run)

    def run(self, run_id: str) -> RunRecord | None:
        """Find a run."""
        return self._runs.get(run_id)

    def from_thing(self, thing: Thing, before: str | None = None, above: frozenset[Key] = frozenset()) -> Node:
        """Walk back from a thing, by the newest run that made it.

        Args:
            thing: which.
            before: when it was read, ISO 8601; the run that made it was earlier. None: the newest of all.
            above: what stands above it in the walk; it is not walked again.
        """
        run = self._maker(thing, before) if thing.key not in above else None
        return self._node(thing, run, above)

    def from_run(self, run: RunRecord) -> Node:
        """Walk back from what a run left, by that very run, even if another one left the same."""
        left = once_each(things_in(run.outputs))
        if len(left) == 1 and not isinstance(run.outputs, list):
            (thing,) = left
            told = {one.key: one.facts for one in once_each(things_in(run.inputs))}.get(thing.key, {})
            return self._node(Thing(*thing.key, {**told, **thing.facts}), run, frozenset())
        nodes = [self._node(thing, self._tracked(thing) or run, frozenset()) for thing in left]
        return Node("run", run.run_id, {"outputs": len(left)}, run, tuple(nodes or self._sources(run, frozenset())))

    def tracked(self, video: Thing, track_digest: str) -> RunRecord | None:
        """Find the newest run that finished a video's tracklets under these settings."""
        made = [run for run in self._makers.get(video.key, []) if run.outputs["track_digest"] == track_digest]
        return made[-1] if made else None

    def from_video(self, video: Thing, run: RunRecord | None) -> Node:
        """Walk back from a video as that run tracked it; as the newest one did, if None."""
        return self._node(video, run, frozenset()) if run else self.from_thing(video)

    def _maker(self, thing: Thing, before: str | None) -> RunRecord | None:
        exact = self._tracked(thing)
        if exact is not None:
            return exact
        makers = self._makers.get(thing.key, [])
        if thing.kind == "video":
            digest = thing.facts.get("track_digest")
            makers = [run for run in makers if digest in (None, run.outputs["track_digest"])]
        # A later run may give the same thing again, from another snapshot: the one that gave this very version made it.
        same = [run for run in makers if any(one == thing for one in things_in(run.outputs))]
        makers = same or makers
        earlier = [run for run in makers if before is None or run.started <= before]
        return (earlier or makers or [None])[-1]  # type: ignore[list-item]

    def _tracked(self, thing: Thing) -> RunRecord | None:
        """Find the run that a mention of an extracted video names itself."""
        named = self._runs.get(thing.facts.get("run_id", "")) if thing.kind == "video" else None
        return named if named is not None and _stage(named) == "track_video" else None

    def _node(self, thing: Thing, run: RunRecord | None, above: frozenset[Key]) -> Node:
        sources = self._sources(run, above | {thing.key}) if run else ()
        facts = {name: fact for name, fact in thing.facts.items() if name != "run_id"}
        return Node(thing.kind, thing.name, facts, run, sources)

    def _sources(self, run: RunRecord, above: frozenset[Key]) -> tuple[Node, ...]:
        own = {thing.key for thing in things_in(run.outputs)}
        read = [thing for thing in once_each(things_in(run.inputs)) if thing.key not in own & above]
        return (*(self.from_thing(one, run.started, above) for one in read), *self._passes_before(run))

    def _passes_before(self, run: RunRecord) -> tuple[Node, ...]:
        """Sum up the passes over a video's segments that a tracking run stands on, stage by stage."""
        if _stage(run) not in ("track_video", "track_segment"):
            return ()
        sha, nodes = run.outputs["video_sha"], []
        for stage, kind, digest, counted in (
            ("detect_video", "detections", "detect_digest", ("frames", "detections")),
            ("track_segment", "segments", "track_digest", ("segment_crops",)),
        ):
            wanted = run.outputs.get(digest)
            # Of a segment that was done twice, the later run wrote the rows.
            done = {
                one.key: one
                for one in self._passes.get(sha, [])
                if _stage(one) == stage and one.outputs[digest] == wanted and one.started <= run.started and one != run
            }
            if not done:
                continue
            runs = sorted(done.values(), key=lambda one: one.started)
            facts = {name: sum(int(one.counts.get(name, 0)) for one in runs) for name in counted}
            ids = {"runs": [one.run_id for one in runs]} if len(runs) > 1 else {}
            nodes.append(Node(kind, f"{sha[:_SHORT]}/{wanted[:_SHORT]}", facts | ids, runs[-1], ()))
        return tuple(nodes)


def _stage(run: RunRecord) -> str:
    """Name a run's stage, also of one whose rows are given back: what was made of them came from there all the same."""
    return run.stage.removesuffix(GIVEN_BACK)


def flatten(root: Node) -> list[Node]:
    """List a thing and everything behind it, each once, in the order of a walk from the root."""
    seen: dict[Key, Node] = {}
    todo = [root]
    while todo:
        node = todo.pop(0)
        if (node.kind, node.name) not in seen:
            seen[(node.kind, node.name)] = node
            todo.extend(node.sources)
    return list(seen.values())
