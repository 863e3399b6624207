"""A snapshot under examination: its pinned versions, what was read of them, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from csip.maintenance import keys
from csip.maintenance.findings import Finding, Kind
from csip.tables import RunRecord
from csip.types import IntArray, TableRef


@dataclass(slots=True)
class Look:
    """One snapshot under examination; T tracklets, N crops, M skeletons.

    Attributes:
        store: the store's folder.
        row: of `snapshots`, decoded.
        runs: all of the store's.
        deep: look into the crops, too.
        files: as for `tables.damaged_files`.
        found: so far.
        refs: the pinned versions that could be opened.
        damaged: tables whose pinned version lacks files, so that it is not read.
        numbers: of tracklet_id; the first T are those of `tracklets`.
        tracklets: T rows, in the order of their numbers.
        crops: (N,) keys of tracklet and frame, sorted.
        poses: (M,) the same of `skeletons`.
        videos: SHA-256 of those in `videos`.
    """

    store: str
    row: Mapping[str, Any]
    runs: Sequence[RunRecord]
    deep: bool
    files: dict[str, str]
    found: list[Finding] = field(default_factory=list)
    refs: dict[str, TableRef] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    numbers: keys.Numbers = field(default_factory=keys.Numbers)
    tracklets: pa.Table = None
    crops: keys.UIntArray = field(default_factory=lambda: keys.join([]))
    poses: keys.UIntArray = field(default_factory=lambda: keys.join([]))
    videos: set[str] = field(default_factory=set)

    def say(self, where: str, text: str, kind: Kind = "fault") -> None:
        """Note what was found."""
        self.found.append(Finding(kind, self.row["name"], where, text))

    def say_some(self, where: str, names: Sequence[str], text: str) -> None:
        """Note a fault of some rows, if there are any."""
        if names:
            self.say(where, f"{len(names)} {text}: {keys.shorten(names)}.")

    def name(self, number: int) -> str:
        """Name a tracklet."""
        return self.numbers.names[number][0]

    def names(self, which: npt.NDArray[Any]) -> list[str]:
        """Name the tracklets for which a mask (T,) is set."""
        return [self.name(number) for number in np.flatnonzero(which).tolist()]

    def column(self, name: str) -> IntArray:
        """Give a column of whole numbers of the tracklets: (T,)."""
        return np.asarray(self.tracklets[name], np.int64)

    def texts(self, name: str) -> list[str]:
        """Give a column of strings of the tracklets."""
        return list(self.tracklets[name].to_pylist())

    def frames_of(self, some: keys.UIntArray) -> list[str]:
        """Name frames by their keys."""
        number, frame = keys.split_frames(some)
        return [f"{self.name(n)} frame {f}" for n, f in zip(number.tolist(), frame.tolist(), strict=True)]
