"""Whatever stands in a run folder, there is a page or a sentence, never a traceback."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.report.study import make_study
from vshift.errors import VShiftError
from vshift.report.answers import cards
from vshift.report.effects import unpaired
from vshift.report.figures import frames, specs
from vshift.report.layouts import layouts, shared, terms
from vshift.report.page import data_sentences, left_out, pack
from vshift.report.study import Study, collect
from vshift.report.tables import configs_table, differences_table, layers_table, runs_table
from vshift.runs import files, find_runs

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, 10**400, float("nan"), "", "x", "\x1b[31m", [], [1, [2]], {},
    {"a": {}},
    "</script>", 2.5, "1", [None],
)  # fmt: skip
SEEDS = (*range(16), 44, 50, 85, 179)  # the last ones have found something


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("whole") / "study", seeds=2)


def everything(study: Study) -> None:
    """All that goes onto a page, but for the writing."""
    cards(study)
    json.dumps(specs(study), allow_nan=False)
    json.dumps([pack(frame) for frame in frames(study).values()], allow_nan=False)
    for table in (configs_table, runs_table, layers_table, differences_table):
        table(study)
    data_sentences(study)
    left_out(study)
    unpaired(study)
    layouts(study.groups)
    shared(study.groups)
    terms(study.groups, measured=True)


def odd(value: Any, chance: random.Random) -> Any:
    """The value with one of its parts, at any depth, replaced by something odd."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        return {**value, key: odd(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return [*value[:place], odd(value[place], chance), *value[place + 1 :]]
    return chance.choice(ODD)


def odd_values(path: Path, chance: random.Random) -> None:
    text = path.read_text()
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(odd(yaml.safe_load(text), chance)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(odd(json.loads(text), chance)))
    elif path.suffix == ".jsonl":
        rows = odd([json.loads(line) for line in text.splitlines()], chance)
        rows = rows if isinstance(rows, list) else [rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def odd_bytes(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    how = chance.randrange(4)
    if how == 0:
        path.unlink()
    elif how == 1:
        path.write_bytes(data[: chance.randrange(len(data) + 1)])
    else:
        for _ in range(how * 3):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)


@pytest.mark.parametrize("change", [odd_values, odd_bytes])
@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_run_folders(
    whole: Path, tmp_path: Path, change: Callable[[Path, random.Random], None], seed: int
) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "study"
    shutil.copytree(whole, folder)
    every = sorted(
        path for path in folder.rglob("*")
        if path.is_file() and "damaged" not in path.parts[-3]
        and (change is odd_bytes or path.suffix != ".safetensors")
    )  # fmt: skip
    for path in chance.sample(every, 6):
        change(path, chance)
    try:
        study = collect(find_runs([folder]))
    except VShiftError:
        return  # a sentence for people: no run was left
    everything(study)
    assert study.groups


def test_every_file_is_read_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    for name in ("read_bytes", "read_rows"):
        real = getattr(files, name)

        def reader(path: Path, *most: Any, real: Any = real, **options: Any) -> Any:
            read.append(path)
            return real(path, *most, **options)

        monkeypatch.setattr(files, name, reader)
    everything(collect(find_runs([whole])))
    assert any(path.name == "layers.jsonl" for path in read)
    assert len(read) == len(set(read))
