"""Who is who in a data set of one's own: the labels of its tracklets, and what must hold among all of them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Protocol

from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.records import BenchmarkTracklet, Role

JUNK: Final = -1
"""pid of boxes that show nobody: left out, and counted."""

DISTRACTOR: Final = 0
"""pid of people nobody asks for: in the gallery only."""

ROLES: Final[Mapping[str, Role]] = {"train": "train", "query": "query", "gallery": "gallery"}
"""Name of a split -> what its tracklets are for."""

# Eighteen digits fit int64.
_PID = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Labels:
    """What the source says of a tracklet.

    Attributes:
        role: train, query or gallery.
        pid: the person; 0 is a distractor.
        camera: the camera's name.
        tracklet: its name, unique among those of the same role, person and camera.
        where: it stands in the source, for messages.
    """

    role: Role
    pid: int
    camera: str
    tracklet: str
    where: str


class Listing(Protocol):
    """A source's tracklets, checked one by one.

    Attributes:
        labels: of each tracklet, in the order in which those of a role are numbered.
        lengths: frames of each.
        digest: of all that decides their rows, apart from what makes the skeletons.
        counts: what was found and left out besides.
    """

    @property
    def labels(self) -> Sequence[Labels]:
        """Of each tracklet, in order."""

    @property
    def lengths(self) -> Sequence[int]:
        """Frames of each tracklet."""

    @property
    def digest(self) -> str:
        """Digest of what decides the rows."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What was found and left out."""

    def load(self, number: int, tracklet_id: str, camid: int) -> BenchmarkTracklet:
        """Load a tracklet by its position in `labels`."""


def parse_pid(text: str) -> int | None:
    """Read a person's number, leading zeros or not; None where it is none. Only junk is below 0."""
    pid = int(text) if _PID.fullmatch(text) else JUNK - 1
    return pid if pid >= JUNK else None


def make_labels(split: str, pid: int, camera: str, tracklet: str, where: str, findings: Findings) -> Labels | None:
    """Check what the source says of a tracklet that is no junk; None where no tracklet can be made of it."""
    role = ROLES.get(split)
    if role is None:
        findings.add("splits of an unknown name", f"{where}: found {split!r}, expected {', '.join(ROLES)}")
        return None
    if pid == DISTRACTOR and role != "gallery":
        findings.add("distractors outside of the gallery", f"{where}: found pid 0 in {role}, expected 1 or more")
    if not camera or not _is_text(camera):
        findings.add("cameras without a name", f"{where}: found {camera!r}, expected a name or a number")
    return Labels(role, pid, camera, tracklet, where)


def _is_text(name: str) -> bool:
    """Tell whether a name is UTF-8, as tables need it; file names may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def below(path: str, where: str, findings: Findings) -> str | None:
    """Give a relative path in its plain form; None, and a finding, where it leaves the folder it is relative to."""
    plain = PurePosixPath(path)
    if not path or plain.is_absolute() or ".." in plain.parts or "\0" in path:
        wanted = "a path with forward slashes, relative to this file's folder and inside it"
        findings.add("paths that leave the folder", f"{where}: found {path!r}, expected {wanted}")
        return None
    return plain.as_posix()


def natural(name: str) -> tuple[tuple[int, ...], str]:
    """Give the key that sorts names by the numbers in them, then as they are: f2 before f10."""
    return tuple(int(number) for number in _NUMBER.findall(name)), name


def number_cameras(names: Iterable[str]) -> dict[str, int]:
    """Number cameras from 0 in the order of their names; in that of their numbers where all names are numbers."""
    cameras = sorted(set(names))
    if all(_NUMBER.fullmatch(name) for name in cameras):
        cameras.sort(key=int)
    return {name: camid for camid, name in enumerate(cameras)}


def check_people(labels: Sequence[Labels], findings: Findings) -> None:
    """Check what must hold among all tracklets, so that people can be asked for who were not trained on."""
    first: dict[tuple[Role, int, str, str], Labels] = {}
    for one in labels:
        other = first.setdefault((one.role, one.pid, one.camera, one.tracklet), one)
        if other is not one:
            found = f"found again what {other.where} has: pid {one.pid}, camera {one.camera}, {one.tracklet!r}"
            findings.add("tracklets that stand there twice", f"{one.where}: {found}")
    for before, after in itertools.pairwise(number_cameras(one.camera for one in labels)):
        if _NUMBER.fullmatch(before) and _NUMBER.fullmatch(after) and int(before) == int(after):
            told = f"found {before!r} and {after!r}, expected one spelling of one camera"
            findings.add("cameras of the same number", told)
    of_role = {role: {one.pid: one.where for one in reversed(labels) if one.role == role} for role in ROLES.values()}
    for role in ("query", "gallery"):
        if not of_role[role]:
            wanted = "query tracklets to ask with and gallery tracklets that answer"
            findings.add("splits without a tracklet", f"{role}: found none, expected {wanted}")
        for pid in sorted(of_role["train"].keys() & of_role[role].keys() - {DISTRACTOR}):
            found = f"found at {of_role['train'][pid]} and at {of_role[role][pid]}"
            findings.add(f"people in both train and {role}", f"pid {pid}: {found}, expected in one of them")
    asked = sum(one.role == "query" for one in labels)
    if asked and of_role["gallery"] and len(unmatched(labels)) == asked:
        found = f"found none among {asked}, expected queries whose person is in the gallery under another camera"
        findings.add("query splits in which no query can match", found)


def unmatched(labels: Sequence[Labels]) -> list[Labels]:
    """List the queries whose person no other camera has in the gallery: they count in no score."""
    cameras: dict[int, set[str]] = {}
    for one in labels:
        if one.role == "gallery":
            cameras.setdefault(one.pid, set()).add(one.camera)
    return [one for one in labels if one.role == "query" and not cameras.get(one.pid, set()) - {one.camera}]


def count_people(labels: Sequence[Labels], lengths: Sequence[int]) -> dict[str, int]:
    """Count people, tracklets and pictures by what they are for."""
    tracklets: Counter[str] = Counter(one.role for one in labels)
    frames: Counter[str] = Counter()
    for one, length in zip(labels, lengths, strict=True):
        frames[one.role] += length
    return {
        "training people": len({one.pid for one in labels if one.role == "train"}),
        "training tracklets": tracklets["train"],
        "training pictures": frames["train"],
        "query people": len({one.pid for one in labels if one.role == "query"}),
        "query tracklets": tracklets["query"],
        "queries that cannot match": len(unmatched(labels)),
        "gallery tracklets": tracklets["gallery"],
        "distractor tracklets among them": sum(one.role == "gallery" and one.pid == DISTRACTOR for one in labels),
        "test pictures": frames["query"] + frames["gallery"],
    }
