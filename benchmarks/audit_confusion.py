"""Every planted fault and every healthy model over several seeds: what the audit says.

    python -m benchmarks.audit_confusion --seeds 5 > table.md
    python -m benchmarks.audit_confusion --only "healthy*"     # rows whose names fit

Rows of the first table are faults of `examples/broken_models.py`: in how many seeds the right
finding names a right layer, what else is found in the broken model, and what in its healthy twin.
Rows of the second are models that an audit must be silent about, and rows of the third further
faults of `tests/auditing/kinds.py`, in an MLP and in a convolutional network. About 75 seconds per
seed on one CPU core.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from functools import partial
from typing import TypeVar

import torch

from examples.broken_models import FAULTS, examine
from tests.auditing.kinds import KINDS
from tests.auditing.nets import NETS
from tests.auditing.silent import SILENT

T = TypeVar("T")


def fitting(rows: Iterable[tuple[str, T]], only: Sequence[str]) -> list[tuple[str, T]]:
    """The rows whose names fit one of the patterns."""
    return [row for row in rows if any(fnmatch(row[0], p) for p in only)]


def faults(seeds: range, only: Sequence[str]) -> list[str]:
    lines = [
        "| planted | found, right layer | found, other layer | also found | in the healthy twin |",
        "| :-- | --: | --: | :-- | :-- |",
    ]
    for code, make in fitting(FAULTS.items(), only):
        right = wrong = 0
        also: Counter[str] = Counter()
        twin: Counter[str] = Counter()
        for seed in seeds:
            patient = make(seed, True)
            for finding in examine(patient).findings:
                if finding.code != code:
                    also[finding.code] += 1
                elif finding.layer in patient.layers:
                    right += 1
                else:
                    wrong += 1
            twin.update(finding.code for finding in examine(make(seed, False)).findings)
        lines.append(
            f"| `{code}` | {right}/{len(seeds)} | {wrong} | {_said(also)} | {_said(twin)} |"
        )
        print(lines[-1], file=sys.stderr)
    return lines


def silent(seeds: range, only: Sequence[str]) -> list[str]:
    lines = ["| healthy model | silent | found |", "| :-- | --: | :-- |"]
    named = [(make.__name__.replace("_", " "), make) for make in SILENT]
    for name, kind in KINDS.items():
        if not kind.codes:
            plant = partial(kind.plant, broken=False)
            named += [(f"{name}, {net}", partial(plant, net)) for net in NETS]
    for name, make in fitting(named, only):
        found = [Counter(f.code for f in examine(make(seed)).findings) for seed in seeds]
        quiet = sum(not codes for codes in found)
        said = _said(sum(found, Counter()))
        shown = name.removeprefix("healthy: ")
        lines.append(f"| {shown} | {quiet}/{len(seeds)} | {said} |")
        print(lines[-1], file=sys.stderr)
    return lines


def kinds(seeds: range, only: Sequence[str]) -> list[str]:
    """One row per fault and network."""
    lines = [
        "| kind | network | found, right layer | other layer | also found | in the healthy twin |",
        "| :-- | :-- | --: | --: | :-- | :-- |",
    ]
    for name, kind in fitting([row for row in KINDS.items() if row[1].codes], only):
        for net in NETS:
            right = wrong = 0
            also: Counter[str] = Counter()
            twin: Counter[str] = Counter()
            for seed in seeds:
                twin.update(f.code for f in examine(kind.plant(net, seed, False)).findings)
                patient = kind.plant(net, seed, True)
                for finding in examine(patient).findings:
                    if finding.code not in kind.codes:
                        also[finding.code] += 1
                    elif not patient.layers or finding.layer in patient.layers:
                        right += 1
                    else:
                        wrong += 1
            found = f"{right}/{len(seeds)} | {wrong} | {_said(also)}"
            lines.append(f"| {name} | {net} | {found} | {_said(twin)} |")
            print(lines[-1], file=sys.stderr)
    return lines


def _said(codes: Counter[str]) -> str:
    return ", ".join(f"`{code}` ×{n}" for code, n in codes.items()) or "nothing"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=400)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names of rows")
    asked = parser.parse_args()
    wanted = range(asked.first, asked.first + asked.seeds)
    torch.set_num_threads(1)
    tables = [table(wanted, asked.only) for table in (faults, silent, kinds)]
    print("\n\n".join("\n".join(lines) for lines in tables))
