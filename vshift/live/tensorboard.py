"""TensorBoard event files, written from what run folders say.

Training does not write for TensorBoard and does not know of it, so it cannot change a result, and
finished runs can be looked at as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vshift.config.identity import Scope, flat, identity
from vshift.config.load import folder_name
from vshift.errors import VShiftError
from vshift.runs import files
from vshift.runs.read import RunRecord, number
from vshift.runs.schema import EPOCH_COLUMNS, LAYER_COLUMNS, SUMMARY_COLUMNS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


TENSORBOARD = "tensorboard"  # the folder in a run's


@dataclass
class _Progress:
    """How much of a run is written; `started` tells a run that was started again."""

    writer: SummaryWriter
    folder: Path
    started: Any
    metrics: int = 0
    layers: int = 0
    finished: Any = None


class TensorBoardWriter:
    """Event files of runs, brought up to date by every `update`.

    They lie in `<run>/tensorboard`, or in `<out>/<name>/seed-<n>`. A writer starts each run's files
    anew, so that nothing is in them twice. Tags are declared with the columns in
    `vshift.runs.schema`, a layer's as `<tag>/<layer>`; steps are epochs. A run that is done also
    has its config and final scores, as TensorBoard's hyperparameters.

    Raises:
        VShiftError: tensorboard is not installed.
    """

    def __init__(self, out: Path | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise VShiftError(
                "--tensorboard needs the package tensorboard; "
                "`pip install 'vshift[tensorboard]'` brings it"
            ) from error
        self._make, self.out = SummaryWriter, out
        self._runs: dict[Path, _Progress] = {}

    def update(self, runs: Sequence[RunRecord]) -> None:
        """Write what is new in these runs.

        Raises:
            RunError: a folder cannot be written to.
            VShiftError: two runs would share a folder of `out`.
        """
        keys: dict[str, Any] = {}
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
            if run.status == "done":
                keys = keys or {k: v for other in runs for k, v in hyperparameters(other).items()}
                _write_scores(written.writer, run, keys)
            if metrics or layers or run.status == "done":
                written.writer.flush()
            written.finished = run.run.get("finished") if run.status == "done" else None

    def _progress(self, run: RunRecord) -> _Progress:
        started, written = run.run.get("started"), self._runs.get(run.path)
        if written is not None:
            if written.started == started and len(run.metrics) >= written.metrics:
                return written
            written.writer.close()
        folder = self._folder(run)
        written = self._runs[run.path] = _Progress(self._make(log_dir=str(folder)), folder, started)
        return written

    def _folder(self, run: RunRecord) -> Path:
        """The run's folder for event files, without those of an earlier writer."""
        path = run.path.absolute()
        root, folder = path.parents[1], path / TENSORBOARD
        if self.out is not None:
            root = self.out.absolute()
            folder = root / folder_name(run.name) / f"seed-{run.seed}"
        for other, written in self._runs.items():
            if written.folder == folder and other != run.path:
                raise VShiftError(
                    f"--out: {other} and {run.path} would both be {folder}; watch them one after "
                    "the other, each with an --out of its own"
                )
        files.refuse_links(root, folder)
        with files.explained(folder, "write"):
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        return folder

    def close(self) -> None:
        for written in self._runs.values():
            written.writer.close()


def _write_row(writer: SummaryWriter, row: dict[str, Any], tags: dict[str, str]) -> None:
    epoch = row.get("epoch")
    for key, tag in tags.items():
        value = number(row.get(key))
        if value is not None and isinstance(epoch, int):
            writer.add_scalar(tag, value, epoch)


# ---- hyperparameters


def hyperparameters(run: RunRecord) -> dict[str, float | str]:
    """The config's keys that change a run's bits, by dotted key, and its name and seed."""
    found: dict[str, float | str] = {"name": run.name, "seed": run.seed}
    for key, value in flat(identity(run.config, Scope.ROUNDING)):
        is_section = isinstance(value, Mapping) or (
            isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
        )
        if value is not None and not is_section:
            amount = number(value)
            text = value if isinstance(value, str) else json.dumps(value)
            found[key] = text if amount is None else amount
    return found


def _write_scores(writer: SummaryWriter, run: RunRecord, keys: Mapping[str, Any]) -> None:
    """Write a run's final scores, and its config beside them.

    Args:
        keys: those of all runs: TensorBoard takes its columns from the first run that it reads.
    """
    from torch.utils.tensorboard import summary

    hparams: Callable[..., tuple[Any, Any, Any]] = summary.hparams  # PyTorch has no types for it
    scores = {
        f"final/{key}": value
        for key, column in SUMMARY_COLUMNS.items()
        if column.heading and (value := number(run.summary.get(key))) is not None
    }
    for tag, value in scores.items():
        writer.add_scalar(tag, value, run.summary.get("epoch"))
    columns, _, _ = hparams(keys, scores)
    _, values, end = hparams(hyperparameters(run), scores)
    events: Any = writer.file_writer
    for part in (columns, values, end):
        events.add_summary(part)
