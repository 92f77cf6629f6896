"""Checkpoints on disk: the newest and those before it, each with a checksum inside.

A checkpoint is what `torch.save` writes, a zip archive, and its SHA-256 is the archive's comment:
one file, whole or not there, which `torch.load(…, weights_only=True)` reads as any other.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vshift.errors import Damaged, RunError
from vshift.runs import files
from vshift.text import escape_control

CHECKPOINT = "checkpoint.pt"
MOST_KEPT = 9
# From the newest to the oldest that a run may keep.
NAMES = (
    CHECKPOINT,
    "checkpoint-previous.pt",
    *(f"checkpoint-previous-{n}.pt" for n in range(2, MOST_KEPT)),
)
VERSION = 2  # version 1 held whole epochs and had no checksum
_MARK = b"vshift sha256 "
_SEAL = len(_MARK) + 64
_END = b"PK\x05\x06"  # begins a zip archive's last 22 bytes if it has no comment

State = dict[str, Any]


def sealed(data: bytearray) -> bytearray:
    """A zip archive's bytes with their SHA-256 appended as the archive's comment, in place."""
    if data[-22:-18] != _END or data[-2:] != b"\0\0":
        raise AssertionError("torch.save no longer ends in a zip directory without a comment")
    data[-2:] = _SEAL.to_bytes(2, "little")
    data += _MARK + hashlib.sha256(data).hexdigest().encode()
    return data


def save(folder: Path, state: Mapping[str, Any], keep: int = 2) -> None:
    """Replace the newest checkpoint, which becomes the previous one; `keep` stay in all.

    At every moment a kill leaves `checkpoint.pt` whole, the old or the new one.
    """
    import torch

    # In memory first: torch reports a full disk as a RuntimeError about its zip writer.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = sealed(bytearray(buffer.getbuffer()))
    newest = folder / CHECKPOINT
    with files.replacement(newest, data):
        if newest.is_file():
            _shift(folder, keep)
    for name in NAMES[keep:]:
        with files.explained(folder / name, "remove"):
            (folder / name).unlink(missing_ok=True)


def _shift(folder: Path, keep: int) -> None:
    """Each kept checkpoint takes the next older one's place; the newest stays under both names."""
    for newer, older in reversed(list(itertools.pairwise(NAMES[:keep]))):
        source, target = folder / newer, folder / older
        if newer != CHECKPOINT:
            with suppress(FileNotFoundError):
                os.replace(source, target)
            continue
        spare = files.temporary(target)
        spare.unlink(missing_ok=True)
        try:
            os.link(source, spare)
        except OSError:  # a file system without hard links: for a moment there is no newest one
            os.replace(source, target)
            return
        os.replace(spare, target)
        spare.unlink(missing_ok=True)  # replacing a file by its own second name does nothing


def load(path: Path) -> State:
    """The state in a checkpoint, on the CPU.

    Nothing that stands in the file is run. Raises RunError where it is missing or damaged.
    """
    import torch

    data = files.read_bytes(path, begins=b"PK")
    if data is None:
        raise RunError(f"{path} is missing; train the run again with `--fresh`")
    sealed = _check(path, data)
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise damaged(path, f"it holds more than tensors and numbers: {_unsafe(error)}") from error
    except Exception as error:  # unpickling fails in every way there is
        raise damaged(path, str(error).strip().split("\n")[0]) from error
    if not isinstance(state, dict):
        raise damaged(path, f"it holds a {type(state).__name__}, not a checkpoint")
    if not sealed and state.get("version", 1) != 1:
        raise damaged(path, "its checksum is missing")
    return state


def _check(path: Path, data: bytes) -> bool:
    """Whether there is a checksum, which must be right, in an archive that unpacks to its size."""
    own = data[-_SEAL:]
    sealed = own.startswith(_MARK)
    if sealed and own[len(_MARK) :] != hashlib.sha256(data[:-_SEAL]).hexdigest().encode():
        raise damaged(path, "its checksum is wrong")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError) as error:
        raise damaged(path, str(error)) from error
    if unpacked > len(data):
        raise damaged(path, f"its {len(data):,} bytes unpack to {unpacked:,}")
    return sealed


def _unsafe(error: Exception) -> str:
    """The name that torch refused, out of its page of advice."""
    text = str(error)
    name = text.partition("GLOBAL ")[2].split()
    return name[0] if name else text.strip().split("\n")[0]


def damaged(path: Path, reason: str) -> Damaged:
    return Damaged(
        f"the checkpoint {path} is damaged or not one of vshift's "
        f"({escape_control(reason[:200])}); "
        "`--fresh` trains the run again from its beginning"
    )


def promote(folder: Path, path: Path) -> None:
    """Make an older checkpoint the newest; those that were newer are damaged and go."""
    with files.explained(path, "rename"):
        os.replace(path, folder / CHECKPOINT)
        for name in NAMES[1 : NAMES.index(path.name)]:
            (folder / name).unlink(missing_ok=True)
    files.sync_folder(folder)


def kept(folder: Path) -> list[Path]:
    """The checkpoints that are there, the newest first."""
    return [folder / name for name in NAMES if (folder / name).is_file()]
