"""`vshift inspect`, `check` and `schema`: what a config says, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vshift.cli.options import ConfigPath, Sets
from vshift.errors import ConfigError
from vshift.text import escape_control, escape_lines, pluralize


def inspect(
    config: ConfigPath,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the network that a config builds: every layer in forward order, parameters and MACs."""
    from vshift.config import load

    chosen = load(config, sets or [])
    from vshift.networks.inspect import describe_network, render_network

    found = describe_network(chosen)
    if as_json:
        import json

        typer.echo(json.dumps(found))
    else:
        typer.echo(render_network(chosen, found))


def check(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG", help="Files or folders.")],
    sets: Sets = None,
) -> None:
    """Validate configs without running them; every problem of every file is shown.

    A data.root that is not here is remarked on.
    """
    from vshift.sweep.plan import config_files, expand_all

    problems: list[str] = []
    for path in config_files(configs):
        try:
            (points,) = expand_all([path], sets or []).values()
        except ConfigError as error:
            problems += error.problems
            continue
        runs = sum(len(point.config.seeds) for point in points)
        typer.echo(f"{escape_control(str(path))}: ok, {pluralize(runs, 'run')}")
        roots = dict.fromkeys(getattr(point.config.data, "root", None) for point in points)
        for root in roots:
            # Not an error: the runs may be meant for another machine.
            if root and not Path(root).expanduser().is_dir():
                note = f"warning: {path}: data.root: there is no folder {root} on this machine"
                typer.echo(escape_lines(note), err=True)
    if problems:
        raise ConfigError(*problems)


def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    import json

    from vshift.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
