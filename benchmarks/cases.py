"""The cases to race: a network, a batch size and a kind of noise, as a config."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from vshift.config.identity import is_file_reference
from vshift.config.networks import Family, OwnNetwork
from vshift.config.own import absolute, with_sources
from vshift.config.problems import explain
from vshift.config.schema import Config, Hardware
from vshift.config.yaml12 import SourceLocation, from_python
from vshift.errors import ConfigError
from vshift.text import suggest

# Family → the keys that the numbers in a name stand for, as in wrn-28-10.
_FAMILIES: dict[str, tuple[str, ...]] = {
    get_args(family.model_fields["name"].annotation)[0]: family.size_keys
    for family in get_args(Family)
    if family.linear == "conv"
}
PAPER = ("preresnet-164", "wrn-28-10", "resnext-29", "densenet-100")
COMMON = ("preresnet-20", "preresnet-110", *PAPER, "resnet-18", "resnet-20", "vgg-16")
# Noise variance 1 each, so that only the kind differs.
NOISES: dict[str, dict[str, Any] | None] = {
    "none": None,
    **{
        kind: {"kind": kind, "rate": 0.5, "position": "before_last_bn"}
        for kind in ("dropout", "gaussian", "uniform")
    },
}
STEPS: tuple[str, ...] = get_args(Hardware.model_fields["step"].annotation)
# A step in the precision that `auto` chooses, or in one of its own: `float32-eager`.
PRECISIONS = ("bf16", "float32")
KINDS = (*STEPS, *(f"{precision}-{step}" for step in STEPS for precision in PRECISIONS))


@dataclass(frozen=True)
class Case:
    """The work that all contenders of one race do."""

    network: str
    batch: int
    noise: str

    def __str__(self) -> str:
        noise = "no noise" if self.noise == "none" else self.noise
        return f"{self.network}, batch {self.batch}, {noise}"


def words(text: str) -> list[str]:
    """`none, dropout` → its words, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",")))


def numbers(option: str, text: str) -> list[int]:
    """`128,512` → its whole numbers.

    Raises:
        ConfigError: one of them is none.
    """
    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise ConfigError(
            f"{option} {text}: comma-separated whole numbers, such as 128,512"
        ) from None


def make_cases(
    networks: Sequence[str], batches: Sequence[int], noises: Sequence[str]
) -> list[Case]:
    """Every combination, network by network; `paper` stands for the paper's four.

    Raises:
        ConfigError: one line for each network and noise that does not exist.
    """
    names = [n for name in networks for n in (PAPER if name == "paper" else (name,))]
    problems = unknown("--noise", noises, list(NOISES))
    problems += [f"--batch {n}: a batch holds at least 4 images" for n in batches if n < 4]
    for name in names:
        try:
            make_config(Case(name, 2, "none"))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return [Case(*case) for case in product(dict.fromkeys(names), batches, noises)]


def unknown(option: str, words: Iterable[str], allowed: Sequence[str]) -> list[str]:
    """One line per word of an option that is not allowed."""
    return [
        f"{option} {word}: not known; {suggest(word, allowed)}allowed: {', '.join(allowed)}"
        for word in words
        if word not in allowed
    ]


def check_known(option: str, words: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse an option's words that are not allowed.

    Raises:
        ConfigError: one line per unknown word.
    """
    if problems := unknown(option, words, list(allowed)):
        raise ConfigError(*problems)


def make_config(
    case: Case, *, log: bool = True, kind: str = "auto", hardware: dict[str, Any] | None = None
) -> Config:
    """The config of a case, as `vshift train` would take it; its data section is never loaded.

    Args:
        log: whether every BN layer's variance is logged.
        kind: of KINDS.
        hardware: more of that section.

    Raises:
        ConfigError: there is no such network.
    """
    network = _network(case.network)
    precision, _, step = kind.rpartition("-")
    tree = {
        "name": "bench",
        "data": {"name": "shapes", "batch_size": case.batch},
        "network": {**network, "noise": NOISES[case.noise]},
        # Small, so that random labels do not let the loss grow.
        "optimizer": {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
        "epochs": 1,
        "measure": {"every": int(log)},
        "hardware": {"precision": precision or "auto", **(hardware or {}), "step": step},
    }
    location = SourceLocation(f"--networks {case.network}")
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(*explain(error, from_python(tree, location))) from None
    return with_sources(config, lambda key: f"{location}: {key}")


def _network(name: str) -> dict[str, Any]:
    """The section that a name stands for: a family with its numbers, or a reference.

    Raises:
        ConfigError: it stands for none.
    """
    if ":" in name:
        return {"name": absolute(name, Path.cwd()) if is_file_reference(name) else name}
    family, *sizes = name.split("-")
    keys = _FAMILIES.get(family, ())
    if not keys or len(sizes) > len(keys) or not all(size.isdecimal() for size in sizes):
        allowed = ("paper", *COMMON)
        raise ConfigError(
            f"--networks {name}: not known; {suggest(name, allowed)}a family and "
            f"its numbers, such as {', '.join(COMMON)}; or paper for {', '.join(PAPER)}; or "
            f"{', '.join(OwnNetwork.forms)}"
        )
    return {"name": family, **dict(zip(keys, map(int, sizes), strict=False))}
