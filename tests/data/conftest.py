from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vshift.config.data import ImageFolder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VSHIFT_CACHE", str(folder))
    return folder


MakeTree = Callable[..., ImageFolder]


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """Writes random PNG images, so many of each class, and returns the config that reads them."""

    def make(
        train: dict[str, int] | None = None,
        test: dict[str, int] | None = None,
        size: tuple[int, int] = (8, 8),
        **options: object,
    ) -> ImageFolder:
        root = tmp_path / "tree"
        random = np.random.default_rng(0)
        train = {"cat": 3, "dog": 3} if train is None else train
        for part, counts in {"train": train, "test": train if test is None else test}.items():
            for name, count in counts.items():
                (root / part / name).mkdir(parents=True)
                for i in range(count):
                    pixels = random.integers(0, 256, (size[1], size[0], 3), np.uint8)
                    Image.fromarray(pixels).save(root / part / name / f"{i:04}.png")
        return ImageFolder(name="imagefolder", root=str(root), **options)

    return make


def together(script: str, count: int, *words: str) -> list[str]:
    """The outputs of so many processes that run side by side."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *words], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=dict(os.environ),
        )
        for _ in range(count)
    ]  # fmt: skip
    return [process.communicate(timeout=120)[0] for process in processes]
