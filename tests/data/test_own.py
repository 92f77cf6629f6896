"""Data functions of one's own: what they may return, and a sentence for what they may not."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.utils.data import Dataset, TensorDataset

from vshift.config.data import OwnData
from vshift.data import describe, load, plain_stream, train_stream
from vshift.errors import ConfigError, DataError, VShiftError

CODE = """
import numpy as np
import torch

def images(count, seed):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 8, 8), generator=random, dtype=torch.uint8)

def classes(train=30, test=12):
    return tuple((images(n, n), torch.arange(n) % 3) for n in (train, test))

def numbers(scale=1.0):
    return tuple((images(n, n) / 255 * scale, torch.arange(n) * 2.0) for n in (30, 12))
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch):
    """A config whose function returns what it is given."""
    file = tmp_path / "my_data.py"
    file.write_text(CODE + "\nresult = None\n\ndef make():\n    return result\n")

    def make(result, **keys) -> OwnData:
        from vshift.config import own_code

        config = OwnData(name=f"{file}:make", **keys)
        monkeypatch.setitem(own_code.import_object(config.name).__globals__, "result", result)
        return config

    return make


def pair(images=None, targets=None, count=6):
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8) if images is None else images
    return images, torch.arange(len(images)) % 3 if targets is None else targets


def test_classes_of_uint8_images(tmp_path: Path):
    (tmp_path / "my_data.py").write_text(CODE)
    config = OwnData(name=f"{tmp_path}/my_data.py:classes", args={"train": 60}, validation=9)
    data = load(config)
    assert (len(data.train), len(data.validation), len(data.test)) == (51, 9, 12)
    assert (data.channels, data.size, data.outputs) == (3, 8, 3)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.bincount().tolist() == [17, 17, 17]
    random = torch.Generator().manual_seed(60)
    wanted = torch.randint(256, (60, 3, 8, 8), generator=random, dtype=torch.uint8)
    assert data.train.images.permute(0, 3, 1, 2).equal(wanted[:51])
    found = describe(config)
    assert (found.outputs, found.channels, found.size) == (3, 3, 8)


def test_floats_are_normalised_in_their_own_units_and_numbers_standardised(tmp_path: Path):
    (tmp_path / "my_data.py").write_text(CODE)
    sets = [
        load(OwnData(name=f"{tmp_path}/my_data.py:numbers", args={"scale": scale}, **keys))
        for scale, keys in ((1.0, {}), (1e-4, {}), (1.0, {"standardize": False}))
    ]
    plain, small, raw = sets
    assert plain.classes == ()
    assert plain.train.images.dtype == torch.float32
    for data in (plain, small):
        ((images, targets),) = plain_stream(data, data.train).plain()
        torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0
        )
        assert float(targets.mean()) == pytest.approx(0, abs=1e-6)
        assert float(targets.std(correction=0)) == pytest.approx(1, abs=1e-6)
    values = np.arange(30) * 2.0
    assert plain.target_std.tolist() == pytest.approx([values.std()])
    wanted = (np.arange(12) * 2.0 - values.mean()) / values.std()
    assert plain.test.labels[:, 0].tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    assert raw.test.labels[:, 0].tolist() == [2.0 * i for i in range(12)]
    assert raw.target_std.tolist() == [1.0]


def test_floats_and_bytes_of_the_same_images_give_the_same_batches(made):
    pixels = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(20) % 3
    batches = []
    for images in (pixels, pixels.double() / 255):
        data = load(made(((images, labels), (images, labels)), augment={"crop": 2, "flip": True}))
        stream = train_stream(data, 8, made(None, augment={"crop": 2, "flip": True}).augment)
        batches.append(torch.cat([batch for batch, _ in stream.epoch(1)]))
    torch.testing.assert_close(*batches, atol=1e-5, rtol=1e-5)


def test_nothing_is_augmented_unless_it_is_asked_for(made):
    assert made(None).augment.model_dump() == {
        "crop": 0, "flip": False, "cutout": 0, "mixup": 0.0, "cutmix": 0.0, "mix_probability": 1.0
    }  # fmt: skip
    assert made(None, augment={"mixup": 0.2}).augment.flip is False


class Items(Dataset):
    """A Dataset, with images of Pillow's, arrays or tensors."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_datasets_of_pillow_images_arrays_and_tensors(made):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (9, 8, 8, 3), np.uint8)
    channels_first = pixels.transpose(0, 3, 1, 2)
    labels = [i % 3 for i in range(9)]
    for images in (
        [Image.fromarray(image) for image in pixels],
        list(channels_first),
        [torch.from_numpy(image.copy()) for image in channels_first],
    ):
        items = Items(list(zip(images, labels, strict=True)))
        data = load(made((items, items)))
        assert np.array_equal(data.train.images.numpy(), pixels)
        assert data.train.labels.tolist() == labels
    grey = Items([(Image.fromarray(image[..., 0]), 1.5 * i) for i, image in enumerate(pixels)])
    data = load(made((grey, grey), standardize=False))
    assert np.array_equal(data.test.images.numpy(), pixels[..., :1])
    assert data.test.labels[:, 0].tolist() == [1.5 * i for i in range(9)]
    several = TensorDataset(torch.from_numpy(channels_first.copy()), torch.rand(9, 2))
    assert load(made((several, several))).outputs == 2


def test_a_function_that_draws_gives_the_same_every_time_and_disturbs_nobody(tmp_path: Path):
    (tmp_path / "drawn.py").write_text(
        "import random, numpy, torch\n"
        "def make():\n"
        "    x = torch.rand(6, 1, 8, 8) + random.random() + numpy.random.rand()\n"
        "    return (x, torch.arange(6) % 2), (x, torch.arange(6) % 2)\n"
    )
    config = OwnData(name=f"{tmp_path}/drawn.py:make")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert load(config).train.images.equal(load(config).train.images)
    assert torch.get_rng_state().equal(states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


ZEROS = torch.zeros(6, 3, 8, 8)
NAN = torch.where(torch.arange(6) == 4, torch.nan, 1.0)
REFUSED = {
    "nothing": (None, r"returned None; it must return a pair \(train, test\)"),
    "one set": ((pair(), pair(), pair()), r"returned a tuple of 3"),
    "no targets": (((ZEROS,), pair()), r"the training set is a tuple of 1; it must be a pair"),
    "a number": ((pair(), 7), r"the test set is a value of type int.*Dataset"),
    "an iterator": ((iter([]), pair()), r"training set is a value of type list_iterator.*length"),
    "empty": ((pair(ZEROS[:0]), pair()), r"the training images are none: the shape is \[0, 3"),
    "an empty dataset": ((pair(), Items([])), r"the test set is empty"),
    "flat images": ((pair(torch.zeros(6, 9)), pair()), r"shape \[6, 9\]; it must be \[N, C, H, W"),
    "channels last": (
        (pair(torch.zeros(6, 8, 8, 3)), pair()), r"\[6, 8, 8, 3\].*permute\(0, 3, 1, 2\)"
    ),
    "not square": ((pair(torch.zeros(6, 3, 8, 9)), pair()), r"\[6, 3, 8, 9\].*crop or resize"),
    "integers": ((pair(torch.zeros(6, 3, 8, 8).long()), pair()), r"are of torch\.int64; .*uint8"),
    "NaN pixels": ((pair(ZEROS / 0), pair()), r"training images hold NaN .* first in image 0"),
    "no tensor": ((pair("images"), pair()), r"images are a value of type str"),
    "other size": ((pair(), pair(torch.zeros(6, 3, 9, 9).byte())), r"\[8, 8, 3\].*\[9, 9, 3\]"),
    "other type": ((pair(), pair(ZEROS)), r"images are uint8, and the test images float32"),
    "counts": ((pair(targets=torch.zeros(5).long()), pair()), r"targets are 5, and .*images 6"),
    "NaN targets": ((pair(targets=NAN), pair()), r"training targets hold NaN .* of image 4"),
    "mixed kinds": ((pair(), pair(targets=torch.rand(6))), r"targets are int64, and .* float32"),
    "integer pairs": ((pair(targets=torch.ones(6, 2).long()), pair()), r"integers of the shape"),
    "three axes": ((pair(targets=torch.ones(6, 2, 1)), pair()), r"shape \[6, 2, 1\]; it must be"),
    "negative": ((pair(targets=torch.arange(6) % 3 - 1), pair()), r"hold -1 \(image 0\).*from 0"),
    "unknown class": (
        (pair(), pair(targets=torch.tensor([0, 1, 2, 3, 0, 0]))),
        r"the test targets hold 3 \(image 3\).*the largest training label is 2",
    ),
    "from one": (
        (pair(targets=torch.arange(6) % 3 + 1), pair(targets=torch.arange(6) % 3 + 1)),
        r"no training image has class 0 of 0 to 3; count classes from 0",
    ),
    "one class": ((pair(targets=torch.zeros(6).long()),) * 2, "all training images have class 0"),
    "odd items": ((Items([(ZEROS[0], 0), 5]), pair()), r"training set has item 1, a value of type"),
    "sizes differ": (
        (Items([(ZEROS[0], 0), (torch.zeros(3, 9, 9), 1)]), pair()),
        r"image 1 of shape \[3, 9, 9\], and image 0 of \[3, 8, 8\]",
    ),
    "odd image": ((Items([("x", 0)]), pair()), r"item 0, whose image is a value of type str"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_on_is_said_in_a_sentence(made, case):
    result, words = REFUSED[case]
    with pytest.raises(DataError, match=words) as caught:
        load(made(result))
    assert "my_data.py:make" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_of_classes_can_be_given(made):
    with pytest.raises(
        DataError, match=r"training targets hold 2 \(image 2\).*data\.classes allows 1"
    ):
        load(made((pair(), pair()), classes=2))
    with pytest.raises(DataError, match=r"no training image has class 3 of 0 to 3"):
        load(made((pair(), pair()), classes=4))
    with pytest.raises(DataError, match=r"data\.classes: 3, but the targets are floats"):
        load(made((pair(targets=torch.rand(6)),) * 2, classes=3))


def test_errors_of_the_users_code_have_its_frames_only(tmp_path: Path):
    file = tmp_path / "broken.py"
    file.write_text(
        "class Lazy:\n    def __len__(self): return 3\n"
        "    def __getitem__(self, i): return {}['image']\n"
        "def make(): return Lazy(), Lazy()\n"
        "def worse(): return 1 / 0\n"
    )
    for name, words in (("make", "set cannot be read: KeyError"), ("worse", "ZeroDivisionError")):
        with pytest.raises(VShiftError, match=words) as caught:
            load(OwnData(name=f"{file}:{name}"))
        assert f"{file}:" in str(caught.value)
        assert "vshift" not in str(caught.value).replace(str(tmp_path), "")


def test_one_pair_instead_of_two_is_said_so(tmp_path: Path):
    (tmp_path / "one.py").write_text(
        "import torch\ndef make(): return torch.zeros(4, 3, 8, 8), torch.zeros(4).long()\n"
    )
    with pytest.raises(
        DataError, match=r"one pair \(images, targets\); it must return \(train, te"
    ):
        load(OwnData(name=f"{tmp_path}/one.py:make"))


def test_wrong_arguments_are_answered_with_the_nearest(tmp_path: Path):
    (tmp_path / "my_data.py").write_text(CODE)
    with pytest.raises(ConfigError, match=r"takes no 'trian'; did you mean `train`"):
        load(OwnData(name=f"{tmp_path}/my_data.py:classes", args={"trian": 5}))


def test_keys_that_do_not_go_together():
    with pytest.raises(ValidationError, match="root is for sets of torchvision"):
        OwnData(name="my_data.py:make", root="there")
    for key, value in (("args", {"train": 5}), ("classes", 10), ("standardize", False)):
        with pytest.raises(ValidationError, match=f"{key} is for a function of one's own"):
            OwnData(name="torchvision:MNIST", **{key: value})
    with pytest.raises(ValidationError, match=r"MNISTT.* did you mean `torchvision:MNIST`"):
        OwnData(name="torchvision:MNISTT")


def test_a_note_tells_one_hot_floats_from_numbers(made):
    """They are predicted as numbers, which their owner may not have meant."""
    one_hot = torch.eye(3)[torch.arange(6) % 3]
    found = load(made((pair(targets=one_hot), pair(targets=one_hot))))
    assert (found.outputs, found.classes) == (3, ())
    assert found.note.endswith("to train a classifier, give the classes: targets.argmax(1)")
    for targets in (one_hot * 0.5, torch.ones(6, 1), torch.rand(6, 3), None):
        assert load(made((pair(targets=targets), pair(targets=targets)))).note == ""
