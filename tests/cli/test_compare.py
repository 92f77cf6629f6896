"""`vshift compare` from the command line."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def study(vshift):
    """Three fabricated runs of a study below runs/."""
    from tests.factory import config_of, dropout, make_run

    for seed in range(2):
        make_run(Path("runs"), "none", seed, 95.0 + seed)
        make_run(Path("runs"), "noisy", seed, 85.0 + seed, config=config_of(noise=dropout(0.5)))


def test_compare_by_where_and_sort(vshift, study):
    code, out, err = vshift(
        "compare", "runs", "--by", "network.noise.rate", "--sort", "-test_error",
        "--where", "seed <= 1", "--format", "json",
    )  # fmt: skip
    assert (code, err) == (0, "note: --where keeps 4 of 4 runs\n")
    assert [row["network.noise.rate"] for row in json.loads(out)] == [0.5, None]


def test_a_table_ends_with_what_comes_next(vshift, study):
    _, out, err = vshift("compare", "runs", "--baseline", "none")
    assert err.endswith("next: vshift report runs --baseline none\n")
    assert "next:" not in out
    assert "next:" not in vshift("compare", "runs", "--format", "csv")[2]


def test_compare_pivot_metrics_and_html(vshift, study):
    words = ["--rows", "network.noise.position", "--columns", "network.noise.rate"]
    code, out, _ = vshift("compare", "runs", *words, "--value", "difference", "--format", "md")
    assert code == 0
    assert "| none | baseline | – |" in out
    code, out, _ = vshift("compare", "runs", "--metrics", "shift_ratio_mean", "--format", "html")
    assert code == 0
    assert out.startswith('<table class="vshift">')
    assert "mean shift ratio" in out
    _, out, _ = vshift("compare", "runs", "--difference", "test_loss", "--format", "json")
    assert [row["difference"] for row in json.loads(out)] == [0.0, 0.0]


def test_compare_views(vshift, study):
    from tests.factory import dropout, make_run

    net = {"name": "preresnet", "depth": 8, "noise": dropout(0.5)}
    config = {"data": {"name": "shapes"}, "network": net, "epochs": 1}
    make_run(Path("runs"), "shapes", config=config)
    code, out, err = vshift("compare", "runs", "--view", "figure4")
    assert code == 0
    assert "ours (n=1)" in out
    assert "Li et al." not in out
    assert "noisy" not in err


def test_compare_refuses_in_words(vshift, study):
    for words, message in (
        (["--where", "network.noise.rte == 1"], "did you mean `network.noise.rate`?"),
        (["--by", "network.noise.rte"], "did you mean `network.noise.rate`?"),
        (["--view", "table5"], "there are: figure4, table3, table4, table6"),
        (["--metrics", "accuracy"], "--metrics accuracy: no summary.json has it"),
        (["--difference", "nothing"], "--difference nothing: no summary.json has it"),
        (["--view", "figure4", "--by", "seed"], "--by cannot be combined with --view"),
    ):
        code, out, err = vshift("compare", "runs", *words)
        assert (code, out) == (2, ""), words
        assert message in err
        assert "Traceback" not in err
