"""Old names of keys: in old run folders they are read, and a rename changes no config's hash."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from vshift.config import Config, config_hash, dump, load
from vshift.config.renames import RENAMED, original, upgrade

OLD: dict[str, Any] = {
    "name": "old",
    "data": {"name": "imagefolder", "root": "/d", "train": "learn", "test": "val"},
    "network": {"name": "mlp"},
    "norm": {"kind": "batch", "cumulative": True, "update": False, "evaluate": "batch"},
    "schedule": {"name": "onecycle", "rise": 0.2, "start_divisor": 10.0, "end_divisor": 5.0},
    "recalibration": {"own": 0.25},
    "epochs": 2,
}


def test_every_old_key_is_renamed_and_named_back() -> None:
    new = upgrade(OLD)
    assert new["data"] == {
        "name": "imagefolder", "root": "/d", "train_folder": "learn", "test_folder": "val"
    }  # fmt: skip
    assert new["norm"] == {
        "kind": "batch", "momentum": None, "update_running_stats": False, "eval_statistics": "batch"
    }  # fmt: skip
    assert new["schedule"] == {
        "name": "onecycle", "pct_start": 0.2, "div_factor": 10.0, "final_div_factor": 5.0
    }  # fmt: skip
    assert new["recalibration"] == {"batch_weight": 0.25}
    assert upgrade(new) == new
    assert original(new) == OLD
    for section, names in RENAMED.items():
        assert not set(names) & set(new[section])


@pytest.mark.parametrize("momentum", [0.1, 0.3])
def test_cumulative_false_is_the_momentum_beside_it(momentum: float) -> None:
    norm = {"kind": "batch", "cumulative": False, "momentum": momentum}
    assert upgrade({"norm": norm}) == {"norm": {"kind": "batch", "momentum": momentum}}


def test_numbers_of_images_keep_their_names() -> None:
    data = {"name": "shapes", "train": 100, "test": 50}
    assert upgrade({"data": data}) == original({"data": data}) == {"data": data}
    for odd in ({}, {"norm": None, "data": [], "schedule": 3}):
        assert upgrade(odd) == original(odd) == odd


def test_a_rename_changes_no_hash() -> None:
    values = {key: value for key, value in OLD.items() if key != "name"}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert config_hash(Config.model_validate(upgrade(OLD))) == expected


def test_an_old_run_folders_config_is_loaded(write) -> None:
    new = dump(Config.model_validate(upgrade(OLD)))
    old = new.replace("pct_start:", "rise:").replace("  momentum: null", "  cumulative: true")
    assert "rise: 0.2" in old
    assert "cumulative: true" in old
    write("run/config.yaml", old)
    Path("run/run.json").write_text("{}")
    assert load("run/config.yaml") == load(write("new.yaml", new))
