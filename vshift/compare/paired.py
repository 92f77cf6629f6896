"""Before and after in the same runs: each seed's own change, not two samples.

A run that is re-estimated is the same network before and after, so what seeds differ in falls out
of each one's change. Student's t test of the changes (Student 1908, "The probable error of a mean",
Biometrika 6); the distributions are scipy's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vshift.compare.statistics import CONFIDENCE, LEVEL, POWER, Sample, describe, fewest


@dataclass(frozen=True)
class Change:
    """A mean change over seeds.

    Attributes:
        low, high: the confidence interval; None where one seed or no spread leaves none.
        p_value: two-sided, of no change; None likewise.
    """

    sample: Sample
    low: float | None
    high: float | None
    p_value: float | None


def paired(changes: Iterable[float], confidence: float = CONFIDENCE) -> Change | None:
    """Mean change with its interval m ± t(n − 1, (1 + confidence)/2) · sd/√n; None of no seeds.

    Raises:
        ValueError: a change is NaN or infinite.
    """
    from scipy import special

    sample = describe(changes)
    if sample is None:
        return None
    if not sample.sd:
        return Change(sample, None, None, None)
    error = sample.sd / math.sqrt(sample.n)
    half = float(special.stdtrit(sample.n - 1, (1 + confidence) / 2)) * error
    p_value = 2 * float(special.stdtr(sample.n - 1, -abs(sample.mean / error)))
    return Change(sample, sample.mean - half, sample.mean + half, p_value)


def seeds_to_tell_change(change: Change, tests: int = 1) -> int | None:
    """Seeds that would show a true change of the size found, at 5 % / tests with 80 % power.

    Always more than there are, as these did not show it; None as in `seeds_to_tell`.
    """
    sample = change.sample
    if change.p_value is None or not sample.sd:
        return None
    size, level = abs(sample.mean) / sample.sd, LEVEL / max(1, tests)
    needed = fewest(lambda n: _power(size, n, level) >= POWER)
    return None if needed is None else max(needed, sample.n + 1)


def _power(size: float, n: int, level: float) -> float:
    """Of the two-sided test of n changes whose mean is `size` standard deviations."""
    from scipy import special

    edge, shift = float(special.stdtrit(n - 1, 1 - level / 2)), size * math.sqrt(n)
    wrong_side = float(special.nctdtr(n - 1, shift, -edge))
    wrong_side = 0.0 if math.isnan(wrong_side) else wrong_side  # scipy's word for far below 1e-99
    return 1 - float(special.nctdtr(n - 1, shift, edge)) + wrong_side
