"""The training loop: one epoch after the other, one step after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from torch import Tensor

from vshift.networks.generators import seed_generators
from vshift.runs import RunFolder
from vshift.runs.schema import EpochRow
from vshift.runs.summary import summarize_layers
from vshift.train.checkpointer import Checkpointer
from vshift.train.context import TrainingContext, derive_seed
from vshift.train.final import evaluate_final_model
from vshift.train.measure import NOT_MEASURED, measure_layers
from vshift.train.progress import Reporter
from vshift.train.scores import test_scores


class TrainStep:
    """One optimizer step, one PyTorch operation after the other.

    The reference: the faster steps, which `fast_steps.py` lists, are tested against it.
    """

    name = "eager"

    def __init__(self, context: TrainingContext) -> None:
        self.context = context

    def forward(self, images: Tensor) -> Tensor:
        """The network's output; faster steps compute it in another way."""
        output: Tensor = self.context.model(images)
        return output

    def prepare(self) -> None:
        """Compile or capture what the step needs; the run's state stays as it is.

        Raises:
            KernelsMissing, CannotCompile: by the faster steps, with the reason.
        """

    def forget(self) -> None:
        """Forget what was captured: a layer does something else from here on."""

    def epoch(self, seed: int, rates: Sequence[float], first: int = 0) -> Iterator[int]:
        """Train on an epoch's batches, without the `first` ones of a resumed epoch.

        Args:
            rates: the learning rate of every step of the epoch.

        Yields:
            The number of the epoch's steps that are done, after every step; a step that runs as a
            CUDA graph yields after several.
        """
        batches = self.context.stream.epoch(seed, first)
        for step, ((images, labels), rate) in enumerate(
            zip(batches, rates[first:], strict=True), first + 1
        ):
            for group in self.context.optimizer.param_groups:
                group["lr"] = rate
            self(images, labels)
            yield step

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Train on images [N, C, H, W] and their labels; the model is in train mode."""
        context = self.context
        context.optimizer.zero_grad()
        with context.autocast():
            output = self.forward(images)
        # The loss is taken in float32 in every precision.
        loss, score = context.objective(output.float(), images, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        context.optimizer.step()
        if context.average is not None:
            context.average.update()
        # Sums on the device; nothing waits for it here.
        context.metrics.add(loss, score, images.shape[:-3].numel())
        if context.layer_log is not None:
            context.layer_log.add()  # what every BN layer wrote of this batch


def train(
    context: TrainingContext,
    train_step: TrainStep,
    checkpointer: Checkpointer,
    folder: RunFolder,
    reporter: Reporter,
) -> str:
    """Train to the last epoch, and write everything into the folder as it comes.

    Starts where the checkpointer is, and ends in the same bits as a run that never stopped: random
    numbers derive from (seed, epoch, purpose), and what does not is in the checkpoint.

    Returns:
        `done` or `diverged`.
    """
    config, steps, rates = context.config, context.stream.steps, context.rates
    label = f"{config.name} seed {context.seed}"
    one_batch = min(steps, config.measure.explain_batches) == 1
    reporter.start(label, checkpointer.epoch, config.epochs, steps, one_batch)

    with checkpointer.saving_on_stop():
        for epoch in range(checkpointer.epoch + 1, config.epochs + 1):
            # Train. A resumed epoch skips the `first` batches that it was trained on already.
            context.model.train()
            if context.enter_epoch(epoch):
                train_step.forget()
            seed_generators(derive_seed(context.seed, epoch, "noise"))
            first, earlier_seconds = checkpointer.begin_epoch(epoch)
            started = time.perf_counter() - earlier_seconds
            start = (epoch - 1) * steps  # steps of the epochs before
            reporter.step(start + first)

            data_seed = derive_seed(context.seed, epoch, "data")
            context.enter_phase("steps")
            for step in train_step.epoch(data_seed, rates[start : start + steps], first):
                reporter.step(start + step)
                checkpointer.after_step(step)  # before a stop: it keeps the sums of a whole epoch
                context.check_stop()

            # Evaluate. A stop from here on repeats the evaluation when the run is resumed.
            trained = context.metrics.compute_and_reset()
            training_seconds = time.perf_counter() - started
            context.enter_phase("test")
            scores = test_scores(context)
            context.enter_phase("measure")
            diverged = not math.isfinite(trained.loss)
            measured = NOT_MEASURED if diverged else measure_layers(context, epoch, folder)
            context.enter_phase("write")
            row = EpochRow(
                epoch=epoch,
                step=epoch * steps,
                learning_rate=rates[epoch * steps - 1],
                **trained.columns("train_{}"),
                **scores,
                seconds=time.perf_counter() - started,
                images_per_second=trained.count / training_seconds,
            )
            # Write. Rows of an epoch without a checkpoint are cut off when the run is resumed.
            folder.append_metrics(row.to_dict())
            folder.append_layers(layer.to_dict() for layer in measured.rows)
            shift = summarize_layers(measured.rows)
            if diverged:
                reporter.epoch(row, shift)
                return "diverged"
            if epoch == config.epochs:
                evaluate_final_model(context, row, measured, folder)
            checkpointer.after_epoch(epoch)
            reporter.epoch(row, shift)
            if epoch < config.epochs:
                context.check_stop()
    return "done"
