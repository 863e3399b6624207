"""Stage `retrieve`: does a skeleton find the pictures of its person, among people nobody was trained on?

Shapes: Q skeleton clips, G picture clips, N people, C shared width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from csip import tables
from csip.config import RuntimeConfig
from csip.data import sampling
from csip.data.clips import ClipDataset, ClipRequest, read_parts, read_protocol
from csip.device import resolve_device
from csip.errors import TooLittleDataError
from csip.models.checkpoints import load_checkpoint
from csip.models.reid import CsipReID
from csip.types import (
    CheckpointRef,
    FloatArray,
    IntArray,
    Outcome,
    Output,
    Progress,
    ResultsRef,
    Snapshot,
    Stage,
    TrackletPart,
)

DESCRIBED = (
    "skeletons of the query parts against pictures of the gallery parts, all of people held out from training, by the "
    "inner product that stage 1 trains; clip: a picture clip of the same person comes first; person: the same with "
    "each person's features averaged; chance: a random order; shuffled: each skeleton replaced by another person's"
)
_SHUFFLE_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """Skeleton features that look for picture features.

    Attributes:
        skeleton: (Q, C) float32.
        skeleton_pid: (Q,).
        picture: (G, C) float32.
        picture_pid: (G,).
    """

    skeleton: FloatArray
    skeleton_pid: IntArray
    picture: FloatArray
    picture_pid: IntArray


def first_is_right(crossing: Crossing) -> float:
    """Share of skeletons whose nearest picture is of their own person; of equals the first counts."""
    products = crossing.skeleton.astype(np.float64) @ crossing.picture.astype(np.float64).T
    found = crossing.picture_pid[products.argmax(axis=1)]
    return float(np.mean(found == crossing.skeleton_pid))


def chance(crossing: Crossing) -> float:
    """What `first_is_right` is on average when pictures come in a random order."""
    return float(np.mean(crossing.skeleton_pid[:, None] == crossing.picture_pid[None, :]))


def by_person(crossing: Crossing) -> Crossing:
    """Average the features of each person, on both sides."""

    def average(feature: FloatArray, pid: IntArray) -> tuple[FloatArray, IntArray]:
        people = np.unique(pid)
        means = np.stack([feature[pid == one].mean(axis=0, dtype=np.float64) for one in people])
        return means.astype(np.float32), people

    skeleton, skeleton_pid = average(crossing.skeleton, crossing.skeleton_pid)
    picture, picture_pid = average(crossing.picture, crossing.picture_pid)
    return Crossing(skeleton, skeleton_pid, picture, picture_pid)


def shuffled(crossing: Crossing, seed: int) -> Crossing:
    """Give every skeleton to another person: people are dealt the next one's skeletons in a drawn order."""
    people = np.random.default_rng(seed).permutation(np.unique(crossing.skeleton_pid))
    heir = dict(zip(people.tolist(), np.roll(people, 1).tolist(), strict=True))
    pid = np.array([heir[one] for one in crossing.skeleton_pid.tolist()], dtype=np.int64)
    return Crossing(crossing.skeleton, pid, crossing.picture, crossing.picture_pid)


def figures(crossing: Crossing) -> dict[str, float]:
    """Score clips and people, each beside its chance and with the skeletons shuffled."""
    out = {}
    for unit, one in (("clip", crossing), ("person", by_person(crossing))):
        out[f"{unit} rank-1"] = first_is_right(one)
        out[f"{unit} chance"] = chance(one)
        out[f"{unit} shuffled"] = first_is_right(shuffled(one, _SHUFFLE_SEED))
    return out


def retrieve(out: Output, checkpoint: CheckpointRef, snapshot: Snapshot, runtime: RuntimeConfig) -> Stage[ResultsRef]:
    """Encode the test people's skeletons and pictures with a checkpoint, and let the one look for the other.

    Query parts without any valid skeleton are left out and counted.

    Raises:
        TooLittleDataError: fewer than two people have both.
    """
    network, header = load_checkpoint(checkpoint)
    device = resolve_device(runtime.device)
    network.to(device).eval()
    query, gallery = (
        ClipDataset(snapshot, read_parts(snapshot, "query"), header.spec.clip),
        ClipDataset(snapshot, read_parts(snapshot, "gallery"), header.spec.clip),
    )
    total = len(query) + len(gallery)
    yield Progress("retrieve", 0, total, "parts")
    skeleton, seen = _encode_skeletons(network, query, device)
    yield Progress("retrieve", len(query), total, "parts")
    pictures = []
    step = max(1, runtime.encode_batch // header.spec.clip.frames)
    for begin in range(0, len(gallery), step):
        pictures.append(_encode_pictures(network, gallery, range(begin, min(begin + step, len(gallery))), device))
        yield Progress("retrieve", len(query) + min(begin + step, len(gallery)), total, "parts")
    crossing = Crossing(skeleton[seen], _pids(query.parts)[seen], np.concatenate(pictures), _pids(gallery.parts))
    if len(set(crossing.skeleton_pid.tolist()) & set(crossing.picture_pid.tolist())) < 2:
        raise TooLittleDataError(
            f"Snapshot {snapshot.name}: found {len(set(crossing.skeleton_pid.tolist()))} test people with a valid "
            f"skeleton and {len(set(crossing.picture_pid.tolist()))} with pictures, expected at least two with both."
        )
    protocol, split = read_protocol(snapshot)
    told = figures(crossing)
    rows = [
        {
            "run_id": out.run_id,
            "protocol": protocol,
            "split": split,
            "encoder": header.stage,
            "name": name,
            "value": value,
            "described": DESCRIBED,
            "encoder_digest": "",
            "checkpoint_sha": checkpoint.sha256,
        }
        for name, value in told.items()
    ]
    table = tables.upsert(out.store, "results", tables.from_rows("results", rows))
    counts = {"skeleton_clips": int(seen.sum()), "without_skeleton": int((~seen).sum()), "picture_clips": len(gallery)}
    return Outcome(ResultsRef(table, out.run_id), counts | {name: round(value, 6) for name, value in told.items()})


def _pids(parts: tuple[TrackletPart, ...]) -> IntArray:
    return np.array([part.pid for part in parts], dtype=np.int64)


def _test_clip(dataset: ClipDataset, part: int) -> IntArray:
    return sampling.restricted_first(len(dataset.frames[part].row), dataset.clip.frames, dataset.clip.chunks)


@torch.inference_mode()
def _encode_skeletons(network: CsipReID, dataset: ClipDataset, device: str) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Encode the test clip of every part: s_bar (Q, C), and (Q,) whether it has any valid skeleton."""
    at = [_test_clip(dataset, part) for part in range(len(dataset))]
    skeleton = np.stack([frames.skeleton[i] for frames, i in zip(dataset.frames, at, strict=True)])
    mask = np.stack([frames.frame_mask[i] for frames, i in zip(dataset.frames, at, strict=True)])
    s_bar = network.skeleton_encoder(torch.from_numpy(skeleton).to(device), torch.from_numpy(mask).to(device))[1]
    return s_bar.float().cpu().numpy(), np.asarray(mask.any(axis=1))


@torch.inference_mode()
def _encode_pictures(network: CsipReID, dataset: ClipDataset, parts: range, device: str) -> FloatArray:
    """Encode the test clips of some parts as stage 1 sees them, without cameras: v_bar (n, C)."""
    frames = dataset.clip.frames
    requests = [ClipRequest(part, tuple(_test_clip(dataset, part).tolist()), False, 0) for part in parts]
    crops = dataset.make_batch(requests).crops.to(device)
    projected = network.frame_features(crops.flatten(0, 1))  # (n T, C)
    v_bar: FloatArray = projected.reshape(len(parts), frames, -1).mean(dim=1).float().cpu().numpy()
    return v_bar
