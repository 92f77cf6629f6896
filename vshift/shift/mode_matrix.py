"""Scores with noise on and off and with every kind of BN statistics: what each of them costs.

A network with dropout is trained with noise on and BN on batch statistics, and tested with noise
off and BN on running statistics. Between the two lie the others, and their differences say which of
the two changes costs the accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vshift.shift.calibration import Calibration, CalibrationSums
from vshift.shift.modes import BNState, bn_state, load_bn_state, modes, restoring_state, seeded
from vshift.shift.stats import Batches, pooled_moments

Row = dict[str, Any]
# Called once per pass; gives the same (inputs, labels [N]) in the same order every time.
Labelled = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@torch.no_grad()
def mode_matrix(
    model: nn.Module,
    score: Callable[[], Row],
    recalibrated: Mapping[str, BNState] | None = None,
    *,
    seed: int = 0,
) -> list[Row]:
    """What `score` finds with noise on and off, for each kind of BN statistics.

    Model and random states are restored. Noise is drawn from `seed`, the same for every kind.

    Args:
        score: called once per combination, without gradients; runs the model, in the mode that it
            finds it in, on the same inputs every time, and gives its columns.
        recalibrated: sets of statistics by a name of your choice, as `estimate` gives them.

    Returns:
        Rows of `noise` (on, off), `statistics` (batch, running, then the names given) and the
        columns of `score`.

    Raises:
        ValueError: for a set named batch or running or not fitting the model; from PyTorch, if a
            batch holds a single value per channel.
    """
    recalibrated = recalibrated or {}
    if taken := {"batch", "running"} & recalibrated.keys():
        raise ValueError(f"recalibrated: {min(taken)!r} names the model's own statistics already")
    rows: list[Row] = []
    for noise in (True, False):
        for name in ("batch", "running", *recalibrated):
            norm: Literal["batch", "running"] = "batch" if name == "batch" else "running"
            with restoring_state(model), seeded(model, seed):
                if name in recalibrated:
                    load_bn_state(model, recalibrated[name])
                with modes(model, noise=noise, norm=norm):
                    scores = score()
            rows.append({"noise": "on" if noise else "off", "statistics": name, **scores})
    return rows


def mode_costs(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Costs in points from the rows of `mode_matrix`: of accuracy in percent, or where numbers are
    predicted of 100·R², the explained variance in percent. {} where neither is known.

    Returns:
        `noise_cost`: `precise` statistics with noise off less the running ones with noise on, which
        fit these modes: the noise by itself; left out without `precise`. `recovered.<name>`: that
        set of statistics less the running ones, both with noise off; of `precise` it is what the
        running statistics cost. Nothing is taken from batch statistics: those of images that are
        not cropped and flipped as in training are others than the network was trained with.
    """
    rows = list(rows)
    of, unit = ("accuracy", 1) if rows and rows[0]["accuracy"] is not None else ("r2", 100)
    if any(row.get(of) is None for row in rows):
        return {}
    score = {(row["noise"], row["statistics"]): unit * float(row[of]) for row in rows}
    result = {}
    if ("off", "precise") in score:
        result["noise_cost"] = score["off", "precise"] - score["on", "running"]
    for (noise, name), value in score.items():
        if noise == "off" and name not in ("batch", "running"):
            result[f"recovered.{name}"] = value - score["off", "running"]
    return result


@dataclass(frozen=True)
class MonteCarlo:
    """Many predictions for the same inputs; tensors are float64 [N, K] on the CPU.

    Attributes:
        mean_probabilities: the prediction, averaged over the passes.
        spread: standard deviation over the passes (n − 1), for each image and class.
        accuracy: of the mean prediction, percent.
        calibration: of the mean prediction.
        pass_accuracy: mean over the passes of a single pass's accuracy, percent.
        accuracy_sd: standard deviation of that over the passes (n − 1), points.
        passes, count: number of passes and of images.
    """

    mean_probabilities: Tensor
    spread: Tensor
    accuracy: float
    calibration: Calibration
    pass_accuracy: float
    accuracy_sd: float
    passes: int
    count: int


@dataclass(frozen=True)
class MonteCarloNumbers:
    """Many predictions of numbers for the same inputs; tensors are float64 on the CPU.

    Attributes:
        mean: [N, D], the prediction, averaged over the passes.
        spread: [N, D], standard deviation over the passes (n − 1).
        targets: [N, D], as the batches gave them.
        pass_errors: [P, D], the mean squared error of each pass.
    """

    mean: Tensor
    spread: Tensor
    targets: Tensor
    pass_errors: Tensor


@torch.no_grad()
def monte_carlo(
    model: nn.Module, batches: Labelled, passes: int = 20, seed: int = 0
) -> MonteCarlo | MonteCarloNumbers:
    """Predict with noise on and BN on running statistics (Gal & Ghahramani 2016, arXiv 1506.02142).

    Each batch is taken once and predicted `passes` times: classes where labels are integers,
    numbers where they are floats. Model and random states are restored; a noise of rate 0 gives
    spread 0.

    Raises:
        ValueError: for fewer than two passes, which have no spread, or without batches.
    """
    with restoring_state(model), seeded(model, seed), modes(model, noise=True, norm="running"):
        return _predict(model, batches, [{}] * passes)


@torch.no_grad()
def monte_carlo_bn(
    model: nn.Module, batches: Labelled, training: Batches
) -> MonteCarlo | MonteCarloNumbers:
    """Predict with noise off and BN on the statistics of one training batch per pass.

    Monte Carlo batch normalisation (Teye, Azizpour & Smith 2018, arXiv 1802.06455, algorithm 1):
    a pass runs a training batch with BN on that batch's own statistics, and predicts with every
    layer's mean and biased variance of it. Model and random states are restored.

    Args:
        training: batches of inputs, one per pass, drawn and sized as in training: the spread of
            their statistics is what is sampled. With ghost BN a batch is one of its groups.

    Raises:
        ValueError: for fewer than two training batches, without a BN layer or without batches; from
            PyTorch, if a training batch holds a single value per channel.
    """
    with restoring_state(model):
        states = [_state_of_batch(model, images) for images in training()]
        with modes(model, noise=False, norm="running"):
            return _predict(model, batches, states)


def _state_of_batch(model: nn.Module, images: Tensor) -> BNState:
    """The mean and biased variance that every BN layer normalises this batch with."""
    with modes(model, noise=False, norm="batch"):
        moments = pooled_moments(model, lambda: [images])
    if not moments:
        raise ValueError("the model has no BN layer that keeps running statistics")
    state = bn_state(model)
    for name, layer in moments.items():
        state[f"{name}.running_mean".removeprefix(".")].copy_(layer.mean)
        state[f"{name}.running_var".removeprefix(".")].copy_(layer.biased_variance)
    return state


def _predict(
    model: nn.Module, batches: Labelled, states: Sequence[BNState]
) -> MonteCarlo | MonteCarloNumbers:
    """Predict once with each set of BN statistics; with {} those that the model has stay."""
    if len(states) < 2:
        raise ValueError(f"a spread takes at least 2 passes, not {len(states)}")

    def predicted(images: Tensor, state: BNState, *, numbers: bool) -> Tensor:
        if state:
            load_bn_state(model, state)
        output: Tensor = model(images).double()
        return output if numbers else output.softmax(1)

    means, spreads, judged, answers = [], [], [], []
    for images, labels in batches():
        numbers = labels.is_floating_point()
        # Passes × outputs of one batch are small, so they are kept: two-pass and exact.
        every = torch.stack([predicted(images, state, numbers=numbers) for state in states])
        means.append(every.mean(0).cpu())
        spreads.append(every.std(0, correction=1).cpu())
        judge = (every - labels.double()).square() if numbers else every.argmax(2) == labels
        judged.append(judge.sum(1).double().cpu())
        answers.append(labels.cpu())
    if not means:
        raise ValueError("no batches to predict")
    mean, spread, truth = torch.cat(means), torch.cat(spreads), torch.cat(answers)
    of_pass = torch.stack(judged).sum(0)
    if truth.is_floating_point():
        return MonteCarloNumbers(mean, spread, truth.double(), of_pass / len(truth))
    sums = CalibrationSums("cpu")
    sums.add(mean.log(), truth)
    calibration = sums.compute()
    assert calibration is not None
    accuracies = 100 * of_pass / len(truth)
    return MonteCarlo(
        mean_probabilities=mean,
        spread=spread,
        accuracy=100 * float((mean.argmax(1) == truth).double().mean()),
        calibration=calibration,
        pass_accuracy=float(accuracies.mean()),
        accuracy_sd=float(accuracies.std(correction=1)),
        passes=len(states),
        count=len(truth),
    )
