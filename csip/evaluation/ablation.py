"""Figures of several trainings, summed up."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence


def summarise(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Give mean and standard deviation over seeds of every figure of every row.

    Args:
        seeds: for each seed, row -> name of a figure -> figure; all seeds have the same.

    Returns:
        Row -> figure -> "mean", "std" (of the sample, n - 1 below; 0 for a single seed) and "n".

    Raises:
        ValueError: the seeds differ in what they have.
    """
    first = {row: set(figures) for row, figures in seeds[0].items()}
    if any({row: set(figures) for row, figures in one.items()} != first for one in seeds):
        raise ValueError("summarise: got seeds with different rows or figures, expected the same in all.")
    return {
        row: {name: _spread([one[row][name] for one in seeds]) for name in sorted(names)}
        for row, names in first.items()
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "n": float(len(values))}
