"""docs/config.md lists every key as the config takes it."""

import json
import re
from pathlib import Path

import pytest

from vshift.config import Config
from vshift.config.reference import fill_document, reference

DOCUMENT = Path(__file__).parents[2] / "docs" / "config.md"


def rows(section: str) -> dict[str, list[str]]:
    """The last table of a section: the cells after the key, by key; kinds tell equal keys apart."""
    text = re.search(rf"^##+ `{section}`\n(.*?)(?=^##|\Z)", reference(), re.M | re.S)[1]
    table = text.strip().split("\n\n")[-1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table]
    return {key.strip("`"): rest for key, *rest in reversed(cells)}


def test_the_document_is_what_the_schema_says():
    text = DOCUMENT.read_text("utf-8")
    assert fill_document(text) == text, "run python -m vshift.config.reference docs/config.md"


@pytest.mark.parametrize("section", ["measure", "recalibration", "hardware", "checkpoint"])
def test_defaults_are_those_of_a_config_that_says_nothing(section):
    smallest = {"name": "a", "data": {"name": "shapes"}, "network": {"name": "mlp"}, "epochs": 1}
    values = Config.model_validate(smallest).model_dump()[section]
    told = {key: cells[1].strip("`") for key, cells in rows(section).items()}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    assert told == texts


def test_a_row_says_what_is_allowed():
    assert rows("norm")["momentum"] == [
        "`batch`", "number ≥ 0, ≤ 1 or `null`", "`0.1`",
        "The new batch's weight in the running average; null: the simple average over all batches.",
    ]  # fmt: skip
    assert rows("network.noise")["rate"][:3] == [
        "`dropout`, `stochastic_depth`, `classic_dropout`, `scaled_dropout`, `alpha_dropout`",
        "number ≥ 0, < 1", "required",
    ]  # fmt: skip
    assert rows("schedule")["milestones"][1:3] == ["list of integer ≥ 1", "required"]
