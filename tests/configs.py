"""Configs for tests: small, on drawn images, with any section replaced."""

import json
from typing import Any

from vshift.config import Point
from vshift.config.schema import Config

SMALL: dict[str, Any] = {
    "name": "test",
    "data": {"name": "shapes", "train": 300, "test": 100, "batch_size": 64},
    "network": {"name": "preresnet", "depth": 8},
    "optimizer": {"name": "sgd", "learning_rate": 0.05},
    "epochs": 2,
    "measure": {"eval_batches": 3},
    "hardware": {"device": "cpu", "precision": "float32", "threads": 1},
}


def make_config(**sections: Any) -> Config:
    """The small config with sections replaced."""
    return Config.model_validate({**SMALL, **sections})


def spelled(point: Point) -> list[str]:
    """The `--set` values with which a command line chooses a point of a study."""
    values = [f"name={json.dumps(point.config.name)}", *(f"{section}=null" for section in point.of)]
    return values + [f"{key}={json.dumps(value)}" for key, value in point.assignments.items()]
