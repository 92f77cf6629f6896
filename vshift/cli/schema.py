"""`vshift schema`."""

from __future__ import annotations

import json

from vshift.cli.streams import echo


def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    from vshift.config import json_schema

    echo(json.dumps(json_schema(), indent=2))
