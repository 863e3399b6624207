import itertools
import tracemalloc

import numpy as np
import pytest

from csip.evaluation import intervals
from csip.evaluation.intervals import bootstrap


def test_ends_are_the_percentiles_of_all_that_could_be_drawn():
    # Of three values there are 27 draws; with many draws the interval is that of their means.
    values = np.array([0.0, 0.3, 0.9])
    means = sorted(np.mean(drawn) for drawn in itertools.product(values, repeat=3))
    low, high = bootstrap(values, draws=40_000, confidence=0.8, seed=1)
    # The means have gaps, and neither quantile lies at one.
    assert low == pytest.approx(means[round(0.1 * 26)])
    assert high == pytest.approx(means[round(0.9 * 26)])


def test_the_interval_of_many_queries_is_that_of_the_normal_distribution():
    # 2,000 queries, half of them right: deviation of the mean 0.5 / sqrt(2000), times 1.96 for 95 %.
    values = np.arange(2000) % 2.0
    low, high = bootstrap(values, draws=4000, confidence=0.95, seed=0)
    assert [low, high] == pytest.approx([0.5 - 0.0219, 0.5 + 0.0219], abs=0.0015)


def test_figures_of_one_query_are_drawn_together():
    values = np.random.default_rng(0).random(50)
    low, high = bootstrap(np.stack([values, 1 - values, 2 * values], axis=1), draws=300, confidence=0.9, seed=3)
    alone = [float(end) for end in bootstrap(values, draws=300, confidence=0.9, seed=3)]
    assert (low.shape, high.shape) == ((3,), (3,))
    assert [low[0], high[0]] == pytest.approx(alone)
    assert [low[1], high[1]] == pytest.approx([1 - alone[1], 1 - alone[0]])
    assert [low[2], high[2]] == pytest.approx([2 * alone[0], 2 * alone[1]])


def test_the_seed_decides_and_blocks_do_not(monkeypatch):
    values = np.random.default_rng(1).random(31)
    first = bootstrap(values, draws=101, confidence=0.9, seed=5)
    assert bootstrap(values, draws=101, confidence=0.9, seed=5) == first
    assert bootstrap(values, draws=101, confidence=0.9, seed=6) != first
    monkeypatch.setattr(intervals, "_BLOCK", 31 * 7)
    np.testing.assert_allclose(bootstrap(values, draws=101, confidence=0.9, seed=5), first, rtol=1e-12)


def test_more_confidence_makes_a_wider_interval_around_the_mean():
    values = np.random.default_rng(2).random(40)
    ends = [bootstrap(values, draws=500, confidence=c, seed=0) for c in (0.5, 0.9, 0.99)]
    lows, highs = zip(*ends, strict=True)
    assert lows[2] < lows[1] < lows[0] < values.mean() < highs[0] < highs[1] < highs[2]


def test_a_single_query_has_no_spread():
    assert bootstrap(np.array([0.25]), draws=10, confidence=0.95, seed=0) == (0.25, 0.25)


def test_memory_does_not_grow_with_the_draws(monkeypatch):
    monkeypatch.setattr(intervals, "_BLOCK", 10_000)
    values = np.random.default_rng(3).random(1000)
    tracemalloc.start()
    bootstrap(values, draws=2000, confidence=0.95, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # all draws at once would be 16 MB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros(0)}, r"got values \(0,\), expected \(V,\) or \(V, M\) with at least one query"),
        ({"values": np.zeros((2, 2, 2))}, r"got values \(2, 2, 2\)"),
        ({"values": np.array([0.5, np.nan])}, "not finite, expected those of valid queries only"),
        ({"draws": 0}, "got draws=0 and confidence=0.9"),
        ({"confidence": 1.0}, "confidence=1.0, expected .* less than 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(**{"values": np.ones(3), "draws": 10, "confidence": 0.9, "seed": 0, **change})
