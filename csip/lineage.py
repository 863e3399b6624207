"""Where a result came from: the source that made it, and the chain of runs back to the videos."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csip import tables
from csip.errors import StoreError
from csip.files import digest_file
from csip.tables import RunRecord

_OURS = ("csip", "storage_schemas")
TABLE = frozenset({"uri", "version"})
"""The keys of a reference to a table, in a run's inputs and outputs."""
FILE = frozenset({"path", "sha256"})
"""The keys of a reference to a file."""
_NOT_SOURCE = ("csip.config",)  # its values arrive as inputs


def source_digest(module: str) -> str:
    """Digest the source that a module reaches by import inside this repository.

    Comments, docstrings and layout do not count; `csip.config` does not either, since its values are inputs of every
    stage. A change anywhere else that the module can reach gives another digest.
    """
    seen: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in seen and name not in _NOT_SOURCE:
            code, imports = _parse_module(name)
            seen[name] = code
            todo.extend(imports)
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()


@functools.cache
def _parse_module(name: str) -> tuple[str, tuple[str, ...]]:
    """Give the digest of a module's code, and the modules of ours that it imports."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"source_digest: found no source of module {name!r}.")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    imports = tuple(sorted(set(_imports(tree))))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [n for n in node.body if not _is_text(n)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.partition(".")[0] in _OURS and _is_module(name):
                yield name


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def git_commit() -> str:
    """Name the commit of the checkout this code runs from, '+' behind it when files were changed; else empty."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--error-unmatch", __file__):
        return ""  # installed somewhere that happens to lie inside another project's checkout, or nowhere near one
    commit = git("rev-parse", "HEAD")
    return (
        f"{commit}+"
        if commit
        and git(
            "status", "--porcelain", "--", *(str(here.parent / name) for name in ("csip", "flows", "storage_schemas"))
        )
        else (commit or "")
    )


@dataclass(frozen=True, slots=True)
class Node:
    """A thing and what it was made from.

    Attributes:
        kind: "results", "embeddings", "checkpoint", "table", "snapshot", "video" or "file".
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
        """Resolve what a user typed: a run id, snapshot, tracklet, or (the start of) a checkpoint's or video's SHA-256.

        A path names the file with that content; "mAP" style names are found through their run id.

        Raises:
            StoreError: nothing, or more than one thing, goes by that name.
        """
        return self._walk(self._resolve(ref), None, frozenset())

    def _resolve(self, ref: str) -> _Thing:
        if Path(ref).is_file():
            ref = digest_file(Path(ref))
        known = {(t.kind, t.name): t for run in self.runs for t in (*_things(run.outputs), *_things(run.inputs))}
        by_run = [t for run in self.runs if run.run_id == ref for t in _things(run.outputs)]
        exact = [t for t in known.values() if t.name == ref] or by_run[:1]
        found = exact or [t for t in known.values() if len(ref) >= 6 and t.name.startswith(ref)]
        if not found:
            owner = tables.read(
                tables.current(self.store, "tracklets"), ["video_sha"], f"tracklet_id = {tables.quote(ref)}"
            )
            found = [known[("video", sha)] for sha in owner["video_sha"].to_pylist() if ("video", sha) in known]
            if not found and len(owner):
                found = self._snapshots_with(ref, known.values())
        if len(found) != 1:
            names = ", ".join(sorted(f"{t.kind} {t.name[:16]}" for t in found)) or "nothing"
            raise StoreError(
                f"Store {self.store}: {ref!r} names {names}; expected one snapshot, run, tracklet, checkpoint "
                "(path or SHA-256), embeddings digest or table@version. `csip train-csip` prints them at its end."
            )
        return found[0]

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
