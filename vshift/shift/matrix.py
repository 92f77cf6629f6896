"""Accuracy in every mode that train() and eval() are two of: what noise costs, what stale BN costs.

A network with dropout is trained with noise on and BN on batch statistics, and tested with noise
off and BN on running statistics. Between the two lie the others, and their differences say which of
the two changes costs the accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vshift.shift.modes import BNState, load_bn_state, modes, seeded
from vshift.shift.probe import preserved

Row = dict[str, Any]
# Called once for each pass; gives the same (inputs, labels [N]) in the same order every time.
Labelled = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@torch.no_grad()
def mode_matrix(
    model: nn.Module,
    batches: Labelled,
    recalibrated: Mapping[str, BNState] | None = None,
    *,
    seed: int = 0,
) -> list[Row]:
    """Loss and accuracy with noise on and off, for each kind of BN statistics.

    Model and random states are afterwards as before. Noise is drawn from `seed`, the same for every
    kind; `batches` should draw from a generator of its own.

    Args:
        recalibrated: sets of statistics by a name of your choice, as `estimate` gives them.

    Returns:
        Rows of `noise` (on, off), `statistics` (batch, running, then the names given), `loss` (mean
        cross-entropy in nats), `accuracy` (percent) and `count` (of images).

    Raises:
        ValueError: without batches; for a set named batch or running or not fitting the model; from
            PyTorch, if a batch holds a single value per channel.
    """
    recalibrated = recalibrated or {}
    if taken := {"batch", "running"} & recalibrated.keys():
        raise ValueError(f"recalibrated: {min(taken)!r} names the model's own statistics already")
    return [
        {
            "noise": "on" if noise else "off",
            "statistics": name,
            **_scored(model, batches, noise, name, recalibrated.get(name), seed),
        }
        for noise in (True, False)
        for name in ("batch", "running", *recalibrated)
    ]


def _scored(
    model: nn.Module, batches: Labelled, noise: bool, name: str, state: BNState | None, seed: int
) -> Row:
    norm: Literal["batch", "running"] = "batch" if name == "batch" else "running"
    with preserved(model), seeded(model, seed):
        if state is not None:
            load_bn_state(model, state)
        with modes(model, noise=noise, norm=norm):
            return _score(model, batches)


def _score(model: nn.Module, batches: Labelled) -> Row:
    """Over all images, in the model's present mode; one synchronisation at the end."""
    sums: list[Tensor] = []
    count = 0
    for images, labels in batches():
        logits = model(images).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        hits = logits.argmax(1) == labels
        sums.append(torch.stack([losses.double().sum(), hits.double().sum()]))
        count += len(labels)
    if not count:
        raise ValueError("no batches to score")
    loss, hit = torch.stack(sums).sum(0).tolist()
    return {"loss": loss / count, "accuracy": 100 * hit / count, "count": count}


def split(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What costs accuracy, in percentage points, from the rows of `mode_matrix`.

    Returns:
        `noise_cost`: noise off less noise on, both on batch statistics: the noise by itself.
        `stale_cost`: batch less running statistics, both with noise off: what BN remembers is not
        what it meets. `recovered.<name>`: that set of statistics less the running ones, noise off.
    """
    accuracy = {(row["noise"], row["statistics"]): float(row["accuracy"]) for row in rows}
    running = accuracy["off", "running"]
    result = {
        "noise_cost": accuracy["off", "batch"] - accuracy["on", "batch"],
        "stale_cost": accuracy["off", "batch"] - running,
    }
    for (noise, name), value in accuracy.items():
        if noise == "off" and name not in ("batch", "running"):
            result[f"recovered.{name}"] = value - running
    return result


@dataclass(frozen=True)
class MonteCarlo:
    """Many noisy predictions for the same inputs; tensors are float64 [N, K] on the CPU.

    Attributes:
        mean_probabilities: the prediction, averaged over the passes.
        spread: standard deviation over the passes (n − 1), for each image and class.
        accuracy: of the mean prediction, percent.
        loss: cross-entropy of the mean prediction, nats.
        pass_accuracy: mean over the passes of a single pass's accuracy, percent.
        accuracy_sd: standard deviation of that over the passes (n − 1), points.
        passes, count: how many passes over how many images.
    """

    mean_probabilities: Tensor
    spread: Tensor
    accuracy: float
    loss: float
    pass_accuracy: float
    accuracy_sd: float
    passes: int
    count: int


@torch.no_grad()
def monte_carlo(model: nn.Module, batches: Labelled, passes: int = 20, seed: int = 0) -> MonteCarlo:
    """Noise left on at test, BN on running statistics (Gal & Ghahramani 2016, arXiv 1506.02142).

    Each batch is taken once and predicted `passes` times. Model and random states are afterwards
    as before; a noise of rate 0 gives spread 0.

    Raises:
        ValueError: for fewer than two passes, which have no spread, or without batches.
    """
    if passes < 2:
        raise ValueError(f"a spread takes at least 2 passes, not {passes}")
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    answers: list[Tensor] = []
    with preserved(model), seeded(model, seed), modes(model, noise=True, norm="running"):
        for images, labels in batches():
            parts.append(_predictions(model, images, labels, passes))
            answers.append(labels.cpu())
    if not parts:
        raise ValueError("no batches to predict")
    means, spreads, hits = zip(*parts, strict=True)
    mean, truth = torch.cat(means), torch.cat(answers)
    count = len(truth)
    accuracies = 100 * torch.stack(hits).sum(0) / count
    return MonteCarlo(
        mean_probabilities=mean,
        spread=torch.cat(spreads),
        accuracy=100 * float((mean.argmax(1) == truth).double().mean()),
        loss=float(F.nll_loss(mean.log(), truth)),
        pass_accuracy=float(accuracies.mean()),
        accuracy_sd=float(accuracies.std(correction=1)),
        passes=passes,
        count=count,
    )


def _predictions(
    model: nn.Module, images: Tensor, labels: Tensor, passes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one batch, on the CPU: mean and sd of the probabilities [N, K], hits of each pass [P]."""
    # Passes × classes of one batch are small, so they are kept: two-pass and exact.
    every = torch.stack([model(images).double().softmax(1) for _ in range(passes)])
    hits = (every.argmax(2) == labels).sum(1).double()
    return every.mean(0).cpu(), every.std(0, correction=1).cpu(), hits.cpu()
