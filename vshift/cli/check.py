"""`vshift check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vshift.cli.options import Sets
from vshift.cli.streams import echo
from vshift.errors import ConfigError
from vshift.text import escape_control, escape_lines, pluralize


def check(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG", help="Files or folders.")],
    sets: Sets = None,
) -> None:
    """Validate configs without running them; every problem of every file is shown.

    A missing data.root is a warning.
    """
    from vshift.config.own import own_parts
    from vshift.sweep.plan import config_files, expand_all

    problems: list[str] = []
    for path in config_files(configs):
        try:
            (points,) = expand_all([path], sets or []).values()
        except ConfigError as error:
            problems += error.problems
            continue
        runs = sum(len(point.config.seeds) for point in points)
        echo(f"{escape_control(str(path))}: ok, {pluralize(runs, 'run')}")
        parts = [(k, p) for point in points for k, p in own_parts(point.config).items()]
        names = dict.fromkeys(f"{k}.{p.tag_key} {p.reference}" for k, p in parts)
        if names:
            was, its_name_is = (
                ("was", "its name is") if len(names) == 1 else ("were", "their names are")
            )
            note = f"note: {path}: {', '.join(names)} {was} not run, so only {its_name_is} checked"
            echo(escape_lines(note), err=True)
        roots = dict.fromkeys(getattr(point.config.data, "root", None) for point in points)
        for root in roots:
            # Not an error: the runs may be meant for another machine.
            if root and not Path(root).expanduser().is_dir():
                note = f"warning: {path}: data.root: there is no folder {root} on this machine"
                echo(escape_lines(note), err=True)
    if problems:
        raise ConfigError(*problems)
