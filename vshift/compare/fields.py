"""The fields of a set of runs: what a table can be grouped, filtered, sorted and filled by.

A field is a dotted key of the config (`network.noise.rate`), a number or word of summary.json
(`test_error`), `name`, `seed` or `status`, or `run.` and a key of run.json (`run.torch`). A config
key's last part will do where no other ends like it: `rate`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from textwrap import fill
from typing import Any

from pydantic import ValidationError

from vshift.config.identity import Scope, flat, identity, new_name
from vshift.config.noise import places_of, read_noise
from vshift.config.schema import Config
from vshift.errors import VShiftError
from vshift.runs.files import Row
from vshift.runs.read import RunRecord, number
from vshift.text import (
    OTHER_NAMES,
    did_you_mean,
    escape_control,
    format_value,
    join_words,
    list_names,
    natural,
    nearest,
)

OWN = ("name", "seed", "status")
_SHOWN = 30  # names in an error
_ACCURACY_OF = {"test_error": "test_accuracy", "validation_error": "validation_accuracy"}


class Fields:
    """The fields of a set of runs; configs are read when a config key is first asked for."""

    def __init__(self, runs: Iterable[RunRecord]) -> None:
        self.runs = list(runs)
        self.notes: list[str] = []
        self._configs: dict[str, Row] = {}
        self._trainings: dict[str, str] = {}

    def only(self, runs: Iterable[RunRecord]) -> Fields:
        """The fields of some of the runs; configs that are read already are not read again."""
        fields = Fields(runs)
        fields._configs, fields._trainings = self._configs, self._trainings
        return fields

    @cached_property
    def metrics(self) -> list[str]:
        """The keys of all summary.json files, in the order they are found."""
        return list(dict.fromkeys(key for run in self.runs for key in run.summary))

    @cached_property
    def config_keys(self) -> dict[str, bool]:
        """The dotted keys of all configs, each with whether it is a section."""
        found: dict[str, bool] = {}
        for run in self.runs:
            for key, value in flat(self.config(run)):
                # `network.noise` is a section in some runs and null in others.
                found[key] = found.get(key, False) or isinstance(value, Mapping)
        return found

    @cached_property
    def leaves(self) -> list[str]:
        """The config keys that are not sections."""
        return [key for key, is_section in self.config_keys.items() if not is_section]

    @cached_property
    def differing(self) -> set[str]:
        """The config keys that have several values in these runs."""
        configs = {run.config_hash or str(run.path): self.config(run) for run in self.runs}
        return {
            key
            for key in self.leaves
            if len({repr(value_at(config, key)) for config in configs.values() if config}) > 1
        }

    @cached_property
    def _run_keys(self) -> set[str]:
        return {f"run.{key}" for run in self.runs for key in run.run}

    def config(self, run: RunRecord) -> Row:
        """The complete config, defaults filled in; {} where config.yaml cannot be read.

        Runs with one config_hash that also ran alike share one: only the first of them is read.
        """
        key = self._as_it_ran(run)
        if not self._configs.get(key):
            config = run.config
            with suppress(ValidationError, RecursionError):  # keys that this version does not know
                config = Config.model_validate(config).model_dump() if config else config
            self._configs[key] = identity(config, Scope.ROUNDING)
        return self._configs[key]

    def training(self, run: RunRecord) -> str:
        """A text that two runs share if they trained the same, whatever was measured afterwards.

        Noise of strength 0 at a position is no noise, at whichever position. Noise makes another
        observation of another kind of step or device, which draw other numbers from one seed.
        """
        key = self._as_it_ran(run)
        if key not in self._trainings:
            values = identity(self.config(run), Scope.TRAINING)
            network, noises = values.get("network"), active_noise(values)
            if isinstance(network, Mapping) and not network.get("block"):
                values["network"] = {**network, "noise": noises or None}
            if noises:
                values["drawn by"] = self._drawn_by(run)
            self._trainings[key] = json.dumps(values, sort_keys=True) if values else key
        return self._trainings[key]

    def _as_it_ran(self, run: RunRecord) -> str:
        """A text that runs share if they have one config, of which `auto` became the same."""
        device = str(run.run.get("device")).split(":")[0]
        became = f"{run.run.get('precision')} {run.run.get('step')} {device}"
        return f"{run.config_hash or run.path} {became}"

    def _drawn_by(self, run: RunRecord) -> str:
        """The kind of step and of device that a run drew its noise with, as far as is known."""
        step = run.run.get("step") or value_at(self.config(run), "hardware.step")
        return f"{step} {str(run.run.get('device')).split(':')[0]}"

    def _is_of_run(self, key: str) -> bool:
        return key in OWN or key in self.metrics or key in self._run_keys

    def is_known(self, key: str) -> bool:
        """Whether any run has this field."""
        return self._is_of_run(key) or key in self.config_keys

    def is_of_config(self, key: str) -> bool:
        """Whether the field is read from config.yaml."""
        return not self._is_of_run(key) and key in self.config_keys

    def value(self, run: RunRecord, key: str) -> Any:
        """A run's value of a field; None if it has none."""
        if key in OWN:
            return getattr(run, key)
        if key in self._run_keys:
            return run.run.get(key.removeprefix("run."))
        if key in self.metrics or key in _ACCURACY_OF:
            return metric(run, key)
        section, _, leaf = key.rpartition(".")
        if section.startswith("network.noise") and leaf == "position":
            # Names of modules (`before`, `after`) are places too.
            entry = value_at(self.config(run), section)
            places = places_of(entry) if isinstance(entry, Mapping) else []
            return places[0] if len(places) == 1 else places or None
        return value_at(self.config(run), key)

    def resolve(self, key: str, option: str) -> str:
        """The field that a name means: itself, or the one config key that it ends.

        `rate` is `network.noise.rate`. Of several, it is the only one in which the runs differ,
        which `notes` tells; a name that matches nothing is returned as it is.

        Raises:
            VShiftError: several keys may be meant, which are listed.
        """
        if self.is_known(key):
            return key
        endings = {f".{name}" for name in (key, OTHER_NAMES.get(key, key))}
        found = [known for known in self.config_keys if known.endswith(tuple(endings))]
        differing = [known for known in found if known in self.differing]
        if len(found) > 1 and len(differing) == 1:
            others = list_names([name for name in found if name != differing[0]])
            note = f"{option}: {key} is {differing[0]}; {others} is the same in all runs"
            self.notes += [] if note in self.notes else [note]
            return differing[0]
        if len(found) > 1:
            raise VShiftError(
                f"{option}: `{escape_control(key)}` may be {join_words(found, 'or')}; "
                "write the one that is meant"
            )
        return found[0] if found else key

    def require(self, key: str, option: str, *, section: bool = False) -> str:
        """Return the field that a name means, see `resolve`.

        Args:
            option: the one that named it, for the message.
            section: whether a section of the config will do.

        Raises:
            VShiftError: no run has it, or it is a section, with the nearest and the possible names.
        """
        key = self.resolve(key, option)
        if not self.is_known(key):
            new = new_name(key)
            known = [*OWN, *self.leaves, *self.metrics]
            hint = f"it is now `{new}`" if new in known else self.suggest(key)
            names = self.config_names | {"of summary.json": self.metrics, "of every run": OWN}
            raise unknown(f"{option} {escape_control(key)}: no run has such a field", hint, names)
        if self.is_of_config(key) and self.config_keys[key] and not section:
            inside = [k for k in self.config_keys if k.startswith(f"{key}.")]
            raise VShiftError(
                f"{option}: `{escape_control(key)}` is a section; name one of its keys: "
                f"{list_names(inside, _SHOWN)}"
            )
        return key

    def require_metric(self, key: str, option: str) -> str:
        """Return the key, if it is one of summary.json.

        Raises:
            VShiftError: no run has it, with the nearest and all of them.
        """
        if key in self.metrics or _ACCURACY_OF.get(key) in self.metrics:
            return key
        what = f"{option} {escape_control(key)}: no summary.json has it"
        raise unknown(what, did_you_mean(key, self.metrics), {"there are": self.metrics})

    def suggest(self, key: str) -> str:
        """The field that a name that is none is nearest to, by all of it or by its last part."""
        known = [*OWN, *self.leaves, *self.metrics]
        by_leaf = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
        leaf = "" if "." in key else nearest(key, by_leaf)
        return f"did you mean `{by_leaf[leaf]}`?" if leaf else did_you_mean(key, known)

    @property
    def config_names(self) -> dict[str, Sequence[str]]:
        """The config keys to choose from, under a heading: those that differ, or else all."""
        differing = [key for key in self.leaves if key in self.differing]
        head = "config keys in which these runs differ" if differing else "config keys"
        return {head: differing or self.leaves}


def unknown(what: str, hint: str, names: Mapping[str, Sequence[str]]) -> VShiftError:
    """An error about a name that there is not, with those that there are on lines of their own.

    Args:
        names: by a heading.
    """
    lines = [
        fill(f"{head}: {list_names(some, _SHOWN)}", 98, initial_indent="  ",
             subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        for head, some in names.items() if some
    ]  # fmt: skip
    return VShiftError("\n".join([f"{what}; {hint}" if hint else what, *lines]))


def active_noise(config: Row) -> list[Row]:
    """The entries of a config's `network.noise` whose strength is not 0."""
    noise = value_at(config, "network.noise")
    entries = noise if isinstance(noise, list) else [noise]
    return [e for e in entries if isinstance(e, dict) and read_noise(e).strength != 0]


def changed_of(config: Row) -> Row:
    """The part of a config that is not at its default; all of one that cannot be validated."""
    with suppress(ValidationError, RecursionError):
        return Config.model_validate({"name": "any", **config}).model_dump(exclude_defaults=True)
    return config


def value_at(value: Any, key: str) -> Any:
    """The value at a dotted key of a mapping; None where there is none."""
    for part in key.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def metric(run: RunRecord, key: str) -> float | str | None:
    """A number or word of summary.json; an error in percent also from its accuracy."""
    value = run.summary.get(key)
    if value is None and key in _ACCURACY_OF:
        accuracy = number(run.summary.get(_ACCURACY_OF[key]))
        return None if accuracy is None else 100 - accuracy
    return value if isinstance(value, str) else number(value)


def sort_key(value: Any) -> tuple[Any, ...]:
    """A sort key for values of any kind: none, then numbers, then text in natural order."""
    if value is None:
        return (0,)
    if isinstance(value, bool):
        return (1, int(value))
    if (known := number(value)) is not None:
        return (2, known)
    return (3, natural(format_value(value)))
