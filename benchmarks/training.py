"""vshift's own contender: an epoch of `vshift train`, from the functions that it calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch

from benchmarks.cases import Case, make_config
from vshift.data import ImageSet
from vshift.data.images import Part, image_set
from vshift.networks.generators import seed_generators
from vshift.train.context import TrainingContext, derive_seed
from vshift.train.device import configure
from vshift.train.fast_steps import make_train_step
from vshift.train.trial import choose

CLASSES, SIZE = 10, 32


def random_images(batch: int, steps: int, device: torch.device) -> ImageSet:
    """uint8 noise for an epoch of `steps` batches, [N, 32, 32, 3], the same at every call.

    The last batch holds five eighths of the others, as CIFAR-10's does at 128.
    """
    count = steps * batch - 3 * batch // 8
    generator = torch.Generator().manual_seed(0)
    pixels = torch.empty(count, SIZE, SIZE, 3, dtype=torch.uint8).random_(generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    train = Part(pixels, labels)
    names = tuple(str(i) for i in range(CLASSES))
    return image_set("random", names, train, None, Part(pixels[:1], labels[:1])).to(device)


class Training:
    """Training a case with vshift, epoch by epoch.

    Args:
        seed: of weights, batches and noise.
        say: called with a message if a kind of step is not available and a slower one runs.

    Attributes:
        step, precision: that run, which `auto` chose.
    """

    def __init__(
        self,
        case: Case,
        images: ImageSet,
        *,
        log: bool,
        kind: str,
        threads: int | None = None,
        seed: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        device = images.train.images.device
        hardware = {"device": device.type, "threads": threads}
        config = make_config(case, log=log, kind=kind, hardware=hardware)
        configure(config.hardware, device)
        chosen = choose(config, images, say).hardware
        config = config.model_copy(update={"hardware": chosen})
        self.context = TrainingContext(config, seed, images)
        self.model = self.context.model.train()
        self._step = make_train_step(chosen.step, self.context, say)
        self.step, self.precision = self._step.name, self.context.precision
        self._seed, self._epochs = seed, itertools.count(1)

    def epoch(self) -> float:
        """Train once over all images as `vshift.train.loop.train` does; returns the mean loss."""
        for _ in self.steps():
            pass
        return self.end()

    def steps(self) -> Iterator[int]:
        """An epoch's steps, as they are taken."""
        number = next(self._epochs)
        seed_generators(derive_seed(self._seed, number, "noise"))
        return self._step.epoch(derive_seed(self._seed, number, "data"), self.context.rates)

    def end(self) -> float:
        """The once-an-epoch copies of metrics and of the log to the host; the mean loss."""
        metrics = self.context.metrics.compute_and_reset()
        if self.context.layer_log is not None:
            self.context.layer_log.compute_and_reset()
        return metrics.loss
