"""Monte Carlo scores after the last epoch: the mean of many predictions of the test images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import count, islice

from torch import Tensor

from vshift.runs.files import Row
from vshift.shift.mode_matrix import MonteCarlo, MonteCarloNumbers, monte_carlo, monte_carlo_bn
from vshift.train.context import TrainingContext, derive_seed
from vshift.train.objective import MetricAccumulator


def monte_carlo_rows(context: TrainingContext) -> list[Row]:
    """The mean of many predictions of the test images, by each method that `measure` asks for.

    Returns:
        Rows of `method` (`monte_carlo`, `monte_carlo_bn`), the scores as `test_…`, and what is
        known of the passes as `<method>_…`.
    """
    measure, test = context.config.measure, context.plain(context.images.test)
    found: dict[str, MonteCarlo | MonteCarloNumbers] = {}
    # A batch is predicted many times: a signal must not wait for all of them.
    hook = context.model.register_forward_pre_hook(lambda *_: context.check_stop())
    try:
        with context.autocast():
            if passes := measure.monte_carlo:
                seed = derive_seed(context.seed, context.config.epochs, "monte carlo")
                found["monte_carlo"] = monte_carlo(context.model, test, passes, seed)
            if passes := measure.monte_carlo_bn:
                training = partial(_single_batches, context, passes)
                found["monte_carlo_bn"] = monte_carlo_bn(context.model, test, training)
    finally:
        hook.remove()
    return [_monte_carlo_row(context, method, scores) for method, scores in found.items()]


def _single_batches(context: TrainingContext, number: int) -> Iterator[Tensor]:
    """Training batches as BN met them: drawn as in an epoch, all of the full size.

    With ghost BN the first group of each. Where an epoch has too few, the next one follows.
    """
    size = min(context.stream.batch_size, len(context.images.train))
    group = getattr(context.config.norm, "ghost", None)
    seeds = (
        derive_seed(context.seed, context.config.epochs, f"monte carlo bn {epoch}")
        for epoch in count()
    )
    batches = (images for seed in seeds for images, _ in context.stream.epoch(seed))
    return islice((images[:group] for images in batches if len(images) == size), number)


def _monte_carlo_row(
    context: TrainingContext, method: str, found: MonteCarlo | MonteCarloNumbers
) -> Row:
    scores, passes = (
        _number_scores(context, found)
        if isinstance(found, MonteCarloNumbers)
        else _class_scores(found)
    )
    return {
        "method": method,
        **{f"test_{key}": value for key, value in scores.items()},
        **{f"{method}_{key}": value for key, value in (scores | passes).items()},
    }


def _number_scores(context: TrainingContext, found: MonteCarloNumbers) -> tuple[Row, Row]:
    """Scores of the mean prediction, and what is known of the passes, in the targets' own units."""
    std = context.images.target_std
    assert std is not None
    metrics = MetricAccumulator(context.device, std)
    mean, targets = (tensor.float().to(context.device) for tensor in (found.mean, found.targets))
    metrics.add(*context.objective(mean, mean, targets), len(targets))
    rmse = (found.pass_errors * std.cpu().square()).mean(1).sqrt()
    passes = {
        "passes": len(rmse),
        "pass_rmse": float(rmse.mean()),
        "rmse_sd": float(rmse.std(correction=1)),
        "spread": float((found.spread * std.cpu()).mean()),
    }
    return metrics.compute_and_reset().columns(), passes


def _class_scores(found: MonteCarlo) -> tuple[Row, Row]:
    scores = {
        "accuracy": found.accuracy,
        "loss": found.calibration.nll,
        **asdict(found.calibration),
    }
    passes = {
        "passes": found.passes,
        "pass_accuracy": found.pass_accuracy,
        "accuracy_sd": found.accuracy_sd,
        "spread": float(found.spread.mean()),
    }
    return scores, passes
