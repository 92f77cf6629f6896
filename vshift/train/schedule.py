"""Learning rates as functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vshift.config import own_code
from vshift.config.training import AnySchedule, Cosine, MultiStep, OneCycle, OwnSchedule
from vshift.errors import ConfigError
from vshift.text import show_value


def learning_rates(schedule: AnySchedule, base: float, epochs: int, steps: int) -> list[float]:
    """The learning rate of every step of a run.

    Args:
        base: the optimizer's learning rate.
        steps: steps per epoch.

    Returns:
        `epochs * steps` numbers.

    Raises:
        ConfigError: a function of one's own that fails, or gives no factor.
    """
    total = epochs * steps
    if isinstance(schedule, OwnSchedule):
        return [base * factor for factor in _own_factors(schedule, epochs, steps)]
    if isinstance(schedule, OneCycle):
        return [_one_cycle(schedule, base, step, total) for step in range(total)]
    # A whole number of steps, so that the last of them has the learning rate itself and none more.
    warm = round(schedule.warmup * steps)

    def rate(step: int) -> float:
        if step < warm:
            return min(base, base * (step + 1) / warm)  # 0.1 · 3 / 3 is above 0.1
        if isinstance(schedule, MultiStep):
            passed = sum(step // steps >= milestone for milestone in schedule.milestones)
            return base * schedule.factor**passed
        if isinstance(schedule, Cosine):
            return _cosine(base, schedule.final, (step - warm) / (total - warm))
        return base

    return [rate(step) for step in range(total)]


def _one_cycle(schedule: OneCycle, base: float, step: int, total: int) -> float:
    """One cycle with cosine annealing, as torch.optim.lr_scheduler.OneCycleLR: up, then down."""
    peak = base if schedule.peak is None else schedule.peak
    first = peak / schedule.div_factor
    top = schedule.pct_start * total - 1  # may be 0: the first step has the peak
    if step <= top:
        return _cosine(first, peak, step / top if top else 1.0)
    return _cosine(peak, first / schedule.final_div_factor, (step - top) / (total - 1 - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _own_factors(schedule: OwnSchedule, epochs: int, steps: int) -> Iterator[float]:
    function = own_code.import_object(schedule.reference)
    offered = {"step": 0, "steps": epochs * steps, "epoch": 0, "epochs": epochs}
    given = own_code.arguments(function, schedule, offered)
    for step in range(epochs * steps):
        moving = {"step": step, "epoch": step // steps}
        now = {key: moving.get(key, value) for key, value in given.items()}
        with own_code.running(schedule.reference):
            factor = function(**{**now, **schedule.args})
        if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise ConfigError(
                f"{schedule.reference} gave {show_value(factor)} at step {step}; a factor of the "
                "learning rate is a number, 0 or more"
            )
        yield factor
