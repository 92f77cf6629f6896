"""Configs as a report shows them: a short label, a colour, and where their noise sits in words.

Everything comes from the values of the config, so that invalid files are described too.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import combinations
from typing import Any, TypeVar, get_args

from vshift.compare import Comparison
from vshift.compare.fields import active_noise, changed_of, value_at
from vshift.compare.groups import Group, differing, differing_keys, short_heads
from vshift.compare.statistics import Difference
from vshift.config.identity import Scope, scope_of
from vshift.config.networks import FullyConnected
from vshift.config.noise import places_of, read_noise
from vshift.runs.files import Row
from vshift.runs.read import number
from vshift.text import (
    NONE,
    escape_control,
    format_number,
    format_value,
    join_words,
    natural,
    pluralize,
    short_labels,
)

K = TypeVar("K")
V = TypeVar("V")

# Okabe and Ito (2008): hues that people with any kind of colour blindness tell apart; without
# black, which cannot be seen on a dark page, and yellow, which cannot on a white one.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8a8a8a"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")


@dataclass(frozen=True)
class StudyGroup(Group):
    """The runs of one config as a page shows them; the label is without what all begin with.

    Attributes:
        row: its row of `vshift compare`.
        difference: to the baseline; None where there is none.
    """

    row: Row = field(default_factory=dict)
    difference: Difference | None = None
    is_baseline: bool = False
    colour: str = GREY
    shape: str = SHAPES[0]


def make_groups(comparison: Comparison) -> list[StudyGroup]:
    """A group for each row of the comparison, in its order."""
    labels = short_labels([group.label for group in comparison.groups])
    groups = [
        StudyGroup(
            **{each.name: getattr(group, each.name) for each in fields(Group)} | {"label": label},
            row=row,
            difference=difference,
            is_baseline=group.label == comparison.baseline,
        )
        for group, label, row, difference in zip(
            comparison.groups, labels, comparison.rows, comparison.differences, strict=True
        )
    ]
    if any(group.has_noise for group in groups):
        return _coloured_by_noise(groups)
    # Every config but the baseline has a hue and a shape of its own, as far as pairs go.
    place = 0
    for index, group in enumerate(groups):
        if group.runs and not group.is_baseline:
            shape = SHAPES[(place + place // len(PALETTE)) % len(SHAPES)]
            groups[index] = replace(group, colour=PALETTE[place % len(PALETTE)], shape=shape)
            place += 1
    return groups


def grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """key → its values, both in the order in which they come."""
    result: dict[K, list[V]] = {}
    for key, value in pairs:
        result.setdefault(key, []).append(value)
    return result


def _coloured_by_noise(groups: Sequence[StudyGroup]) -> list[StudyGroup]:
    """A hue is a layout, and a shade a strength; what has no noise is grey.

    Only configs with a run that counts are drawn.
    """
    used = [group for group in groups if group.runs]
    layouts = sorted({group.noise.layout for group in used if group.has_noise}, key=natural)
    result = []
    for group in groups:
        layout, colour, shape = group.noise.layout, GREY, SHAPES[0]
        hue = GREY
        if layout in layouts:
            place = layouts.index(layout)
            hue, shape = PALETTE[place % len(PALETTE)], SHAPES[1 + place % (len(SHAPES) - 1)]
        if group.runs:
            family = [g for g in used if g.noise.layout == layout]
            family.sort(key=lambda g: (g.noise.variance or 0.0, natural(g.label)))
            colour = _shade(hue, family.index(group), len(family))
        result.append(replace(group, colour=colour, shape=shape))
    return result


def _shade(colour: str, index: int, count: int) -> str:
    """The index-th of `count` shades from light to dark, all visible on white and on black."""
    if count < 2:
        return colour
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, _, saturation = colorsys.rgb_to_hls(red, green, blue)
    parts = colorsys.hls_to_rgb(hue, 0.72 - 0.37 * index / (count - 1), saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


# ---- the noise of a config

_PLACES = {
    "before_last_bn": "right before each block’s last batch norm",
    "before_last_conv": "right before each block’s last {}",
    "before_bn": "right before every batch norm of each block",
    "after_bn": "after every batch norm of each block and its activation",
    "before_pool": "once, before the global pooling, after all batch norms",
    "before_classifier": "once, before the classifier, after all batch norms",
}
_PAPERS = {
    "before_last_bn": "; Dropout-(a) of Li et al. 2019",
    "before_last_conv": "; Dropout-(b) of Li et al. 2019",
}
_FULLY_CONNECTED = {
    name
    for family in FullyConnected.__subclasses__()
    for name in get_args(family.model_fields["name"].annotation)
}
_UNITS = {"channel": "on whole channels", "sample": "on whole images"}


@dataclass(frozen=True)
class Phrase:
    """`dropout at rate` `0.3` `before every batch norm`: what all strengths of a layout share."""

    before: str
    strength: str = ""
    after: str = ""

    def __str__(self) -> str:
        return self.with_strengths([self.strength])

    def with_strengths(self, strengths: Sequence[str]) -> str:
        return " ".join(filter(None, [self.before, join_words(strengths), self.after]))


def noise_in_words(group: Group) -> Phrase:
    """`dropout at rate 0.3 right before each block’s last batch norm`."""
    phrases = []
    for entry in active_noise(group.config):
        network = group.config["network"]
        is_conv = network.get("name") not in _FULLY_CONNECTED
        noise, block = read_noise(entry), network.get("block")
        papers = _PAPERS if entry.get("kind") == "dropout" and is_conv else {}
        places = []
        for one in places_of(entry):
            where, _, pattern = one.partition(" ")
            if one in _PLACES:
                place = _PLACES[one].format("convolution" if is_conv else "linear layer")
                places.append(f"{place} ({one}{papers.get(one, '')})")
            elif pattern:
                places.append(f"right {where} each module {escape_control(pattern)}")
            else:
                places.append(f"at {escape_control(one)}")
        after = join_words(places) or "somewhere"
        if not places and block:
            after = f"where the block order says noise: {escape_control(str(block))}"
        if entry.get("unit") in ("channel", "sample"):
            after = f"{_UNITS[entry['unit']]}, {after}"
        after = ", ".join([after, *noise.extent])
        strength = "" if noise.strength is None else f"{noise.strength:g}"
        phrases.append(Phrase(escape_control(noise.phrase), strength, after))
    if len(phrases) == 1:
        return phrases[0]
    return Phrase(join_words([str(phrase) for phrase in phrases]) or group.noise.layout)


def norm_in_words(norm: Any) -> str:
    """`batch norm in groups of 16 images, …`, with what is not the default."""
    if not isinstance(norm, dict) or not isinstance(norm.get("kind"), str):
        return ""
    if norm["kind"] == "none":
        return "no normalisation"
    groups, ghost, momentum = (number(norm.get(key)) for key in ("groups", "ghost", "momentum"))
    if norm["kind"] == "group":
        parts = [f"group norm of {groups:g} groups" if groups else "group norm"]
    elif norm["kind"] == "batch":
        parts = [f"batch norm in groups of {ghost:g} images" if ghost else "batch norm"]
        if norm.get("update_running_stats") is False:
            parts.append("running statistics never updated")
        elif norm.get("momentum", 0) is None:
            parts.append("running statistics as the simple average of all batches")
        elif momentum is not None:
            parts.append(f"momentum {momentum:g}")
        if norm.get("eval_statistics") == "batch":
            parts.append("tested with each test batch’s own statistics")
        if (frozen := number(norm.get("freeze_after"))) is not None:
            parts.append(f"frozen after epoch {frozen:g}")
    elif norm["kind"] == "renorm":
        known = {key: number(norm.get(key)) for key in ("momentum", "rmax", "dmax")}
        parts = ["batch renorm"]
        parts += [f"{key} {value:g}" for key, value in known.items() if value is not None]
    elif norm["kind"] in ("layer", "rms"):
        parts = [{"layer": "layer norm", "rms": "RMS norm"}[norm["kind"]]]
    else:
        return escape_control(norm["kind"])
    for symbol, key, default in (("γ", "scale_init", 1.0), ("β", "shift_init", 0.0)):
        value = number(norm.get(key, default))
        if value is not None and value != default:
            parts.append(f"{symbol} starts at {format_number(value, 4).rstrip('0').rstrip('.')}")
    return ", ".join(parts)


def shown(value: Any) -> str:
    """A config value; – where a config has none."""
    return NONE if value is None else format_value(value)


# ---- all configs in words

# What `norm_in_words` says of the section `norm`; its other keys are shown as they are.
_NORM_KEYS = {
    f"norm.{key}"
    for key in ("kind", "momentum", "ghost", "update_running_stats", "eval_statistics", "groups",
        "freeze_after", "rmax", "dmax", "scale_init", "shift_init")
}  # fmt: skip
_DEFAULT_NORMS = {"", "batch norm, momentum 0.1"}


@dataclass(frozen=True)
class Layout:
    """Configs in words that differ in nothing but the strength of their noise.

    Attributes:
        text: of all together; alone: of each group.
    """

    groups: list[StudyGroup]
    text: str
    alone: list[str]


def layouts(groups: Sequence[StudyGroup]) -> list[Layout]:
    """All configs in words, the baseline first; those that differ in the strength only together."""
    known = [group for group in groups if group.config]
    keys = differing_keys(known)
    heads = dict(zip(keys, short_heads(list(keys)), strict=True))
    silent = {key for key, values in keys.items() if _is_untold(key, values, known)}
    norms = {group.label: norm_in_words(group.config.get("norm")) for group in known}
    says_norm = len(set(norms.values())) > 1 or not set(norms.values()) <= _DEFAULT_NORMS
    is_noisy = any(group.has_noise for group in known)
    members: dict[tuple[str, ...], list[StudyGroup]] = {}
    for place, group in sorted(enumerate(known), key=lambda item: not item[1].is_baseline):
        phrase = noise_in_words(group)
        rest = [norms[group.label]] if says_norm else []
        for key, of_all in keys.items():
            value, is_block = of_all[place], key == "network.block"
            # The words of noise and norm tell the others.
            is_said = key.startswith("network.noise") or key in _NORM_KEYS or key in silent
            if is_said or scope_of(key) < Scope.TRAINING:
                continue
            if is_block and "block order" not in phrase.after:
                default = "the network’s own block order"
                rest.append(f"block order {shown(value)}" if value else default)
            elif not is_block and value is not None:
                rest.append(f"{heads[key]} {shown(value)}")
        if not is_noisy and any(rest):
            phrase = Phrase("")  # said once, of all of them
        members.setdefault((phrase.before, phrase.after, *rest), []).append(group)
    result = []
    for (before, after, *rest), some in members.items():
        some.sort(key=lambda group: (not group.is_baseline, group.noise.variance or 0.0))
        strengths = [noise_in_words(group).strength for group in some]
        phrase = Phrase(before, "", after)
        starts = [phrase.with_strengths(list(dict.fromkeys(strengths)))]  # of all, then of each
        starts += [phrase.with_strengths([one]) for one in strengths]
        text, *alone = ("; ".join(filter(None, [start, *rest])) for start in starts)
        result.append(Layout(some, text, alone))
    return result


def _is_untold(key: str, values: Sequence[Any], groups: Sequence[StudyGroup]) -> bool:
    """Whether a key in which configs differ tells a reader nothing: the hash of a file, unless
    two configs differ in nothing else; a default of the parts that have the key."""
    if key.endswith(".source"):
        return all(
            list(differing(one.config, other.config)) != [key]
            for one, other in combinations(groups, 2)
        )
    having = [i for i, value in enumerate(values) if value is not None]
    is_one = len({repr(values[i]) for i in having}) == 1
    return is_one and value_at(changed_of(groups[having[0]].config), key) is None


def in_words(groups: Sequence[StudyGroup]) -> dict[str, str]:
    """Label → its own layout in words."""
    return {
        group.label: text
        for layout in layouts(groups)
        for group, text in zip(layout.groups, layout.alone, strict=True)
    }


def terms(groups: Sequence[StudyGroup], measured: bool) -> list[str]:
    """The terms that the answers use, explained, as far as they are needed."""
    noisy = any(group.has_noise for group in groups)
    explained = []
    if measured or noisy:
        explained.append(
            "Shift ratio: for a batch norm (BN) layer, the running variance that it keeps from "
            "training and the eval variance of its input in testing, the larger over the smaller; "
            "1 is no shift."
        )
    if noisy:
        explained.append(
            "s²: the variance of the factor by which the noise multiplies, rate/(1 − rate) for "
            "dropout, whose rate is the share of values that is dropped. It and the position of "
            "the noise decide the shift."
        )
    return explained


def shared(groups: Sequence[StudyGroup]) -> str:
    """The settings that all configs share: `preresnet of depth 8, 6 epochs, 3 seeds each`."""

    def common(values: Iterable[Any]) -> Any:
        """The value that all have; None where they differ."""
        first, *others = [*values] or [None]
        return first if all(value == first for value in others) else None

    configs = [group.config for group in groups if group.config]
    networks = [c["network"] if isinstance(c.get("network"), dict) else {} for c in configs]
    name = common(network.get("name") for network in networks)
    depth = common(network.get("depth") for network in networks)
    epochs = common(config.get("epochs") for config in configs)
    seeds = common(len(group.runs) for group in groups if group.runs)
    parts = []
    if name is not None:
        depth_text = f" of depth {depth}" if isinstance(depth, int) else ""
        parts.append(f"{escape_control(str(name))}{depth_text}")
    if isinstance(epochs, int):
        parts.append(pluralize(epochs, "epoch"))
    if seeds is not None:
        parts.append(f"{pluralize(seeds, 'seed')} each")
    if not any(group.has_noise for group in groups):
        parts.append("no noise in any config")
    return ", ".join(parts)
