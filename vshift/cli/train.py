"""`vshift train`."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from vshift.cli.options import (
    ConfigPath,
    DeviceOption,
    Fresh,
    Quiet,
    RunsDir,
    Seeds,
    Sets,
    changes_of,
)
from vshift.cli.streams import echo
from vshift.text import pluralize


def train(
    config: ConfigPath,
    sets: Sets = None,
    seeds: Seeds = None,
    runs_dir: RunsDir = Path("runs"),
    device: DeviceOption = None,
    fresh: Fresh = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be trained.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a config, once per seed. Unfinished runs resume from their last checkpoint."""
    since = time.perf_counter()
    from vshift.config import load, refuse_study

    chosen = load(config, changes_of(sets, device, seeds))
    refuse_study(chosen, config)
    if dry_run:
        from vshift.runs import RunFolder, next_action, run_path

        for seed in chosen.seeds:
            path = run_path(runs_dir, chosen.name, seed)
            action = "new" if fresh else next_action(RunFolder(path), chosen)
            epochs = pluralize(chosen.epochs, "epoch")
            echo(f"{path}: {action}, {epochs} of {chosen.data.name}")
        return
    from vshift.train.progress import Reporter
    from vshift.train.run import train_seeds

    # What code of the user's own prints is no data, and must not fail where nobody reads stdout.
    with redirect_stdout(sys.stderr):
        train_seeds(chosen, runs_dir, fresh, Reporter(quiet), since)
