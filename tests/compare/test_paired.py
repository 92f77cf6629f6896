"""Changes of the same runs, against scipy.stats and simulated seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vshift.compare.paired import paired, seeds_to_tell_change
from vshift.compare.statistics import Sample

BEFORE, AFTER = [69.1, 71.6, 66.8], [65.2, 66.1, 64.3]


def test_interval_and_p_are_the_paired_t_tests() -> None:
    found = paired(b - a for b, a in zip(BEFORE, AFTER, strict=True))
    assert found is not None
    expected = stats.ttest_rel(BEFORE, AFTER)
    interval = expected.confidence_interval(0.95)
    assert found.sample.mean == pytest.approx(np.mean(BEFORE) - np.mean(AFTER))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_one_seed_or_no_spread_leaves_no_test() -> None:
    one, same = paired([3.0]), paired([2.0, 2.0])
    assert one is not None
    assert (one.sample, one.low, one.high, one.p_value) == (Sample(1, 3.0, None), None, None, None)
    assert same is not None
    assert same.p_value is None
    assert seeds_to_tell_change(one) is seeds_to_tell_change(same) is None
    assert paired([]) is None


def test_seeds_are_those_that_simulated_tests_take() -> None:
    """A change of 1 ± 1: of so many seeds' tests 80 % see it, of one fewer not."""
    change = paired([0.0, 1.0, 2.0])
    assert change is not None
    needed = seeds_to_tell_change(change)
    assert needed == 10  # Cohen's d 1 in a one-sample test
    random = np.random.default_rng(4)
    for n, enough in ((needed, True), (needed - 1, False)):
        values = random.normal(1.0, 1.0, (40_000, n))
        seen = np.mean(stats.ttest_1samp(values, 0.0, axis=1).pvalue < 0.05)
        assert bool(seen > 0.8) is enough


def test_more_tests_take_more_seeds_and_always_more_than_there_are() -> None:
    change = paired([4.0, 5.5, 2.5])
    assert change is not None
    alone, among = seeds_to_tell_change(change), seeds_to_tell_change(change, 9)
    assert alone is not None
    assert among is not None
    assert 3 < alone < among
    clear = paired([4.0, 4.1, 4.2, 4.1])
    assert clear is not None
    assert seeds_to_tell_change(clear) == 5
