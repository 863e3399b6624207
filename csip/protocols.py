"""Protocols as data: who asks whom, and what counts, on each data set (datasets.md section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SELF_LABELLED: Final = "self-labelled"
WALKERS: Final = "walkers"
MARS: Final = "mars"
LSVID: Final = "lsvid"
ILIDS_TEST_FIRST: Final = "ilids-test-first"
ILIDS_TRAIN_FIRST: Final = "ilids-train-first"
BIWI_S: Final = "biwi-s"
BIWI_W: Final = "biwi-w"
IAS_A: Final = "ias-a"
IAS_B: Final = "ias-b"
LABELLED: Final = "labelled"


@dataclass(frozen=True, slots=True)
class Protocol:
    """What counts in a ranking, as far as the data set decides it.

    Attributes:
        words: who asks whom: a clause that goes into every result.
        exclude_same_camera: gallery items of the query's own person under its own camera do not count.
        query_in_gallery: the queries stand in the gallery too.
        closed_set: the people who are asked for were trained on.
        skeleton_only: skeletons are ranked, there are no pictures.
        splits: how many there are; the literature reports the mean over them.
    """

    words: str
    exclude_same_camera: bool = True
    query_in_gallery: bool = False
    closed_set: bool = False
    skeleton_only: bool = False
    splits: int = 1


PROTOCOLS: Mapping[str, Protocol] = {
    SELF_LABELLED: Protocol(
        "the earliest part of each held-out tracklet looks for the later parts of the same tracklet among those of all "
        "held-out tracklets",
        exclude_same_camera=False,
    ),
    WALKERS: Protocol(
        "of synthetic people, each test person's first pass before each camera looks for that person's later passes "
        "among those of all test people"
    ),
    MARS: Protocol(
        "each query tracklet looks for its person among all test tracklets, distractors included, junk left out",
        query_in_gallery=True,
    ),
    LSVID: Protocol("each query tracklet looks for its person among all test tracklets", query_in_gallery=True),
    ILIDS_TEST_FIRST: Protocol(
        "camera 1 looks for its people under camera 2; the first half of each of the ten random permutations of people "
        "is the test half (as most of the literature has it)",
        splits=10,
    ),
    ILIDS_TRAIN_FIRST: Protocol(
        "camera 1 looks for its people under camera 2; the first half of each of the ten random permutations of people "
        "is the training half (as TF-CLIP and CSIP-ReID have it)",
        splits=10,
    ),
    BIWI_S: Protocol(
        "skeletons of people standing still look for the same people walking; all of them were trained on, in another "
        "session",
        exclude_same_camera=False,
        closed_set=True,
        skeleton_only=True,
    ),
    BIWI_W: Protocol(
        "skeletons of people walking look for the same people standing still; all of them were trained on, in another "
        "session",
        exclude_same_camera=False,
        closed_set=True,
        skeleton_only=True,
    ),
    IAS_A: Protocol(
        "skeletons of set A (other clothes) look for the same people in set B (another room); all of them were trained "
        "on, in another session",
        exclude_same_camera=False,
        closed_set=True,
        skeleton_only=True,
    ),
    IAS_B: Protocol(
        "skeletons of set B (another room) look for the same people in set A (other clothes); all of them were trained "
        "on, in another session",
        exclude_same_camera=False,
        closed_set=True,
        skeleton_only=True,
    ),
    LABELLED: Protocol("each query tracklet looks for its person among the gallery tracklets of one's own data set"),
}
"""Name, as in the table `splits` -> what holds there."""


def is_skeleton_only(protocol: str) -> bool:
    """Tell whether what is ranked under a protocol are skeletons, without pictures."""
    return protocol in PROTOCOLS and PROTOCOLS[protocol].skeleton_only
