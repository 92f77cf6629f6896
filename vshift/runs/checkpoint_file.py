"""Checkpoint files: the newest and those before it, each with a checksum inside.

A checkpoint is what `torch.save` writes, a zip archive, with its SHA-256 as the archive's comment:
one file, which `torch.load(…, weights_only=True)` reads as any other.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vshift.errors import Damaged, RunError
from vshift.runs import files
from vshift.text import escape_control

CHECKPOINT = "checkpoint.pt"
# From the newest to the oldest that a run may keep.
NAMES = (
    CHECKPOINT,
    "checkpoint-previous.pt",
    *(f"checkpoint-previous-{n}.pt" for n in range(2, 9)),
)
VERSION = 2  # version 1 held whole epochs and had no checksum
_MARK = b"vshift sha256 "
_SEAL = len(_MARK) + 64
_END = b"PK\x05\x06"  # begins a zip archive's last 22 bytes if it has no comment


def save(folder: Path, state: Mapping[str, Any], keep: int = 2) -> None:
    """Replace the newest checkpoint, which becomes the previous one; `keep` remain in all.

    At every moment a kill leaves `checkpoint.pt` whole, the old or the new one.
    """
    import torch

    # In memory first: torch reports a full disk as a RuntimeError about its zip writer.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with files.replacement(folder / CHECKPOINT, sealed(bytearray(buffer.getbuffer()))):
        if (folder / CHECKPOINT).is_file():
            _rotate(folder, keep)
    for name in NAMES[keep:]:
        with files.explained(folder / name, "remove"):
            (folder / name).unlink(missing_ok=True)


def sealed(data: bytearray) -> bytearray:
    """Append the SHA-256 of a zip archive's bytes as the archive's comment, in place."""
    if data[-22:-18] != _END or data[-2:] != b"\0\0":
        raise AssertionError("torch.save no longer ends in a zip directory without a comment")
    data[-2:] = _SEAL.to_bytes(2, "little")
    data += _MARK + hashlib.sha256(data).hexdigest().encode()
    return data


def _rotate(folder: Path, keep: int) -> None:
    """Rename each checkpoint to the next older name; the newest keeps its own name as well."""
    for newer, older in reversed(list(itertools.pairwise(NAMES[1:keep]))):
        with suppress(FileNotFoundError):
            os.replace(folder / newer, folder / older)
    if keep > 1:
        newest, previous = folder / CHECKPOINT, folder / NAMES[1]
        spare = files.temporary(previous)
        spare.unlink(missing_ok=True)
        try:
            os.link(newest, spare)
        except OSError:  # a file system without hard links: for a moment there is no newest one
            os.replace(newest, previous)
        else:
            os.replace(spare, previous)
            spare.unlink(missing_ok=True)  # replacing a file by its own second name does nothing


def load(path: Path) -> dict[str, Any]:
    """Read the state in a checkpoint onto the CPU; nothing in the file is executed.

    Raises RunError where it is missing or damaged.
    """
    import torch

    data = files.read_bytes(path, begins=b"PK")
    if data is None:
        raise RunError(f"{path} is missing; train the run again with `--fresh`")
    seal = data[-_SEAL:]
    is_sealed = seal.startswith(_MARK)
    if is_sealed and seal[len(_MARK) :] != hashlib.sha256(data[:-_SEAL]).hexdigest().encode():
        raise damaged(path, "its checksum is wrong")
    # An archive that unpacks to more than its own size is a bomb: torch does not compress.
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError) as error:
        raise damaged(path, str(error)) from error
    if unpacked > len(data):
        raise damaged(path, f"its {len(data):,} bytes unpack to {unpacked:,}")
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # The name that torch refused, out of its page of advice.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        name = refused[1] if refused else str(error).strip().split("\n")[0]
        raise damaged(path, f"it holds more than tensors and numbers: {name}") from error
    except Exception as error:  # unpickling fails in every way there is
        raise damaged(path, str(error).strip().split("\n")[0]) from error
    if not isinstance(state, dict):
        raise damaged(path, f"it holds a {type(state).__name__}, not a checkpoint")
    if not is_sealed and state.get("version", 1) != 1:
        raise damaged(path, "its checksum is missing")
    return state


def damaged(path: Path, reason: str) -> Damaged:
    """The error for a checkpoint that cannot be used."""
    return Damaged(
        f"the checkpoint {path} is damaged or not one of vshift's "
        f"({escape_control(reason[:200])}); "
        "`--fresh` trains the run again from its beginning"
    )


def promote(folder: Path, path: Path) -> None:
    """Make an older checkpoint the newest; those that were newer are damaged and are removed."""
    with files.explained(path, "rename"):
        os.replace(path, folder / CHECKPOINT)
        for name in NAMES[1 : NAMES.index(path.name)]:
            (folder / name).unlink(missing_ok=True)
    files.sync_folder(folder)


def existing(folder: Path) -> list[Path]:
    """The checkpoints in a run folder, the newest first."""
    return [folder / name for name in NAMES if (folder / name).is_file()]
