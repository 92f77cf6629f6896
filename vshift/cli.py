"""The command line: thin, and quick to start. What needs torch is imported where it is used."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vshift.children import end_with_parent
from vshift.errors import ConfigError, Stopped, VShiftError, printable, visible
from vshift.signals import stopping_at_once

app = typer.Typer(
    help="Train networks with dropout and batch norm, and measure the variance shift between them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
data_app = typer.Typer(help="The data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Switch(StrEnum):
    on = "on"
    off = "off"
    both = "both"


class Format(StrEnum):
    table = "table"
    md = "md"
    latex = "latex"
    csv = "csv"
    json = "json"
    html = "html"


ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value, e.g. network.depth=32; repeatable."
    ),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Where run folders go.")]
DeviceOption = Annotated[Device | None, typer.Option("--device", help="Instead of the config's.")]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", help="Instead of the config's seeds; repeatable.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Replace runs that are there already.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def _version(wanted: bool) -> None:
    if wanted:
        from vshift import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of vshift itself."""


def _changes(
    sets: list[str] | None, device: Device | None, seeds: list[int] | None = None
) -> list[str]:
    """What the command line changes of a config, as `--set` would say it."""
    changes = [*(sets or [])]
    changes += [f"hardware.device={device.value}"] if device else []
    return [*changes, *([f"seeds={seeds}"] if seeds else [])]


@app.command(short_help="Train a config, once for each of its seeds.")
def train(
    config: ConfigPath,
    sets: Sets = None,
    seeds: Seeds = None,
    runs_dir: RunsDir = Path("runs"),
    device: DeviceOption = None,
    fresh: Fresh = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a config, once for each of its seeds. Goes on where an unfinished run stopped."""
    from vshift.config import load, refuse_study

    chosen = load(config, _changes(sets, device, seeds))
    refuse_study(chosen, config)
    from vshift.progress import Reporter

    if dry_run:
        _say_plan(chosen, runs_dir, fresh)
        return
    from vshift.runner import train_seeds

    train_seeds(chosen, runs_dir, fresh, Reporter(quiet))


def _say_plan(config: Any, runs_dir: Path, fresh: bool) -> None:
    from vshift.runs import RunFolder, look, run_path

    for seed in config.seeds:
        path = run_path(runs_dir, config.name, seed)
        action = "new" if fresh else look(RunFolder(path), config)
        typer.echo(f"{path}: {action}, {config.epochs} epochs of {config.data.name}")


@app.command(short_help="Line runs up in a table.")
def compare(
    runs_dirs: Annotated[list[Path], typer.Argument(metavar="RUNS_DIR")],
    form: Annotated[Format, typer.Option("--format", help="How the table is written.")] = (
        Format.table
    ),
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="The config that differences are taken to.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="KEY,…", help="A row for each value of config keys."),
    ] = None,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="KEY,…", help="A pivot: the keys down.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", metavar="KEY,…", help="… and the keys across.")
    ] = None,
    value: Annotated[
        str | None,
        typer.Option("--value", help="… and what is in it: a metric (test_error) or difference."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", metavar="NAME,…", help="Columns: keys of summary.json."),
    ] = None,
    difference: Annotated[
        str | None,
        typer.Option("--difference", metavar="METRIC", help="Compared instead of test_error."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="[-]COLUMN", help="Order of the rows; - is from the top."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help="Only these runs: 'network.noise.rate < 0.5 and seed != 2'."),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option("--view", help="A table of the paper: table3, table4, table6 or figure4."),
    ] = None,
) -> None:
    """Line runs up: one row a config, with error, accuracy on training data and shift ratio."""
    from vshift.compare import Request

    request = Request(baseline, by, rows, columns, value, metrics, difference, sort, where, view)
    _line_up(runs_dirs, form, request)


def _line_up(runs: list[Path], form: Format, request: Any) -> None:
    from vshift.compare import table_of, write
    from vshift.runs import find_runs

    table = table_of(find_runs(runs), request)
    write(table, form.value, sys.stdout)
    for note in table.notes:
        typer.echo(note, err=True)


@app.command(short_help="Show the network that a config builds.")
def inspect(
    config: ConfigPath,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the network that a config builds: every layer in forward order, parameters and MACs."""
    from vshift.config import load

    chosen = load(config, sets or [])
    from vshift.inspect import describe_network, render_network

    found = describe_network(chosen)
    if as_json:
        import json

        typer.echo(json.dumps(found))
    else:
        typer.echo(render_network(chosen, found))


@app.command(short_help="Validate configs without running them.")
def check(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG", help="Files or folders.")],
    sets: Sets = None,
) -> None:
    """Validate configs without running them; every problem of every file is shown."""
    from vshift.sweep import config_files, expand_all

    problems: list[str] = []
    for path in config_files(configs):
        try:
            (points,) = expand_all([path], sets or []).values()
        except ConfigError as error:
            problems += error.problems
            continue
        runs = sum(len(point.config.seeds) for point in points)
        typer.echo(f"{visible(str(path))}: ok, {runs} run{'s' if runs != 1 else ''}")
    if problems:
        raise ConfigError(*problems)


@app.command(short_help="Train many configs, grids and seeds.")
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
    from vshift.progress import Reporter

    planned = sweeps.plan(configs, _changes(sets, device, seeds))
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

        _line_up(done, Format.table, Request())
    sweeps.raise_if_failed(entries)


@app.command(short_help="Re-estimate BN statistics of finished runs.")
def recalibrate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="swap, precise, layerwise, dropout_on (the trap), batch or mix; repeatable. "
            "Default: swap, precise and layerwise.",
        ),
    ] = None,
    batches: Annotated[
        int | None, typer.Option("--batches", help="Training batches to take statistics of.")
    ] = None,
    modes: Annotated[
        bool, typer.Option("--modes", help="Also write the mode matrix, modes.json.")
    ] = False,
    monte_carlo: Annotated[
        int, typer.Option("--monte-carlo", help="Also test with so many passes with noise on.")
    ] = 0,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="More of the config, e.g. recalibration.augment=false.",
        ),
    ] = None,
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Re-estimate BN statistics of finished runs and test; the checkpoint stays as it is."""
    import json

    from vshift.runs import find_runs

    wanted = methods or ["swap", "precise", "layerwise"]
    changes = [f"recalibration.methods={json.dumps(wanted)}", f"measure.monte_carlo={monte_carlo}"]
    changes += [] if batches is None else [f"recalibration.batches={batches}"]
    changes += ["measure.modes=true"] if modes else ["measure.modes=false"]
    folders = [record.path for record in find_runs(runs)]
    from vshift.repair import recalibrate_run, render, render_modes
    from vshift.runs import RunFolder

    found = {}
    for path in folders:
        rows = found[str(path)] = recalibrate_run(path, _changes([*changes, *(sets or [])], device))
        if not as_json:
            typer.echo(render(str(path), rows))
            if modes:
                typer.echo(render_modes(RunFolder(path).modes()))
    if as_json:
        typer.echo(json.dumps(found))


@app.command(short_help="Measure how fast training is here.")
def bench(
    networks: Annotated[
        str,
        typer.Option(
            "--networks", help="Comma-separated, such as preresnet-20,wrn-28-10; paper: its four."
        ),
    ] = "preresnet-20",
    batch: Annotated[str, typer.Option("--batch", help="Images a step, comma-separated.")] = "128",
    noise: Annotated[
        str, typer.Option("--noise", help="none, dropout, gaussian, uniform; comma-separated.")
    ] = "none,dropout",
    kinds: Annotated[
        str, typer.Option("--kinds", help="Kinds of training step, comma-separated.")
    ] = "auto",
    log: Annotated[
        Switch, typer.Option("--log", help="Every layer's variances logged: on, off or both.")
    ] = Switch.both,
    peers: Annotated[
        bool, typer.Option("--peers", help="Race the loops of benchmarks/peers.py as well.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", help="Only this one: plain, bf16 or airbench; repeatable."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Of one timing. Default: 15 on a CPU, 200 on a GPU."),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Timings of each contender.")
    ] = 5,
    budget: Annotated[
        float | None, typer.Option("--budget", min=0, help="Seconds after which nothing is begun.")
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where to run.")] = Device.auto,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of each contender.")
    ] = None,
    as_json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Keep all; in a folder as <device>.json."),
    ] = None,
    tables: Annotated[
        list[Path] | None,
        typer.Option("--table", metavar="FILE", help="Only print such a file; repeatable."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure training in images a second, against bounds and against other loops."""
    if tables:
        from vshift.bench.results import read_results
        from vshift.bench.table import render_all

        typer.echo(render_all(read_results(path) for path in tables), nl=False)
        return
    from vshift.bench.cases import make_cases, numbers, words

    cases = make_cases(words(networks), numbers("--batch", batch), words(noise))
    from vshift.bench.bench import Plan, bench_and_print
    from vshift.bench.peers import NAMES

    plan = Plan(
        cases=cases,
        kinds=words(kinds),
        logs=[on for on in (True, False) if log.value in ("both", "on" if on else "off")],
        peers=peer or (NAMES if peers else ()),
        steps=steps,
        repeats=repeats,
        budget=budget,
        device=device.value,
        threads=threads,
    )
    bench_and_print(plan, as_json, quiet)


@app.command(short_help="Write one HTML file that answers what a study shows.")
def report(
    runs_dirs: Annotated[list[Path], typer.Argument(metavar="RUNS_DIR")],
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Also write each figure as SVG and PDF here.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="The config that differences are taken to.")
    ] = None,
) -> None:
    """Write one HTML file, readable without a network: answers, tables and figures."""
    from vshift.report import write_report

    for path in write_report(runs_dirs, out, figures, baseline):
        typer.echo(path)


@app.command(short_help="Watch runs while they train.")
def watch(
    runs_dir: Annotated[list[Path], typer.Argument(metavar="RUNS_DIR")],
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between looks.")] = 2.0,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Mirror every run's numbers into RUN/tensorboard."),
    ] = False,
) -> None:
    """A live table of running, finished and failed runs; q or Ctrl-C leaves, training goes on."""
    from vshift.watch import watch as look_on

    look_on(runs_dir, once=once, every=every, tensorboard=tensorboard)


class AuditFormat(StrEnum):
    table = "table"
    md = "md"
    json = "json"


@app.command(short_help="Say why a model is fine in train() and bad in eval().")
def audit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="torchvision:NAME, timm:NAME, FILE.py:FACTORY, FILE.pt2 or a run folder.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="An image folder, torchvision:NAME@FOLDER, random, FILE.py:LOADER; "
            "test or train for a run.",
        ),
    ],
    train_data: Annotated[
        str | None,
        typer.Option("--train-data", metavar="SOURCE", help="Training data, if it differs."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="A state dict: .safetensors, .pt or .pth.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="An earlier state dict to compare with.")
    ] = None,
    form: Annotated[AuditFormat, typer.Option("--format", help="How it is written.")] = (
        AuditFormat.table
    ),
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Also write a page.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option("--fix", metavar="OUT.safetensors", help="Write repaired weights."),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option("--fail-on", help="Exit code 3 from here on: info, low, medium, high."),
    ] = None,
    allow_noise: Annotated[
        list[str] | None,
        typer.Option("--allow-noise", help="A module whose noise in eval is meant; repeatable."),
    ] = None,
    batches: Annotated[int, typer.Option("--batches", min=2, help="Batches to look at.")] = 16,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="As in training.")] = 32,
    size: Annotated[int, typer.Option("--size", min=1, help="Images' height and width.")] = 224,
    normalise: Annotated[
        str, typer.Option("--normalise", help="Of images: imagenet, half or none.")
    ] = "imagenet",
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, help="Of a library's classifier.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the noise and the images' order.")] = 0,
    device: Annotated[Device, typer.Option("--device")] = Device.auto,
) -> None:
    """Say why a model is fine in train() and bad in eval(), which layer it is, and what helps."""
    from vshift.auditing import command
    from vshift.auditing.sources import Reading
    from vshift.device import choose_device

    command.check_severity(fail_on)
    request = command.Request(
        model, data, train_data, weights, reference, classes, batches,
        Reading(batch_size, size, normalise, seed), tuple(allow_noise or ()),
        str(choose_device(device.value)),
    )  # fmt: skip
    found, loaded = command.run_audit(request)
    typer.echo(command.rendered(found, form.value))
    if report is not None:
        command.write_page(found, model, report)
    if fix is not None:
        typer.echo(command.write_fixed(found, loaded, fix), err=True)
    if fail_on is not None and found.fails(fail_on):
        raise typer.Exit(3)


@app.command(short_help="Print the config's JSON Schema, for editors.")
def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    import json

    from vshift.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@data_app.command("list")
def data_list() -> None:
    """The data sets, and which of them are here."""
    from vshift.data import available

    typer.echo(f"{'name':12} {'classes':>7} {'size':>5} {'train':>7} {'test':>7}  where")
    for entry in available():
        numbers = (entry.classes, entry.size, entry.train, entry.test)
        classes, size, train, test = ("–" if n is None else f"{n:,}" for n in numbers)
        where = f"{entry.where} ({entry.note})"
        typer.echo(f"{entry.name:12} {classes:>7} {size:>5} {train:>7} {test:>7}  {where}")


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Download a data set once into the user's cache folder."""
    from vshift.data import fetch

    typer.echo(fetch(name))


def main() -> None:
    """Run the command line; errors for people become one message and an exit code."""
    try:
        with stopping_at_once():
            end_with_parent()
            app()
    except VShiftError as error:
        _complain(f"error: {error}")
        sys.exit(error.exit_code)
    except Stopped as stopped:
        _complain("interrupted")
        sys.exit(stopped.exit_code)
    except BrokenPipeError:  # the reader has left, as `| head` does
        _silence(sys.stdout)
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"error: {where}{error.strerror or error}")
        _silence(sys.stdout)
        sys.exit(1)


def _complain(text: str) -> None:
    """On stderr, without the escape codes that names may hold; where that is full, in silence."""
    try:
        typer.echo(printable(text), err=True)
    except OSError:
        _silence(sys.stderr)


def _silence(stream: Any) -> None:
    """Python must not complain while it flushes what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
