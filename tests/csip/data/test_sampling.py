from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csip.data.sampling import (
    cut_units,
    dense_windows,
    identity_batches,
    plain_batches,
    restricted_first,
    restricted_random,
    share,
)
from csip.errors import TooLittleDataError

sizes = st.tuples(st.integers(1, 200), st.integers(1, 20), st.integers(0, 1000))


def slow_chunks(n, t):
    """datasets.md section 5, in words: ceil(n / T) frames a chunk, the list padded with its last frame."""
    size = 1
    while size * t < n:
        size += 1
    frames = list(range(n)) + [n - 1] * (size * t - n)
    return [frames[i * size : (i + 1) * size] for i in range(t)]


def test_a_test_clip_is_the_first_frame_of_each_chunk():
    # n = 9, T = 8: chunks 01 23 45 67 8_ __ __ __, padded with frame 8.
    assert restricted_first(9, 8).tolist() == [0, 2, 4, 6, 8, 8, 8, 8]
    assert restricted_first(8, 8).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert restricted_first(16, 8).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert restricted_first(17, 8).tolist() == [0, 3, 6, 9, 12, 15, 16, 16]
    assert restricted_first(1, 4).tolist() == [0, 0, 0, 0]


def test_even_chunks_leave_no_chunk_to_padding():
    # n = 9, T = 8: chunks 0 1 2 3 4 5 6 78; n = 10, T = 4: 01 234 56 789.
    assert restricted_first(9, 8, "even").tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert restricted_first(10, 4, "even").tolist() == [0, 2, 5, 7]
    assert restricted_first(16, 8, "even").tolist() == restricted_first(16, 8).tolist()
    assert restricted_first(3, 8, "even").tolist() == restricted_first(3, 8).tolist()


@settings(deadline=None, max_examples=60)
@given(sizes)
def test_even_chunks_share_all_frames_and_differ_by_one_at_most(case):
    n, t, seed = case
    n += t
    drawn = [restricted_random(n, t, np.random.default_rng(seed + k), "even") for k in range(40)]
    first = restricted_first(n, t, "even")
    sizes_of = np.diff([*first, n])
    assert sizes_of.sum() == n
    assert sizes_of.max() - sizes_of.min() <= 1
    assert all((one >= first).all() and (one < first + sizes_of).all() for one in drawn)


def test_a_short_tracklet_gives_all_its_frames_then_the_last_again():
    assert restricted_first(3, 8).tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    assert restricted_random(3, 8, np.random.default_rng(0)).tolist() == [0, 1, 2, 2, 2, 2, 2, 2]


def test_dense_windows_follow_each_other_and_the_last_is_cycled():
    assert dense_windows(8, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert dense_windows(9, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 8, 8, 8]]
    assert dense_windows(7, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 4]]
    assert dense_windows(3, 8).tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]


@settings(deadline=None, max_examples=60)
@given(sizes)
def test_a_training_clip_has_one_frame_of_each_chunk_in_order(case):
    n, t, seed = case
    got = restricted_random(n, t, np.random.default_rng(seed)).tolist()
    assert len(got) == t
    for frame, chunk in zip(got, slow_chunks(n, t), strict=True):
        assert frame in chunk
    assert got == sorted(got)
    assert got == restricted_random(n, t, np.random.default_rng(seed)).tolist()


@settings(deadline=None, max_examples=60)
@given(sizes)
def test_test_clips_and_dense_windows_are_those_of_the_slow_reference(case):
    n, t, _ = case
    assert restricted_first(n, t).tolist() == [chunk[0] for chunk in slow_chunks(n, t)]
    windows = dense_windows(n, t).tolist()
    starts = list(range(0, n, t))
    assert len(windows) == len(starts)
    for window, start in zip(windows, starts, strict=True):
        own = list(range(start, min(start + t, n)))
        assert window == [own[i % len(own)] for i in range(t)]


def test_every_frame_of_a_chunk_is_drawn_about_equally_often():
    rng = np.random.default_rng(0)
    drawn = np.array([restricted_random(12, 4, rng) for _ in range(3000)])
    for chunk in range(4):
        counts = Counter(drawn[:, chunk].tolist())
        assert sorted(counts) == [3 * chunk, 3 * chunk + 1, 3 * chunk + 2]
        # A third of 3000 draws, within six standard deviations (26 each).
        assert all(abs(count - 1000) < 160 for count in counts.values())


@pytest.mark.parametrize(("n", "t"), [(0, 8), (5, 0)])
def test_no_frames_make_no_clip(n, t):
    for sample in (restricted_first, dense_windows, lambda n, t: restricted_random(n, t, np.random.default_rng(0))):
        with pytest.raises(ValueError, match=rf"got n={n} frames and T={t}, expected 1 or more"):
            sample(n, t)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 50), st.integers(1, 10), st.integers(0, 1000))
def test_plain_batches_hold_every_item_once(n, size, seed):
    batches = plain_batches(n, size, np.random.default_rng(seed))
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    assert [len(batch) for batch in batches[:-1]] == [size] * max(0, len(batches) - 1)
    whole = plain_batches(n, size, np.random.default_rng(seed), drop_last=True)
    assert [len(batch) for batch in whole] == [size] * (n // size)
    # Leaving the last batch out changes no other.
    for one, other in zip(whole, batches, strict=False):
        assert one.tolist() == other.tolist()


labelled = st.tuples(
    st.lists(st.integers(0, 8), min_size=1, max_size=60), st.integers(2, 4), st.integers(1, 5), st.integers(0, 1000)
)


@settings(deadline=None, max_examples=150)
@given(labelled)
def test_identity_batches_join_p_people_with_k_clips_each(case):
    label, p, k, seed = case
    have = Counter(label)
    if len(have) < p:
        with pytest.raises(TooLittleDataError, match=rf"A batch joins {p} people; found {len(have)} to train on"):
            identity_batches(label, p, k, np.random.default_rng(seed))
        return
    batches = identity_batches(label, p, k, np.random.default_rng(seed))
    groups = Counter()
    used = Counter()
    for batch in batches:
        assert len(batch) == p * k
        people = Counter(label[i] for i in batch)
        assert sorted(people.values()) == [k] * p
        groups.update(people.keys())
        used.update(batch.tolist())
        for start in range(0, p * k, k):
            assert len({label[i] for i in batch[start : start + k]}) == 1
    for identity, parts in have.items():
        # Fewer than K give one group, with repetition; else every whole group of K once, the remainder never.
        assert groups[identity] <= max(1, parts // k)
        if parts >= k:
            assert all(used[i] <= 1 for i, own in enumerate(label) if own == identity)
    # The epoch ends only when fewer than P people have a group left.
    left = [identity for identity, parts in have.items() if groups[identity] < max(1, parts // k)]
    assert len(left) < p
    again = identity_batches(label, p, k, np.random.default_rng(seed))
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]


def test_an_identity_with_few_parts_gives_one_group_and_a_remainder_is_dropped():
    # Ten parts of person 5, three of person 9, groups of four: two groups and one, so one batch of two people.
    label = [5] * 10 + [9] * 3
    (batch,) = identity_batches(label, 2, 4, np.random.default_rng(0))
    assert sorted(label[i] for i in batch) == [5] * 4 + [9] * 4
    assert {i for i in batch if label[i] == 9} <= {10, 11, 12}
    assert len({i for i in batch if label[i] == 5}) == 4


def test_the_order_in_which_people_come_does_not_follow_their_numbers():
    batches = identity_batches([i for i in range(40) for _ in range(2)], 2, 2, np.random.default_rng(0))
    assert len(batches) == 20
    firsts = [int(batch[0]) // 2 for batch in batches]
    assert firsts not in (sorted(firsts), sorted(firsts, reverse=True))


def slow_identity_batches(label, p, k, rng):
    """method.md section 4, in words, with the same draws in the same order."""
    groups = {}
    for identity in sorted(set(label)):
        own = [i for i, one in enumerate(label) if one == identity]
        shuffled = rng.permutation(own).tolist()
        if len(shuffled) < k:
            groups[identity] = [rng.choice(shuffled, k, replace=True).tolist()]
        else:
            groups[identity] = []
            while len(shuffled) >= k:
                groups[identity].append(shuffled[:k])
                shuffled = shuffled[k:]
    batches = []
    while True:
        left = [identity for identity in groups if groups[identity]]
        if len(left) < p:
            return batches
        batch = []
        for identity in rng.choice(left, p, replace=False).tolist():
            batch += groups[identity].pop()
        batches.append(batch)


@settings(deadline=None, max_examples=150)
@given(labelled)
def test_identity_batches_are_those_of_the_slow_reference(case):
    label, p, k, seed = case
    if len(set(label)) >= p:
        got = identity_batches(label, p, k, np.random.default_rng(seed))
        assert [b.tolist() for b in got] == slow_identity_batches(label, p, k, np.random.default_rng(seed))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5))
def test_shares_join_to_the_batch_and_cut_through_nobody(people_a_rank, size, k):
    batch = [(identity, clip) for identity in range(people_a_rank * size) for clip in range(k)]
    shares = [share(batch, rank, size, k) for rank in range(size)]
    assert [item for own in shares for item in own] == batch
    for own in shares:
        assert sorted(Counter(identity for identity, _ in own).values()) == [k] * people_a_rank


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(ValueError, match=r"^stage2\.identities=4 cannot be shared by 3 processes: expected a multiple"):
        share(list(range(16)), 0, 3, 4)
    with pytest.raises(ValueError, match=r"^pretrain\.identities=4 cannot be shared by 8"):
        share(list(range(16)), 0, 8, 4, field="pretrain.identities")
    with pytest.raises(ValueError, match="got rank 2 of 2 processes, expected 0 to 1"):
        share(list(range(16)), 2, 2, 4)


def test_a_tracklet_is_one_unit():
    assert [cut_units(n, "tracklet", 8, 4) for n in (1, 8, 100)] == [[(0, 1)], [(0, 8)], [(0, 100)]]


def test_the_last_chunk_takes_the_remainder_and_a_short_tracklet_is_kept_whole():
    assert cut_units(96, "chunk", 48, 4) == [(0, 48), (48, 96)]
    assert cut_units(100, "chunk", 48, 4) == [(0, 48), (48, 100)]
    assert cut_units(95, "chunk", 48, 4) == [(0, 95)]
    assert cut_units(48, "chunk", 48, 4) == [(0, 48)]
    assert cut_units(47, "chunk", 48, 4) == [(0, 47)]


def test_windows_step_by_the_stride_and_the_last_one_reaches_the_end():
    assert cut_units(16, "window", 8, 4) == [(0, 8), (4, 12), (8, 16)]
    assert cut_units(18, "window", 8, 4) == [(0, 8), (4, 12), (8, 16), (10, 18)]
    assert cut_units(9, "window", 8, 4) == [(0, 8), (1, 9)]
    assert cut_units(8, "window", 8, 4) == [(0, 8)]
    assert cut_units(5, "window", 8, 4) == [(0, 5)]


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 120), st.integers(1, 50), st.integers(1, 20))
def test_units_cover_every_frame(n, frames, stride):
    chunks = cut_units(n, "chunk", frames, stride)
    assert [i for begin, end in chunks for i in range(begin, end)] == list(range(n))
    assert all(frames <= end - begin < 2 * frames for begin, end in chunks) or n < frames
    windows = cut_units(n, "window", frames, stride)
    assert all(end - begin == min(n, frames) for begin, end in windows)
    assert windows == sorted(set(windows))
    assert windows[-1][1] == n
    if stride <= frames:
        assert {i for begin, end in windows for i in range(begin, end)} == set(range(n))


@pytest.mark.parametrize(("n", "frames", "stride"), [(0, 8, 4), (9, 0, 4), (9, 8, 0)])
def test_no_frames_make_no_unit(n, frames, stride):
    with pytest.raises(ValueError, match=rf"got n={n} frames, unit_frames={frames} and unit_stride={stride}"):
        cut_units(n, "window", frames, stride)
