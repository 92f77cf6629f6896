"""Statistics over seeds: spread, differences with their uncertainty, and how many seeds it takes.

Pure functions on numbers; the distributions are scipy's (`scipy.special`, which starts three times
quicker than `scipy.stats` and returns the same values). One value a seed, seeds independent, no
equal variances assumed: a network that dropout unsettles spreads more than its baseline.

Sources:
    Welch 1947, "The generalization of 'Student's' problem when several different population
    variances are involved", Biometrika 34: the test and the interval.
    Satterthwaite 1946, "An approximate distribution of estimates of variance components",
    Biometrics Bulletin 2: the degrees of freedom.
    Holm 1979, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6.
    Cohen 1988, "Statistical power analysis for the behavioral sciences", chapter 2: power from the
    noncentral t distribution.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95  # of intervals
LEVEL = 0.05  # of tests, two-sided
POWER = 0.8  # the chance to see a difference that is there
MOST_SEEDS = 10_000  # an arm; who needs more does not need a number


@dataclass(frozen=True)
class Sample:
    """One arm's seeds: `sd` is the sample standard deviation (n − 1), None for one seed."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """A mean minus another, in the unit of the values.

    Attributes:
        value: the difference of the means.
        standard_error: √(sd₁²/n₁ + sd₂²/n₂); None where an arm has one seed.
        degrees: Welch and Satterthwaite's degrees of freedom; None where there is no spread.
        low, high: the confidence interval; None likewise.
        p_value: two-sided, of no difference; None likewise.
        arms: what was compared.
    """

    value: float
    standard_error: float | None
    degrees: float | None
    low: float | None
    high: float | None
    p_value: float | None
    arms: tuple[Sample, Sample]


def describe(values: Iterable[float]) -> Sample | None:
    """n, mean and sample standard deviation; None of no values.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    values = list(values)
    if not all(map(math.isfinite, values)):
        raise ValueError(f"a value is not finite: {values}")
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Sample(len(values), statistics.fmean(values), sd)


def welch(one: Sample, other: Sample, confidence: float = CONFIDENCE) -> Difference:
    """`one` minus `other` with Welch's confidence interval and test.

    The interval is d ± t(ν, (1 + confidence)/2) · SE with SE² = s₁²/n₁ + s₂²/n₂ and
    ν = SE⁴ / ((s₁²/n₁)²/(n₁ − 1) + (s₂²/n₂)²/(n₂ − 1)); p = 2 · P(T_ν > |d|/SE).
    With one seed in an arm nothing is known but the difference itself. Where no value differs from
    another in either arm, SE is 0 and there is no interval and no test.
    """
    from scipy import special

    value, arms = one.mean - other.mean, (one, other)
    if one.sd is None or other.sd is None:
        return Difference(value, None, None, None, None, None, arms)
    error = _standard_error(one.sd, one.n, other.sd, other.n)
    degrees = _degrees(one.sd, one.n, other.sd, other.n)
    if degrees is None:
        return Difference(value, error, None, None, None, None, arms)
    half = float(special.stdtrit(degrees, (1 + confidence) / 2)) * error
    p_value = 2 * float(special.stdtr(degrees, -abs(value / error)))
    return Difference(value, error, degrees, value - half, value + half, p_value, arms)


def _standard_error(sd: float, n: int, other_sd: float, other_n: int) -> float:
    return math.hypot(sd / math.sqrt(n), other_sd / math.sqrt(other_n))


def _degrees(sd: float, n: int, other_sd: float, other_n: int) -> float | None:
    """ν from each arm's share of SE², which no unit makes overflow; None where SE is 0."""
    error = _standard_error(sd, n, other_sd, other_n)
    if error == 0:
        return None
    share = (sd / error) ** 2 / n
    other = (other_sd / error) ** 2 / other_n
    return 1 / (share**2 / (n - 1) + other**2 / (other_n - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values of a whole table, adjusted such that below 0.05 is right for all of it (Holm 1979).

    With p₍₁₎ ≤ … ≤ p₍ₘ₎ the k-th becomes max over j ≤ k of min(1, (m − j + 1) · p₍ⱼ₎). A None is no
    test: it stays None and does not count.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = highest
    return adjusted


def holm_once(
    p_values: Sequence[float | None], tests: Sequence[Hashable]
) -> tuple[list[float | None], int]:
    """`holm` where some rows are one test, by their keys in `tests`; and how many tests there are.

    Such rows rest on the same observations. They count once, with the largest of their p values
    (they differ at most by rounding), and share the adjusted one.
    """
    largest: dict[Hashable, float] = {}
    for p, test in zip(p_values, tests, strict=True):
        if p is not None:
            largest[test] = max(p, largest.get(test, 0.0))
    adjusted = dict(zip(largest, holm(list(largest.values())), strict=True))
    found = [None if p is None else adjusted[t] for p, t in zip(p_values, tests, strict=True)]
    return found, len(largest)


def power_of(
    difference: float, n: int, sd: float, other_sd: float | None = None, level: float = LEVEL
) -> float:
    """The chance that n seeds an arm show a true difference in Welch's two-sided test.

    P(|T| > t(ν, 1 − level/2)) for T noncentral t with ν degrees of freedom and noncentrality
    difference/SE (Cohen 1988), SE and ν as in `welch` with equal n. Exact where both arms spread
    alike; for others Welch's own approximation.

    Args:
        difference: in the unit of the standard deviations.
        other_sd: of the second arm; default: the same.
    """
    from scipy import special

    other_sd = sd if other_sd is None else other_sd
    if n < 2:
        return 0.0
    degrees = _degrees(sd, n, other_sd, n)
    if degrees is None:
        return 1.0 if difference else 0.0
    shift = abs(difference) / _standard_error(sd, n, other_sd, n)
    edge = float(special.stdtrit(degrees, 1 - level / 2))
    wrong_side = float(special.nctdtr(degrees, shift, -edge))
    wrong_side = 0.0 if math.isnan(wrong_side) else wrong_side  # scipy's word for far below 1e-99
    return 1 - float(special.nctdtr(degrees, shift, edge)) + wrong_side


def seeds_needed(
    difference: float,
    sd: float,
    other_sd: float | None = None,
    *,
    level: float = LEVEL,
    power: float = POWER,
) -> int | None:
    """The fewest seeds an arm that see a true difference with this power; None over MOST_SEEDS.

    Takes the standard deviations for known. From three seeds they are known to a factor of two or
    three, so the number is a plan, not a promise.
    """
    return fewest(lambda n: power_of(difference, n, sd, other_sd, level) >= power)


def fewest(enough: Callable[[int], bool]) -> int | None:
    """The smallest n from 2 on that is enough, if MOST_SEEDS are; more are never worse."""
    too_few, n = 1, 2
    while not enough(n):
        if n == MOST_SEEDS:
            return None
        too_few, n = n, min(2 * n, MOST_SEEDS)
    while n - too_few > 1:
        middle = (too_few + n) // 2
        too_few, n = (too_few, middle) if enough(middle) else (middle, n)
    return n


def detectable(
    n: int, sd: float, other_sd: float | None = None, *, level: float = LEVEL, power: float = POWER
) -> float | None:
    """The smallest true difference that n seeds an arm show with this power; None for one seed."""
    other_sd = sd if other_sd is None else other_sd
    if n < 2:
        return None
    too_small, enough = 0.0, _standard_error(sd, n, other_sd, n)
    if enough == 0:
        return 0.0
    while power_of(enough, n, sd, other_sd, level) < power:
        too_small, enough = enough, 2 * enough
    while enough - too_small > 1e-6 * enough:
        middle = (too_small + enough) / 2
        if power_of(middle, n, sd, other_sd, level) < power:
            too_small = middle
        else:
            enough = middle
    return enough


def seeds_to_tell(difference: Difference, tests: int = 1) -> int | None:
    """Seeds an arm that would see a true difference of the size that was found, in this table.

    At the level of 5 % / tests: by Bonferroni's correction, which Holm's never falls behind. Always
    more seeds than either arm has, as these did not see it. None where an arm has one seed or
    nothing spreads, and over MOST_SEEDS.
    """
    one, other = difference.arms
    if one.sd is None or other.sd is None or difference.p_value is None:
        return None
    needed = seeds_needed(difference.value, one.sd, other.sd, level=LEVEL / max(1, tests))
    return None if needed is None else max(needed, one.n + 1, other.n + 1)


def verdict(
    difference: Difference, adjusted: float | None = None, tests: int = 1, unit: str = "points"
) -> str:
    """Whether a difference is more than chance, in words: what a table says beside it.

    Args:
        adjusted: the p value by `holm` over the table; default: the difference's own.
        tests: how many tests the table holds.
        unit: what the values are in.
    """
    one, other = difference.arms
    if one.sd is None or other.sd is None:
        return "one seed cannot tell; take 3 or more"
    p_value = difference.p_value if adjusted is None else adjusted
    if p_value is None:
        return "no spread between seeds to test against"
    if p_value < LEVEL:
        return "more than chance"
    have, needed = min(one.n, other.n), seeds_to_tell(difference, tests)
    if needed is None:
        least = detectable(have, one.sd, other.sd) or 0.0
        return f"no difference seen; {have} seeds see {least:.2g} {unit} or more".replace("  ", " ")
    size = f"{abs(difference.value):.2g} {unit}".rstrip()
    among = "" if difference.p_value is None or difference.p_value >= LEVEL else f" among {tests}"
    return f"cannot tell{among}: needs about {needed:,} seeds to see {size}"
