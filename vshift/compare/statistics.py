"""Statistics over seeds: spread, differences with their uncertainty, and the seeds a test needs.

Pure functions of numbers, one value per seed, and the wording of a verdict. Two configs are
compared by Welch's test, which does not assume equal variances: a network that dropout unsettles
spreads more than its baseline. The same runs before and after recalibration are compared by the
paired t test, which removes the variation from seed to seed. The distributions are
`scipy.special`'s: the values of `scipy.stats`, at a third of its start-up time.

Sources:
    Student 1908, "The probable error of a mean", Biometrika 6: the paired test.
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
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from vshift.text import LEVEL, format_p

CONFIDENCE = 0.95  # of intervals
POWER = 0.8  # probability of detecting a true difference
MOST_SEEDS = 10_000  # per arm; beyond this, report None

SAME_TRAINING = "same training"  # the verdict on a row that rests on the baseline's own runs
ONE_SEED = "one seed"
NO_SPREAD = "no spread"


@dataclass(frozen=True)
class Sample:
    """The seeds of one arm; `sd` is the sample standard deviation (n − 1), None for one seed."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """A difference of means with its uncertainty, in the unit of the values.

    Attributes:
        value: the difference of the means, or the mean change.
        arms: the two samples that were compared; in a paired test one, of each seed's change.
        standard_error: None where an arm has one seed.
        degrees: degrees of freedom; None where there is no spread.
        low, high: the confidence interval; None likewise.
        p_value: two-sided, of no difference; None likewise.
        p_adjusted: corrected for all tests of a table, see `adjust`.
        tests: the number of these tests.
        same_training: whether both arms rest on the same trainings, so that nothing is tested.
    """

    value: float
    arms: tuple[Sample, ...]
    standard_error: float | None = None
    degrees: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    tests: int = 1
    same_training: bool = False

    @property
    def n(self) -> int:
        """Seeds of the arm that has fewer."""
        return min(arm.n for arm in self.arms)

    @property
    def p(self) -> float | None:
        """The p value that decides: adjusted if there is a table, else the difference's own."""
        return self.p_value if self.p_adjusted is None else self.p_adjusted

    @property
    def is_tested(self) -> bool:
        """Whether there was a test at all."""
        return self.p is not None

    @property
    def is_significant(self) -> bool:
        """Whether p is below 0.05 over the whole table."""
        return self.p is not None and self.p < LEVEL

    @cached_property
    def seeds_needed(self) -> int | None:
        """Seeds per arm that would show a true difference of the size found, in the same table.

        At the level of 5 % / tests: Bonferroni's correction, a conservative bound for Holm's.
        Always more seeds than any arm has, as these did not show it. None where there was no test,
        and over MOST_SEEDS.
        """
        if self.p_value is None:
            return None
        size, level = abs(self.value), LEVEL / max(1, self.tests)
        sds = [arm.sd or 0.0 for arm in self.arms]
        if len(sds) == 2:
            needed = seeds_needed(size, *sds, level=level)
        else:
            effect = size / sds[0]
            needed = _fewest(lambda n: _power(effect * math.sqrt(n), n - 1, level) >= POWER)
        return None if needed is None else max(needed, *(arm.n + 1 for arm in self.arms))

    @property
    def seeds_hint(self) -> str:
        """`; about 9 seeds per config would be needed`; empty where there is nothing to say."""
        needed = None if self.is_significant else self.seeds_needed
        return "" if needed is None else f"; about {needed:,} seeds per config would be needed"

    @property
    def untested(self) -> str:
        """The reason why there is no test; empty if there is one."""
        if self.same_training:
            return SAME_TRAINING
        if any(arm.sd is None for arm in self.arms):
            return ONE_SEED
        return NO_SPREAD if self.p is None else ""

    def verdict(self, unit: str = "points") -> str:
        """`not significant (p = 0.210; about 9 seeds per config would be needed)`, in a text."""
        if self.untested:
            return f"not tested ({self.untested})"
        if self.is_significant:
            return f"significant ({format_p(self.p)})"
        hint = self.seeds_hint
        if not hint and len(self.arms) == 2:
            least = detectable(self.n, *(arm.sd or 0.0 for arm in self.arms)) or 0.0
            hint = f"; {self.n} seeds detect {least:.2g} {unit}".rstrip() + " or more"
        return f"not significant ({format_p(self.p)}{hint})"

    @property
    def cell(self) -> str:
        """The verdict in a column headed "significant": `no (p = 0.210; needs 9 seeds)`."""
        if self.untested or self.is_significant:
            return self.untested or f"yes ({format_p(self.p)})"
        needed = self.seeds_needed
        return f"no ({format_p(self.p)}{'' if needed is None else f'; needs {needed:,} seeds'})"


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
    found = Difference(one.mean - other.mean, (one, other))
    if one.sd is None or other.sd is None:
        return found
    error, degrees = _welch_error(one.sd, one.n, other.sd, other.n)
    return _t_test(replace(found, standard_error=error), degrees, confidence)


def paired(changes: Iterable[float], confidence: float = CONFIDENCE) -> Difference | None:
    """The mean change of the same runs with its interval and test; None of no seeds.

    The interval is m ± t(n − 1, (1 + confidence)/2) · sd/√n (Student 1908).

    Raises:
        ValueError: a change is NaN or infinite.
    """
    sample = describe(changes)
    if sample is None:
        return None
    found = Difference(sample.mean, (sample,))
    if sample.sd is None:
        return found
    error = sample.sd / math.sqrt(sample.n)
    return _t_test(replace(found, standard_error=error), sample.n - 1, confidence)


def _welch_error(sd: float, n: int, other_sd: float, other_n: int) -> tuple[float, float | None]:
    """SE and ν, the latter from shares of SE², which cannot overflow; None where SE is 0."""
    error = math.hypot(sd / math.sqrt(n), other_sd / math.sqrt(other_n))
    if error == 0:
        return error, None
    share = (sd / error) ** 2 / n
    other = (other_sd / error) ** 2 / other_n
    return error, 1 / (share**2 / (n - 1) + other**2 / (other_n - 1))


def _t_test(found: Difference, degrees: float | None, confidence: float) -> Difference:
    from scipy import special

    if degrees is None or not found.standard_error:
        return found
    half = float(special.stdtrit(degrees, (1 + confidence) / 2)) * found.standard_error
    p = 2 * float(special.stdtr(degrees, -abs(found.value / found.standard_error)))
    low, high = found.value - half, found.value + half
    return replace(found, degrees=degrees, low=low, high=high, p_value=p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust the p values of a table, so that 5 % is the error rate of the table (Holm 1979).

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


def adjust(differences: Sequence[Difference], tests: Sequence[Hashable]) -> list[Difference]:
    """The differences of a table with their p values corrected by `holm`.

    A table of `vshift compare` is one family of tests, and so are the report's differences to the
    baseline, its pairs of layouts and its recalibrations.

    Those with equal keys in `tests` rest on the same trainings and are one test: they count once,
    with the largest of their p values (which differ at most by rounding), and share the adjusted
    one.
    """
    pairs = list(zip(differences, tests, strict=True))
    largest: dict[Hashable, float] = {}
    for each, test in pairs:
        if each.p_value is not None:
            largest[test] = max(each.p_value, largest.get(test, 0.0))
    adjusted = dict(zip(largest, holm(list(largest.values())), strict=True))
    return [
        replace(
            each,
            p_adjusted=None if each.p_value is None else adjusted[test],
            tests=len(largest),
        )
        for each, test in pairs
    ]


def _power(noncentrality: float, degrees: float, level: float) -> float:
    """The power of a two-sided t test: P(|T| > t(ν, 1 − level/2)) for T noncentral t."""
    from scipy import special

    edge = float(special.stdtrit(degrees, 1 - level / 2))
    tails = (float(special.nctdtr(degrees, noncentrality, x)) for x in (edge, -edge))
    below, wrong_side = (0.0 if math.isnan(p) else p for p in tails)  # NaN is far below 1e-99
    return 1 - below + wrong_side


def power_of(
    difference: float, n: int, sd: float, other_sd: float | None = None, level: float = LEVEL
) -> float:
    """Probability that n seeds per arm show a true difference in Welch's two-sided test.

    P(|T| > t(ν, 1 − level/2)) for T noncentral t with ν degrees of freedom and noncentrality
    difference/SE (Cohen 1988), SE and ν as in `welch` with equal n. Exact where both arms spread
    alike; for others Welch's own approximation.

    Args:
        difference: in the unit of the standard deviations.
        other_sd: of the second arm; default: the same.
    """
    if n < 2:
        return 0.0
    error, degrees = _welch_error(sd, n, sd if other_sd is None else other_sd, n)
    if degrees is None:
        return 1.0 if difference else 0.0
    return _power(abs(difference) / error, degrees, level)


def _fewest(is_enough: Callable[[int], bool]) -> int | None:
    """The smallest n from 2 on that is enough, if MOST_SEEDS are; more are never worse."""
    n = 2 + bisect_left(range(2, MOST_SEEDS + 1), True, key=is_enough)
    return n if n <= MOST_SEEDS else None


def seeds_needed(
    difference: float,
    sd: float,
    other_sd: float | None = None,
    *,
    level: float = LEVEL,
    power: float = POWER,
) -> int | None:
    """The fewest seeds per arm that show a true difference with this power; None over MOST_SEEDS.

    Takes the standard deviations for known. From three seeds they are known to a factor of two or
    three, so the number is a plan, not a promise.
    """
    return _fewest(lambda n: power_of(difference, n, sd, other_sd, level) >= power)


def detectable(
    n: int, sd: float, other_sd: float | None = None, *, level: float = LEVEL, power: float = POWER
) -> float | None:
    """The smallest true difference that n seeds per arm show with this power; None for one seed."""
    from scipy import special

    if n < 2:
        return None
    error, degrees = _welch_error(sd, n, sd if other_sd is None else other_sd, n)
    if degrees is None:
        return 0.0
    edge = float(special.stdtrit(degrees, 1 - level / 2))
    return float(special.nctdtrinc(degrees, 1 - power, edge)) * error
