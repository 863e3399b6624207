"""Which frames make a clip, and which clips make a batch: pure functions of sizes and a random generator.

Shapes: n frames of a part, T frames a clip, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from csip.errors import TooLittleDataError
from csip.types import IntArray


def _chunks(n: int, t: int) -> IntArray:
    """Cut n frames into T equal chunks: (T, ceil(n / T)) positions, the tail padded with the last frame.

    Fewer than T frames are taken one a chunk, then the last repeated.
    """
    if n < 1 or t < 1:
        raise ValueError(f"clip sampling: got n={n} frames and T={t}, expected 1 or more of each.")
    size = -(-n // t)
    return np.minimum(np.arange(t * size), n - 1).reshape(t, size)


def restricted_random(n: int, t: int, rng: np.random.Generator) -> IntArray:
    """Training clip: one frame drawn from each of T equal chunks (method.md section 1). Returns (T,) positions."""
    chunks = _chunks(n, t)
    return chunks[np.arange(t), rng.integers(0, chunks.shape[1], size=t)]


def restricted_first(n: int, t: int) -> IntArray:
    """Test clip: the first frame of each of T equal chunks. Returns (T,) positions."""
    return _chunks(n, t)[:, 0]


def dense_windows(n: int, t: int) -> IntArray:
    """Dense test: windows of T consecutive frames, the last one padded by cycling. Returns (W, T) positions."""
    if n < 1 or t < 1:
        raise ValueError(f"clip sampling: got n={n} frames and T={t}, expected 1 or more of each.")
    return np.stack([start + np.arange(t) % min(t, n - start) for start in range(0, n, t)])


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
