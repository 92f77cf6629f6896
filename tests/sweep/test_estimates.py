"""How long runs take, and what a dry run says of it."""

import json

import pytest

from tests.configs import make_config
from vshift.config import dump
from vshift.sweep.estimates import RuntimeEstimator, cost_key, dry_run, makespan


def test_configs_of_one_kind_differ_in_what_costs_no_time():
    noise = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
    one = make_config()
    same = make_config(
        name="b", epochs=9, optimizer={"learning_rate": 0.3}, norm={"kind": "batch", "momentum": 1},
        network={"name": "preresnet", "depth": 8, "noise": noise},
        hardware={"device": "cpu", "precision": "float32", "threads": 2},
    )  # fmt: skip
    assert cost_key(one) == cost_key(same)
    assert cost_key(one) != cost_key(make_config(network={"name": "preresnet", "depth": 20}))
    assert cost_key(one) != cost_key(
        make_config(data={"name": "shapes", "train": 400, "test": 100})
    )
    assert cost_key(one) != cost_key(
        make_config(hardware={"device": "auto", "precision": "float32"})
    )


def test_the_median_time_an_epoch_times_the_epochs():
    estimator, config = RuntimeEstimator(), make_config(epochs=2)
    assert estimator.seconds(config) is None
    assert estimator.seconds(config, guess=True) is None
    for seconds in (10.0, 12.0, 1000.0, None, 0.0):
        estimator.add(config, seconds)
    assert estimator.seconds(config) == 12.0
    assert estimator.seconds(make_config(epochs=5)) == 30.0
    other = make_config(network={"name": "mlp"})
    assert estimator.seconds(other) is None
    assert estimator.seconds(other, guess=True) == 12.0


@pytest.mark.parametrize(
    ("running", "waiting", "places", "seconds"),
    [
        ([], [], 2, 0.0),
        ([], [10, 10, 10], 1, 30.0),
        ([], [10, 10, 10], 2, 20.0),
        ([5], [10, 10], 2, 15.0),
        ([5, 7], [], 2, 7.0),
        ([5, 7, 9], [10], 2, 17.0),  # more running than places: somebody lowered --jobs
    ],
)
def test_makespan(running, waiting, places, seconds):
    assert makespan(running, waiting, places) == seconds


def test_a_dry_run_says_what_it_cannot_know(bench):
    lines, rows, total = dry_run(bench.jobs, bench.runs, 2, False)
    assert lines.splitlines() == [f"{bench.runs}/s/seed-{n}: new" for n in range(3)]
    assert [row["seconds_left"] for row in json.loads(rows)] == [None] * 3
    assert total == (
        "3 runs, 3 to do; the time of 3 of them is unknown: no finished run in this --runs-dir "
        "has their data, network and hardware"
    )
    assert not bench.runs.exists()


def test_a_dry_run_estimates_from_the_sweeps_own_runs(bench):
    bench.seeds = 1
    bench.sweep()
    run = bench.runs / "s" / "seed-0" / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "seconds": 600.0}))
    bench.seeds = 4
    lines, rows, total = dry_run(bench.jobs, bench.runs, 2, False)
    assert lines.splitlines()[0].endswith("seed-0: done")
    assert lines.splitlines()[1].endswith("seed-1: new, about 10 min")
    assert json.loads(rows)[1] == {
        "name": "s", "seed": 1, "path": str(bench.runs / "s" / "seed-1"), "state": "new",
        "by": None, "epochs": 2, "seconds_left": 600.0,
    }  # fmt: skip
    assert total == "4 runs, 3 to do: about 30 min one after the other, 20 min with 2 at a time"
    assert dry_run(bench.jobs, bench.runs, 2, True)[2].startswith("4 runs, 4 to do: about 40 min")


def test_what_is_left_of_an_interrupted_run_counts(bench):
    bench.seeds = 1
    bench.sweep()
    bench.seeds = 2
    (bench.runs / "s" / "seed-1").mkdir()
    run = json.loads((bench.runs / "s" / "seed-0" / "run.json").read_text())
    (bench.runs / "s" / "seed-0" / "run.json").write_text(json.dumps({**run, "seconds": 100.0}))
    folder = bench.runs / "s" / "seed-1"
    (folder / "run.json").write_text(json.dumps({**run, "status": "interrupted", "seed": 1}))
    (folder / "checkpoint.pt").write_bytes(b"")
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    lines, _, _ = dry_run(bench.jobs, bench.runs, 1, False)
    assert lines.splitlines()[1].endswith("seed-1: resume, about 50 s")


def test_other_runs_in_the_folder_tell_too(bench):
    """An earlier study of the same network, with another name and more noise."""
    config = bench.jobs[0].config.model_copy(update={"name": "earlier", "epochs": 10})
    folder = bench.runs / "earlier" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config))
    run = {"status": "done", "seconds": 100.0, "name": "earlier", "seed": 0, "finished": "2026"}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "summary.json").write_text("{}")
    damaged = bench.runs / "damaged" / "seed-0"
    damaged.mkdir(parents=True)
    (damaged / "run.json").write_text(json.dumps({**run, "name": "damaged"}))
    (damaged / "summary.json").write_text("{}")
    assert "about 20 s" in dry_run(bench.jobs, bench.runs, 1, False)[0]
