from __future__ import annotations

import subprocess
import sys

import pytest

from vshift.config.data import Shapes
from vshift.data import Description, available, describe, load
from vshift.data.library import SETS


def test_shapes_load_with_limits_and_validation():
    data = load(
        Shapes(name="shapes", train=100, test=40, train_limit=60, test_limit=20, validation=20)
    )
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 20, 20)
    assert (data.size, data.channels, len(data.classes)) == (32, 3, 10)
    for part, each in ((data.train, 4), (data.validation, 2), (data.test, 2)):
        assert part.labels.bincount().tolist() == [each] * 10
    whole = load(Shapes(name="shapes", train=60, test=20))
    assert whole.train.images[:40].equal(data.train.images)
    assert whole.train.images[40:].equal(data.validation.images)
    assert whole.test.images.equal(data.test.images)
    assert not whole.mean.equal(data.mean)  # only images in training count


def test_describe_needs_no_images():
    assert describe(Shapes(name="shapes")) == Description(10, 3, 32)


def test_the_catalog_lists_every_name(own_cache):
    entries = {entry.name: entry for entry in available()}
    assert list(entries) == ["shapes", "patterns", *SETS, "imagefolder", "FILE.py:FUNCTION"]
    assert entries["cifar10"].where == "vshift data fetch cifar10"


def test_a_set_that_is_here_is_listed_with_its_folder(own_cache, monkeypatch):
    monkeypatch.setattr("vshift.data.library.is_here", lambda name: name == "cifar10")
    entries = {entry.name: entry for entry in available()}
    assert entries["cifar10"].where == str(own_cache / "cifar10")
    assert entries["cifar100"].where == "vshift data fetch cifar100"


def test_the_package_is_imported_without_torch():
    code = (
        "import sys, vshift.data; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name():
    import vshift.data

    with pytest.raises(AttributeError, match="loader"):
        _ = vshift.data.loader
