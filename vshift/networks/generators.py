"""The generators besides PyTorch's that a user's code may draw from: Python's and NumPy's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Seed PyTorch's generators of all devices, Python's and NumPy's, from 32 bits."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def outside_state() -> dict[str, Any]:
    """The states of Python's and NumPy's generators, in plain containers as a checkpoint holds."""
    numpy: Any = np.random.get_state(legacy=False)
    key = numpy["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {"key": key, "pos": int(numpy["state"]["pos"])}},
    }


def set_outside_state(state: dict[str, Any]) -> None:
    """Restore what `outside_state` gave."""
    random.setstate(state["python"])
    numpy = state["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
