"""The paper's own numbers and configs, from `published.yaml`; what is the paper's, by values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from vshift.compare.fields import Row
from vshift.config import block
from vshift.config.identity import Scope, identity, value_differences
from vshift.config.reader import read
from vshift.config.schema import Config
from vshift.config.tree import plain


@dataclass(frozen=True)
class View:
    """A table of the paper.

    Attributes:
        name: as in `--view`; source: the paper and the table; about: what it shows.
        kind: of noise; levels: its drop rates, or β for uniform noise.
        adjusted: whether its values are pairs at the one level: as trained, and re-estimated.
        values: position → data set → network → a value for each level, or the pair.
    """

    name: str
    source: str
    about: str
    kind: str
    levels: tuple[float, ...]
    adjusted: bool
    values: dict[str, dict[str, dict[str, list[float]]]]

    @property
    def positions(self) -> tuple[str, ...]:
        return tuple(self.values)

    def published(self, position: str, data: str | None, network: str | None) -> Sequence[float]:
        """The paper's values, () where it has none."""
        return self.values[position].get(data or "", {}).get(network or "", ())


@cache
def _contents() -> Row:
    text = resources.files("vshift.compare").joinpath("published.yaml").read_text("utf-8")
    contents: Row = plain(read(text, "published.yaml"))
    return contents


def cite() -> str:
    """The paper in a table's cell."""
    return str(_contents()["cite"])


def views() -> dict[str, View]:
    """Every view by name."""
    contents = _contents()
    return {
        name: View(
            name,
            f"{contents['paper']}, {view['from']}",
            view["about"],
            view["kind"],
            tuple(view["levels"]),
            view.get("adjusted", False),
            view["positions"],
        )
        for name, view in contents["views"].items()
    }


@cache
def _recipe(network: str) -> Config:
    """The paper's config of a network, on CIFAR-10, without noise."""
    recipe = _contents()["networks"][network]
    data = {"name": "cifar10", **recipe["data"]}
    return Config.model_validate({"name": network, **recipe, "data": data})


def network_of(config: Config) -> str | None:
    """Which of the paper's networks a config trains, None if none: by its layers, not its name."""
    own = layers_of(config.network)
    return next(
        (name for name in _contents()["networks"] if layers_of(_recipe(name).network) == own), None
    )


def data_of(config: Config) -> str | None:
    """`cifar10` or `cifar100` if a config uses all of its images; nothing else is the paper's."""
    data = config.data
    whole = data.train_limit is None and data.test_limit is None
    return data.name if data.name in ("cifar10", "cifar100") and whole else None


def other_recipe(config: Config, network: str) -> dict[str, tuple[Any, Any]]:
    """dotted key → (value here, value there) where a config trains differently than the paper.

    Which data set, the noise, and the arithmetic's precision do not count.
    """
    pair = [_training(config), _training(_recipe(network))]
    return value_differences(*pair)


def _training(config: Config) -> Row:
    values = identity(config.model_dump(exclude={"network", "hardware"}), Scope.TRAINING)
    for key in ("name", "root"):
        values["data"].pop(key, None)
    return values


def layers_of(network: Any) -> Row:
    """A network section without its noise, in one form for the several ways to write it."""
    values: Row = network.model_dump(exclude={"noise", "block", "bottleneck"})
    values["order"] = _without_noise(network.order)
    values["is_bottleneck"] = getattr(network, "is_bottleneck", None)
    return values


def _without_noise(order: Sequence[str]) -> list[str]:
    return [word for word in order if not block.is_noise(word)]


@dataclass(frozen=True)
class Noise:
    """The one noise of a network: None for kind and position where there is none."""

    kind: str | None
    position: str | None
    level: float


def noise_of(network: Any) -> Noise | None:
    """A network's noise as a view needs it: where it sits, and the drop rate or β.

    None if it is no noise of a view: several entries, another place, or not drawn elementwise. The
    place is taken from the block order, so `block: … noise bn …` is `before_last_bn` too.
    """
    noises = [noise for noise in network.noises if noise.variance]
    if not noises:
        return Noise(None, None, 0.0)
    if len(network.noises) > 1 or getattr(noises[0], "unit", "") != "element":
        return None
    noise = noises[0]
    position = _position(network)
    if position is None or noise.kind not in ("dropout", "uniform"):
        return None
    # β of the same noise variance β²/3, where the config gives a rate
    level = noise.rate if noise.kind == "dropout" else (3 * noise.variance) ** 0.5
    return Noise(noise.kind, position, round(float(level), 6))


def _position(network: Any) -> str | None:
    bare = block.parse(" ".join(_without_noise(network.order)))
    if network.order == bare:
        return "before_classifier" if network.head_noises == (0,) else None
    if network.head_noises:
        return None
    for position in ("before_last_bn", "before_last_conv"):
        try:
            if block.place(bare, [[position]]) == network.order:
                return position
        except ValueError:  # an order without BN has no place before its last one
            continue
    return None
