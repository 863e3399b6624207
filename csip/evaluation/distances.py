"""Features to distances, a block of queries at a time.

Shapes: Q queries, G gallery items, E feature width, b queries of one block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from csip.types import FloatArray

# All products are of two tiles of these many rows (of a multiple of _STEP, where there are fewer), the last ones filled
# up with zeros: with one shape BLAS takes one path, so that equal features get equal distances wherever they stand.
_QUERIES = 512
_GALLERY = 2048
_STEP = 64
# |a|^2 + |b|^2 - 2ab loses all but the last digits where a and b are almost the same. Below this share of
# |a|^2 + |b|^2 what is left of float64 is less than float32's 24 bits: such pairs are measured again.
_NEAR = 1e-8
# Numbers in one array of pairs that are measured again: 4 MiB, which a core's cache holds.
_PAIRS = 2**19


def distance_blocks(
    query: FloatArray, gallery: FloatArray, *, device: str = "cpu"
) -> Iterator[tuple[slice, FloatArray]]:
    """Measure some queries after the other against every gallery item.

    The device holds two tiles of features and one of distances at a time, never all of either. Sums are in float64:
    in float32 the difference of two almost equal numbers would decide the order of near duplicates.

    Args:
        query: (Q, E), of any length.
        gallery: (G, E), of any length.
        device: where torch multiplies.

    Returns:
        The rows of a block, and its Euclidean distances (b, G) float32; equal features are at exactly 0. The blocks
        come in order and hold every query once.

    Raises:
        ValueError: widths differ, or a feature is not finite.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"distance_blocks: got {query.shape} and {gallery.shape}, expected (Q, E) and (G, E).")
    for name, feature in (("query", query), ("gallery", gallery)):
        for begin in range(0, len(feature), _GALLERY):
            finite = np.isfinite(feature[begin : begin + _GALLERY]).all(axis=1)
            if not finite.all():
                row = begin + int(np.argmin(finite))
                raise ValueError(
                    f"distance_blocks: {name} feature {row} of {len(feature)} has NaN or infinite numbers, expected "
                    "finite ones; look at what the encoder made of it."
                )
    return _blocks(query, gallery, device)


def euclidean_distance(query: FloatArray, gallery: FloatArray, *, device: str = "cpu") -> FloatArray:
    """Give all blocks of `distance_blocks` as one matrix, (Q, G) float32."""
    out = np.empty((len(query), len(gallery)), dtype=np.float32)
    for rows, block in distance_blocks(query, gallery, device=device):
        out[rows] = block
    return out


def _blocks(query: FloatArray, gallery: FloatArray, device: str) -> Iterator[tuple[slice, FloatArray]]:
    centre = _centre(gallery)
    height, width = _tile_size(len(query), _QUERIES), _tile_size(len(gallery), _GALLERY)
    for i in range(0, len(query), height):
        left = _tile(query, i, height, centre, device)
        left_square = torch.einsum("qe,qe->q", left, left)
        block = np.empty((min(height, len(query) - i), len(gallery)), dtype=np.float32)
        for j in range(0, len(gallery), width):
            right = _tile(gallery, j, width, centre, device)
            there = block[:, j : j + width]
            there[:] = _distances(left, left_square, right)[: there.shape[0], : there.shape[1]].cpu().numpy()
        yield slice(i, i + len(block)), block


def _tile_size(rows: int, most: int) -> int:
    return min(most, max(1, -(-rows // _STEP)) * _STEP)


def _centre(feature: FloatArray) -> FloatArray:
    """Give a point (E,) float32 amid the features.

    Distances are the same from any origin, but those of a network that makes all features almost the same would all
    have to be measured again. Of float32, so that float64 has all digits of the difference from a float32 feature.
    """
    return np.asarray(feature.mean(axis=0, dtype=np.float64) if len(feature) else feature.sum(axis=0), dtype=np.float32)


def _tile(feature: FloatArray, begin: int, size: int, centre: FloatArray, device: str) -> Tensor:
    """Bring some rows, less the centre, to the device: (size, E) float64, filled up with zeros."""
    rows = torch.tensor(feature[begin : begin + size])
    tile = torch.zeros((size, feature.shape[1]), dtype=torch.float64, device=device)
    tile[: len(rows)] = rows.to(device)
    tile[: len(rows)] -= torch.tensor(centre, device=device)
    return tile


def _distances(left: Tensor, left_square: Tensor, right: Tensor) -> Tensor:
    """Measure two tiles, (q, E) with its squared lengths (q,) and (g, E): (q, g) float32."""
    lengths = left_square[:, None] + torch.einsum("ge,ge->g", right, right)
    square = torch.addmm(lengths, left, right.T, alpha=-2.0)
    near = torch.nonzero(square < _NEAR * lengths)
    step = max(1, _PAIRS // max(1, left.shape[1]))
    for begin in range(0, len(near), step):
        i, j = near[begin : begin + step].T
        square[i, j] = left[i].sub_(right[j]).square_().sum(dim=1)
    return square.clamp_(min=0).sqrt_().float()
