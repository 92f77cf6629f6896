"""What is kept of a bench: statistics, the JSON file, and what is not one."""

import json

import pytest

from benchmarks.results import Series, paired, read_results, slug
from tests.benchmarks.results import BOUND, make_results
from vshift.errors import VShiftError


def test_median_and_range_of_repeats():
    series = Series.of([3.0, 1.0, 10.0, 2.0])
    assert (series.median, series.low, series.high) == (2.5, 1.0, 10.0)
    assert series.values == [3.0, 1.0, 10.0, 2.0]


def test_ratios_are_taken_within_a_repeat():
    """A drift that slows both by half leaves every ratio alone."""
    ratio = paired(Series.of([2.0, 4.0, 2.0]), Series.of([1.0, 2.0, 1.0]))
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_shares_of_bounds():
    shares = BOUND.shares(500)
    assert (shares.arithmetic, shares.eager) == (0.125, 0.5)
    assert (shares.inductor, shares.ideal) == (0.25, pytest.approx(1 / 6))


def test_a_file_holds_everything_and_is_read_back(tmp_path):
    results = make_results()
    path = results.write(tmp_path / "new" / "a.json")
    assert read_results(path) == results
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
    tree = json.loads(path.read_text())
    assert tree["version"] == 1
    case = tree["cases"][0]
    assert case["contenders"][0]["seconds"]["values"] == [1.01, 2.02, 1.01]
    assert case["contenders"][2]["peer"] == "plain"
    assert {"network", "batch", "noise", "images", "bounds", "ratios", "logging"} < case.keys()
    assert {"python", "torch"} < tree["versions"].keys()
    assert {"name", "threads", "clock_mhz", "flops"} < tree["device"].keys()


def test_in_a_folder_a_file_is_named_for_the_device(tmp_path):
    assert make_results().write(tmp_path).name == "some-processor-2-threads.json"
    gpu = make_results(kind="cuda", name="NVIDIA H100 80GB HBM3")
    assert gpu.write(tmp_path).name == "nvidia-h100-80gb-hbm3.json"
    assert slug(gpu.device) == "nvidia-h100-80gb-hbm3"


def test_what_is_no_results_file(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(VShiftError, match=r"a\.json: cannot be read"):
        read_results(path)
    path.write_text('{"version": 1, "steps": "many"}')
    with pytest.raises(VShiftError, match="not a file of `vshift bench --json` of this version"):
        read_results(path)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VShiftError, match=r"cannot write --json .*choose another --json"):
        make_results().write(tmp_path / "file" / "a.json")
