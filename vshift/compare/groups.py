"""Runs → the groups that become rows, and a sentence for every run that is left out of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vshift.compare.fields import Fields, Row, metric, order
from vshift.config.identity import Scope, identity, value_differences
from vshift.runs.read import RunRecord, number
from vshift.text import format_value, natural


@dataclass(frozen=True)
class Group:
    """The runs of one row.

    Attributes:
        name: of the config, or of the values that the runs share.
        config_hash: None where the runs have several, or none that can be read.
        label: the name, with the hash where several configs have it.
        key: the values of `--by`; () where a row is a config.
        used: whose numbers count; others: the rest.
        config: the first run's, complete; {} where none can be read.
        mixed: config keys in which the used runs differ, besides those of `--by`.
        observed: (training, seed) of the used runs. Rows that share it rest on the same trainings.
    """

    name: str
    config_hash: str | None
    label: str
    key: tuple[Any, ...]
    used: list[RunRecord]
    others: list[RunRecord]
    config: Row
    observed: frozenset[tuple[str, int]] = frozenset()
    mixed: tuple[str, ...] = ()

    def numbers(self, key: str) -> list[float]:
        """The runs' values of a metric, without those that are none."""
        return known(number(metric(run, key)) for run in self.used)

    def most_frequent(self, key: str) -> str | None:
        """Ties go to the earlier seed."""
        texts = [metric(run, key) for run in self.used]
        counts = Counter(text for text in texts if isinstance(text, str))
        return counts.most_common(1)[0][0] if counts else None


def known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def by_config(fields: Fields, notes: list[str]) -> list[Group]:
    """One group for each name and config, in natural order of the names.

    Two config_hashes of one name whose configs are equal are one config: versions of vshift may
    hash differently.
    """
    hashes = _hashes(fields, notes)
    members: dict[tuple[str, str | None], list[RunRecord]] = defaultdict(list)
    for run in fields.runs:
        same = hashes[run.name]
        own = same.get(run.config_hash or "")
        if own is None and len(set(same.values())) == 1:
            own = next(iter(same.values()))  # too damaged to say its config: with its namesakes
        members[run.name, own].append(run)
    keys = sorted(members, key=lambda key: (natural(key[0]), key[1] or ""))
    names = Counter(name for name, _ in keys)
    groups = []
    for name, own in keys:
        label = f"{name} ({(own or 'no hash')[:8]})" if names[name] > 1 else name
        runs = members[name, own]
        used, others = _sort_out(fields, runs, name, notes)
        groups.append(_made(fields, name, own, label, (), used, others))
    for name in (name for name, count in names.items() if count > 1):
        labels = ", ".join(group.label for group in groups if group.name == name)
        notes.append(f"{name} is the name of different configs, each with its own row: {labels}")
    return groups


def _hashes(fields: Fields, notes: list[str]) -> dict[str, dict[str, str]]:
    """By name: every config_hash → the first hash of an equal config."""
    firsts: dict[str, dict[str, RunRecord]] = {}
    for run in fields.runs:
        first = firsts.setdefault(run.name, {})
        if run.config_hash:
            first.setdefault(run.config_hash, run)
    found: dict[str, dict[str, str]] = {}
    for name, first in firsts.items():
        same = found[name] = {}
        for own, run in first.items():
            same[own] = next((o for o in same if _equal(fields, first[o], run)), own)
            if same[own] != own:
                notes.append(
                    f"{name}: the config_hash is {same[own]} in some runs and {own} in others, "
                    "as another version of vshift wrote them; the configs are equal and share a row"
                )
    return found


def _equal(fields: Fields, one: RunRecord, other: RunRecord) -> bool:
    configs = fields.config(one), fields.config(other)
    return all(configs) and not differing(*configs)


def by_values(fields: Fields, keys: Sequence[str], notes: list[str]) -> list[Group]:
    """One group for each combination of the keys' values, in order of the values.

    Raises:
        VShiftError: no run has such a key.
    """
    for key in keys:
        fields.require(key, "--by", section=True)
    of_config = [key for key in keys if fields.is_of_config(key)]
    members: dict[str, list[RunRecord]] = defaultdict(list)
    values: dict[str, tuple[Any, ...]] = {}
    unreadable: list[RunRecord] = []
    for run in fields.runs:
        if of_config and not fields.config(run):
            unreadable.append(run)
            continue
        value = tuple(fields.value(run, key) for key in keys)
        text = repr([format_value(item) for item in value])
        values.setdefault(text, value)
        members[text].append(run)
    heads = short_heads(keys)
    groups = []
    for text in sorted(members, key=lambda text: [order(item) for item in values[text]]):
        name = " ".join(
            format_value(item) if head == "name" else f"{head}={format_value(item)}"
            for head, item in zip(heads, values[text], strict=True)
        )
        groups.append(_group_of(fields, members[text], name, values[text], keys, notes))
    if unreadable:
        why = f"its config.yaml does not say {of_config[0]}"
        notes += [_left_out(run, run.name, _why_not(run) or why) for run in unreadable]
        nothing = ("unknown",) * len(keys)
        groups.append(Group("unknown", None, "unknown", nothing, [], unreadable, {}))
    return groups


def short_heads(keys: Sequence[str]) -> list[str]:
    """`rate` for `network.noise.rate`, where no other key ends like it."""
    leaves = Counter(key.rsplit(".", 1)[-1] for key in keys)
    return [
        leaf if leaves[leaf] == 1 and not leaf.isdecimal() else key
        for key, leaf in ((key, key.rsplit(".", 1)[-1]) for key in keys)
    ]


def _group_of(
    fields: Fields,
    runs: list[RunRecord],
    name: str,
    values: tuple[Any, ...],
    keys: Sequence[str],
    notes: list[str],
) -> Group:
    used, others = _sort_out(fields, runs, None, notes)
    hashes = {run.config_hash for run in runs}
    mixed = _mixed(fields, used, keys)
    if mixed:
        notes.append(f"{name} puts runs together that differ in {_with_values(mixed)}")
    (own,) = hashes if len(hashes) == 1 else (None,)
    return replace(_made(fields, name, own, name, values, used, others), mixed=tuple(mixed))


def _made(
    fields: Fields,
    name: str,
    config_hash: str | None,
    label: str,
    key: tuple[Any, ...],
    used: list[RunRecord],
    others: list[RunRecord],
) -> Group:
    config = next(filter(None, map(fields.config, used or others)), {})
    observed = frozenset((fields.training(run), run.seed) for run in used)
    return Group(name, config_hash, label, key, used, others, config, observed)


def _mixed(fields: Fields, runs: list[RunRecord], keys: Sequence[str]) -> dict[str, list[Any]]:
    """The config keys in which a group's runs differ, with their values."""
    configs = [fields.config(run) for run in {run.config_hash: run for run in runs}.values()]
    found: dict[str, list[Any]] = {}
    for config in configs[1:]:
        pairs = differing(configs[0], config)
        for key in unstudied(pairs, keys):
            values = found.setdefault(key, [pairs[key][0]])
            values += [pairs[key][1]] if pairs[key][1] not in values else []
    return found


def _with_values(found: dict[str, list[Any]]) -> str:
    shown_keys = [
        f"{key} ({', '.join(format_value(value) for value in values[:4])}{'…' * (len(values) > 4)})"
        for key, values in list(found.items())[:4]
    ]
    more = len(found) - len(shown_keys)
    return ", ".join(shown_keys) + (f" and {more} more keys" if more else "")


def differing(one: Row, other: Row) -> dict[str, tuple[Any, Any]]:
    """dotted key → both values, of the settings in which two complete configs differ.

    Threads are no setting: they change the rounding, and a study does not mean to study them.
    """
    return value_differences(identity(one, Scope.EXECUTION), identity(other, Scope.EXECUTION))


def unstudied(found: Iterable[str], studied: Sequence[str]) -> list[str]:
    """Those keys that are neither a studied key nor its section nor inside it."""
    return [
        key
        for key in found
        if not any(
            key == own or own.startswith(f"{key}.") or key.startswith(f"{own}.") for own in studied
        )
    ]


def _sort_out(
    fields: Fields, runs: Sequence[RunRecord], name: str | None, notes: list[str]
) -> tuple[list[RunRecord], list[RunRecord]]:
    """The runs that count, and those that do not; a note for each of the latter.

    The same training with the same seed is one observation, however often it was done: counted
    twice, it would make chance look like a finding. The runs of one name are one config anyway.
    """
    used: dict[tuple[str, int], RunRecord] = {}
    twice: list[tuple[RunRecord, RunRecord]] = []
    others: list[RunRecord] = []
    for run in runs:
        why = _why_not(run)
        own = ("" if name else fields.training(run), run.seed)
        if why is None and own not in used:
            used[own] = run
            continue
        others.append(run)
        if why is not None:
            notes.append(_left_out(run, name or run.name, why))
        else:
            twice.append((run, used[own]))
    notes += same_twice(twice)
    return list(used.values()), others


def same_twice(pairs: Iterable[tuple[RunRecord, RunRecord]]) -> list[str]:
    """A note for every config of which runs are there a second time, each with the one used."""
    found: dict[tuple[str, Path, Path], list[tuple[RunRecord, RunRecord]]] = defaultdict(list)
    for run, used in pairs:
        found[run.name, run.path.parent, used.path.parent].append((run, used))
    notes = []
    for (name, own, other), same in found.items():
        if len(same) == 1:
            ((run, used),) = same
            why = f"the same config and seed are in {used.path}, which is used"
            notes.append(_left_out(run, name, why))
        else:
            seeds = ", ".join(str(run.seed) for run, _ in same)
            notes.append(
                f"left out: {name} seeds {seeds}: the same config and seeds are in {other}, "
                f"which are used ({own})"
            )
    return notes


def _left_out(run: RunRecord, name: str, why: str) -> str:
    return f"left out: {name} seed {run.seed}: {why} ({run.path})"


_WHY = {
    "running": "unfinished (running, or killed); the same `vshift train` goes on with it",
    "interrupted": "interrupted; the same `vshift train` goes on with it",
    "failed": "failed",
    "diverged": "diverged",
}


def _why_not(run: RunRecord) -> str | None:
    """The reason why a run's numbers cannot be used, None where they can."""
    if run.status != "done":
        return _WHY.get(run.status) or "; ".join(run.problems) or "damaged"
    if all(number(run.summary.get(key)) is None for key in ("test_accuracy", "test_loss")):
        return "; ".join(run.problems) or "its summary.json has no test_accuracy"
    return None
