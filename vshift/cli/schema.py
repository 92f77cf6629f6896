"""`vshift schema`."""

from __future__ import annotations

import typer


def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    import json

    from vshift.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
