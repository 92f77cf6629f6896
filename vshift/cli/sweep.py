"""`vshift sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vshift.cli.compare import Format, line_up
from vshift.cli.options import DeviceOption, Fresh, Quiet, RunsDir, Seeds, Sets, changes_of


def sweep(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG", help="Files or folders.")],
    sets: Sets = None,
    seeds: Seeds = None,
    runs_dir: RunsDir = Path("runs"),
    device: DeviceOption = None,
    fresh: Fresh = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            help="Runs at a time. Default: one for each GPU, one without GPUs, 100 with --slurm.",
        ),
    ] = None,
    jobs_per_gpu: Annotated[
        int, typer.Option("--jobs-per-gpu", min=1, help="Runs that share a GPU.")
    ] = 1,
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="How often a run that failed is tried again.")
    ] = 1,
    part: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts of the runs."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until runs that others train are done too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and the time they may take.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: JSON.")] = False,
    quiet: Quiet = False,
    on_slurm: Annotated[bool, typer.Option("--slurm", help="Submit the runs to Slurm.")] = False,
    partition: Annotated[str | None, typer.Option("--partition", help="Slurm: partition.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Slurm: account.")] = None,
    limit: Annotated[
        str,
        typer.Option(
            "--time", help="Slurm: time limit, 90 or 8:00:00; longer runs go on in a further job."
        ),
    ] = "1:00:00",
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Slurm: GPUs a run.")] = None,
    cpus: Annotated[int, typer.Option("--cpus", min=1, help="Slurm: cores a run.")] = 1,
    mem: Annotated[str | None, typer.Option("--mem", help="Slurm: memory a run, e.g. 8G.")] = None,
    constraint: Annotated[
        str | None, typer.Option("--constraint", help="Slurm: features of the nodes.")
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option("--setup", metavar="LINE", help="Slurm: a line before the run; repeatable."),
    ] = None,
    slurm_sets: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm-set", metavar="KEY=VALUE", help="Slurm: any option of sbatch; repeatable."
        ),
    ] = None,
) -> None:
    """Train every combination of configs' arms, zips, grids and seeds, skipping what is done.

    Ends with the table of `vshift compare`, and with exit code 1 if a run failed.
    """
    from vshift import sweep as sweeps
    from vshift.train.progress import Reporter

    planned = sweeps.plan(configs, changes_of(sets, device, seeds))
    planned = sweeps.shard(planned, part) if part else planned
    local = sweeps.Local(jobs, jobs_per_gpu, retries, fresh, wait)
    if dry_run:
        places = (jobs or 100) if on_slurm else len(sweeps.room(planned, local)[0])
        lines, rows, total = sweeps.describe(planned, runs_dir, places, fresh)
        typer.echo(rows if as_json else lines)
        typer.echo(total, err=True)
        return
    reporter = Reporter(quiet)
    if on_slurm:
        from vshift.sweep import sbatch, slurm

        asked = sbatch.Slurm(
            jobs or 100, partition, account, sbatch.minutes(limit), gpus, cpus, mem, constraint,
            tuple(setup or ()), tuple(slurm_sets or ()), retries, fresh, wait,
        )  # fmt: skip
        entries = slurm.sweep(planned, runs_dir, asked, reporter)
    else:
        entries = sweeps.sweep(planned, runs_dir, local, reporter)
    done = sweeps.paths_of(entries)
    if done and (not on_slurm or all(entry.is_over for entry in entries)):
        from vshift.compare import Request

        line_up(done, Format.table, Request())
    sweeps.raise_if_failed(entries)
