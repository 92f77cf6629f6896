"""Every planted fault and every healthy model over several seeds: what the audit says.

    python -m benchmarks.audit_confusion --seeds 5 > table.md

Rows of the first table are faults of `examples/broken_models.py`: in how many seeds the right
finding names a right layer, what else is found in the broken model, and what in its healthy twin.
Rows of the second are models that an audit must be silent about. About 15 seconds a seed on one
CPU core.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import torch

from examples.broken_models import FAULTS, examine
from tests.auditing.silent import SILENT


def faults(seeds: range) -> list[str]:
    lines = [
        "| planted | found, right layer | found, other layer | also found | in the healthy twin |",
        "| :-- | --: | --: | :-- | :-- |",
    ]
    for code, make in FAULTS.items():
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


def silent(seeds: range) -> list[str]:
    lines = ["| healthy model | silent | found |", "| :-- | --: | :-- |"]
    for make in SILENT:
        found = [Counter(f.code for f in examine(make(seed)).findings) for seed in seeds]
        quiet = sum(not codes for codes in found)
        said = _said(sum(found, Counter()))
        lines.append(f"| {make.__name__.replace('_', ' ')} | {quiet}/{len(seeds)} | {said} |")
        print(lines[-1], file=sys.stderr)
    return lines


def _said(codes: Counter[str]) -> str:
    return ", ".join(f"`{code}` ×{n}" for code, n in codes.items()) or "–"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=400)
    asked = parser.parse_args()
    wanted = range(asked.first, asked.first + asked.seeds)
    torch.set_num_threads(1)
    print("\n".join([*faults(wanted), "", *silent(wanted)]))
