"""`vshift check`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vshift.cli.options import Sets
from vshift.cli.streams import echo, tell
from vshift.errors import ConfigError
from vshift.text import escape_control, list_names, pluralize

if TYPE_CHECKING:
    from vshift.config import Config


def check(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG", help="Files or folders.")],
    sets: Sets = None,
) -> None:
    """Validate configs without running them; every problem of every file is shown.

    A missing data.root is a warning. No network is built and no file of yours is run: `vshift
    inspect` does.
    """
    from vshift.sweep.plan import config_files, expand_all

    problems: list[str] = []
    remarks: dict[str, dict[str, None]] = defaultdict(dict)  # → the configs that they are about
    for path in config_files(configs):
        try:
            (points,) = expand_all([path], sets or []).values()
        except ConfigError as error:
            problems += error.problems
            continue
        runs = sum(len(point.config.seeds) for point in points)
        echo(f"{escape_control(str(path))}: ok, {pluralize(runs, 'run')}")
        for text in (text for point in points for text in _remarks(point.config)):
            remarks[text][str(path)] = None
    for text, paths in remarks.items():
        tell(f"{text} ({list_names(list(paths))})")
    if problems:
        raise ConfigError(*problems)


def _remarks(config: Config) -> Iterator[str]:
    """What nobody has checked, and what is missing here: the runs may be for another machine."""
    from vshift.config.own import own_parts

    for key, part in own_parts(config).items():
        name = f"{key}.{part.tag_key} {part.reference}"
        if not part.is_of_library:
            yield f"note: {name} was not run, so only its name is checked"
        elif part.section == "network":
            library = part.reference.partition(":")[0]
            yield (
                f"note: {name}: whether {library} has it is not checked; `vshift inspect` builds it"
            )
    for noise in config.network.noises:
        for where, pattern in noise.patterns:
            key = f"{config.network.noise_key(noise)}.{where}"
            yield (
                f"note: {key}: whether the network has a module {pattern} is not checked; "
                "`vshift inspect` builds it"
            )
    root = getattr(config.data, "root", None)
    if root and not Path(root).expanduser().is_dir():
        yield f"warning: data.root: there is no folder {root} on this machine"
