"""The page's tables: configs, runs, and what configs differ in, as cells with sort keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vshift.compare.text import NONE, fixed, visible, with_spread
from vshift.report.data import Study
from vshift.report.effects import Effect, against_baseline
from vshift.report.gains import gains
from vshift.report.groups import Group
from vshift.report.prose import interval, p_text
from vshift.runs.reading import RunRecord, number

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """`key` is what the column is sorted by: a number, or text where there is none."""

    text: str
    key: float | str | None = None


@dataclass(frozen=True)
class Line:
    """A row; `group` is the label whose colour stands before it, None for none."""

    cells: list[Cell]
    group: Group | None = None


@dataclass(frozen=True)
class Table:
    """Heads with a longer explanation each; `numeric` columns stand right."""

    id: str
    heads: list[tuple[str, str]]
    numeric: list[bool]
    lines: list[Line]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """A config as dotted keys; lists of sections by index."""
    if isinstance(value, dict) and value:
        pairs = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        pairs = [(f"{path}.{i}", item) for i, item in enumerate(value)]
    else:
        return {path: value}
    return {key: item for start, inner in pairs for key, item in flat(inner, start).items()}


def differing(groups: Sequence[Group]) -> tuple[list[str], dict[str, Row]]:
    """The dotted keys in which configs differ, and every config as dotted keys."""
    configs = {
        g.name: flat({k: v for k, v in g.config.items() if k not in ("name", "seeds")})
        for g in groups
        if g.config
    }
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    unlike = [key for key in keys if len({shown(c.get(key)) for c in configs.values()}) > 1]
    # `noise: null` beside `noise: {kind: …}` is one difference, not one a key.
    parents = {key for key in unlike if any(other.startswith(f"{key}.") for other in unlike)}
    return [key for key in unlike if key not in parents], configs


def shown(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, str):
        return visible(value)
    return visible(json.dumps(value, ensure_ascii=False, default=str))


def _value(value: Any) -> Cell:
    return Cell(shown(value), number(value) if number(value) is not None else shown(value))


def _number(value: float | None, digits: int) -> Cell:
    return Cell(fixed(value, digits), value)


def _spread(mean: float | None, sd: float | None, digits: int) -> Cell:
    return Cell(with_spread(mean, sd, digits=digits), mean)


def configs_table(study: Study) -> Table:
    """One row a config: scores, difference to the baseline, shift, and its own config keys."""
    effects = {effect.group.label: effect for effect in against_baseline(study)}
    back = {gain.group.label: gain.value for gain in gains(study)}
    keys, configs = differing(study.groups)
    error = study.score == "test_error"
    heads = [
        ("config", "name, without what all names begin with"),
        ("n", "seeds that are done"),
        ("test error %" if error else "test loss", "last epoch, mean ± sd over seeds"),
        ("difference", "to the baseline"),
        ("95 % CI", "of the difference, Welch"),
        ("p (Holm)", "of no difference, Welch, corrected for all rows by Holm"),
        ("more than chance?", "at 5 % over the whole table; or about how many seeds would tell"),
        ("given back", "by recalibration, the first method of the config"),
        ("train acc % (eval)", "accuracy on training images in eval mode"),
        ("train acc % (train)", "the same images in train mode: noise on, batch statistics"),
        ("shift mean", "mean over BN layers of the shift ratio"),
        ("shift max", "largest over BN layers"),
        ("at", "the layer of the largest"),
        *((short_key(key, keys), key) for key in keys),
    ]
    numeric = [False, *[True] * 5, False, *[True] * 5, False]
    numeric += [
        all(number(c.get(key)) is not None or c.get(key) is None for c in configs.values())
        for key in keys
    ]
    lines = [
        Line(
            _config_cells(study, group, effects.get(group.label), back.get(group.label))
            + [_value(configs.get(group.name, {}).get(key)) for key in keys],
            group,
        )
        for group in study.groups
    ]
    return _without_empty(Table("configs", heads, numeric, lines))


def short_key(key: str, keys: Iterable[str]) -> str:
    """`noise.rate` for `network.noise.rate`, as far as that stays unique."""
    parts = key.split(".")
    ends = [other.split(".") for other in keys]
    for length in range(min(2, len(parts)), len(parts)):
        if sum(other[-length:] == parts[-length:] for other in ends) == 1:
            return ".".join(parts[-length:])
    return key


def _config_cells(
    study: Study, group: Group, effect: Effect | None, back: float | None
) -> list[Cell]:
    row, digits = group.row, 2 if study.score == "test_error" else 4
    interval_ = interval(study, effect).removeprefix("95 % CI ") if effect else NONE
    has = effect is not None and effect.found.low is not None
    word = "baseline" if group.is_baseline else brief(effect) if effect else NONE
    return [
        Cell(group.label, group.label),
        Cell(str(row["n"]), row["n"]),
        _spread(row[f"{study.score}_mean"], row[f"{study.score}_sd"], digits),
        Cell(
            fixed(effect.value if effect else None, digits, "+"), effect.value if effect else None
        ),
        Cell(interval_ if has else NONE, effect.found.low if effect else None),
        Cell(p_text(effect) if effect else NONE, effect.p if effect else None),
        Cell(word, word),
        Cell(fixed(back, digits, "+"), back),
        _number(row["train_accuracy_eval_mode_mean"], 1),
        _number(row["train_accuracy_train_mode_mean"], 1),
        _number(row["shift_ratio_mean"], 3),
        _number(row["shift_ratio_max"], 3),
        Cell(_layer(study, row["shift_ratio_max_layer"])),
    ]


def brief(effect: Effect) -> str:
    """Whether it is more than chance, in a table's few words."""
    if effect.real:
        return "yes"
    if not effect.testable:
        return "one seed"
    needed = effect.seeds_needed
    return "no" if needed is None else f"no: about {needed:,} seeds"


def _layer(study: Study, name: str | None) -> str:
    return NONE if name is None else study.layers.get(name, visible(name))


def _without_empty(table: Table) -> Table:
    """Without columns in which no row says anything."""
    kept = [
        i
        for i in range(len(table.heads))
        if any(line.cells[i].text not in (NONE, "baseline") for line in table.lines)
    ]
    lines = [Line([line.cells[i] for i in kept], line.group) for line in table.lines]
    heads, numeric = [table.heads[i] for i in kept], [table.numeric[i] for i in kept]
    return Table(table.id, heads, numeric, lines)


def runs_table(study: Study) -> Table:
    """One row a run, also those that do not count."""
    heads = [
        ("config", "the config's name"),
        ("seed", "the run's seed"),
        ("status", "as run.json says"),
        ("test error %", "last epoch"),
        ("test loss", "last epoch"),
        ("shift mean", "mean over BN layers of the shift ratio"),
        ("shift max", "largest over BN layers"),
        ("minutes", "wall time of the run"),
        ("images/s", "in training"),
        ("device", "where it ran"),
        ("started", "UTC"),
    ]
    lines = [
        Line(_run_cells(group, run, counts), group if counts else None)
        for group in study.groups
        for counts, runs in ((True, group.runs), (False, group.others))
        for run in runs
    ]
    numeric = [False, True, False, *[True] * 6, False, False]
    return _without_empty(Table("runs", heads, numeric, lines))


def _run_cells(group: Group, run: RunRecord, counts: bool) -> list[Cell]:
    accuracy, seconds = number(run.summary.get("test_accuracy")), number(run.run.get("seconds"))
    status = run.status if counts else f"{run.status}, not counted"
    return [
        Cell(group.label, group.label),
        Cell(str(run.seed), run.seed),
        Cell(status, status),
        _number(None if accuracy is None else 100 - accuracy, 2),
        _number(number(run.summary.get("test_loss")), 4),
        _number(number(run.summary.get("shift_ratio_mean")), 3),
        _number(number(run.summary.get("shift_ratio_max")), 3),
        _number(None if seconds is None else seconds / 60, 1),
        _number(number(run.run.get("images_per_second")), 0),
        Cell(shown(run.run.get("device"))),
        Cell(shown(run.run.get("started")).replace("T", " ").removesuffix("+00:00")),
    ]


def differences_table(study: Study) -> Table:
    """One row for each key in which configs differ and each of its values."""
    keys, configs = differing(study.groups)
    lines = []
    for key in keys:
        having: dict[str, list[str]] = {}
        for group in study.groups:
            if group.name in configs:
                having.setdefault(shown(configs[group.name].get(key)), []).append(group.label)
        for value, labels in having.items():
            cells = [Cell(key, key), Cell(value, value), Cell(str(len(labels)), len(labels))]
            lines.append(Line([*cells, Cell(", ".join(labels))]))
    heads = [
        ("key", "in config.yaml"),
        ("value", "its value"),
        ("configs", "how many have it"),
        ("which", "their names"),
    ]
    return Table("differences", heads, [False, False, True, False], lines)
