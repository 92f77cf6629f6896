"""`vshift.load_runs`: run folders as pandas DataFrames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd

from vshift.config.identity import Scope, flat, identity
from vshift.runs.files import Row
from vshift.runs.read import RunRecord, find_runs
from vshift.runs.schema import EPOCH_COLUMNS, LAYER_COLUMNS
from vshift.text import pluralize

# Of run.json, beside name and seed.
_RUN_KEYS = ("started", "seconds", "images_per_second", "device", "config_hash")


def load_runs(*folders: Path | str) -> Runs:
    """Read the runs in and under folders: runs dirs, folders of one config, or single runs.

    Damaged and unfinished runs are read as far as they go; `problems` says what is wrong. Runs are
    ordered by name and seed.

    Raises:
        RunError: a folder is missing, is a file, or holds no run.

    Example: test error against the dropout rate, one line per position, with the spread over seeds.

        import matplotlib.pyplot as plt
        from vshift import load_runs

        runs = load_runs("runs")
        done = runs.summary[runs.summary.status == "done"]
        for position, group in done.groupby("network.noise.position"):
            error = group.groupby("network.noise.rate").test_error.agg(["mean", "std"])
            plt.errorbar(error.index, error["mean"], error["std"], label=position, capsize=3)
        plt.xlabel("dropout rate")
        plt.ylabel("test error (%)")
        plt.legend()
        plt.savefig("error.png")
    """
    return Runs(find_runs(folders))


class Runs:
    """Runs as tidy tables. Each begins with `name` and `seed` and has the config's dotted keys.

    A key that a run's config lacks is missing (NaN) in its rows; entries of a list of noises are
    numbered, as in `network.noise.0.rate`, and other lists are tuples, so that they can be grouped
    by.

    Attributes:
        records: the runs as read, with their paths.
    """

    def __init__(self, records: Iterable[RunRecord]) -> None:
        self.records = list(records)
        self._configs = [_columns(record.config) for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        names = len({record.name for record in self.records})
        configs = f"{pluralize(len(self), 'run')} of {pluralize(names, 'config')}"
        return f"<{configs}, {pluralize(len(self.problems), 'problem')}>"

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per run: what `run.json` says of it, the config, then `summary.json`."""
        about = [
            {"path": str(record.path), **{key: record.run.get(key) for key in _RUN_KEYS}}
            for record in self.records
        ]
        return self._frame([[record.summary] for record in self.records], (), about)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row per run and epoch, with the columns of `metrics.jsonl`."""
        return self._frame([record.metrics for record in self.records], list(EPOCH_COLUMNS))

    @cached_property
    def layers(self) -> pd.DataFrame:
        """One row per run, measured epoch and site, with the columns of `layers.jsonl`.

        Columns that a run's version did not write yet are missing (NaN); its rows are of BN layers.
        """
        frame = self._frame([record.layers for record in self.records], list(LAYER_COLUMNS))
        frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *LAYER_COLUMNS])))
        return frame.assign(kind=frame["kind"].astype(object).fillna("bn"))

    @cached_property
    def final_layers(self) -> pd.DataFrame:
        """The rows of `layers` of the last epoch that each run measured."""
        run = [number for number, record in enumerate(self.records) for _ in record.layers]
        epochs = pd.to_numeric(self.layers["epoch"], errors="coerce")
        return self.layers[epochs == epochs.groupby(pd.Index(run)).transform("max")]

    @cached_property
    def problems(self) -> pd.DataFrame:
        """One row per problem: `name`, `seed`, `status`, `path` and the `problem` in words.

        An unfinished run has a row, too.
        """
        columns = ["name", "seed", "status", "path", "problem"]
        rows = []
        for record in self.records:
            _ = record.metrics, record.layers  # damage is found where a file is read
            problems = list(dict.fromkeys(record.problems))
            if record.status not in ("done", "damaged"):
                problems.insert(0, f"not finished: {record.status}")
            about = (record.name, record.seed, record.status, str(record.path))
            rows += [(*about, problem) for problem in problems]
        return pd.DataFrame(rows, columns=columns)

    def _frame(
        self, rows: list[list[Row]], columns: Sequence[str], about: list[Row] | None = None
    ) -> pd.DataFrame:
        """The rows of every run, after what they share; `columns` are there without rows, too."""
        runs = [
            {"name": record.name, "seed": record.seed, "status": record.status, **extra}
            for record, extra in zip(self.records, about or [{}] * len(self), strict=True)
        ]
        shared = pd.DataFrame([{**r, **c} for r, c in zip(runs, self._configs, strict=True)])
        table = pd.DataFrame([row for part in rows for row in part])
        table = table.reindex(columns=list(columns)) if table.empty and columns else table
        # A damaged file may hold any key; it does not replace what says which run this is.
        table = table.drop(columns=[key for run in runs[:1] for key in run if key in table])
        shared = shared.drop(columns=[key for key in table if key in shared])
        index = [i for i, part in enumerate(rows) for _ in part]
        frame = pd.concat([shared.take(index).reset_index(drop=True), table], axis=1)
        empty = [key for key in frame if len(frame) and frame[key].isna().all()]
        # `network.noise: null` beside runs that have `network.noise.rate` is no column of its own.
        sections = [key for key in empty if any(str(k).startswith(f"{key}.") for k in frame)]
        numbers = [key for key in empty if key not in sections]
        return frame.drop(columns=sections).astype(dict.fromkeys(numbers, float))


def _columns(config: Row) -> Row:
    """The keys of a config that are not sections; lists as tuples, which can be grouped by."""
    columns = dict(flat(identity(config, Scope.ROUNDING)))
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in columns.items()
        if not isinstance(value, Mapping) and f"{key}.0" not in columns
    }
