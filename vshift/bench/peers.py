"""The other loops: `benchmarks/peers.py` of vshift's repository, which is not in the wheel."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import vshift
from vshift.bench.cases import Case, make_config
from vshift.bench.race import Epoch
from vshift.data import ImageSet
from vshift.errors import ConfigError
from vshift.text import did_you_mean
from vshift.train.loop import build_for

NAMES = ("plain", "bf16", "airbench")


def check_peers(names: Sequence[str]) -> None:
    """Refuse peers that do not exist."""
    for name in names:
        if name not in NAMES:
            hint = did_you_mean(name, NAMES)
            raise ConfigError(
                f"--peer {name}: not known; {hint + ' ' if hint else ''}allowed: {', '.join(NAMES)}"
            )


def load_peers(roots: Sequence[Path] | None = None) -> ModuleType:
    """The module `benchmarks.peers`.

    Args:
        roots: where the repository may be; default: around this package, and the current folder.

    Raises:
        ConfigError: it is not there.
    """
    for root in roots or (Path(vshift.__file__).parents[1], Path.cwd()):
        if (root / "benchmarks" / "peers.py").is_file():
            # On the path, and not loaded from its file alone: a DataLoader's workers import it.
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))
            return importlib.import_module("benchmarks.peers")
    raise ConfigError(
        "--peers: benchmarks/peers.py is not here; it comes with vshift's repository and not with "
        "the installed package: run `make bench` in a clone, or leave the option out"
    )


@dataclass(frozen=True)
class Peer:
    """One of the loops with its network and images, ready to train."""

    epoch: Epoch


def make_peer(name: str, case: Case, images: ImageSet) -> Peer:
    """A loop on vshift's network and initial weights, its layers swapped for PyTorch's own."""
    peers: Any = load_peers()
    as_plain = importlib.import_module("benchmarks.plain_network").as_plain
    work = peers.Work(
        model=as_plain(build_for(make_config(case), images, 0)),
        images=images.train.images.cpu(),
        labels=images.train.labels.cpu(),
        mean=tuple(images.mean.tolist()),
        std=tuple(images.std.tolist()),
        batch=case.batch,
        device=images.train.images.device,
    )
    return Peer(peers.PEERS[name](work))
