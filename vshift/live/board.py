"""Runs' numbers as TensorBoard event files, mirrored from what the run folder says.

Training writes nothing for TensorBoard and does not know of it, so that it cannot change a result,
and runs that are done can be looked at as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vshift.errors import VShiftError
from vshift.runs import files
from vshift.runs.read import RunRecord, number

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
_SCALARS = {
    "test_accuracy": "accuracy/test",
    "train_accuracy": "accuracy/train",
    "validation_accuracy": "accuracy/validation",
    "test_loss": "loss/test",
    "train_loss": "loss/train",
    "validation_loss": "loss/validation",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}
_LAYERS = (
    "shift_ratio",
    "local_ratio",
    "inherited_ratio",
    "predicted_ratio",
    "train_variance",
    "running_variance",
    "eval_variance",
)


@dataclass
class _Written:
    """How far a run has been mirrored; `started` tells a run that was begun again."""

    writer: SummaryWriter
    started: Any
    metrics: int = 0
    layers: int = 0
    finished: Any = None


class Mirror:
    """Event files of runs, in `<run>/tensorboard`, brought up to date by every `update`.

    A mirror begins each run's files anew, so that nothing is in them twice. Tags are `accuracy/…`,
    `loss/…`, `learning_rate`, `images_per_second` and `<ratio or variance>/<layer>`, steps epochs.

    Raises:
        VShiftError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise VShiftError(
                "--tensorboard needs the package tensorboard; "
                "`pip install 'vshift[tensorboard]'` brings it"
            ) from error
        self._make = SummaryWriter
        self._runs: dict[Path, _Written] = {}

    def update(self, runs: Sequence[RunRecord]) -> None:
        """Write what is new in these runs.

        Raises:
            RunError: a run folder cannot be written to.
        """
        for run in runs:
            state = self._state(run)
            if run.status == "done" and state.finished == run.run.get("finished"):
                continue  # nothing more will come; its long files need no further reading
            metrics, layers = run.metrics[state.metrics :], run.layers[state.layers :]
            for row in metrics:
                self._row(state.writer, row, {k: tag for k, tag in _SCALARS.items() if k in row})
            for row in layers:
                tags = {key: f"{key}/{row.get('layer')}" for key in _LAYERS}
                self._row(state.writer, row, tags)
            state.metrics += len(metrics)
            state.layers += len(layers)
            if metrics or layers:
                state.writer.flush()
            state.finished = run.run.get("finished") if run.status == "done" else None

    def _state(self, run: RunRecord) -> _Written:
        state = self._runs.get(run.path)
        again = state is not None and (
            state.started != run.run.get("started") or len(run.metrics) < state.metrics
        )
        if state is not None and not again:
            return state
        if state is not None:
            state.writer.close()
        folder = run.path / FOLDER
        with files.explained(folder, "write"):
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            writer = self._make(log_dir=str(folder))
        self._runs[run.path] = _Written(writer, run.run.get("started"))
        return self._runs[run.path]

    @staticmethod
    def _row(writer: SummaryWriter, row: dict[str, Any], tags: dict[str, str]) -> None:
        epoch = row.get("epoch")
        for key, tag in tags.items():
            value = number(row.get(key))
            if value is not None and isinstance(epoch, int):
                writer.add_scalar(tag, value, epoch)

    def close(self) -> None:
        for state in self._runs.values():
            state.writer.close()
