"""`vshift bench`, a command of a clone: the benchmarks are not in the wheel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

import vshift
from vshift.cli.options import DEVICES, Device, Quiet
from vshift.cli.streams import echo
from vshift.errors import ConfigError


def bench(
    configs: Annotated[
        list[Path] | None, typer.Argument(metavar="CONFIG", help="With --trial.")
    ] = None,
    trial: Annotated[
        bool,
        typer.Option(
            "--trial",
            help="Only repeat the trial that decides hardware.precision: auto for these configs.",
        ),
    ] = False,
    networks: Annotated[
        str,
        typer.Option(
            "--networks",
            metavar="NAME,…",
            help="Comma-separated, such as preresnet-20,wrn-28-10; paper: its four.",
        ),
    ] = "preresnet-20",
    batch: Annotated[
        str, typer.Option("--batch", metavar="N,…", help="Images per step, comma-separated.")
    ] = "128",
    noise: Annotated[
        str,
        typer.Option(
            "--noise", metavar="KIND,…", help="none, dropout, gaussian, uniform; comma-separated."
        ),
    ] = "none,dropout",
    kinds: Annotated[
        str,
        typer.Option("--kinds", metavar="KIND,…", help="Kinds of training step, comma-separated."),
    ] = "auto",
    log: Annotated[
        Literal["on", "off", "both"],
        typer.Option(
            "--log", metavar="on|off|both", help="Every layer's variances logged: on, off or both."
        ),
    ] = "both",
    peers: Annotated[
        bool, typer.Option("--peers", help="Race the loops of benchmarks/peers.py as well.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer", metavar="NAME", help="Only this one: plain, bf16 or airbench; repeatable."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", min=1, help="Per timing. Default: 15 on a CPU, 200 on a GPU."
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", min=1, help="Timings per contender.")
    ] = 5,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget", metavar="SECONDS", min=0, help="Seconds after which nothing is started."
        ),
    ] = None,
    device: Annotated[
        Device, typer.Option("--device", metavar=DEVICES, help="Where to run.")
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, help="CPU threads of each contender."),
    ] = None,
    as_json: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write every timing; in a folder: <device>.json."
        ),
    ] = None,
    tables: Annotated[
        list[Path] | None,
        typer.Option("--table", metavar="FILE", help="Only print such a file's table; repeatable."),
    ] = None,
    isa: Annotated[
        str | None,
        typer.Option(
            "--isa",
            metavar="NAME,…",
            help="Cap the CPU's instructions, each in its own process: native, avx512_bf16, "
            "avx512, avx2; comma-separated.",
        ),
    ] = None,
    whole: Annotated[
        list[Path] | None,
        typer.Option(
            "--whole", metavar="CONFIG", help="Also time `vshift train` as a whole; repeatable."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what the --json file has, and race the rest.")
    ] = False,
    best_only: Annotated[
        bool,
        typer.Option("--best-only", help="Peers (b) and (c) only in the faster precision."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also on a busy machine.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure training speed in images per second, against bounds and other loops."""
    if bool(configs) != trial:
        raise ConfigError("vshift bench: --trial goes with the configs to try, and only with them")
    if configs:
        _show_trials(configs, device, threads, quiet)
        return
    _find_benchmarks()
    if tables:
        from benchmarks.render import render_all
        from benchmarks.results import read_results
        from vshift.tables import width_of

        echo(render_all(map(read_results, tables), width_of(sys.stdout)), end="")
        return
    from benchmarks.cases import make_cases, numbers, words

    cases = make_cases(words(networks), numbers("--batch", batch), words(noise))
    from benchmarks.bench import Plan, bench_and_print, bench_each
    from benchmarks.peers import PEERS

    if isa is not None:
        bench_each(words(isa), _without("--isa", sys.argv[1:]), as_json)
        return
    if resume and as_json is None:
        raise ConfigError("--resume: name the file with --json")

    plan = Plan(
        cases=cases,
        kinds=words(kinds),
        logs=[on for on in (True, False) if log in ("both", "on" if on else "off")],
        peers=peer or (list(PEERS) if peers else []),
        steps=steps,
        repeats=repeats,
        budget=budget,
        device=device,
        threads=threads,
        force=force,
        best_only=best_only,
        commands=whole or [],
        resume=as_json if resume else None,
    )
    bench_and_print(plan, as_json, quiet)


def _without(option: str, given: list[str]) -> list[str]:
    """The words of a command line without an option and its value."""
    at = next(i for i, word in enumerate(given) if word.split("=")[0] == option)
    return given[:at] + given[at + (1 if "=" in given[at] else 2) :]


def _show_trials(configs: list[Path], device: Device, threads: int | None, quiet: bool) -> None:
    """Try every config's settings anew, for later runs as well, and print what was measured."""
    from vshift.cli.options import changes_of
    from vshift.config import load, refuse_study
    from vshift.data import load as load_images
    from vshift.tables import Column, Table, write
    from vshift.text import NONE, format_integer
    from vshift.train.device import choose_device, configure
    from vshift.train.progress import Reporter
    from vshift.train.trial import choose

    reporter = Reporter(quiet)
    rows = []
    for path in configs:
        sets = [] if threads is None else [f"hardware.threads={threads}"]
        config = load(path, changes_of([*sets, "hardware.precision=auto"], device))
        refuse_study(config, path)
        on = choose_device(config.hardware.device)
        configure(config.hardware, on)
        choice = choose(config, load_images(config.data, on), reporter.say, anew=True)
        auto = f"{choice.hardware.precision} {choice.step}"
        for setting, speed in (choice.trial.speeds if choice.trial else {auto: None}).items():
            chosen = "chosen" if setting == auto else NONE
            rows.append([config.name, *setting.split(), format_integer(speed), chosen])
    heads = {"config": True, "precision": True, "step": True, "images/s": False, "auto": True}
    columns = [Column(head, is_text=is_text) for head, is_text in heads.items()]
    write(Table(columns, rows), "table", sys.stdout)


def _find_benchmarks() -> None:
    """Make the package `benchmarks` importable: it is in a clone, and not in the wheel.

    Raises:
        ConfigError: neither the clone that vshift is installed from nor the working folder has it.
    """
    for root in (Path(vshift.__file__).parents[1], Path.cwd()):
        if (root / "benchmarks" / "bench.py").is_file():
            # On the path, not loaded from a file: a DataLoader's workers import it by name.
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))
            return
    raise ConfigError(
        "vshift bench: the benchmarks come with vshift's repository, not with the installed "
        "package: clone it and run `make bench` there, or `vshift bench` in the clone's folder"
    )
