"""Code of one's own, run: what it is called with, and when its files run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from vshift.config import Config, own_code
from vshift.config.own import OwnPart, own_parts, sources
from vshift.errors import ConfigError


def make(**network: object) -> OwnPart:
    config = Config.model_validate(
        {"name": "a", "data": {"name": "shapes"}, "epochs": 1, "network": network}
    )
    (part,) = own_parts(config).values()
    return part


def test_call_gives_what_the_signature_asks_for(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(
        "def few(classes, width=1):\n    return classes, width\n"
        "def all_of_them(**kwargs):\n    return kwargs\n"
        "value = 3\n"
    )
    few = make(name=f"{tmp_path}/parts.py:few", args={"width": 2})
    assert own_code.call(few, classes=10, size=32) == (10, 2)
    every = make(name=f"{tmp_path}/parts.py:all_of_them", args={"width": 2})
    assert own_code.call(every, classes=10) == {"width": 2}  # what it does not name is not offered
    with pytest.raises(ConfigError, match="takes no 'widht'; did you mean `width`"):
        own_code.call(make(name=f"{tmp_path}/parts.py:few", args={"widht": 2}), classes=10)
    with pytest.raises(ConfigError, match="needs 1 argument more: classes"):
        own_code.call(few)
    with pytest.raises(ConfigError, match="cannot be called"):
        own_code.call(make(name=f"{tmp_path}/parts.py:value"))


def test_a_changed_file_runs_again_with_its_helpers(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "parts.py").write_text("import own_helper\ndef get():\n"
                                                    "    return own_helper.value\n")  # fmt: skip
        (tmp_path / folder / "own_helper.py").write_text(f"value = '{folder}'\n")
    one, two = (make(name=f"{tmp_path}/{folder}/parts.py:get") for folder in ("one", "two"))
    assert (own_code.call(one), own_code.call(two), own_code.call(one)) == ("one", "two", "one")
    (tmp_path / "one/own_helper.py").write_text("value = 'changed'\n")
    assert own_code.call(one) == "changed"


def test_a_file_in_a_package_is_imported_as_its_part(tmp_path: Path) -> None:
    package = tmp_path / "own_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sizes.py").write_text("width = 5\n")
    (package / "nets.py").write_text("from .sizes import width\ndef get():\n    return width\n")
    part = make(name=f"{package}/nets.py:get")
    assert list(sources(part.reference)) == [
        "own_pkg/__init__.py",
        "own_pkg/nets.py",
        "own_pkg/sizes.py",
    ]
    assert own_code.call(part) == 5
