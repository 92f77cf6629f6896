"""Intervals, tests and seed counts against scipy.stats, tables, hand sums and simulated seeds."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from vshift.compare.statistics import (
    MOST_SEEDS,
    Difference,
    Sample,
    adjust,
    describe,
    detectable,
    holm,
    paired,
    power_of,
    seeds_needed,
    welch,
)


def sample_of(*values: float) -> Sample:
    found = describe(values)
    assert found is not None
    return found


def test_mean_and_sample_deviation_by_hand() -> None:
    assert describe([90.0, 92.0, 94.0]) == Sample(3, 92.0, 2.0)  # √((4 + 0 + 4)/2)
    assert describe([7.5]) == Sample(1, 7.5, None)
    assert describe([]) is None
    with pytest.raises(ValueError, match="not finite"):
        describe([1.0, math.nan])


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
@pytest.mark.parametrize(("n", "other_n"), [(2, 2), (3, 3), (3, 7), (12, 4)])
def test_welch_is_scipys(n: int, other_n: int, confidence: float) -> None:
    random = np.random.default_rng(n * 100 + other_n)
    one, other = random.normal(8, 0.1, n), random.normal(9, 2.5, other_n)
    found = welch(sample_of(*one), sample_of(*other), confidence)
    wanted = stats.ttest_ind(one, other, equal_var=False)
    interval = wanted.confidence_interval(confidence)
    assert found.value == pytest.approx(one.mean() - other.mean(), rel=1e-12)
    assert found.p_value == pytest.approx(wanted.pvalue, rel=1e-9)
    assert found.degrees == pytest.approx(wanted.df, rel=1e-9)
    assert found.low == pytest.approx(interval.low, rel=1e-9)
    assert found.high == pytest.approx(interval.high, rel=1e-9)


def test_welch_changes_sign_with_the_order_and_not_with_the_unit() -> None:
    one, other = sample_of(1.0, 2.0, 4.0), sample_of(5.0, 5.5, 7.0)
    there, back = welch(one, other), welch(other, one)
    assert (there.value, there.low, there.high) == (-back.value, -back.high, -back.low)  # type: ignore[operator]
    assert there.p_value == back.p_value
    tiny = [Sample(s.n, s.mean * 1e-200, (s.sd or 0) * 1e-200) for s in (one, other)]
    assert welch(*tiny).p_value == pytest.approx(there.p_value)


def test_one_seed_or_no_spread_has_a_difference_and_no_more() -> None:
    found = welch(sample_of(5.0), sample_of(3.0, 4.0))
    assert (found.value, found.standard_error, found.p_value, found.low) == (1.5, None, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = welch(sample_of(5.0, 5.0), sample_of(3.0, 3.0))
    assert (found.value, found.standard_error, found.p_value, found.low) == (2.0, 0.0, None, None)


def test_the_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    repeats, covered, rejected = 8000, 0, 0
    for _ in range(repeats):
        one, other = random.normal(0, 1, 5), random.normal(0, 3, 5)
        found = welch(sample_of(*one), sample_of(*other))
        assert found.low is not None
        assert found.high is not None
        assert found.p_value is not None
        covered += found.low <= 0 <= found.high
        rejected += found.p_value < 0.05
    assert covered + rejected == repeats  # the interval and the test say the same
    # Welch with 5 seeds of unequal spread: 95 % to within half a point; 3 standard errors more.
    assert covered / repeats == pytest.approx(0.95, abs=0.005 + 3 * math.sqrt(0.95 * 0.05 / 8000))


def test_power_is_the_share_of_simulated_studies_that_see_the_difference() -> None:
    random = np.random.default_rng(1)
    repeats = 20_000
    for n, difference, sd in ((3, 2.6, 0.9), (9, 0.2, 0.142), (20, 1.0, 1.5)):
        one = random.normal(difference, sd, (repeats, n))
        other = random.normal(0, sd, (repeats, n))
        seen = np.mean(stats.ttest_ind(one, other, axis=1).pvalue < 0.05)
        allowed = 4 * math.sqrt(0.25 / repeats)
        assert power_of(difference, n, sd) == pytest.approx(seen, abs=allowed)


def test_power_with_unequal_spread_is_near_the_simulated_one() -> None:
    random = np.random.default_rng(2)
    one, other = random.normal(1.5, 2, (20_000, 10)), random.normal(0, 0.5, (20_000, 10))
    seen = np.mean(stats.ttest_ind(one, other, axis=1, equal_var=False).pvalue < 0.05)
    assert power_of(1.5, 10, 2, 0.5) == pytest.approx(seen, abs=0.02)
    assert power_of(1.5, 10, 2, 0.5) == power_of(-1.5, 10, 0.5, 2)


def test_power_of_a_published_table() -> None:
    """Cohen 1988, table 2.4.1, two-tailed 0.05, power 0.80: n for d = .2, .5, .8 and 1.0."""
    assert [seeds_needed(d, 1.0) for d in (0.2, 0.5, 0.8, 1.0)] == [394, 64, 26, 17]


def test_no_effect_is_seen_as_often_as_the_level_says() -> None:
    assert power_of(0.0, 3, 1.0) == pytest.approx(0.05, abs=1e-9)
    assert power_of(5.0, 1, 1.0) == 0.0
    assert power_of(5.0, 2, 0.0) == 1.0
    assert power_of(1000.0, 3, 0.1) == 1.0


@pytest.mark.parametrize(("difference", "seeds"), [(0.1, 33), (0.2, 9), (0.3, 4), (0.5, 3)])
def test_seeds_for_cifar10s_usual_spread(difference: float, seeds: int) -> None:
    """The numbers quoted for accuracies that spread by 0.12 to 0.15 points."""
    least, most = (seeds_needed(difference, sd) for sd in (0.12, 0.15))
    assert least is not None
    assert most is not None
    assert least <= seeds <= most


def test_seeds_needed_is_the_first_number_that_is_enough() -> None:
    for difference, sd in ((0.1, 0.15), (0.2, 0.15), (1.0, 0.4), (30.0, 1.0)):
        n = seeds_needed(difference, sd)
        assert n is not None
        assert power_of(difference, n, sd) >= 0.8
        assert n == 2 or power_of(difference, n - 1, sd) < 0.8
    assert seeds_needed(1e-9, 1.0) is None
    assert seeds_needed(0.0, 1.0) is None
    assert MOST_SEEDS == 10_000
    assert seeds_needed(0.1, 0.15, power=0.95) > seeds_needed(0.1, 0.15)  # type: ignore[operator]


def test_detectable_is_the_inverse_of_seeds_needed() -> None:
    least = detectable(9, 0.142)
    assert least == pytest.approx(0.2, abs=0.005)
    assert seeds_needed(least, 0.142) == 9
    assert seeds_needed(least * 0.99, 0.142) == 10
    assert detectable(1, 0.1) is None
    assert detectable(3, 0.0) == 0.0


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and none below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([None, 0.02, None]) == [None, 0.02, None]
    assert holm([0.03, 0.03]) == [0.06, 0.06]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_alarm() -> None:
    random = np.random.default_rng(3)
    tables = random.uniform(size=(4000, 6))
    alarms = np.mean([min(p for p in holm(list(t)) if p is not None) < 0.05 for t in tables])
    assert alarms == pytest.approx(1 - (1 - 0.05 / 6) ** 6, abs=0.012)


def test_verdicts_in_words() -> None:
    base = Sample(3, 8.0, 0.142)
    single = welch(Sample(1, 9.0, None), base)
    assert (single.verdict(), single.cell) == ("not tested (one seed)", "one seed")
    far = welch(Sample(3, 9.0, 0.142), base)
    assert (far.verdict(), far.cell) == ("significant (p < 0.001)", "yes (p < 0.001)")
    close = welch(Sample(3, 8.2, 0.142), base)
    needed = "about 9 seeds per config would be needed"
    assert close.verdict() == f"not significant (p = 0.160; {needed})"
    assert close.cell == "no (p = 0.160; needs 9 seeds)"
    nothing = welch(Sample(3, 8.0, 0.142), base)
    assert nothing.verdict() == "not significant (p = 1; 3 seeds detect 0.44 points or more)"
    assert nothing.verdict("nats").endswith("0.44 nats or more)")
    assert nothing.verdict("").endswith("detect 0.44 or more)")
    assert nothing.cell == "no (p = 1)"
    clear = welch(Sample(3, 8.6, 0.142), base)
    assert clear.verdict().startswith("significant")
    assert clear.p_value is not None
    many = replace(clear, p_adjusted=20 * clear.p_value, tests=20)
    assert many.verdict().endswith("; about 5 seeds per config would be needed)")
    assert not many.is_significant
    assert seeds_needed(0.6, 0.142, level=0.05 / 20) == 5
    same = welch(Sample(3, 8.5, 0.0), Sample(3, 8.0, 0.0))
    assert (same.verdict(), same.cell) == ("not tested (no spread)", "no spread")
    assert replace(same, same_training=True).cell == "same training"


def test_rows_of_one_test_count_once_with_the_larger_p() -> None:
    def adjusted(p_values: list[float | None], tests: list[str]) -> list[Difference]:
        return adjust([Difference(1.0, (), p_value=p) for p in p_values], tests)

    found = adjusted([0.01, 0.02, None, 0.04], ["a", "a", "b", "c"])
    assert [each.p_adjusted for each in found] == pytest.approx([0.04, 0.04, None, 0.04])
    assert {each.tests for each in found} == {2}
    found = adjusted([0.01, 0.04], ["a", "b"])
    assert [each.p_adjusted for each in found] == holm([0.01, 0.04])
    assert adjusted([], []) == []


def test_a_tables_differences_carry_their_corrected_p() -> None:
    base = Sample(3, 8.0, 0.142)
    same, other = (welch(Sample(3, mean, 0.142), base) for mean in (8.4, 8.6))
    untested = welch(Sample(1, 9.0, None), base)
    found = adjust([same, other, untested, same], ["a", "b", "c", "a"])
    assert [each.tests for each in found] == [2, 2, 2, 2]
    assert same.p_value is not None
    assert found[0].p == found[3].p == same.p_value
    assert other.p_value is not None
    assert found[1].p == 2 * other.p_value
    assert not found[2].is_tested


def test_seeds_are_those_that_the_corrected_test_takes() -> None:
    found = welch(Sample(3, 8.2, 0.142), Sample(3, 8.0, 0.142))
    assert found.seeds_needed == seeds_needed(0.2, 0.142) == 9
    assert replace(found, tests=8).seeds_needed == seeds_needed(0.2, 0.142, level=0.05 / 8)
    assert seeds_needed(0.2, 0.142, level=0.05 / 8) > 9  # type: ignore[operator]


def test_seeds_needed_are_more_than_either_arm_has() -> None:
    """Two seeds did not see it and three would, but the other arm has seven already."""
    found = welch(Sample(2, 9.0, 0.2), Sample(7, 8.0, 0.2))
    assert seeds_needed(found.value, 0.2, 0.2) == 3
    assert found.seeds_needed == 8
    for n in (2, 3, 4, 6):
        for size in (0.1, 0.5, 1.0, 2.0):
            found = welch(Sample(n, size, 0.4), Sample(3, 0.0, 0.3))
            needed = replace(found, tests=5).seeds_needed
            assert needed is not None
            assert needed > max(n, 3)


# ---- the same runs before and after

BEFORE, AFTER = [69.1, 71.6, 66.8], [65.2, 66.1, 64.3]


def test_interval_and_p_are_the_paired_t_tests() -> None:
    found = paired(b - a for b, a in zip(BEFORE, AFTER, strict=True))
    assert found is not None
    expected = stats.ttest_rel(BEFORE, AFTER)
    interval = expected.confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(BEFORE) - np.mean(AFTER))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_one_seed_or_no_spread_leaves_no_test() -> None:
    one, same = paired([3.0]), paired([2.0, 2.0])
    assert one is not None
    assert one == Difference(3.0, (Sample(1, 3.0, None),))
    assert same is not None
    assert same.p_value is None
    assert one.seeds_needed is same.seeds_needed is None
    assert paired([]) is None


def test_seeds_are_those_that_simulated_tests_take() -> None:
    """A change of 1 ± 1: of so many seeds' tests 80 % see it, of one fewer not."""
    change = paired([0.0, 1.0, 2.0])
    assert change is not None
    needed = change.seeds_needed
    assert needed == 10  # Cohen's d 1 in a one-sample test
    random = np.random.default_rng(4)
    for n, enough in ((needed, True), (needed - 1, False)):
        values = random.normal(1.0, 1.0, (40_000, n))
        seen = np.mean(stats.ttest_1samp(values, 0.0, axis=1).pvalue < 0.05)
        assert bool(seen > 0.8) is enough


def test_more_tests_take_more_seeds_and_always_more_than_there_are() -> None:
    change = paired([4.0, 5.5, 2.5])
    assert change is not None
    alone, among = change.seeds_needed, replace(change, tests=9).seeds_needed
    assert alone is not None
    assert among is not None
    assert 3 < alone < among
    clear = paired([4.0, 4.1, 4.2, 4.1])
    assert clear is not None
    assert clear.seeds_needed == 5
