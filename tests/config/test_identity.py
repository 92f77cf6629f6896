"""One list of keys that identify nothing, on which everybody who tells configs apart agrees.

Old names of keys are read in old run folders, and a rename changes no config's hash.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from tests.factory import make_run
from vshift.compare import paper
from vshift.compare.fields import Fields
from vshift.compare.groups import differing, without_noise
from vshift.config import Config, config_hash, differences, dump, load
from vshift.config.identity import (
    RENAMED,
    SCOPES,
    Scope,
    hash_of,
    identity,
    original,
    scope_of,
    upgrade,
)
from vshift.errors import RunError
from vshift.runs import find_runs, prepare

PLACE = {"position": "before_last_bn"}
NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
DROPBLOCK = {"kind": "dropblock", "rate": 0.2, "size": 3, "position": "before_last_bn"}
# Between them, these configs hold every section of the schema.
BASES: list[dict[str, Any]] = [
    {
        "name": "a",
        "data": {"name": "shapes"},
        "network": {"name": "preresnet", "depth": 20, "noise": NOISE},
        "epochs": 9,
        "schedule": {"name": "multistep", "milestones": [3, 5]},
    },
    {
        "name": "a",
        "data": {"name": "cifar10", "root": "there"},
        "network": {
            "name": "wrn",
            "depth": 16,
            "width": 2,
            "noise": {**PLACE, "kind": "gaussian", "sigma": 1.0},
        },
        "epochs": 9,
        "schedule": {"name": "onecycle", "peak": 0.2},
    },
    {
        "name": "a",
        "data": {"name": "imagefolder", "root": "there"},
        "network": {
            "name": "resnext",
            "depth": 29,
            "noise": {**PLACE, "kind": "uniform", "beta": 0.6},
        },
        "epochs": 9,
        "schedule": {"name": "cosine"},
        "norm": {"kind": "group", "groups": 4},
    },
    {
        "name": "a",
        "data": {"name": "shapes"},
        "network": {"name": "densenet", "depth": 40, "noise": DROPBLOCK},
        "epochs": 9,
    },
    {
        "name": "a",
        "data": {"name": "shapes"},
        "network": {"name": "mlp", "widths": [8, 8], "noise": [NOISE, NOISE]},
        "epochs": 9,
        "norm": {"kind": "none"},
    },
    {
        "name": "a",
        "data": {"name": "shapes"},
        "network": {"name": "resnet", "depth": 20},
        "epochs": 9,
        "loss": {"name": "cross_entropy"},
        "optimizer": {"name": "adamw"},
        "average": {"kind": "ema"},
    },
    {
        "name": "a",
        "data": {"name": "shapes"},
        "network": {"name": "vgg"},
        "epochs": 9,
        "optimizer": {"name": "adam"},
        "average": {"kind": "swa"},
    },
    {
        "name": "a",
        "data": {"name": "torchvision:MNIST"},
        "network": {"name": "resnet", "depth": 20},
        "epochs": 9,
        "loss": {"name": "torch.nn:CrossEntropyLoss"},
    },
    {
        "name": "a",
        "data": {"name": "torch.utils.data:TensorDataset"},
        "network": {"name": "resnet", "depth": 20},
        "epochs": 9,
    },
    {
        "name": "a",
        "data": {"name": "shapes"},
        "network": {
            "name": "torchvision:resnet18",
            "noise": {"kind": "torch.nn:Dropout2d", "before": "fc"},
        },
        "norm": {"kind": "torch.nn:Identity"},
        "epochs": 9,
    },
    {
        "name": "a",
        "data": {"name": "shapes"},
        "network": {"name": "vgg"},
        "epochs": 9,
        "norm": {"kind": "renorm", "plain_steps": 1},
        "optimizer": {"name": "torch.optim:Adam", "learning_rate": 0.1},
        "schedule": {"name": "statistics:mean"},
    },
    {"name": "a", "data": {"name": "shapes"}, "network": {"name": "vit"}, "epochs": 9},
]
# Values to try where a key's own value does not suggest another one.
OTHERS: list[Any] = [
    None, True, False, 0, 1, 2, 3, 5, 7, 16, 22, 32, 40, 100, 0.25, 0.75, 1.5, "x", "all",
    "float32", "bf16", "cpu", "cuda", "eager", "fused", "channel", "batch", "running", "average",
    "variance", "basic", [1], [2, 4], ["swap"], ["before_last_conv"], "before_last_conv",
    "conv3x3 bn relu conv3x3 bn relu", "fc bn relu", {"network.depth": [8, 20]},
    {"b": {"epochs": 2}}, [16, 16], 3.0, 64, "norm", [0.5, 0.5], {"eps": 0.1}, "copied",
    "0123456789abcdef", "angle", "linear",
]  # fmt: skip


# Keys that say which of several sections it is; another value there is another section.
NAMES = {"data.name", "network.name", "schedule.name", "optimizer.name", "loss.name"}


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Every dotted key; lists of sections count as one."""
    for key, item in value.items():
        dotted = f"{path}.{key}" if path else key
        if isinstance(item, dict) and item:
            yield from leaves(item, dotted)
        elif key not in ("kind",) and dotted not in NAMES:
            yield dotted


def changed(values: dict[str, Any], key: str) -> Config | None:
    """The config with another value for one key, if some value is allowed there."""
    *path, last = key.split(".")
    for other in OTHERS:
        new = Config.model_validate(values).model_dump()
        section = new
        for part in path:
            section = section[part]
        if section[last] == other or (isinstance(other, bool) != isinstance(section[last], bool)):
            continue
        section[last] = other
        try:
            found = Config.model_validate(new)
        except ValidationError:
            continue
        if value_at(found, key) != value_at(Config.model_validate(values), key):
            return found
    return None


def value_at(config: Config, key: str) -> Any:
    value: Any = config.model_dump()
    for part in key.split("."):
        value = value[part]
    return value


def pairs() -> dict[str, tuple[Config, Config]]:
    found: dict[str, tuple[Config, Config]] = {}
    for base in BASES:
        config = Config.model_validate(base)
        for key in leaves(config.model_dump()):
            if key not in found and (other := changed(base, key)) is not None:
                found[key] = config, other
    return found


PAIRS = pairs()


def declared(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every dotted key of the schema, through all its unions."""
    for key, field in model.model_fields.items():
        dotted = f"{path}.{key}" if path else key
        inside = list(models(field.annotation))
        for inner in inside:
            yield from declared(inner, dotted)
        if not inside:
            yield dotted


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        yield from itertools.chain.from_iterable(map(models, get_args(annotation)))


def test_every_key_of_the_schema_has_a_pair() -> None:
    wanted = {k for k in declared(Config) if k not in NAMES and not k.endswith(".kind")}
    nested = {k for k in wanted if k.startswith("network.noise")}
    assert {k for k in wanted - nested if k not in PAIRS} <= {"network.noise"}
    assert {k.removeprefix("network.noise.") for k in nested - set(PAIRS)} <= {"position"}


def test_every_scope_is_of_a_key_that_exists() -> None:
    keys = set(declared(Config))
    assert all(any(f"{key}.".startswith(f"{entry}.") for key in keys) for entry in SCOPES)


@pytest.mark.parametrize("key", PAIRS)
def test_hash_differences_and_tables_agree(key: str) -> None:
    one, other = PAIRS[key]
    a, b = one.model_dump(), other.model_dump()
    scope = scope_of(key)
    assert (config_hash(one) != config_hash(other)) == (scope >= Scope.EXECUTION)
    assert (hash_of(a) != hash_of(b)) == (scope >= Scope.EXECUTION)
    assert bool(differences(one, other)) == (scope >= Scope.ROUNDING)
    assert bool(differing(a, b)) == (scope >= Scope.EXECUTION)
    assert (identity(a, Scope.TRAINING) != identity(b, Scope.TRAINING)) == (scope == Scope.TRAINING)


@pytest.mark.parametrize("key", [k for k in PAIRS if k not in ("name", "seeds")])
def test_one_observation_is_one_training(key: str, tmp_path: Path) -> None:
    for folder, config in zip("ab", PAIRS[key], strict=True):
        make_run(tmp_path, folder, config=config.model_dump(exclude={"name", "seeds"}))
    runs = find_runs([tmp_path])
    fields = Fields(runs)
    same = fields.training(runs[0]) == fields.training(runs[1])
    # Another kind of step draws other noise: the same training, observed once more.
    assert same == (scope_of(key) < Scope.TRAINING and key != "hardware.step")


@pytest.mark.parametrize("key", PAIRS)
def test_the_papers_tables_agree(key: str) -> None:
    """They leave the noise and the arithmetic apart, and know what is re-estimated by what."""
    one, other = PAIRS[key]
    apart = key.startswith(("network", "data.name", "data.root", "hardware"))
    recipe = [paper.recipe_of(config) for config in (one, other)]
    expected = scope_of(key) == Scope.TRAINING and not apart
    assert (recipe[0] != recipe[1]) == expected
    own = [paper.family_of(config, trained_only=False) for config in (one, other)]
    if not key.startswith(("network", "recalibration")):
        assert (own[0] != own[1]) == (scope_of(key) == Scope.TRAINING)


@pytest.mark.parametrize("key", [k for k in PAIRS if not k.startswith("network")])
def test_the_reports_pairs_agree(key: str) -> None:
    rest = [without_noise(config.model_dump()) for config in PAIRS[key]]
    assert (rest[0] != rest[1]) == (scope_of(key) == Scope.TRAINING)


# A source is of a file: tests/config/test_own.py.
RESUMED = [k for k in PAIRS if k not in ("name", "seeds") and not k.endswith(".source")]


@pytest.mark.parametrize("key", RESUMED)
def test_resuming_agrees(key: str, tmp_path: Path) -> None:
    one, other = PAIRS[key]
    prepare(tmp_path, one, 0)[0].close()
    if scope_of(key) == Scope.NOTHING or (key, other.hardware.threads) == (
        "hardware.threads",
        None,
    ):
        assert prepare(tmp_path, other, 0)[1] == "new"
    else:
        with pytest.raises(RunError, match="holds another config's run"):
            prepare(tmp_path, other, 0)


def test_the_hash_ignores_name_seeds_grid_and_arms_only(write) -> None:
    first = config_hash(load("good.yaml"))
    assert len(first) == 16
    assert int(first, 16) >= 0
    same = [
        "name=x",
        "notes=why",
        "seeds=[4]",
        "grid={epochs: [1]}",
        "arms={a: {}}",
        "network.noise.rate=5e-1",
    ]
    assert config_hash(load("good.yaml", same)) == first
    for other in ("epochs=4", "network.noise.rate=0.4", "norm.eps=1e-4"):
        assert config_hash(load("good.yaml", [other])) != first


def test_differences(write) -> None:
    a = load("good.yaml")
    sets = ["name=x", "seeds=[4]", "network.noise=null", "norm={kind: none}", "data.train_limit=5"]
    found = differences(a, load("good.yaml", sets))
    assert found["data.train_limit"] == (None, 5)
    assert found["norm.kind"] == ("batch", "none")
    assert found["norm.momentum"] == (0.1, None)
    assert found["network.noise"][1] is None
    assert not {"name", "seeds"} & set(found)
    assert differences(a, load("good.yaml", ["name=x"])) == {}
    placed = "network.noise=[{kind: dropout, rate: 0.1, position: before_bn}, %s]"
    rate = "{kind: dropout, rate: 0.%d, position: before_pool}"
    one, other = (load("good.yaml", [placed % (rate % tenths)]) for tenths in (3, 5))
    assert differences(one, other) == {"network.noise.1.rate": (0.3, 0.5)}


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


def test_another_default_changes_no_hash() -> None:
    """`precision: bf16` was the default before `auto`; each run tells what it became."""
    auto, bf16, float32 = (
        Config.model_validate({**BASES[0], "hardware": {"precision": precision, "threads": 2}})
        for precision in ("auto", "bf16", "float32")
    )
    without = Config.model_validate(BASES[0])
    assert config_hash(bf16) == config_hash(auto) == config_hash(without) != config_hash(float32)
    assert list(differences(auto, bf16)) == ["hardware.precision"]


def test_an_old_run_folders_config_is_loaded(write) -> None:
    new = dump(Config.model_validate(upgrade(OLD)))
    old = new.replace("pct_start:", "rise:").replace("  momentum: null", "  cumulative: true")
    assert "rise: 0.2" in old
    assert "cumulative: true" in old
    write("run/config.yaml", old)
    Path("run/run.json").write_text("{}")
    assert load("run/config.yaml") == load(write("new.yaml", new))
