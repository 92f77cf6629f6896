"""`vshift sweep`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vshift.cli.compare import print_comparison
from vshift.cli.options import DeviceOption, Fresh, Quiet, RunsDir, Seeds, Sets, changes_of
from vshift.cli.streams import echo, silence, tell
from vshift.errors import VShiftError

if TYPE_CHECKING:
    from vshift.config import Config


def sweep(
    configs: Annotated[
        list[Path],
        typer.Argument(metavar="CONFIG", help="Files, folders or shipped names, such as demo."),
    ],
    sets: Sets = None,
    seeds: Seeds = None,
    runs_dir: RunsDir = Path("runs"),
    device: DeviceOption = None,
    fresh: Fresh = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            metavar="N",
            min=1,
            help="Runs at a time. Default: one per GPU, one without GPUs, 100 with --slurm.",
        ),
    ] = None,
    jobs_per_gpu: Annotated[
        int, typer.Option("--jobs-per-gpu", metavar="N", min=1, help="Runs that share a GPU.")
    ] = 1,
    retries: Annotated[
        int,
        typer.Option(
            "--retries", metavar="N", min=0, help="Further attempts at a run that failed."
        ),
    ] = 1,
    fail_fast: Annotated[
        bool,
        typer.Option("--fail-fast", help="Stop at the first run that fails; it is not retried."),
    ] = False,
    part: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts of the runs."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Also wait for runs that other processes train.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and the time they may take.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: JSON.")] = False,
    quiet: Quiet = False,
    on_slurm: Annotated[bool, typer.Option("--slurm", help="Submit the runs to Slurm.")] = False,
    partition: Annotated[
        str | None, typer.Option("--partition", metavar="NAME", help="Slurm: partition.")
    ] = None,
    account: Annotated[
        str | None, typer.Option("--account", metavar="NAME", help="Slurm: account.")
    ] = None,
    limit: Annotated[
        str,
        typer.Option(
            "--time",
            metavar="TIME",
            help="Slurm: time limit, 90 or 8:00:00; longer runs resume in another job.",
        ),
    ] = "1:00:00",
    gpus: Annotated[
        int | None, typer.Option("--gpus", metavar="N", min=1, help="Slurm: GPUs per run.")
    ] = None,
    cpus: Annotated[
        int, typer.Option("--cpus", metavar="N", min=1, help="Slurm: cores per run.")
    ] = 1,
    mem: Annotated[
        str | None, typer.Option("--mem", metavar="SIZE", help="Slurm: memory per run, e.g. 8G.")
    ] = None,
    constraint: Annotated[
        str | None,
        typer.Option("--constraint", metavar="FEATURES", help="Slurm: features of the nodes."),
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
    from vshift.sweep import estimates, local, plan, progress
    from vshift.train.progress import Reporter

    planned = plan.plan(configs, changes_of(sets, device, seeds))
    planned = plan.shard(planned, part) if part else planned
    reporter = Reporter(quiet)
    here = local.LocalOptions(jobs, jobs_per_gpu, retries, fresh, wait, fail_fast)
    if dry_run:
        if on_slurm:  # on other machines than this one
            found = estimates.dry_run(planned, runs_dir, jobs or 100, fresh)
        else:
            slots, _ = local.local_slots(planned, here)

            def time_epoch(config: Config) -> float | None:
                from vshift.sweep.timing import epoch_seconds

                return epoch_seconds(config, slots[0].threads, reporter.say)

            found = estimates.dry_run(planned, runs_dir, len(slots), fresh, time_epoch)
        lines, rows, total = found
        echo(rows if as_json else lines)
        tell(total)
        return
    if on_slurm:
        from vshift.sweep import slurm

        if fail_fast:
            raise VShiftError(
                "--fail-fast stops runs of this machine; those of Slurm are stopped by scancel"
            )
        options = slurm.SlurmOptions(
            jobs or 100, partition, account, slurm.parse_time(limit), gpus, cpus, mem, constraint,
            tuple(setup or ()), tuple(slurm_sets or ()), retries, fresh, wait,
        )  # fmt: skip
        entries = slurm.sweep(planned, runs_dir, options, reporter)
    else:
        entries = local.sweep(planned, runs_dir, here, reporter)
    done = [entry.path for entry in entries if entry.state == "done"]
    if done and (not on_slurm or all(entry.is_over for entry in entries)):
        try:
            print_comparison(done)
        except BrokenPipeError:  # the runs are done, whoever reads this
            silence(sys.stdout)
    progress.raise_if_failed(entries)
    if done and not quiet:
        tell(f"next: vshift report {shlex.quote(str(runs_dir))}")
