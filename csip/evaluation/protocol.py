"""The protocol of unlabelled video: every tracklet is a provisional identity, and its parts are to find each other.

Shapes: T frames of a tracklet.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from csip.config import EvaluateConfig, SplitConfig
from csip.errors import TooLittleDataError
from csip.protocols import PROTOCOLS, SELF_LABELLED, Protocol
from csip.types import IntArray, TrackletPart

Role = Literal["train", "query", "gallery"]
LABEL: Final = "self-labelled, same camera"
CAVEAT: Final = (
    "Nobody labelled these people: each tracklet counts as one person, so a person whose track broke counts as two, "
    "and finding the other half is scored as a mistake. "
    "These figures compare encoders on this video; they are never comparable with a benchmark."
)
TOO_SHORT: Final = "tracklets too short for two parts"
BETWEEN: Final = "frames between parts"

# Containers store rounded times; without it a gap of exactly the length asked for would depend on the rounding.
_TIME_ERROR = 1e-6


@dataclass(frozen=True, slots=True)
class SelfLabelledSplit:
    """Who is trained on, who is looked for, and where.

    Attributes:
        rows: the parts and their roles, by pid and time.
        num_train_people: provisional identities of role train.
        num_test_people: provisional identities of roles query and gallery.
        left_out: reason -> how many of what it names found no place.
    """

    rows: tuple[tuple[TrackletPart, Role], ...]
    num_train_people: int
    num_test_people: int
    left_out: Mapping[str, int]


def cut_parts(
    frame_index: IntArray,
    time: npt.NDArray[np.float64],
    *,
    min_part_frames: int,
    max_parts: int,
    gap_seconds: float,
) -> list[tuple[int, int]]:
    """Cut one tracklet into as many parts as fit, as long as they can be.

    The parts' lengths in frames differ by at most one, the longer ones come first. Frames in the gaps and what is left
    at the end belong to no part.

    Args:
        frame_index: (T,) strictly increasing.
        time: (T,) seconds, never decreasing.
        min_part_frames: frames a part has at least.
        max_parts: most parts.
        gap_seconds: least time from the last frame of a part to the first of the next.

    Returns:
        The (first, last) frame_index of each part, inclusive, in order; empty where fewer than two parts fit.

    Raises:
        ValueError: the arrays do not fit each other or are not in order.
    """
    if frame_index.ndim != 1 or time.shape != frame_index.shape:
        raise ValueError(f"cut_parts: got frame_index {frame_index.shape} and time {time.shape}, expected (T,) each.")
    if not (np.diff(frame_index) > 0).all():
        raise ValueError("cut_parts: frame_index must increase strictly.")
    if not np.isfinite(time).all() or not (np.diff(time) >= 0).all():
        raise ValueError("cut_parts: time must be finite and never decrease; the container's clock jumped back.")

    def place(lengths: Sequence[int]) -> list[tuple[int, int]]:
        return _place(time, lengths, gap_seconds)

    shortest = place([min_part_frames] * min(max_parts, len(time) // min_part_frames))
    count = len(shortest)
    if count < 2:
        return []
    # Longer parts end later, so whatever length does not fit, no greater one does: bisect for the first that fails.
    lengths = range(min_part_frames, len(time) // count + 2)
    length = lengths[bisect.bisect_left(lengths, True, key=lambda n: len(place([n] * count)) < count)] - 1
    extra = bisect.bisect_left(
        range(1, count), True, key=lambda r: len(place([length + 1] * r + [length] * (count - r))) < count
    )
    parts = place([length + 1] * extra + [length] * (count - extra))
    return [(int(frame_index[first]), int(frame_index[last])) for first, last in parts]


def _place(time: npt.NDArray[np.float64], lengths: Sequence[int], gap_seconds: float) -> list[tuple[int, int]]:
    """Lay parts of these lengths one after the other, each as early as it can start; as many as there is room for.

    Returns:
        (first, last) positions in `time`, inclusive.
    """
    parts: list[tuple[int, int]] = []
    start = 0
    for length in lengths:
        last = start + length - 1
        if last >= len(time):
            break
        parts.append((start, last))
        start = max(last + 1, int(np.searchsorted(time, time[last] + gap_seconds - _TIME_ERROR)))
    return parts


def self_labelled_split(
    tracklets: Sequence[tuple[str, IntArray, npt.NDArray[np.float64], int]], config: SplitConfig
) -> SelfLabelledSplit:
    """Number the tracklets as people and deal their parts out to training, query and gallery.

    Args:
        tracklets: (tracklet_id, frame_index (T,), time (T,) in seconds, camid) each, in any order: the result does not
            depend on it.
        config: lengths, gaps, the share of test people and the seed of their draw.

    Returns:
        A test person's first part is a query and its later parts stand in the gallery; a training person's parts are
        all of role train.

    Raises:
        ValueError: a tracklet_id comes twice, or a tracklet is not in order.
        TooLittleDataError: fewer than two people to train on or two to test on.
    """
    ordered = sorted(tracklets, key=lambda tracklet: tracklet[0])
    for before, after in itertools.pairwise(ordered):
        if before[0] == after[0]:
            raise ValueError(f"self_labelled_split: tracklet_id {after[0]} comes twice, expected each once.")
    cuts = [
        cut_parts(
            frame_index,
            time,
            min_part_frames=config.min_part_frames,
            max_parts=config.max_parts,
            gap_seconds=config.gap_seconds,
        )
        for _, frame_index, time, _ in ordered
    ]
    usable = [(tracklet, parts) for tracklet, parts in zip(ordered, cuts, strict=True) if parts]
    num_test = math.floor(config.test_fraction * len(usable) + 0.5)
    _check_enough(len(ordered), len(usable), num_test, config)
    test = set(np.random.default_rng(config.seed).permutation(len(usable))[:num_test].tolist())
    rows: list[tuple[TrackletPart, Role]] = []
    between = 0
    for pid, ((tracklet_id, frame_index, _, camid), parts) in enumerate(usable):
        between += len(frame_index)
        for number, (first, last) in enumerate(parts):
            role: Role = "train" if pid not in test else "query" if number == 0 else "gallery"
            rows.append((TrackletPart(tracklet_id, first, last, pid, camid), role))
            between -= int(np.count_nonzero((frame_index >= first) & (frame_index <= last)))
    return SelfLabelledSplit(
        rows=tuple(rows),
        num_train_people=len(usable) - num_test,
        num_test_people=num_test,
        left_out={TOO_SHORT: len(ordered) - len(usable), BETWEEN: between},
    )


def _check_enough(num_tracklets: int, num_usable: int, num_test: int, config: SplitConfig) -> None:
    if num_test >= 2 and num_usable - num_test >= 2:
        return
    cure = (
        "Use a longer video, or lower split.min_part_frames or split.gap_seconds"
        if num_usable < 4
        else "Bring split.test_fraction nearer to one half, or use a longer video"
    )
    raise TooLittleDataError(
        f"Found {num_tracklets} tracklets, {num_usable} of them long enough for two parts of {config.min_part_frames} "
        f"frames with {config.gap_seconds} s between them: {num_usable - num_test} people to train on and {num_test} "
        f"to test on (test_fraction {config.test_fraction}), expected at least two of each. {cure}."
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts in a ranking.

    Attributes:
        exclude_same_camera: gallery items of the query's own person under its own camera do not count.
        query_in_gallery: the queries stand in the gallery too.
    """

    exclude_same_camera: bool
    query_in_gallery: bool


def rules(config: EvaluateConfig, protocol: str) -> Rules:
    """Settle what the configuration leaves to the protocol."""
    known = PROTOCOLS.get(protocol, _PLAIN)
    same, inside = config.exclude_same_camera, config.query_in_gallery
    return Rules(
        exclude_same_camera=known.exclude_same_camera if same is None else same,
        query_in_gallery=known.query_in_gallery if inside is None else inside,
    )


def label(protocol: str, split: str = "") -> str:
    """Name a protocol in the few words that `describe` begins with, and which of several splits where one is given."""
    several = split and PROTOCOLS.get(protocol, _PLAIN).splits > 1
    return LABEL if protocol == SELF_LABELLED else f"{protocol}, split {split}" if several else protocol


def describe(
    rules: Rules, protocol: str, *, split: str = "0", ranked: str = "whole tracklets", rerank: str = ""
) -> str:
    """Say in words how the scores came about; every result and report carries it.

    Args:
        rules: what counts.
        protocol: a name in `csip.protocols.PROTOCOLS`, or another, of which nothing more is said.
        split: which of its splits.
        ranked: what one item of the ranking is, as `EmbeddingsRef.words` has it.
        rerank: how distances were re-ranked; empty where they were not.
    """
    known = PROTOCOLS.get(protocol, _PLAIN)
    same_camera = (
        "gallery items of the query's own person under its own camera do not count"
        if rules.exclude_same_camera
        else "matches under the query's own camera count, only the query's own part is left out"
    )
    clauses = [
        *([known.words] if known.words else []),
        same_camera,
        "the queries stand in the gallery too" if rules.query_in_gallery else "the gallery holds no queries",
        f"ranked: {ranked}",
        *([f"re-ranked ({rerank})"] if rerank else []),
    ]
    text = f"{label(protocol)}: {'; '.join(clauses)}.{alone(protocol, split)}"
    official = Rules(known.exclude_same_camera, known.query_in_gallery)
    if protocol in PROTOCOLS and rules != official:
        text += " This is not the protocol's own rule; compare only with figures that were made in the same way."
    return f"{text} {CAVEAT}" if protocol == SELF_LABELLED else text


def count_valid(figures: Mapping[str, float]) -> str:
    """Write how many of the queries are valid, from figures by the names of table `results`."""
    return f"{figures['num_valid_queries']:.0f} of {figures['num_queries']:.0f}"


def valid_words(count: str) -> str:
    """Say it, a sentence with a space before it; `count` as `count_valid` writes it, or several of them."""
    return f" {count} queries are valid."


def alone(protocol: str, split: str) -> str:
    """Say that a result is of one split of several, a sentence with a space before it; else nothing."""
    splits = PROTOCOLS.get(protocol, _PLAIN).splits
    return f" Split {split} alone; the literature reports the mean of {splits} splits." if splits > 1 else ""


_PLAIN = Protocol(words="")
