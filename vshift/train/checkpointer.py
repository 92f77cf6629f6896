"""Going on where a run stopped, bit for bit: what is written down, when, and put back.

The order of the images, crops, flips and the weights' first values derive from (seed, epoch,
purpose), so that going on means to skip the batches that were trained on. What does not derive is
in the checkpoint: weights, buffers, the optimizer's state, and inside an epoch the sums of the
epoch so far and the generators that noise is drawn from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from vshift.errors import Damaged, RunError
from vshift.runs import RunFolder, checkpoint_file
from vshift.shift.training_log import TrainingLog
from vshift.train.evaluate import TrainingContext
from vshift.train.sgd import SGD
from vshift.train.signals import StopSignal
from vshift.train.step import MetricAccumulator

State = dict[str, Any]


class Checkpointer:
    """Writes a run's checkpoints and puts the last one back. The loop says where it is.

    A place is (finished epochs, steps of the next one). An epoch whose steps are all done and that
    is not measured yet is a place too: measuring changes nothing and is done again.
    """

    def __init__(
        self,
        folder: RunFolder,
        context: TrainingContext,
        optimizer: SGD,
        tally: MetricAccumulator,
        log: TrainingLog | None,
        stop: StopSignal,
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.stop, self.say = folder, stop, say
        self.model, self.optimizer, self.tally, self.log = context.model, optimizer, tally, log
        self.when, self.epochs = context.config.checkpoint, context.config.epochs
        self.steps = context.stream.steps
        self.epoch = self.done = 0  # the place
        self._inside: State | None = None  # of the epoch that is restored or being measured
        self._buffers: dict[str, torch.Tensor] = {}  # before measuring, which borrows them
        self._began = self._saved = time.monotonic()

    def restore(self) -> int:
        """Put the folder's newest sound checkpoint back; returns the finished epochs.

        Raises:
            RunError: there are checkpoints and none of them can be used.
        """
        state = self._newest()
        if state is None:
            return 0
        if state["epoch"] == self.epochs and not self.folder.has_summary:
            state = {**state, "epoch": self.epochs - 1, "step": self.steps}
            if state["inside"] is None:  # vshift's first version kept no sums
                raise RunError(f"{self.folder.path}: no summary; `--fresh` trains the run again")
        self.epoch, self.done, self._inside = state["epoch"], state["step"], state["inside"]
        self.folder.truncate_after(self.epoch)
        self._all_rows_are_there()
        if self.epoch < self.epochs:
            self.folder.drop_results()
        inside = f", step {self.done} of {self.steps}" if self.done else ""
        self.say(f"{self.folder.path}: going on behind epoch {self.epoch}{inside}")
        return self.epoch

    def begin(self, epoch: int) -> tuple[int, float]:
        """An epoch begins, its generators seeded: (steps that are done already, their seconds)."""
        self.epoch = epoch - 1
        seconds = 0.0
        if self.done and self._inside is not None:
            set_random_state(self._inside["random"])
            seconds = float(self._inside["seconds"])
        self._began = time.monotonic() - seconds
        if self.done == self.steps:
            self._end_of_steps()
        return self.done, seconds

    @property
    def has_begun(self) -> bool:
        """Whether the run goes on from a checkpoint."""
        return bool(self.epoch or self.done)

    def step(self, count: int = 1) -> None:
        """Steps are done. Writes a checkpoint if it is time, and ends the run if a signal asks."""
        self.done += count
        if self.done == self.steps:
            self._end_of_steps()
        self._save_or_stop(due=self._is_time())

    def check_stop(self) -> None:
        """Between two batches of measuring: as `step`, with the epoch's state before measuring."""
        self._save_or_stop(due=False)

    def finished(self, epoch: int) -> None:
        """An epoch is measured and its rows are written."""
        last = epoch == self.epochs
        # The last one keeps its sums: should the summary get lost, measuring can be done again.
        self._inside = self._inside if last else None
        self.epoch, self.done, self._buffers = epoch, 0, {}
        every = self.when.every
        if last:
            self._save()
        else:
            self._save_or_stop(due=self._is_time() or (every > 0 and epoch % every == 0))

    def _end_of_steps(self) -> None:
        self._inside = self._sums()
        self._buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}

    def _is_time(self) -> bool:
        minutes = self.when.minutes
        return minutes is not None and time.monotonic() - self._saved > 60 * minutes

    def _save_or_stop(self, due: bool) -> None:
        requested = self.stop.requested  # once: a signal may come at any moment
        if requested or due:
            self._save()
        if requested:
            inside = f", step {self.done} of {self.steps}" if self.done else ""
            self.say(f"{self.folder.path}: checkpoint behind epoch {self.epoch}{inside}")
            raise self.stop.stopped()
        self.folder.pulse()

    def _save(self) -> None:
        self.folder.pulse(at_once=True)
        model = self.model.state_dict()
        model |= {name: old for name, old in self._buffers.items() if name in model}
        inside = self._inside if self.done in (0, self.steps) else self._sums()
        self.folder.save_checkpoint(
            {
                "version": checkpoint_file.VERSION,
                "epoch": self.epoch,
                "step": self.done,
                "model": model,
                "optimizer": self.optimizer.state_dict(),
                "inside": inside,
            },
            self.when.keep,
        )
        self._saved = time.monotonic()

    def _sums(self) -> State:
        """What an epoch has gathered, and the generators that its noise comes from."""
        return {
            "tally": self.tally.state_dict(),
            "log": None if self.log is None else self.log.state_dict(),
            "random": random_state(next(self.model.parameters()).device),
            "seconds": time.monotonic() - self._began,
        }

    def _newest(self) -> State | None:
        """The newest checkpoint that can be used, put back; None where there is none."""
        problems: list[Damaged] = []
        for path in self.folder.checkpoints():
            try:
                state = self._put_back(checkpoint_file.load(path))
            except Damaged as error:
                problems.append(error)
                continue
            if problems:
                self.say(f"{str(problems[0]).split(';')[0]}; going on from {path.name} instead")
            if path.name != checkpoint_file.CHECKPOINT:
                checkpoint_file.promote(self.folder.path, path)
            return state
        if len(problems) > 1:
            raise RunError(
                f"all {len(problems)} checkpoints in {self.folder.path} are damaged; `--fresh` "
                "trains the run again from its beginning:\n  "
                + "\n  ".join(str(problem).split(";")[0] for problem in problems)
            )
        if problems:
            raise problems[0]
        return None

    def _put_back(self, state: State) -> State:
        """Weights, optimizer and sums from a state; Damaged if it is not one of this run."""
        state = {"step": 0, "inside": None, **state}
        inside = state["inside"]
        self.tally.compute_and_reset()  # whatever a damaged one left in it
        try:
            if not (0 <= state["epoch"] <= self.epochs and 0 <= state["step"] <= self.steps):
                raise ValueError(f"epoch {state['epoch']}, step {state['step']} are not this run's")
            if state["step"] and inside is None:
                raise ValueError("the sums of its epoch are missing")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if inside is not None:
                self.tally.load_state_dict(inside["tally"])
                if self.log is not None:
                    self.log.load_state_dict(inside["log"])
                device = next(self.model.parameters()).device
                # Named, as PyTorch warns where it has to fork the generators of several GPUs.
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    set_random_state(inside["random"])
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise checkpoint_file.damaged(
                self.folder.path / checkpoint_file.CHECKPOINT, reason
            ) from error
        return state

    def _all_rows_are_there(self) -> None:
        epochs = [row.get("epoch") for row in self.folder.metrics()]
        if epochs != list(range(1, self.epoch + 1)):
            raise RunError(
                f"{self.folder.path}: metrics.jsonl lacks rows of epochs 1 to {self.epoch}, which "
                "the checkpoint has behind it; `--fresh` trains the run again"
            )


def random_state(device: torch.device) -> State:
    """The states of the generators that a network on this device draws from."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: State) -> None:
    """The reverse of `random_state`, on the present CUDA device."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
