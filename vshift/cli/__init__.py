"""The command line, one file per command; `options.py` has the options that several share.

It starts quickly: commands import what they need when they run.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vshift.cli import data
from vshift.cli.audit import audit
from vshift.cli.bench import bench
from vshift.cli.check import check
from vshift.cli.compare import compare
from vshift.cli.inspect import inspect
from vshift.cli.recalibrate import RecalibrateCommand, recalibrate
from vshift.cli.report import report
from vshift.cli.schema import schema
from vshift.cli.streams import echo, forgiving_streams, silence, tell
from vshift.cli.sweep import sweep
from vshift.cli.train import train
from vshift.cli.usage import App
from vshift.cli.watch import watch
from vshift.errors import Interrupted, Stopped, VShiftError
from vshift.sweep.process_group import die_with_parent
from vshift.train.signals import stopping_at_once

app = App(
    help="Train networks with dropout and batch norm, and measure the variance shift between them.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from vshift._version import __version__

        echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of `vshift` itself."""


app.command(short_help="Train a config, once per seed.")(train)
app.command(short_help="Compare runs in a table.")(compare)
app.command(short_help="Show the network that a config builds.")(inspect)
app.command(short_help="Validate configs without running them.")(check)
app.command(short_help="Train many configs, grids and seeds.")(sweep)
app.command(cls=RecalibrateCommand, short_help="Re-estimate BN statistics of finished runs.")(
    recalibrate
)
app.command(short_help="Measure how fast training is here.")(bench)
app.command(short_help="Write one HTML file that answers what a study shows.")(report)
app.command(short_help="Watch runs while they train.")(watch)
app.command(short_help="Explain why a model is fine in train() and bad in eval().")(audit)
app.command(short_help="Print the config's JSON Schema, for editors.")(schema)
app.add_typer(data.app, name="data")


def main() -> None:
    """Run the command line; a VShiftError becomes one message and an exit code."""
    with forgiving_streams():
        try:
            with stopping_at_once():
                die_with_parent()
                try:
                    app(prog_name="vshift")
                finally:
                    sys.stdout.flush()
        except Interrupted as error:  # as requested: no error
            tell(str(error))
            sys.exit(error.exit_code)
        except VShiftError as error:
            for problem in error.problems:
                tell(f"error: {problem}")
            sys.exit(error.exit_code)
        except Stopped as stopped:
            tell("interrupted")
            sys.exit(stopped.exit_code)
        except BrokenPipeError:  # the reader has left, as `| head` does
            silence(sys.stdout)
            sys.exit(1)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            tell(f"error: {where}{error.strerror or error}")
            silence(sys.stdout)
            sys.exit(1)
        except Exception as error:  # raised again, unless code of the user's own is at fault
            from vshift.config.own_code import describe_error, own_frames

            if not own_frames(error):
                raise
            tell(f"error: {describe_error(error)}")
            sys.exit(1)
