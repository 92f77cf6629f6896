"""Configs in words: where the noise sits, how strong it is, and whatever else they differ in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vshift.config.identity import Scope, scope_of
from vshift.config.noise import read_noise
from vshift.report.data import Study
from vshift.report.groups import Group, entries_of
from vshift.report.keys import differing, short_key, shown
from vshift.runs.read import number
from vshift.text import escape_control, format_number, join_words, pluralize

Row = dict[str, Any]

_PLACES = {
    "before_last_bn": "right before each block’s last batch norm",
    "before_last_conv": "right before each block’s last {}",
    "before_bn": "right before every batch norm of each block",
    "after_bn": "after every batch norm of each block, behind its activation",
    "before_classifier": "once, before the classifier, behind all batch norms",
}
_PAPERS = {
    "before_last_bn": "; Dropout-(a) of Li et al. 2019",
    "before_last_conv": "; Dropout-(b) of Li et al. 2019",
}
_UNITS = {"channel": "on whole channels", "sample": "on whole images"}
_FULLY_CONNECTED = ("mlp", "autoencoder")
# What `norm_in_words` says of the section `norm`; its other keys are shown as they are.
_NORM_KEYS = {
    f"norm.{key}"
    for key in ("kind", "momentum", "ghost", "update_running_stats", "eval_statistics", "groups",
        "scale_init", "shift_init")
}  # fmt: skip


@dataclass(frozen=True)
class Phrase:
    """`dropout at rate` `0.3` `before every batch norm`: equal but for the strength, two are one
    layout."""

    before: str
    strength: str = ""
    after: str = ""

    def __str__(self) -> str:
        return self.with_strengths([self.strength])

    def with_strengths(self, strengths: Sequence[str]) -> str:
        return " ".join(filter(None, [self.before, join_words(strengths), self.after]))


@dataclass(frozen=True)
class Layout:
    """What some configs are, in words; they differ in nothing but the strength of their noise.

    Attributes:
        text: of all together; alone: of each group.
    """

    groups: list[Group]
    text: str
    alone: list[str]


def noise_in_words(config: Row) -> Phrase:
    """`dropout at rate 0.3 right before each block’s last batch norm`, from the config alone."""
    entries = entries_of(config)
    if not entries:
        return Phrase("no noise")
    found = [_entry_in_words(entry, config["network"]) for entry in entries]
    return found[0] if len(found) == 1 else Phrase(join_words([str(phrase) for phrase in found]))


def _entry_in_words(entry: Row, network: Row) -> Phrase:
    noise, unit = read_noise(entry), entry.get("unit")
    strength = "" if noise.strength is None else f"{noise.strength:g}"
    parts = [_UNITS[unit]] if unit in ("channel", "sample") else []
    after = ", ".join([*parts, _place(entry, network)])
    return Phrase(escape_control(noise.phrase), strength, after)


def _place(entry: Row, network: Row) -> str:
    position = entry.get("position")
    positions = position if isinstance(position, list) else [position] if position else []
    linear = "layer of weights" if network.get("name") in _FULLY_CONNECTED else "convolution"
    named = _PAPERS if entry.get("kind") == "dropout" and linear == "convolution" else {}
    places = [
        f"{_PLACES[one].format(linear)} ({one}{named.get(one, '')})"
        if isinstance(one, str) and one in _PLACES
        else f"at {escape_control(str(one))}"
        for one in positions
    ]
    if not places and network.get("block"):
        return f"where the block order says noise: {escape_control(str(network['block']))}"
    return join_words(places) or "somewhere"


def norm_in_words(norm: Any) -> str:
    """`batch norm in groups of 16 images, …`, with what is not the default."""
    if not isinstance(norm, dict) or not isinstance(norm.get("kind"), str):
        return ""
    if norm["kind"] == "none":
        return "no normalisation"
    values = {key: number(norm.get(key)) for key in ("groups", "ghost", "momentum")}
    starts = [
        f"{symbol} starts at {format_number(value, 4).rstrip('0').rstrip('.')}"
        for symbol, key, usual in (("γ", "scale_init", 1.0), ("β", "shift_init", 0.0))
        if (value := number(norm.get(key, usual))) is not None and value != usual
    ]
    if norm["kind"] == "group":
        groups = f" of {values['groups']:g} groups" if values["groups"] else ""
        return ", ".join([f"group norm{groups}", *starts])
    if norm["kind"] != "batch":
        return escape_control(norm["kind"])
    parts = [
        f"batch norm in groups of {values['ghost']:g} images" if values["ghost"] else "batch norm"
    ]
    if norm.get("update_running_stats") is False:
        parts.append("running statistics never updated")
    elif norm.get("momentum", 0) is None:
        parts.append("running statistics as the simple average of all batches")
    elif values["momentum"] is not None:
        parts.append(f"momentum {values['momentum']:g}")
    if norm.get("eval_statistics") == "batch":
        parts.append("tested with each test batch’s own statistics")
    return ", ".join([*parts, *starts])


_USUAL_NORMS = ("", "batch norm, momentum 0.1")


def layouts(study: Study) -> list[Layout]:
    """All configs in words, the baseline first; those that differ in the strength only together."""
    known = [group for group in study.groups if group.config]
    keys, configs = differing(known)
    norms = {group.name: norm_in_words(group.config.get("norm")) for group in known}
    says_norm = len(set(norms.values())) > 1 or not set(norms.values()) <= set(_USUAL_NORMS)
    is_noisy = any(entries_of(group.config) for group in known)
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in sorted(known, key=lambda g: not g.is_baseline):
        phrase = noise_in_words(group.config)
        rest = [norms[group.name]] if says_norm else []
        rest += _others(group, configs[group.name], keys, phrase)
        if not is_noisy and any(rest):
            phrase = Phrase("")  # said once, of all of them
        found.setdefault((phrase.before, phrase.after, *rest), []).append(group)
    return [
        _layout(groups, Phrase(before, "", after), [part for part in rest if part])
        for (before, after, *rest), groups in found.items()
    ]


def _layout(groups: list[Group], phrase: Phrase, rest: list[str]) -> Layout:
    groups = sorted(groups, key=lambda group: (not group.is_baseline, group.noise.variance or 0.0))
    strengths = [noise_in_words(group.config).strength for group in groups]
    alone = ["; ".join(filter(None, [phrase.with_strengths([one]), *rest])) for one in strengths]
    together = phrase.with_strengths(list(dict.fromkeys(strengths)))
    return Layout(groups, "; ".join(filter(None, [together, *rest])), alone)


def _others(group: Group, config: Row, keys: list[str], phrase: Phrase) -> list[str]:
    """The values that the words of noise and norm do not tell."""
    parts = []
    for key in keys:
        if key.startswith("network.noise") or key in _NORM_KEYS:
            continue
        if scope_of(key) < Scope.TRAINING:
            continue
        value = config.get(key)
        if key == "network.block":
            if "block order" not in phrase.after:
                own = "the network’s own block order"
                parts.append(f"block order {shown(value)}" if value else own)
            continue
        parts.append(f"{short_key(key, keys)} {shown(value)}")
    return parts


def in_words(study: Study) -> dict[str, str]:
    """Group label → its own layout in words."""
    return {
        group.label: text
        for layout in layouts(study)
        for group, text in zip(layout.groups, layout.alone, strict=True)
    }


_TERMS = (
    "Shift ratio: for a batch norm (BN) layer, the variance that it remembers from training and "
    "the one that it meets in testing, the larger over the smaller; 1 is no shift.",
    "s²: the variance of the noise, rate/(1 − rate) for dropout, σ² for Gaussian and β²/3 for "
    "uniform noise. It and the place of the noise decide the shift. A rate is the share of values "
    "that is dropped.",
)


def terms(study: Study) -> list[str]:
    """The words that the answers use, explained, as far as they are needed."""
    noisy = any(entries_of(group.config) for group in study.groups)
    shifted = bool(len(study.depth)) or noisy
    return [term for term, needed in zip(_TERMS, (shifted, noisy), strict=True) if needed]


def shared(study: Study) -> str:
    """What all configs have in common: `preresnet of depth 8, 6 epochs, 3 seeds each`."""
    configs = [group.config for group in study.groups if group.config]
    networks = [c.get("network") for c in configs]
    names = [n.get("name") if isinstance(n, dict) else None for n in networks]
    depths = [n.get("depth") if isinstance(n, dict) else None for n in networks]
    parts = []
    if _one(names):
        depth = f" of depth {depths[0]}" if _one(depths) and isinstance(depths[0], int) else ""
        parts.append(f"{escape_control(str(names[0]))}{depth}")
    epochs = [config.get("epochs") for config in configs]
    if _one(epochs) and isinstance(epochs[0], int):
        parts.append(pluralize(epochs[0], "epoch"))
    seeds = [len(group.runs) for group in study.used]
    if _one(seeds):
        parts.append(f"{pluralize(seeds[0], 'seed')} each")
    if not any(map(entries_of, configs)):
        parts.append("no noise in any config")
    return ", ".join(parts)


def _one(values: Sequence[Any]) -> bool:
    return bool(values) and values[0] is not None and all(value == values[0] for value in values)
