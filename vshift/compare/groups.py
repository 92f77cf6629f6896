"""Groups of runs, which become rows; a note for every run that is left out of them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vshift.compare.fields import Fields, active_noise, metric, sort_key, value_at
from vshift.compare.statistics import Sample, describe
from vshift.config.identity import Scope, flat, identity, value_differences
from vshift.config.noise import places_of, read_noise
from vshift.runs.files import Row
from vshift.runs.read import RunRecord, number
from vshift.text import escape_control, format_value, list_names, natural

NO_NOISE = "no noise"
OWN_NOISE = "noise of its own"  # a network's, which its config does not tell
AT_CHANCE = "at chance level, so that differences say nothing of how much is lost"
# Standard errors of a binomial share within which an error is that of guessing.
_CHANCE_ERRORS = 3.0
# Of runs that do not record the number of their classes.
_CLASSES = {"shapes": 10.0, "cifar10": 10.0, "cifar100": 100.0}


@dataclass(frozen=True)
class Noise:
    """The noise of a config, summarized.

    Attributes:
        layout: where it sits, with kind and unit where they are not plain dropout's.
        strength: `0.5` for a drop rate, `β 0.3`, `σ 1`; empty without noise.
        variance: s², None where the kind has none that is known here.
    """

    layout: str
    strength: str
    variance: float | None

    @property
    def strength_in_words(self) -> str:
        """`rate 0.5`, `β 0.3`; empty without noise."""
        return f"rate {self.strength}" if self.strength[:1].isdigit() else self.strength


@dataclass(frozen=True)
class Group:
    """The runs of one row, of a table or of the report.

    Attributes:
        name: of the config, or of the values that the runs share.
        config_hash: None where the runs have several, or none that can be read.
        label: the name, with the hash where several configs have it.
        key: the values of `--by`; () where a row is a config.
        runs: whose numbers count, one per seed; others: the rest.
        config: the first run's, complete; {} where none can be read.
        observed: (training, seed) of the runs. Rows that share it rest on the same trainings.
        mixed: config keys in which the runs differ, besides those of `--by`.
    """

    name: str
    config_hash: str | None
    label: str
    key: tuple[Any, ...]
    runs: list[RunRecord]
    others: list[RunRecord]
    config: Row
    observed: frozenset[tuple[str, int]] = frozenset()
    mixed: tuple[str, ...] = ()

    def numbers(self, key: str) -> list[float]:
        """The runs' values of a metric, without missing ones."""
        values = (number(metric(run, key)) for run in self.runs)
        return [value for value in values if value is not None]

    def sample(self, key: str) -> Sample | None:
        """The runs' mean and standard deviation of a metric; None where no run has it."""
        return describe(self.numbers(key))

    def most_frequent(self, key: str) -> str | None:
        """The runs' most frequent word for a metric; ties go to the earlier seed."""
        texts = [metric(run, key) for run in self.runs]
        counts = Counter(text for text in texts if isinstance(text, str))
        return counts.most_common(1)[0][0] if counts else None

    @cached_property
    def is_at_chance(self) -> bool:
        """Whether the runs classify no better than guessing; False where that is not known."""
        known = _CLASSES.get(str(value_at(self.config, "data.name")))
        classes = {number(run.run.get("classes")) or known for run in self.runs}
        sample, count = self.sample("test_error"), classes.pop() if len(classes) == 1 else None
        if sample is None or not count:
            return False
        sizes = (number(value_at(self.config, f"data.{key}")) for key in ("test_limit", "test"))
        images = next(filter(None, sizes), 10_000)
        error = math.sqrt((count - 1) / images / sample.n) / count
        return sample.mean >= 100 * (1 - 1 / count - _CHANCE_ERRORS * error)

    @property
    def has_noise(self) -> bool:
        """Whether the config has noise of a strength above 0, or the network some of its own."""
        return self.noise.layout != NO_NOISE

    @cached_property
    def noise(self) -> Noise:
        """Where the config's noise sits and how strong it is, from whatever its file says.

        Without any, whether the runs found noise in the network itself.
        """
        entries = active_noise(self.config)
        if not entries:
            is_own = any(self.numbers("noise_modules"))
            return Noise(OWN_NOISE, "", None) if is_own else Noise(NO_NOISE, "", 0.0)
        block = self.config["network"].get("block")
        places = []
        for entry in entries:
            named = " and ".join(places_of(entry))
            place = [named or (f"in {block}" if block else "somewhere")]
            place += [f"with {entry.get('kind')}"] if entry.get("kind") != "dropout" else []
            place += [f"per {entry['unit']}"] if entry.get("unit", "element") != "element" else []
            places.append(escape_control(" ".join([*place, *read_noise(entry).extent])))
        known = [read_noise(entry) for entry in entries]
        variances = {None if noise.strength is None else noise.variance for noise in known}
        strengths = (noise.strength_text for noise in known if noise.strength_text)
        return Noise(
            " + ".join(dict.fromkeys(places)),
            " + ".join(dict.fromkeys(strengths)),
            variances.pop() if len(variances) == 1 else None,
        )


# ---- configs that differ


def layout_pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """The pairs of groups that differ only in where equally strong noise sits."""
    noisy = [g for g in groups if g.has_noise and g.noise.variance is not None]
    return [
        (one, other)
        for i, other in enumerate(noisy)
        for one in noisy[i + 1 :]
        if one.noise.layout != other.noise.layout
        and one.noise.variance == other.noise.variance
        and without_noise(one.config) == without_noise(other.config)
    ]


def without_noise(config: Row) -> Row:
    """The part of a config that decides the training, without its noise."""
    training = identity(config, Scope.TRAINING)
    network = training.get("network")
    network = network if isinstance(network, dict) else {}
    bare = {key: value for key, value in network.items() if key not in ("noise", "block")}
    return {**training, "network": bare}


def differing(one: Row, other: Row) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two complete configs differ, each with both values."""
    return value_differences(identity(one, Scope.EXECUTION), identity(other, Scope.EXECUTION))


def differing_keys(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """The dotted keys in which the groups' configs differ, each with every group's value.

    A group without a readable config does not count; its values are None.
    """
    configs = [dict(flat(identity(group.config, Scope.EXECUTION))) for group in groups]
    known = [config for config in configs if config]
    found = {}
    for key in dict.fromkeys(key for config in known for key in config):
        if len({repr(config.get(key)) for config in known}) > 1:
            found[key] = [config.get(key) for config in configs]
    # Sections are told by their keys: `network.noise` differs wherever `network.noise.rate` does.
    return {k: v for k, v in found.items() if not any(o.startswith(f"{k}.") for o in found)}


def unstudied(found: Iterable[str], studied: Sequence[str]) -> list[str]:
    """The keys that are not a studied key, its section, or inside it."""
    return [
        key
        for key in found
        if not any(f"{key}.".startswith(f"{own}.") or own.startswith(f"{key}.") for own in studied)
    ]


def short_heads(keys: Sequence[str]) -> list[str]:
    """`rate` for `network.noise.rate`, where no other key ends like it."""
    leaves = [key.rsplit(".", 1)[-1] for key in keys]
    return [
        leaf if leaves.count(leaf) == 1 and not leaf.isdecimal() else key
        for key, leaf in zip(keys, leaves, strict=True)
    ]


# ---- grouping


def group_by_config(fields: Fields, notes: list[str]) -> list[Group]:
    """One group for each name and config, in natural order of the names.

    Two config_hashes of one name whose configs are equal are one config: versions of vshift may
    hash differently.
    """
    hashes = _first_hashes(fields, notes)
    members: dict[tuple[str, str | None], list[RunRecord]] = defaultdict(list)
    for run in fields.runs:
        same = hashes[run.name]
        own = same.get(run.config_hash or "")
        if own is None and len(set(same.values())) == 1:
            own = next(iter(same.values()))  # too damaged to say its config: with its namesakes
        members[run.name, own].append(run)
    names = Counter(name for name, _ in members)
    groups = []
    for name, own in sorted(members, key=lambda key: (natural(key[0]), key[1] or "")):
        label = f"{name} ({(own or 'no hash')[:8]})" if names[name] > 1 else name
        group = _group(fields, members[name, own], name, notes, one_config=True)
        mixed = _mixed(fields, group.runs, ())
        if mixed:
            notes.append(
                f"{_puts_together(label, mixed)}: `auto` chose on the machine of each run; set it "
                "to compare like with like"
            )
        groups.append(replace(group, config_hash=own, label=label, mixed=tuple(mixed)))
    for name in (name for name, count in names.items() if count > 1):
        labels = ", ".join(group.label for group in groups if group.name == name)
        notes.append(f"{name} is the name of different configs, each with its own row: {labels}")
    return groups


def _first_hashes(fields: Fields, notes: list[str]) -> dict[str, dict[str, str]]:
    """For every name, its config_hashes, each with the first hash of an equal config."""
    firsts: dict[tuple[str, str], RunRecord] = {}
    for run in fields.runs:
        if run.config_hash:
            firsts.setdefault((run.name, run.config_hash), run)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for (name, own), run in firsts.items():
        config, same = fields.config(run), found[name]
        configs = ((other, fields.config(firsts[name, other])) for other in same)
        equal = (other for other, c in configs if config and c and not differing(c, config))
        same[own] = next(equal, own)
        if same[own] != own:
            notes.append(
                f"{name}: the config_hash is {same[own]} in some runs and {own} in others, "
                "as another version of vshift wrote them; the configs are equal and share a row"
            )
    return found


def group_by_values(fields: Fields, keys: Sequence[str], notes: list[str]) -> list[Group]:
    """One group for each combination of the keys' values, in order of the values."""
    of_config = [key for key in keys if fields.is_of_config(key)]
    members: dict[tuple[str, ...], list[RunRecord]] = defaultdict(list)
    values: dict[tuple[str, ...], tuple[Any, ...]] = {}
    unreadable: list[RunRecord] = []
    for run in fields.runs:
        if of_config and not fields.config(run):
            unreadable.append(run)
            continue
        value = tuple(fields.value(run, key) for key in keys)
        text = tuple(map(format_value, value))
        values.setdefault(text, value)
        members[text].append(run)
    heads = short_heads(keys)
    groups = []
    for text in sorted(members, key=lambda text: [sort_key(item) for item in values[text]]):
        name = " ".join(
            item if head == "name" else f"{head}={item}"
            for head, item in zip(heads, text, strict=True)
        )
        group = _group(fields, members[text], name, notes)
        mixed = _mixed(fields, group.runs, keys)
        if mixed:
            notes.append(_puts_together(name, mixed))
        groups.append(replace(group, key=values[text], mixed=tuple(mixed)))
    if unreadable:
        why = f"its config.yaml does not say {of_config[0]}"
        notes += [_left_out(run, _reason_left_out(run) or why) for run in unreadable]
        nothing = ("unknown",) * len(keys)
        groups.append(Group("unknown", None, "unknown", nothing, [], unreadable, {}))
    return groups


def _mixed(fields: Fields, runs: list[RunRecord], keys: Sequence[str]) -> dict[str, list[Any]]:
    """The config keys besides `keys` in which runs differ, with their values."""
    configs = list({id(config): config for config in map(fields.config, runs)}.values())
    found: dict[str, list[Any]] = {}
    for config in configs[1:]:
        pairs = differing(configs[0], config)
        for key in unstudied(pairs, keys):
            values = found.setdefault(key, [pairs[key][0]])
            values += [pairs[key][1]] if pairs[key][1] not in values else []
    return found


def _puts_together(name: str, mixed: dict[str, list[Any]]) -> str:
    texts = [
        f"{key} ({', '.join(map(format_value, found[:4]))}{'…' * (len(found) > 4)})"
        for key, found in mixed.items()
    ]
    return f"{name} puts runs together that differ in {list_names(texts, noun='keys')}"


def _group(
    fields: Fields,
    runs: list[RunRecord],
    name: str,
    notes: list[str],
    *,
    one_config: bool = False,
) -> Group:
    """Make a group of the runs that count and those that do not; a note for each of the latter.

    The same training with the same seed is one observation, however often it was done: counted
    twice, it would make chance look like a finding.
    """
    used: dict[tuple[str, int], RunRecord] = {}
    twice: list[tuple[RunRecord, RunRecord]] = []
    others: list[RunRecord] = []
    for run in runs:
        why = _reason_left_out(run)
        own = ("" if one_config else fields.training(run), run.seed)
        if why is None and own not in used:
            used[own] = run
            continue
        others.append(run)
        if why is None:
            twice.append((run, used[own]))
        else:
            notes.append(_left_out(run, why))
    notes += describe_duplicates(twice)
    counted = list(used.values())
    hashes = {run.config_hash for run in runs}
    return Group(
        name,
        hashes.pop() if len(hashes) == 1 else None,
        label=name,
        key=(),
        runs=counted,
        others=others,
        config=next(filter(None, map(fields.config, counted or others)), {}),
        observed=frozenset((fields.training(run), run.seed) for run in counted),
    )


def describe_duplicates(pairs: Iterable[tuple[RunRecord, RunRecord]]) -> list[str]:
    """Notes, one per config, on pairs of runs of which the second is used instead of the first."""
    found: dict[tuple[str, Path, Path], list[tuple[RunRecord, RunRecord]]] = defaultdict(list)
    for run, used in pairs:
        found[run.name, run.path.parent, used.path.parent].append((run, used))
    notes = []
    for (name, own, other), same in found.items():
        run, used = same[0]
        seeds = ", ".join(str(run.seed) for run, _ in same)
        notes.append(
            f"left out: {name} seeds {seeds}: the same config and seeds are in {other}, "
            f"which are used ({own})"
            if len(same) > 1
            else _left_out(run, f"the same config and seed are in {used.path}, which is used")
        )
    return notes


def _left_out(run: RunRecord, why: str) -> str:
    return f"left out: {run.name} seed {run.seed}: {why} ({run.path})"


_REASONS = {
    "running": "unfinished (running, or killed); the command that started it resumes it",
    "interrupted": "interrupted; the command that started it resumes it",
    "failed": "failed",
    "diverged": "diverged",
}


def _reason_left_out(run: RunRecord) -> str | None:
    """The reason why a run's numbers cannot be used; None if they can."""
    if run.status != "done":
        return _REASONS.get(run.status) or "; ".join(run.problems) or "damaged"
    if all(number(run.summary.get(key)) is None for key in ("test_accuracy", "test_loss")):
        return "; ".join(run.problems) or "its summary.json has no test_accuracy"
    return None
