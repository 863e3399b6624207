"""How far a score may lie from what other queries of the same kind would have given.

Shapes: V valid queries, M figures.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DoubleArray = npt.NDArray[np.float64]

# Numbers in one array of draws.
_BLOCK = 2**22


def bootstrap(values: DoubleArray, *, draws: int, confidence: float, seed: int) -> tuple[DoubleArray, DoubleArray]:
    """Bound the means of figures by the percentile bootstrap over queries.

    Queries are drawn with replacement, as many as there are; all figures of a query come along together. The ends are
    the quantiles of the draws' means, interpolated linearly, that leave (1 - confidence) / 2 outside on each side. The
    gallery and the network stay as they are: the interval says what the choice of queries may have done, no more.

    Args:
        values: (V,) of one figure or (V, M) of several, one row a valid query.
        draws: how many.
        confidence: share of the draws inside, above 0 and below 1.
        seed: of the draws; the same seed gives the same interval on every machine.

    Returns:
        Lower and upper ends, each () or (M,).

    Raises:
        ValueError: there is no query, a value is not finite, or a number is out of its range.
    """
    if values.ndim not in (1, 2) or not len(values):
        raise ValueError(f"bootstrap: got values {values.shape}, expected (V,) or (V, M) with at least one query.")
    if not np.isfinite(values).all():
        raise ValueError("bootstrap: got values that are not finite, expected those of valid queries only.")
    if draws < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"bootstrap: got draws={draws} and confidence={confidence}, expected 1 or more, and more than 0 and less "
            "than 1."
        )
    v = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((draws, *values.shape[1:]))
    step = max(1, _BLOCK // v)
    for begin in range(0, draws, step):
        n = min(step, draws - begin)
        drawn = rng.integers(0, v, size=(n, v)) + v * np.arange(n)[:, None]
        times = np.bincount(drawn.ravel(), minlength=n * v).reshape(n, v)
        means[begin : begin + n] = times @ values / v
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return np.asarray(low), np.asarray(high)
