from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import EPS
from tests.data.conftest import together
from vshift.config.data import IMAGE_FORMATS, ImageFolder
from vshift.data import Description, describe, folder, load
from vshift.errors import DataError


def message(config: ImageFolder) -> str:
    with pytest.raises(DataError) as caught:
        load(config)
    return str(caught.value)


def test_images_come_sorted_with_nested_folders_and_any_case(make_tree):
    config = make_tree({"b": 2, "a": 1})
    root = Path(config.root) / "train" / "a"
    (root / "deep" / "er").mkdir(parents=True)
    black = Image.new("RGB", (8, 8))
    black.save(root / "deep" / "er" / "x.PNG")
    for ignored in ("._0000.png", ".hidden.png", "notes.txt", "noextension"):
        (root / ignored).write_text("not an image")
    (root / ".thumbs").mkdir()
    (root / ".thumbs" / "t.png").write_text("not an image")
    data = load(config)
    assert data.classes == ("a", "b")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert not data.train.images[1].any()
    first = np.asarray(Image.open(root / "0000.png"))
    assert np.array_equal(data.train.images[0].numpy(), first)


def test_limits_and_validation_decode_only_what_they_keep(make_tree, monkeypatch):
    config = make_tree({"a": 5, "b": 5}, train_limit=6, test_limit=2, validation=2)
    read = []
    real = folder.decode_one
    monkeypatch.setattr(folder, "decode_one", lambda p, *rest: (read.append(p), real(p, *rest))[1])
    data = load(config)
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 2, 2)
    assert sorted(p.name for p in read) == sorted(["0000.png"] * 4 + ["0001.png", "0002.png"] * 2)


def test_other_part_names(make_tree):
    config = make_tree()
    (Path(config.root) / "train").rename(Path(config.root) / "learn")
    assert len(load(config.model_copy(update={"train_folder": "learn"})).train) == 6


def test_size_resizes_with_antialiasing(make_tree):
    config = make_tree(size=(40, 20))
    stripes = np.zeros((20, 40, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(Path(config.root) / "train" / "cat" / "0000.png")
    data = load(config.model_copy(update={"size": 10}))
    assert data.size == 10
    assert 110 < data.train.images[0].float().mean() < 145
    assert data.train.images[0].float().std() < 20


def test_grey(make_tree):
    config = make_tree(channels=1)
    data = load(config)
    assert data.channels == 1
    assert describe(config) == Description(2, 1, 8)
    path = Path(config.root) / "train" / "cat" / "0000.png"
    grey = np.asarray(Image.open(path).convert("L"))
    assert np.array_equal(data.train.images[0, :, :, 0].numpy(), grey)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("1", 1, "png", 255),
        ("L", 100, "png", 100),
        ("RGB", (90, 90, 90), "bmp", 90),
        ("RGBA", (200, 200, 200, 128), "png", 100),
        ("LA", (200, 128), "png", 100),
        ("CMYK", (0, 0, 0, 155), "tif", 100),
        ("I;16", 100 * 256 + 9, "png", 100),
        ("I", 100 * 256 + 9, "tif", 100),
        ("L", 70, "gif", 70),
        ("L", 70, "ppm", 70),
        ("RGB", (60, 60, 60), "webp", 60),
    ],
)
def test_odd_modes(tmp_path, mode, colour, suffix, expected, channels):
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (8, 8), colour).save(path)
    image = folder.decode_one(path, None, channels)
    assert image.shape == (8, 8, channels)
    assert np.abs(image.astype(int) - expected).max() <= 2


def test_a_palette_with_a_transparent_colour_is_black_there(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 250, 250])
    image.save(tmp_path / "p.png", transparency=1)
    assert not folder.decode_one(tmp_path / "p.png", None, 3).any()


def test_floating_point_pixels_are_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif: floating-point .*8 bits"):
        folder.decode_all([tmp_path / "f.tif"], None, 3)


def test_describe_opens_one_image(make_tree):
    config = make_tree()
    (Path(config.root) / "train" / "dog" / "0001.png").write_text("broken")
    assert describe(config) == Description(2, 3, 8)
    assert describe(config.model_copy(update={"size": 32})) == Description(2, 3, 32)


def test_describe_refuses_oblong_images(make_tree):
    with pytest.raises(DataError, match=r"0000\.png is 12×8 pixels.*square.*data\.size"):
        describe(make_tree(size=(12, 8)))


def test_missing_root(tmp_path):
    config = ImageFolder(name="imagefolder", root=str(tmp_path / "none"))
    assert f"there is no folder {tmp_path / 'none'}" in message(config)


def test_root_is_a_file(tmp_path):
    (tmp_path / "set.zip").write_text("")
    text = message(ImageFolder(name="imagefolder", root=str(tmp_path / "set.zip")))
    assert "set.zip is a file" in text
    assert "Unpack" in text


@pytest.mark.parametrize("part", ["train", "test"])
def test_missing_part_lists_what_is_there(make_tree, part):
    config = make_tree()
    (Path(config.root) / part).rename(Path(config.root) / "other")
    text = message(config)
    assert f"data.{part}_folder: there is no folder `{part}`" in text
    assert "other" in text


def test_empty_part(make_tree):
    config = make_tree()
    shutil.rmtree(Path(config.root) / "train")
    (Path(config.root) / "train").mkdir()
    assert "train has no class folders" in message(config)


def test_one_class(make_tree):
    assert "one class only, `cat`" in message(make_tree({"cat": 2}))


def test_classes_differ(make_tree):
    text = message(make_tree({"cat": 1, "dog": 1, "eel": 1}, {"cat": 1, "dog": 1, "fox": 1}))
    assert "only in train: eel; only in test: fox" in text


@pytest.mark.parametrize("part", ["train", "test"])
def test_class_without_images(make_tree, part):
    config = make_tree()
    for file in (Path(config.root) / part / "dog").iterdir():
        file.rename(file.with_suffix(".txt"))
    text = message(config)
    assert f"{part}/dog has no images" in text
    assert "jpeg, jpg" in text


def test_unreadable_images_are_named_up_to_five(make_tree):
    config = make_tree({"cat": 9, "dog": 2})
    root = Path(config.root) / "train" / "cat"
    for i in range(1, 8):
        (root / f"{i:04}.png").write_bytes(b"no image")
    text = message(config)
    assert "cannot read 7 images" in text
    assert f"{root / '0005.png'}: not an image" in text
    assert "0006.png" not in text
    assert "and 2 more" in text


@pytest.mark.parametrize("kept", [0, 20, 60, 150])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_images(make_tree, kept, suffix):
    config = make_tree()
    old = Path(config.root) / "train" / "cat" / "0001.png"
    path = old.with_name(f"0001.{suffix}")
    Image.open(old).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    if path != old:
        old.unlink()
    assert f"cannot read an image; replace or delete:\n  {path}: " in message(config)


def test_first_image_unreadable(make_tree):
    config = make_tree()
    (Path(config.root) / "train" / "cat" / "0000.png").write_text("")
    assert "0000.png: not an image" in message(config)


def test_an_image_without_permission(make_tree, monkeypatch):
    config = make_tree()
    real = Image.open

    def refuse(path, **options):
        if str(path).endswith("dog/0001.png"):
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Image, "open", refuse)
    assert "dog/0001.png: permission denied" in message(config)


def test_a_folder_without_permission(make_tree, monkeypatch):
    config = make_tree()
    real = os.scandir

    def refuse(path):
        if str(path).endswith("train"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "train: permission denied; make it readable" in message(config)


def test_sizes_differ_names_both(make_tree):
    config = make_tree()
    root = Path(config.root) / "train"
    Image.new("RGB", (9, 8)).save(root / "dog" / "0001.png")
    text = message(config)
    assert f"{root / 'cat' / '0000.png'} is 8×8 pixels and {root / 'dog' / '0001.png'}" in text
    assert "is 9×8" in text
    assert "set data.size" in text


def test_a_decompression_bomb_is_refused_by_its_header(make_tree, monkeypatch):
    config = make_tree()
    monkeypatch.setattr(folder, "MAX_PIXELS", 50)
    assert "8×8 pixels are more than" in message(config)


@pytest.fixture
def cached(make_tree, monkeypatch):
    monkeypatch.setattr(folder, "CACHED_FROM", 3)
    return make_tree()


def cache_files(own_cache) -> list[Path]:
    return sorted((own_cache / "images").iterdir())


def test_a_second_start_reads_the_cache(cached, own_cache, monkeypatch):
    first = load(cached)
    assert [p.suffix for p in cache_files(own_cache)] == [".safetensors"]
    monkeypatch.setattr(folder, "decode_all", None)
    second = load(cached)
    assert second.train.images.equal(first.train.images)
    assert second.test.images.equal(first.test.images)


@pytest.mark.parametrize("options", [{"size": 16}, {"channels": 1}, {"train_limit": 4}])
def test_other_options_have_another_cache_file(cached, own_cache, options):
    load(cached)
    load(cached.model_copy(update=options))
    assert len(cache_files(own_cache)) == 2


def test_a_changed_image_is_decoded_again(cached):
    load(cached)
    path = Path(cached.root) / "train" / "cat" / "0000.png"
    Image.new("RGB", (8, 8)).save(path)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    assert not load(cached).train.images[0].any()


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "other"])
def test_a_damaged_cache_is_rebuilt(cached, own_cache, damage):
    first = load(cached)
    [file] = cache_files(own_cache)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(
        {"torn": content[:-40], "flipped": content, "empty": b"", "other": b"x" * 99}[damage]
    )
    assert load(cached).train.images.equal(first.train.images)
    assert file.read_bytes()[-5] != content[-5]


def test_an_unwritable_cache_is_one_warning(cached, own_cache, caplog):
    own_cache.write_text("a file where the folder should be")
    assert len(load(cached).train) == 6
    [record] = caplog.records
    assert "cannot cache the decoded images" in record.getMessage()
    assert "VSHIFT_CACHE" in record.getMessage()


def test_a_failed_write_leaves_nothing(cached, own_cache, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    load(cached)
    assert "No space left" in caplog.text
    assert cache_files(own_cache) == []


def test_a_small_set_is_not_cached(make_tree, own_cache):
    load(make_tree())
    assert not own_cache.exists()


def png_of(width: int, height: int) -> bytes:
    """The start of a PNG file that says it has so many pixels: 50 bytes for any number."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 10)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize("side", [9_000, 10_000, 40_000, 2**31 - 1])
@pytest.mark.parametrize("first", [True, False])
def test_gigapixel_images_are_an_error_that_names_the_file(make_tree, side, first):
    """Whatever Pillow itself does at that size: nothing, a warning, an exception."""
    config = make_tree(size=(32, 32))
    path = Path(config.root) / "train" / "cat" / ("0000.png" if first else "0001.png")
    path.write_bytes(png_of(side, side))
    with pytest.raises(DataError) as caught:
        load(config.model_copy(update={"size": 32}))
    assert str(path) in str(caught.value)
    if side < 2**31 - 1:
        assert "pixels" in str(caught.value)
    with pytest.raises(DataError, match=re.escape(str(path))):
        load(config)


def test_images_that_no_memory_could_hold(monkeypatch, make_tree):
    monkeypatch.setattr(folder, "MAX_BYTES", 10_000)
    with pytest.raises(DataError, match=r"12 images of 32×32 pixels would take .*set data\.size"):
        load(make_tree(size=(32, 32)))


CACHE = """
import sys
from pathlib import Path
import numpy as np
from vshift.data.folder import read_cached, write_cached
path = Path(sys.argv[1])
images = np.arange(3 * 64 * 64 * 400, dtype=np.uint8).reshape(400, 64, 64, 3)
for _ in range(10):
    found = read_cached(path)
    assert found is None or np.array_equal(found, images)
    write_cached(path, images)
    assert np.array_equal(read_cached(path), images)
print("good")
"""


def test_parallel_first_cache_builds(tmp_path: Path) -> None:
    file = tmp_path / "new" / "images" / "key.safetensors"
    assert together(CACHE, 3, str(file)) == ["good\n"] * 3
    assert [path.name for path in file.parent.iterdir()] == ["key.safetensors"]


def test_what_killed_processes_left_of_the_cache_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "key.safetensors"
    (tmp_path / "key123.tmp").write_text("")
    os.utime(tmp_path / "key123.tmp", (1, 1))
    folder.write_cached(file, np.zeros((1, 8, 8, 3), np.uint8))
    assert not (tmp_path / "key123.tmp").exists()


def test_an_image_starts_no_program(make_tree, ghostscript):
    """Whatever the suffix says, Pillow goes by the first bytes."""
    config = make_tree()
    evil = Path(config.root) / "train" / "cat" / "z.png"
    evil.write_bytes(EPS)
    with Image.open(evil) as image, contextlib.suppress(OSError):
        image.load()
    assert ghostscript.exists(), "Pillow itself starts it"
    ghostscript.unlink()
    for size in (None, 8):
        text = message(config.model_copy(update={"size": size}))
        assert f"{evil}: not an image in BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP" in text
    assert not ghostscript.exists()


def test_every_suffix_keeps_its_promise_and_a_wrong_one_is_read(make_tree):
    config = make_tree()
    place = Path(config.root) / "train" / "cat"
    for suffix, form in IMAGE_FORMATS.items():
        assert re.search(rf"\b{suffix}\b", ImageFolder.__doc__ or "")  # and so in docs/config.md
        Image.new("RGB", (8, 8)).save(place / f"z.{suffix}", form)
    Image.new("RGB", (8, 8)).save(place / "jpeg.png", "JPEG")
    assert len(load(config).train) == 6 + len(IMAGE_FORMATS) + 1


@pytest.mark.timeout(20)
def test_a_pipe_among_the_images_is_refused(make_tree):
    config = make_tree()
    pipe = Path(config.root) / "test" / "dog" / "0.png"
    os.mkfifo(pipe)
    assert f"{pipe}: not a regular file" in message(config)
    (Path(config.root) / "train" / "cat" / "..again").symlink_to("..")  # no folder to walk into
    pipe.unlink()
    assert len(load(config).train) == 6
