"""Runs without what is personal in them: tracklets, paths and cameras of forgotten videos, files that are gone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from csip.maintenance.forget_plan import Plan
from csip.maintenance.forget_traces import FORGOTTEN, forgotten, video_paths
from csip.references import FILE, TABLE
from csip.tables import RunRecord

_WORD = re.compile(r"[\w-]+")
_BEFORE, _BEHIND = r"(?<![\w.~-])", r"(?![\w/-]|\.\w)"
"""What neither stands before a path nor behind it, else it were part of a longer one."""


class Scrub:
    """Copies runs without what a plan says must go.

    A path is compared as a whole: another video may have a file of the same name in another folder. What somebody typed
    from some folder is no whole path; it is looked for where files were typed or told of.
    """

    def __init__(self, plan: Plan, versions: Mapping[str, int]) -> None:
        """Prepare for a plan.

        Args:
            plan: the plan.
            versions: table -> the version that is left of it, for runs to name.
        """
        self._plan, self._versions = plan, versions
        self._names, self._files = frozenset(plan.tracklets), frozenset(plan.files)
        names = _any_of({PurePosixPath(path).name for path in plan.paths})
        self._whole = re.compile(f"{_BEFORE}{_any_of(plan.paths)}{_BEHIND}")
        self._typed = re.compile(rf"{_BEFORE}(?:[^\s:'\"/]+/)*{names}{_BEHIND}")

    def __call__(self, run: RunRecord) -> RunRecord:
        """Copy a run, with the plan's counts where it has some."""
        paths = video_paths([run.inputs, run.outputs])
        config, counts = self._copy(run.config), self._copy(self._plan.runs.get(run.run_id, run.counts))
        if isinstance(config, dict) and isinstance(config.get("sources"), list) and set(paths) & set(self._plan.videos):
            others = [path for sha, some in paths.items() if sha not in self._plan.videos for path in some]
            config["sources"] = [self._source(one, others) for one in config["sources"]]
        if self._plan.paths and isinstance(counts, dict):
            told = {name: text for name, text in counts.items() if isinstance(text, str)}
            counts |= {name: self._typed.sub(self._unless_another, text) for name, text in told.items()}
        inputs, outputs = self._copy(run.inputs), self._copy(run.outputs)
        return replace(run, inputs=inputs, outputs=outputs, config=config, counts=counts)

    def _copy(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._copy(one) for one in value]
        if isinstance(value, str):
            return self._text(value)
        if not isinstance(value, Mapping):
            return value
        if set(value) == TABLE and Path(value["uri"]).stem in self._versions:
            return {"uri": value["uri"], "version": self._versions[Path(value["uri"]).stem]}
        if set(value) == FILE and "/".join(Path(value["path"]).parts[-2:]) in self._files:
            return {FORGOTTEN: value["sha256"]}
        kept: dict[str, Any] = {}
        if "video_sha" in value:  # its path and camera are its own, whoever else was there before
            own = {name: value[name] for name in ("path", "camera") if name in value}
            kept = dict.fromkeys(own, "") if value["video_sha"] in self._plan.videos else own
        return {self._text(key): self._copy(one) for key, one in value.items()} | kept

    def _text(self, text: str) -> str:
        if text in self._names:
            return ""
        if self._plan.paths:
            text = self._whole.sub("", text)
        return _WORD.sub(lambda word: "" if word[0] in self._names else word[0], text) if self._names else text

    def _source(self, typed: str, others: Iterable[str]) -> str:
        """Blank a source that names a forgotten video; through a link it may do so by the file's name alone."""
        if _names_one(typed, self._plan.paths):
            return ""
        same = PurePosixPath(typed).name in {PurePosixPath(path).name for path in self._plan.paths}
        return "" if same and not _names_one(typed, others) else typed

    def _unless_another(self, found: re.Match[str]) -> str:
        return "" if _names_one(found[0], self._plan.paths) else found[0]


def without_forgotten(store: str, run: RunRecord) -> RunRecord:
    """Copy a run that is to be recorded without the paths and cameras of videos that were forgotten in the meantime.

    What it was given was settled before: a build under way has its list of videos.
    """
    named = video_paths([run.inputs, run.outputs])
    gone = tuple(sorted(forgotten(store) & set(named)))
    paths = tuple(sorted({path for sha in gone for path in named[sha]} - {""}))
    return Scrub(Plan(kind="video", shas=(), videos=gone, paths=paths), {})(run) if gone else run


def _any_of(texts: Iterable[str]) -> str:
    return f"(?:{'|'.join(re.escape(text) for text in sorted(texts, key=len, reverse=True))})"


def _names_one(typed: str, paths: Iterable[str]) -> bool:
    """Tell whether what was typed in some folder could be one of some paths: wedding.mp4, ../films/wedding.mp4."""
    way = PurePosixPath(os.path.normpath(typed))
    parts = tuple(part for part in way.parts if part not in ("..", "~"))
    if way.is_absolute() or not parts:
        return str(way) in paths
    return any(PurePosixPath(path).parts[-len(parts) :] == parts for path in paths)
