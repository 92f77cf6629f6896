"""The run folder: the files of one config with one seed. Nothing else writes them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vshift.errors import Damaged, RunError
from vshift.runs import checkpoint_file, files, lock
from vshift.runs.checkpoint_file import CHECKPOINT
from vshift.runs.files import Row
from vshift.text import list_names, to_json, to_jsonable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

CONFIG = "config.yaml"
RUN = "run.json"
PROBE = "vshift.VarianceProbe"  # `source` in run.json of what a probe saved
METRICS = "metrics.jsonl"
LAYERS = "layers.jsonl"
CHANNELS = "channels.safetensors"
SUMMARY = "summary.json"
RECALIBRATION = "recalibration.json"
RECALIBRATED = "recalibration.safetensors"
MODES = "modes.json"
# Written after the last epoch; a resumed run writes them again.
RESULTS = (SUMMARY, MODES, RECALIBRATED, RECALIBRATION, CHANNELS)
# In the order in which `clear` removes them: a kill in between never leaves a checkpoint that a
# later run in the same folder would resume from.
SOURCE = "source"  # a folder; copies of the user's files that the config names
FILES = (*checkpoint_file.NAMES, *RESULTS, LAYERS, METRICS, RUN, CONFIG)


def now() -> str:
    """The time in UTC, as ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunFolder:
    """`<runs-dir>/<name>/seed-<n>`. Every method that touches the disk raises RunError."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, path: Path | str) -> RunFolder:
        """Make the folder and its parents unless they exist."""
        folder = cls(path)
        files.make_folder(folder.path)
        return folder

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Open an existing folder; RunError if there is none."""
        folder = cls(path)
        with files.explained(folder.path, "open"):
            is_folder = folder.path.is_dir()
        if not is_folder:
            raise RunError(f"{folder.path} is not a run folder: there is no such folder")
        return folder

    def lock(self) -> None:
        """Keep other processes out until `close`; RunError if one holds the folder."""
        lock.lock(self.path)

    def pulse(self, *, at_once: bool = False) -> None:
        """Give a sign of life, at most every few seconds, that other processes see."""
        lock.pulse(self.path, at_once=at_once)

    @property
    def is_held(self) -> bool:
        """Whether this process holds the folder."""
        return lock.is_held(self.path)

    def close(self) -> None:
        """Let other processes in."""
        lock.release(self.path)

    @contextmanager
    def writing(self, patience: float = 60.0) -> Iterator[None]:
        """Inside, no other process writes; one that does is waited for, `patience` seconds.

        Raises:
            RunError: it takes longer, or the folder cannot be written.
        """
        if self.is_held:
            yield
            return
        deadline = time.monotonic() + patience
        while not self.is_held:
            try:
                self.lock()
            except lock.FolderHeld:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        try:
            yield
        finally:
            self.close()

    def clear(self) -> None:
        """Remove the run's files; other files and the targets of links are left alone."""
        self._remove(FILES)
        folder = self.path / SOURCE  # after config.yaml, which names its files
        with files.explained(folder, "remove"):
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)

    def drop_results(self) -> None:
        """Remove what an earlier attempt at the last epoch left."""
        self._remove(RESULTS)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            for path in (self.path / name, files.temporary(self.path / name)):
                with files.explained(path, "remove"):
                    path.unlink(missing_ok=True)
        files.sync_folder(self.path)

    def refuse_other_files(self) -> None:
        """Refuse a folder with files of a run's names that no run has left there.

        Raises:
            RunError: there are some, and neither of the files that a run writes first.
        """
        if self.has(CONFIG) or self.has(RUN):
            return
        with files.explained(self.path, "open"):
            found = [name for name in FILES if os.path.lexists(self.path / name)]
        if found:
            raise RunError(
                f"{self.path} is no run: it has neither {CONFIG} nor {RUN}, but "
                f"{list_names(found)}, which a run would replace; move that folder away, or choose "
                "another name (--set name=…) or --runs-dir"
            )

    def has(self, name: str) -> bool:
        with files.explained(self.path, "open"):
            return (self.path / name).is_file()

    @property
    def has_summary(self) -> bool:
        """Whether there is one that can be read; resuming from the last checkpoint writes it."""
        try:
            return bool(files.read_json(self.path / SUMMARY))
        except RunError:
            return False

    def write_source(self, contents: Mapping[str, bytes]) -> None:
        """Write copies of the user's files; paths are relative to their folder."""
        for name, content in contents.items():
            path = self.path / SOURCE / name
            files.make_folder(path.parent)
            files.refuse_links(self.path, path)
            files.write_bytes(path, content)

    def write_config(self, text: str) -> None:
        files.write_text(self.path / CONFIG, text)

    def write_run(self, fields: Mapping[str, Any]) -> None:
        """Write run.json; `status` is running, done, failed, diverged or interrupted."""
        files.write_json(self.path / RUN, fields)

    def update_run(self, **fields: Any) -> None:
        """Change some fields of run.json."""
        self.write_run({**self.run, **to_jsonable(fields)})

    def mark_finished(self, status: str, **fields: Any) -> None:
        """Record how and when the run ended. Called last: `done` means that all files exist."""
        self.update_run(status=status, finished=now(), **fields)

    @property
    def run(self) -> Row:
        return files.read_json(self.path / RUN) or {}

    @property
    def status(self) -> str | None:
        """The status in run.json; None if there is none."""
        status = self.run.get("status")
        return status if isinstance(status, str) else None

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        files.append_rows(self.path / METRICS, [row])

    def append_layers(self, rows: Iterable[Mapping[str, Any]]) -> None:
        files.append_rows(self.path / LAYERS, rows)

    def metrics(self) -> list[Row]:
        return files.read_rows(self.path / METRICS)

    def layers(self) -> list[Row]:
        return files.read_rows(self.path / LAYERS)

    def truncate_after(self, epoch: int) -> None:
        """Drop the rows of epochs later than the checkpoint's, which are about to be run again."""
        for name in (METRICS, LAYERS):
            path = self.path / name
            if self.has(name):
                rows = [(row.get("epoch"), row) for row in files.read_rows(path)]
                kept = [row for at, row in rows if isinstance(at, int | float) and at <= epoch]
                files.write_text(path, "".join(to_json(row) + "\n" for row in kept))

    def write_channels(self, vectors: Mapping[str, np.ndarray]) -> None:
        """Write vectors by name, for instance `stage1.0.bn1.train_variance`."""
        self._write_vectors(CHANNELS, vectors)

    def _write_vectors(self, name: str, vectors: Mapping[str, np.ndarray]) -> None:
        import numpy
        from safetensors.numpy import save

        arrays = {name: numpy.ascontiguousarray(vector) for name, vector in vectors.items()}
        files.write_bytes(self.path / name, save(arrays))

    def write_recalibration(
        self, rows: Iterable[Mapping[str, Any]], states: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Write each recalibration method's row and its statistics as `<method>/<buffer>`.

        Earlier results of other methods are kept.
        """
        rows = list(rows)
        again = {row["method"] for row in rows}
        old_rows, old_vectors = self.read_recalibration()
        kept_rows = [row for row in old_rows if row["method"] not in again]
        kept = {k: v for k, v in old_vectors.items() if k.split("/")[0] not in again}
        vectors = {
            f"{method}/{name}": tensor.cpu().numpy()
            for method, state in states.items()
            for name, tensor in state.items()
        }
        if len(kept_rows) < len(old_rows):  # a kill leaves no row with statistics of another time
            files.write_json(self.path / RECALIBRATION, {"methods": kept_rows})
        self._write_vectors(RECALIBRATED, kept | vectors)
        files.write_json(self.path / RECALIBRATION, {"methods": [*rows, *kept_rows]})

    def read_recalibration(self) -> tuple[list[Row], dict[str, np.ndarray]]:
        """The rows and statistics that `write_recalibration` wrote."""
        path = self.path / RECALIBRATION
        rows = (files.read_json(path) or {}).get("methods", [])
        good = isinstance(rows, list) and all(isinstance(r, dict) and "method" in r for r in rows)
        if not good:
            raise Damaged(f"{path} is damaged: it has no rows of methods; remove it")
        return rows, self._read_vectors(RECALIBRATED)

    def write_modes(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the mode matrix: accuracy with noise on and off, by BN statistics and data."""
        files.write_json(self.path / MODES, {"modes": list(rows)})

    def modes(self) -> list[Row]:
        """The rows of the mode matrix; none if it was not measured."""
        rows: list[Row] = (files.read_json(self.path / MODES) or {}).get("modes", [])
        return rows

    def read_channels(self) -> dict[str, np.ndarray]:
        """The vectors by name; none if the file is missing."""
        return self._read_vectors(CHANNELS)

    def _read_vectors(self, name: str) -> dict[str, np.ndarray]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        data = files.read_bytes(self.path / name)
        try:
            return {} if data is None else load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise Damaged(
                f"{self.path / name} is damaged: {error}; `--fresh` trains the run again"
            ) from error

    def write_summary(self, fields: Mapping[str, Any]) -> None:
        """Write the final numbers, one flat object: accuracies and errors in percent."""
        files.write_json(self.path / SUMMARY, fields)

    def save_checkpoint(self, state: Mapping[str, Any], keep: int = 2) -> None:
        """Save tensors, numbers, strings, lists and dicts: what torch.load reads with weights_only.

        The newest checkpoint so far becomes the previous one; `keep` remain in all.
        """
        checkpoint_file.save(self.path, state, keep)

    def load_checkpoint(self) -> dict[str, Any]:
        """Load the newest state onto the CPU; RunError if it is missing or damaged."""
        return checkpoint_file.load(self.path / CHECKPOINT)

    def checkpoints(self) -> list[Path]:
        """The existing checkpoints, the newest first."""
        return checkpoint_file.existing(self.path)
