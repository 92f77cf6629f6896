"""`vshift bench`, a command of a clone: the benchmarks are not in the wheel."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import vshift
from vshift.cli.options import Device, Quiet
from vshift.errors import ConfigError


class Switch(StrEnum):
    on = "on"
    off = "off"
    both = "both"


def bench(
    networks: Annotated[
        str,
        typer.Option(
            "--networks", help="Comma-separated, such as preresnet-20,wrn-28-10; paper: its four."
        ),
    ] = "preresnet-20",
    batch: Annotated[
        str, typer.Option("--batch", help="Images per step, comma-separated.")
    ] = "128",
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
        typer.Option("--steps", min=1, help="Per timing. Default: 15 on a CPU, 200 on a GPU."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timings per contender.")] = 5,
    budget: Annotated[
        float | None,
        typer.Option("--budget", min=0, help="Seconds after which nothing is started."),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where to run.")] = Device.auto,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of each contender.")
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
    quiet: Quiet = False,
) -> None:
    """Measure training speed in images per second, against bounds and other loops."""
    _find_benchmarks()
    if tables:
        from benchmarks.render import render_all
        from benchmarks.results import read_results

        typer.echo(render_all(map(read_results, tables)), nl=False)
        return
    from benchmarks.cases import make_cases, numbers, words

    cases = make_cases(words(networks), numbers("--batch", batch), words(noise))
    from benchmarks.bench import Plan, bench_and_print
    from benchmarks.peers import PEERS

    plan = Plan(
        cases=cases,
        kinds=words(kinds),
        logs=[on for on in (True, False) if log.value in ("both", "on" if on else "off")],
        peers=peer or (list(PEERS) if peers else []),
        steps=steps,
        repeats=repeats,
        budget=budget,
        device=device.value,
        threads=threads,
    )
    bench_and_print(plan, as_json, quiet)


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
