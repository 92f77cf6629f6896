"""`vshift train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    from vshift.config import load, refuse_study

    chosen = load(config, changes_of(sets, device, seeds))
    refuse_study(chosen, config)
    from vshift.train.progress import Reporter

    if dry_run:
        _print_plan(chosen, runs_dir, fresh)
        return
    from vshift.train.run import train_seeds

    train_seeds(chosen, runs_dir, fresh, Reporter(quiet))


def _print_plan(config: Any, runs_dir: Path, fresh: bool) -> None:
    from vshift.runs import RunFolder, next_action, run_path

    for seed in config.seeds:
        path = run_path(runs_dir, config.name, seed)
        action = "new" if fresh else next_action(RunFolder(path), config)
        typer.echo(f"{path}: {action}, {pluralize(config.epochs, 'epoch')} of {config.data.name}")
