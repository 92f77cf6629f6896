"""What a table can be grouped, filtered, sorted and filled by: the fields of a set of runs.

A field is a dotted key of the config (`network.noise.rate`), a number or word of summary.json
(`test_error`), `name`, `seed` or `status`, or `run.` and a key of run.json (`run.torch`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from vshift.config.identity import Scope, identity
from vshift.errors import VShiftError
from vshift.runs.read import RunRecord, number
from vshift.text import did_you_mean, escape_control, format_value, natural

Row = dict[str, Any]
OWN = ("name", "seed", "status")
_SHOWN = 40  # names in an error


class Fields:
    """The fields of a set of runs; configs are read when a config key is first asked for."""

    def __init__(self, runs: Iterable[RunRecord]) -> None:
        self.runs = list(runs)
        self._configs: dict[str, Row] = {}
        self._trainings: dict[str, str] = {}

    def only(self, runs: Iterable[RunRecord]) -> Fields:
        """The fields of some of the runs; configs that are read already are not read again."""
        fields = Fields(runs)
        fields._configs, fields._trainings = self._configs, self._trainings
        return fields

    @cached_property
    def metrics(self) -> list[str]:
        """The keys of every summary.json, in the order they are found."""
        return list(dict.fromkeys(key for run in self.runs for key in run.summary))

    @cached_property
    def config_keys(self) -> dict[str, bool]:
        """dotted key → whether it is a section, of every run's config."""
        found: dict[str, bool] = {}
        for run in self.runs:
            for key, value in _flat(self.config(run)):
                # `network.noise` is a section in some runs and null in others.
                found[key] = found.get(key, False) or isinstance(value, Mapping)
        return found

    def config(self, run: RunRecord) -> Row:
        """The complete config, defaults filled in; {} where config.yaml cannot be read.

        Runs with one config_hash share one, so only the first of them is read.
        """
        key = run.config_hash or str(run.path)
        if not self._configs.get(key):
            self._configs[key] = _complete(run.config)
        return self._configs[key]

    def training(self, run: RunRecord) -> str:
        """A text that two runs share if they trained the same, whatever was measured afterwards.

        Noise of strength 0 at a position is no noise, at whichever position.
        """
        key = run.config_hash or str(run.path)
        if key not in self._trainings:
            self._trainings[key] = _training(self.config(run)) or key
        return self._trainings[key]

    @cached_property
    def _run_keys(self) -> set[str]:
        return {f"run.{key}" for run in self.runs for key in run.run}

    def _is_plain(self, key: str) -> bool:
        return key in OWN or key in self.metrics or key in self._run_keys

    def is_known(self, key: str) -> bool:
        return self._is_plain(key) or key in self.config_keys

    def is_of_config(self, key: str) -> bool:
        return not self._is_plain(key) and key in self.config_keys

    def value(self, run: RunRecord, key: str) -> Any:
        """A run's value; None where it has none."""
        if key in OWN:
            return getattr(run, key)
        if key in self._run_keys:
            return run.run.get(key.removeprefix("run."))
        if key in self.metrics or key in _ERRORS:
            return metric(run, key)
        return _at(self.config(run), key.split("."))

    def require(self, key: str, what: str, *, section: bool = False) -> str:
        """The key, if there is such a field.

        Args:
            what: the option that named it, for the message.
            section: whether a section of the config will do.

        Raises:
            VShiftError: no run has it, or it is a section, with the nearest and the possible names.
        """
        if self._is_plain(key):
            return key
        if key not in self.config_keys:
            raise VShiftError(self._unknown(key, what))
        if self.config_keys[key] and not section:
            inside = [k for k in self.config_keys if k.startswith(f"{key}.")]
            raise VShiftError(
                f"{what}: `{escape_control(key)}` is a section; name one of its keys: "
                f"{listed(inside)}"
            )
        return key

    def _unknown(self, key: str, what: str) -> str:
        leaves = [k for k, is_section in self.config_keys.items() if not is_section]
        names = [*OWN, *leaves, *self.metrics]
        hint = did_you_mean(key, names) or _by_leaf(key, names)
        return (
            f"{what}: none of these runs has a `{escape_control(key)}`; "
            f"{hint + ' ' if hint else ''}"
            f"config keys: {listed(leaves)}; of summary.json: {listed(self.metrics)}; "
            f"and {', '.join(OWN)}"
        )

    def require_metric(self, key: str, what: str) -> str:
        """A key of summary.json.

        Raises:
            VShiftError: no run has it, with the nearest and all of them.
        """
        if key in self.metrics or (key in _ERRORS and _ERRORS[key] in self.metrics):
            return key
        hint = did_you_mean(key, self.metrics)
        raise VShiftError(
            f"{what}: no summary.json has a `{escape_control(key)}`; {hint + ' ' if hint else ''}"
            f"there are: {listed(self.metrics) or 'none'}"
        )


def listed(names: Sequence[str]) -> str:
    """Names in a message: as many as a person reads."""
    shown = ", ".join(escape_control(name) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _by_leaf(key: str, names: Iterable[str]) -> str:
    """`rate` for `network.noise.rate`."""
    last = key.rsplit(".", 1)[-1]
    found = [name for name in names if name.rsplit(".", 1)[-1] == last and name != key]
    return f"did you mean {' or '.join(f'`{name}`' for name in found[:3])}?" if found else ""


def _complete(config: Row) -> Row:
    """With defaults, as far as this version knows the config's keys; else as it stands."""
    if not config:
        return {}
    from pydantic import ValidationError

    from vshift.config.schema import Config

    try:
        config = Config.model_validate(config).model_dump()
    except (ValidationError, RecursionError):
        config = dict(config)
    return identity(config, Scope.ROUNDING)


def _training(config: Row) -> str:
    if not config:
        return ""
    values = identity(config, Scope.TRAINING)
    network = values.get("network")
    if isinstance(network, Mapping) and not network.get("block"):
        values["network"] = {**network, "noise": heard(network.get("noise")) or None}
    return json.dumps(values, sort_keys=True)


def heard(noise: Any) -> list[Row]:
    """The entries of `network.noise` whose strength is not 0."""
    entries = noise if isinstance(noise, list) else [noise]
    return [entry for entry in entries if isinstance(entry, dict) and not _is_silent(entry)]


def _is_silent(noise: Row) -> bool:
    strengths = [noise[key] for key in ("rate", "sigma", "beta") if noise.get(key) is not None]
    return bool(strengths) and all(number(value) == 0 for value in strengths)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its value, sections included."""
    if path:
        yield path, value
    if isinstance(value, Mapping):
        inside: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        inside = enumerate(value)
    else:
        return
    for key, item in inside:
        yield from _flat(item, f"{path}.{key}" if path else str(key))


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


_ERRORS = {"test_error": "test_accuracy", "validation_error": "validation_accuracy"}


def metric(run: RunRecord, key: str) -> float | str | None:
    """A number or word of summary.json; an error in percent also from its accuracy."""
    value = run.summary.get(key)
    if value is None and key in _ERRORS:
        accuracy = number(run.summary.get(_ERRORS[key]))
        return None if accuracy is None else 100 - accuracy
    return value if isinstance(value, str) else number(value)


def order(value: Any) -> tuple[Any, ...]:
    """A sort key over values of any kind: nothing, then numbers, then text as people count."""
    if value is None:
        return (0,)
    if isinstance(value, bool):
        return (1, int(value))
    if (known := number(value)) is not None:
        return (2, known)
    return (3, natural(format_value(value)))
