"""A folder of small config files, with vshift running inside it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vshift.errors import ConfigError

GOOD = """\
data: {name: shapes}
network:
  name: preresnet
  depth: 20
  noise: {kind: dropout, rate: 0.5, position: before_last_bn}
epochs: 3
"""
Write = Callable[[str, str], str]
Refused = Callable[..., list[str]]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """write("a.yaml", text) → "a.yaml"; good.yaml is there already."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str) -> str:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    write_file("good.yaml", GOOD)
    return write_file


@pytest.fixture
def refused() -> Refused:
    """The lines of the ConfigError that a call raises."""

    def call(function: Callable[..., object], *args: object, **kwargs: object) -> list[str]:
        with pytest.raises(ConfigError) as error:
            function(*args, **kwargs)
        lines = str(error.value).splitlines()
        assert tuple(lines) == error.value.problems
        return lines

    return call
