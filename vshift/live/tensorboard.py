"""TensorBoard event files, written from what run folders say.

Training does not write for TensorBoard and does not know of it, so it cannot change a result, and
finished runs can be looked at as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vshift.errors import VShiftError
from vshift.runs import RunFolder
from vshift.runs.read import RunRecord, number
from vshift.runs.schema import EPOCH_COLUMNS, LAYER_COLUMNS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass
class _Progress:
    """How much of a run is written; `started` tells a run that was started again."""

    writer: SummaryWriter
    started: Any
    metrics: int = 0
    layers: int = 0
    finished: Any = None


class TensorBoardWriter:
    """Event files of runs, in `<run>/tensorboard`, brought up to date by every `update`.

    A writer starts each run's files anew, so that nothing is in them twice. Tags are declared with
    the columns in `vshift.runs.schema`, a layer's as `<tag>/<layer>`; steps are epochs.

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
        self._runs: dict[Path, _Progress] = {}

    def update(self, runs: Sequence[RunRecord]) -> None:
        """Write what is new in these runs.

        Raises:
            RunError: a run folder cannot be written to.
        """
        for run in runs:
            written = self._progress(run)
            if run.status == "done" and written.finished == run.run.get("finished"):
                continue  # nothing more will come; its long files need no further reading
            metrics, layers = run.metrics[written.metrics :], run.layers[written.layers :]
            for row in metrics:
                tags = {key: column.tag for key, column in EPOCH_COLUMNS.items() if column.tag}
                _write_row(written.writer, row, tags)
            for row in layers:
                tags = {
                    key: f"{column.tag}/{row.get('layer')}"
                    for key, column in LAYER_COLUMNS.items()
                    if column.tag
                }
                _write_row(written.writer, row, tags)
            written.metrics += len(metrics)
            written.layers += len(layers)
            if metrics or layers:
                written.writer.flush()
            written.finished = run.run.get("finished") if run.status == "done" else None

    def _progress(self, run: RunRecord) -> _Progress:
        started, written = run.run.get("started"), self._runs.get(run.path)
        if written is not None:
            if written.started == started and len(run.metrics) >= written.metrics:
                return written
            written.writer.close()
        folder = RunFolder(run.path).clear_tensorboard()
        written = self._runs[run.path] = _Progress(self._make(log_dir=str(folder)), started)
        return written

    def close(self) -> None:
        for written in self._runs.values():
            written.writer.close()


def _write_row(writer: SummaryWriter, row: dict[str, Any], tags: dict[str, str]) -> None:
    epoch = row.get("epoch")
    for key, tag in tags.items():
        value = number(row.get(key))
        if value is not None and isinstance(epoch, int):
            writer.add_scalar(tag, value, epoch)
