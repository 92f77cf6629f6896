"""The files of studies in docs/data, their tables and the page in docs/ say the same numbers."""

import tarfile
from pathlib import Path

import pandas as pd
import pytest

from vshift import load_runs

DOCS = Path(__file__).parents[1] / "docs"
EXACT_ERRORS = 3  # standard errors within which a prediction called exact is said to hold


def unpacked(study: str, folder: Path):
    with tarfile.open(DOCS / "data" / f"{study}.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    return load_runs(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return unpacked("headline", tmp_path_factory.mktemp("headline"))


def spread(values: pd.Series) -> str:
    mean = f"{values.mean():.2f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std():.2f}"


def test_the_table_and_the_page_are_those_of_the_runs(runs):
    table = (DOCS / "studies.md").read_text("utf-8")
    page = (DOCS / "headline.html").read_text("utf-8")
    rows = runs.summary.groupby("name")
    assert len(rows) == 10
    for name, seeds in rows:
        error = spread(seeds["test_error"])
        monte_carlo = 100 - seeds["monte_carlo_accuracy"].mean()
        row = [str(len(seeds)), error, spread(seeds["test_error_recalibrated"])]
        row += [f"{monte_carlo:.2f}", f"{seeds['shift_ratio_mean'].mean():.3f}"]
        row += [f"{seeds['shift_ratio_max'].mean():.3f}"]
        assert f"| {' | '.join(row)} |" in table, name
        assert error in page, name


def test_how_many_exact_predictions_hold(runs):
    layers = runs.final_layers
    noisy = layers[layers["noise_before"] & layers["predicted_exact"].eq(True)]
    errors = (noisy["local_ratio_se"] ** 2 + noisy["predicted_ratio_se"] ** 2) ** 0.5
    distance = ((noisy["local_ratio"] - noisy["predicted_ratio"]) / errors).abs()
    held = f"{(distance <= EXACT_ERRORS).sum()} of the {len(distance)}"
    text, readme = (
        path.read_text("utf-8").replace("\n", " ")
        for path in (DOCS / "studies.md", DOCS.parent / "README.md")
    )
    assert f"{held} checks, one for each run and layer" in " ".join(text.split())
    assert f"is {distance.max():.1f} standard errors off" in text
    assert f"within {EXACT_ERRORS} standard errors of the measured one in {held} checks" in readme


def test_deep_and_wide_are_what_their_table_says(tmp_path):
    runs = unpacked("deep-wide", tmp_path)
    table = (DOCS / "studies.md").read_text("utf-8")
    layers = runs.final_layers
    last_bns = layers[layers["layer"].str.endswith("branch.bn2")]
    dcos2 = last_bns.groupby("name")["dcos2"].median()
    assert len(runs.summary) == 6
    for run in runs.summary.itertuples():
        row = [f"{run.test_error:.2f}", f"{run.test_error_recalibrated:.2f}"]
        row += [f"{ratio:.3f}" for ratio in (run.shift_ratio_mean, run.shift_ratio_max)]
        assert f"| {' | '.join(row)} | {dcos2[run.name]:.2f} |" in table, run.name
