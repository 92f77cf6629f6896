"""`vshift schema`."""

from __future__ import annotations

from vshift.cli.streams import echo


def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    import json

    from vshift.config import json_schema

    echo(json.dumps(json_schema(), indent=2))
