"""Checkpoints, and bit-exact resumption from them.

The order of the images, crops, flips, mixtures and the weights' first values derive from (seed,
epoch, purpose), so that resuming means to skip the batches that were trained on. What does not
derive is in the checkpoint: weights, buffers, the optimizer's state, the weights' average, and
within an epoch the sums of the epoch so far and the generators that noise is drawn from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vshift.errors import Damaged, RunError, Stopped
from vshift.networks.generators import outside_state, set_outside_state
from vshift.runs import RunFolder, checkpoint_file
from vshift.train.context import TrainingContext

State = dict[str, Any]


class Checkpointer:
    """Writes a run's checkpoints and restores the last one.

    One is written every `checkpoint.minutes` (`after_step`), every `checkpoint.every` epochs and
    after the last (`after_epoch`), and when a signal stops the run (`saving_on_stop`).

    Attributes:
        epoch, step: the progress: completed epochs, and steps into the next one. An epoch that is
            trained but not yet evaluated counts as in progress: evaluating changes nothing and is
            done again.
    """

    def __init__(
        self, folder: RunFolder, context: TrainingContext, say: Callable[[str], None]
    ) -> None:
        self.folder, self.context, self.say = folder, context, say
        self.settings, self.epochs = context.config.checkpoint, context.config.epochs
        self.steps = context.stream.steps
        self.epoch = self.step = 0
        self._inside: State | None = None  # of the restored epoch, or of the one being evaluated
        self._saved: tuple[int, int] | None = None
        self._epoch_started = self._last_save = time.monotonic()

    def after_step(self, step: int) -> None:
        """Save if `checkpoint.minutes` have passed; `step` steps of the epoch are done."""
        self.step = step
        if step == self.steps:
            self._inside = self._epoch_state()
        if self._is_time():
            self.save()

    def after_epoch(self, epoch: int) -> None:
        """Save if it is time, or the epoch's turn, or the last one; its rows are written."""
        last = epoch == self.epochs
        # The last one keeps its sums: should the summary get lost, it can be evaluated again.
        self._inside = self._inside if last else None
        self.epoch, self.step = epoch, 0
        every = self.settings.every
        if last or self._is_time() or (every and epoch % every == 0):
            self.save()

    @contextmanager
    def saving_on_stop(self) -> Iterator[None]:
        """Save if `Stopped` is raised inside, unless it asks to stop at once.

        Evaluations restore the model on their way out, so it is as after the last step.
        """
        try:
            yield
        except Stopped as stopped:
            if not stopped.at_once:
                if self._saved != (self.epoch, self.step):
                    self.save()
                self.say(f"{self.folder.path}: checkpoint after {self._progress()}")
            raise

    def _is_time(self) -> bool:
        minutes = self.settings.minutes
        return minutes is not None and time.monotonic() - self._last_save > 60 * minutes

    def save(self) -> None:
        """Write a checkpoint of the present progress."""
        self.folder.pulse(at_once=True)
        inside = self._inside if self.step in (0, self.steps) else self._epoch_state()
        average = self.context.average
        self.folder.save_checkpoint(
            {
                "version": checkpoint_file.VERSION,
                "epoch": self.epoch,
                "step": self.step,
                "model": self.context.model.state_dict(),
                "optimizer": self.context.optimizer.state_dict(),
                "average": None if average is None else average.state_dict(),
                "inside": inside,
            },
            self.settings.keep,
        )
        self._saved, self._last_save = (self.epoch, self.step), time.monotonic()

    def _epoch_state(self) -> State:
        """The sums of an unfinished epoch, and the generators that its noise comes from."""
        log = self.context.layer_log
        return {
            "tally": self.context.metrics.state_dict(),
            "log": None if log is None else log.state_dict(),
            "random": random_state(self.context.device),
            "seconds": time.monotonic() - self._epoch_started,
        }

    def _progress(self) -> str:
        return f"epoch {self.epoch}" + (f", step {self.step} of {self.steps}" if self.step else "")

    def restore(self) -> bool:
        """Restore the folder's newest sound checkpoint; returns whether there was one.

        Raises:
            RunError: there are checkpoints and none of them can be used.
        """
        state = self._restore_newest()
        if state is None:
            return False
        if state["epoch"] == self.epochs and not self.folder.has_summary:
            state = {**state, "epoch": self.epochs - 1, "step": self.steps}
            if state["inside"] is None:  # vshift's first version saved no sums
                raise RunError(f"{self.folder.path}: no summary; `--fresh` trains the run again")
        self.epoch, self.step, self._inside = state["epoch"], state["step"], state["inside"]
        self.folder.truncate_after(self.epoch)
        epochs = [row.get("epoch") for row in self.folder.metrics()]
        if epochs != list(range(1, self.epoch + 1)):
            raise RunError(
                f"{self.folder.path}: metrics.jsonl lacks rows of epochs 1 to {self.epoch}, which "
                "the checkpoint comes after; `--fresh` trains the run again"
            )
        if self.epoch < self.epochs:
            self.folder.drop_results()
        self.say(f"{self.folder.path}: resuming after {self._progress()}")
        return True

    def begin_epoch(self, epoch: int) -> tuple[int, float]:
        """Restore the generators of an epoch in progress.

        Returns:
            The number of its steps that are done already, and the seconds that they took.
        """
        self.epoch = epoch - 1
        seconds = 0.0
        if self.step and self._inside is not None:
            set_random_state(self._inside["random"])
            seconds = float(self._inside["seconds"])
        self._epoch_started = time.monotonic() - seconds
        if self.step == self.steps:
            self._inside = self._epoch_state()
        return self.step, seconds

    def _restore_newest(self) -> State | None:
        """Restore from the newest checkpoint that can be used; None where there is none."""
        problems: list[str] = []
        for path in self.folder.checkpoints():
            try:
                state = self._load(checkpoint_file.load(path))
            except Damaged as error:
                problems.append(str(error))
                continue
            if problems:
                damage = problems[0].split(";")[0]
                self.say(f"warning: {damage}; resuming from {path.name} instead")
            if path.name != checkpoint_file.CHECKPOINT:
                checkpoint_file.promote(self.folder.path, path)
            return state
        if len(problems) > 1:
            raise RunError(
                f"all {len(problems)} checkpoints in {self.folder.path} are damaged; `--fresh` "
                "trains the run again from its beginning:\n  "
                + "\n  ".join(problem.split(";")[0] for problem in problems)
            )
        if problems:
            raise Damaged(problems[0])
        return None

    def _load(self, state: State) -> State:
        """Put a state into the context; Damaged if it is not one of this run."""
        context = self.context
        state = {"step": 0, "inside": None, **state}
        inside = state["inside"]
        context.metrics.compute_and_reset()  # whatever a damaged checkpoint left in it
        try:
            if not (0 <= state["epoch"] <= self.epochs and 0 <= state["step"] <= self.steps):
                raise ValueError(f"epoch {state['epoch']}, step {state['step']} are not this run's")
            if state["step"] and inside is None:
                raise ValueError("the sums of its epoch are missing")
            context.model.load_state_dict(state["model"])
            context.optimizer.load_state_dict(state["optimizer"])
            if context.average is not None:
                context.average.load_state_dict(state["average"])
            if inside is not None:
                context.metrics.load_state_dict(inside["tally"])
                if context.layer_log is not None:
                    context.layer_log.load_state_dict(inside["log"])
                # Named, as PyTorch warns where it has to fork the generators of several GPUs.
                devices = [context.device] if context.device.type == "cuda" else []
                with torch.random.fork_rng(devices=devices):
                    set_random_state(inside["random"])
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise checkpoint_file.damaged(
                self.folder.path / checkpoint_file.CHECKPOINT, reason
            ) from error
        return state


def random_state(device: torch.device) -> State:
    """The states of the generators that a network on this device, or its code, draws from."""
    state = {"cpu": torch.get_rng_state(), **outside_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: State) -> None:
    """Restore what `random_state` gave, on the present CUDA device."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    if "python" in state:  # an earlier version saved PyTorch's only
        set_outside_state(state)
