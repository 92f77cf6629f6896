"""`vshift bench`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vshift.cli.options import Device, Quiet


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
