"""Which frames make a clip, and which clips make a batch: pure functions of sizes and a random generator.

Shapes: n frames of a part, T frames a clip, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from csip.config import ChunkRule
from csip.errors import TooLittleDataError
from csip.types import IntArray

T = TypeVar("T")


def _chunk_edges(n: int, t: int, chunks: ChunkRule) -> tuple[IntArray, IntArray]:
    """Cut n frames into T chunks: the first position of each, and of the one after it, (T,) each.

    Positions from n on stand for the last frame. Fewer than T frames are taken one a chunk, then the last repeated.
    """
    if n < 1 or t < 1:
        raise ValueError(f"clip sampling: got n={n} frames and T={t}, expected 1 or more of each.")
    at = np.arange(t + 1, dtype=np.int64)
    edges = at * n // t if chunks == "even" and n >= t else at * -(-n // t)
    return edges[:-1], edges[1:]


def restricted_random(n: int, t: int, rng: np.random.Generator, chunks: ChunkRule = "padded") -> IntArray:
    """Training clip: one frame drawn from each of T chunks (method.md section 1). Returns (T,) positions.

    Args:
        n: frames there are.
        t: T, frames a clip.
        rng: the only source of chance.
        chunks: see `csip.config.ChunkRule`.
    """
    begin, end = _chunk_edges(n, t, chunks)
    size = end - begin
    # NumPy draws other numbers for one bound than for one bound each, even where these are all the same.
    drawn = rng.integers(0, size[0], size=t) if chunks == "padded" else rng.integers(0, size)
    return np.asarray(np.minimum(begin + drawn, n - 1), dtype=np.int64)


def restricted_first(n: int, t: int, chunks: ChunkRule = "padded") -> IntArray:
    """Test clip: the first frame of each of T chunks. Returns (T,) positions; arguments as in `restricted_random`."""
    return np.asarray(np.minimum(_chunk_edges(n, t, chunks)[0], n - 1), dtype=np.int64)


def dense_windows(n: int, t: int) -> IntArray:
    """Dense test: windows of T consecutive frames, the last one padded by cycling. Returns (W, T) positions."""
    if n < 1 or t < 1:
        raise ValueError(f"clip sampling: got n={n} frames and T={t}, expected 1 or more of each.")
    return np.stack([start + np.arange(t) % min(t, n - start) for start in range(0, n, t)])


def cut_units(n: int, unit: Literal["tracklet", "chunk", "window"], frames: int, stride: int) -> list[tuple[int, int]]:
    """Cut n frames into the units that training samples (method.md section 4).

    Args:
        n: frames there are.
        unit: "tracklet" keeps them whole; "chunk" (LS-VID) cuts them every `frames`, and the last chunk takes the
            remainder; "window" (iLIDS-VID) takes `frames` consecutive ones every `stride`, and at last those at the
            end. Fewer than `frames` are one unit.
        frames: of a chunk or window.
        stride: from the begin of one window to that of the next.

    Returns:
        For each unit, its first position and the one after its last.
    """
    if min(n, frames, stride) < 1:
        raise ValueError(
            f"training units: got n={n} frames, unit_frames={frames} and unit_stride={stride}, expected 1 or more."
        )
    if unit == "tracklet" or n <= frames:
        return [(0, n)]
    if unit == "chunk":
        begins = range(0, n // frames * frames, frames)
        return list(zip(begins, [*begins[1:], n], strict=True))
    begins = range(0, n - frames + 1, stride)
    tail = [] if begins[-1] + frames == n else [(n - frames, n)]
    return [(begin, begin + frames) for begin in begins] + tail


def share(
    batch: Sequence[T], rank: int, size: int, clips_per_identity: int, *, field: str = "stage2.identities"
) -> list[T]:
    """Give the share of one of `size` processes in a P x K batch: consecutive, and made of whole identities.

    Args:
        batch: P*K items, an identity's K side by side, as `identity_batches` gives them.
        rank: which process, from 0.
        size: how many processes.
        clips_per_identity: K.
        field: names the config field that holds P, in the error.

    Raises:
        ValueError: P is no multiple of `size`, or there is no such process.
    """
    identities = len(batch) // clips_per_identity
    if identities % size or identities * clips_per_identity != len(batch):
        raise ValueError(f"{field}={identities} cannot be shared by {size} processes: expected a multiple of {size}.")
    if not 0 <= rank < size:
        raise ValueError(f"share: got rank {rank} of {size} processes, expected 0 to {size - 1}.")
    own = len(batch) // size
    return list(batch[rank * own : (rank + 1) * own])


def plain_batches(n: int, size: int, rng: np.random.Generator, *, drop_last: bool = False) -> list[IntArray]:
    """Shuffle n items and cut them into batches of `size`; the last may be smaller, or be left out."""
    order = rng.permutation(n)
    batches = [order[i : i + size] for i in range(0, n, size)]
    return [b for b in batches if len(b) == size] if drop_last else batches


def identity_batches(
    label: Sequence[int], identities: int, clips_per_identity: int, rng: np.random.Generator
) -> list[IntArray]:
    """Draw an epoch of P x K batches (method.md section 4).

    Each identity's parts are shuffled and cut into groups of K (an identity with fewer than K gives one group drawn
    with replacement; a remainder under K is dropped). A batch joins the groups of P distinct identities; the epoch
    ends when fewer than P have one left.

    Args:
        label: (n,) the identity of each part.
        identities: P.
        clips_per_identity: K.
        rng: the only source of chance.

    Returns:
        Batches of P*K positions in `label`.

    Raises:
        TooLittleDataError: there are fewer than P identities.
    """
    labels = np.asarray(label)
    groups: dict[int, list[IntArray]] = {}
    for identity in np.unique(labels):
        parts = rng.permutation(np.flatnonzero(labels == identity))
        if len(parts) < clips_per_identity:
            parts = rng.choice(parts, clips_per_identity, replace=True)
        whole = len(parts) // clips_per_identity * clips_per_identity
        groups[int(identity)] = list(parts[:whole].reshape(-1, clips_per_identity))
    if len(groups) < identities:
        raise TooLittleDataError(
            f"A batch joins {identities} people; found {len(groups)} to train on. "
            "Add video, lower split.test_fraction, or lower the stage's `identities`."
        )
    batches = []
    while len(left := [i for i in groups if groups[i]]) >= identities:
        drawn = rng.choice(left, identities, replace=False)
        batches.append(np.concatenate([groups[int(i)].pop() for i in drawn]))
    return batches
