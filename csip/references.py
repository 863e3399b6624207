"""What runs name in their inputs and outputs: tables, snapshots, files, videos, embeddings, results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csip.plain import digest

TABLE = frozenset({"uri", "version"})
"""The keys of a reference to a table, in a run's inputs and outputs."""
FILE = frozenset({"path", "sha256"})
"""The keys of a reference to a file."""

GIVEN_BACK = " (given back)"
"""What stands behind the stage of a pass over a video whose rows `csip gc` has taken away: it is not done any more."""

Key = tuple[str, str]
"""Kind and name of a thing."""


def extraction_name(video_sha: str, track_digest: str) -> str:
    """Name an extraction, as its tracklets' names begin: the same video and settings give the same on every machine."""
    return digest(video_sha, track_digest)[:12]


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that a run read or made; see `csip.walk.Node` for kinds and names."""

    kind: str
    name: str
    facts: Mapping[str, Any]

    @property
    def key(self) -> Key:
        """What tells it from all others."""
        return self.kind, self.name


def is_snapshot(value: Any) -> bool:
    """Tell whether a value of a run's inputs or outputs is a reference to a snapshot."""
    return isinstance(value, Mapping) and {"name", "tables", "digest"} <= set(value)


def things_in(value: Any) -> Iterator[Thing]:
    """Find the references in a run's inputs or outputs; a thing comes as often as it is named."""
    if isinstance(value, Mapping):
        keys = set(value)
        if {"table", "encoder_digest"} <= keys:
            facts = {"encoder": value["encoder"], "table": _table_name(value["table"])}
            yield Thing("embeddings", value["encoder_digest"], facts)
        elif keys == {"table", "run_id"}:
            yield Thing("results", value["run_id"], {"table": _table_name(value["table"])})
        elif keys == TABLE:
            yield Thing("table", _table_name(value), {})
        elif is_snapshot(value):
            yield Thing("snapshot", value["name"], {"digest": value["digest"], "tables": value["tables"]})
        elif "video_sha" in keys:
            yield Thing("video", value["video_sha"], {k: v for k, v in value.items() if k != "video_sha"})
        elif keys == FILE:
            kind = "checkpoint" if value["path"].endswith(".safetensors") else "file"
            yield Thing(kind, value["sha256"], {"path": value["path"]})
        else:
            # A list of videos says once for all of them what decides their rows.
            digests = value.get("digests")
            wanted = {"track_digest": digests["track"]} if isinstance(digests, Mapping) and "track" in digests else {}
            for thing in (one for inner in value.values() for one in things_in(inner)):
                yield Thing(*thing.key, wanted | dict(thing.facts)) if thing.kind == "video" else thing
    elif isinstance(value, list):
        for inner in value:
            yield from things_in(inner)


def once_each(things: Iterable[Thing]) -> list[Thing]:
    """List things in the order in which they are first named, each once, with all that is said of it."""
    out: dict[Key, Thing] = {}
    for thing in things:
        known = out.get(thing.key)
        out[thing.key] = Thing(*thing.key, {**thing.facts, **known.facts}) if known else thing
    return list(out.values())


def _table_name(ref: Mapping[str, Any]) -> str:
    return f"{Path(ref['uri']).stem}@{ref['version']}"
