"""One fabricated study for all tests of the report: nothing changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.study import make_study
from vshift.report.study import Study, collect
from vshift.runs import find_runs


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("runs") / "study")


@pytest.fixture(scope="session")
def study(study_folder: Path) -> Study:
    return collect(find_runs([study_folder]))
