"""`check` and `train` agree: what the one accepts, the other finishes or refuses in a sentence.

`make soak` tries 10,000 configs; GENERATED chooses another number.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.soak.generated import configs
from vshift.config import load
from vshift.errors import ConfigError, DataError, TrainingFailed
from vshift.runs import find_runs, prepare
from vshift.sweep.plan import expand_all
from vshift.train.progress import Reporter
from vshift.train.run import train_seeds

GENERATED = int(os.environ.get("GENERATED", "100"))


@pytest.mark.timeout(0)
def test_what_check_accepts_is_trained_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    ends = Counter[str]()

    @settings(
        max_examples=GENERATED, deadline=None, derandomize=GENERATED <= 1000, print_blob=True,
        suppress_health_check=[*HealthCheck],
    )  # fmt: skip
    @given(configs())
    def agree(content: dict[str, Any]) -> None:
        folder = tmp_path_factory.mktemp("generated")
        path = folder / "generated.yaml"
        path.write_text(json.dumps(content))
        try:
            expand_all([path], [])
            accepted = True
        except ConfigError:
            accepted = False
        end = trained(path, folder / "runs")
        ends[end if accepted else "refused by check"] += 1
        assert accepted or end.startswith("refused"), "check refuses what train does"

    agree()
    print(*(f"{n} {end}" for end, n in ends.most_common()), sep="\n")
    assert ends["done"] > sum(ends.values()) / 3, "too few are trained for the test to show much"


def trained(path: Path, runs: Path) -> str:
    """How `vshift train` ended; whatever is no sentence for people is raised."""
    try:
        train_seeds(load(path), runs, False, Reporter(quiet=True))
    except TrainingFailed:
        return "diverged"
    except (ConfigError, DataError) as error:
        return f"refused: {str(error)[:60]}"
    (record,) = find_runs([runs])
    assert (record.status, record.problems) == ("done", [])
    assert record.summary
    assert prepare(runs, load(path), 0)[1] == "done"
    return "done"
