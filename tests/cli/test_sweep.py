"""`vshift sweep` from the command line."""

import json
from pathlib import Path

from tests.cli.conftest import CONFIG, refused


def test_sweep_runs_a_grid_ends_with_its_table_and_skips_what_is_done(vshift, config):
    grid = ["--set", "grid={network.noise.rate: [0.1, 0.3]}"]
    code, out, err = vshift("sweep", config, *grid, "--dry-run")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert err.startswith("timing some training steps of preresnet-8 on cpu")
    assert "\n2 runs, 2 to do: about " in err
    assert "; from training steps timed now on random images where no run is finished yet" in err
    code, _, err = vshift("sweep", config, *grid, "--dry-run", "--slurm")
    assert (code, "the time of 2 of them is unknown" in err) == (0, True)
    code, table, err = vshift("sweep", config, *grid, "--jobs", "2")
    assert code == 0, err
    assert "2 runs: 2 waiting" in err
    assert err.count("next: ") == 1
    assert err.endswith("\nnext: vshift report runs\n")
    assert len(list(Path("runs").rglob("summary.json"))) == 2
    assert table == vshift("compare", "runs")[1]
    assert "small-rate=0.1" in table
    code, again, err = vshift("sweep", config, *grid, "--slurm")  # nothing to submit
    assert "2 runs: 2 done" in err
    assert (code, again) == (0, table)
    code, out, err = vshift("sweep", config, *grid, "--seed", 0, "--seed", 1, "--dry-run", "--json")
    rows = json.loads(out)
    assert [row["state"] for row in rows] == ["done", "done", "new", "new"]
    assert rows[2]["seconds_left"] > 0
    assert "4 runs, 2 to do: about" in err


def test_a_shard_is_a_part_of_the_runs(vshift, config):
    words = ["sweep", config, *(w for n in range(5) for w in ("--seed", n)), "--dry-run", "--shard"]
    parts = [vshift(*words, f"{i}/2")[1].splitlines() for i in (1, 2)]
    assert [len(part) for part in parts] == [3, 2]
    assert len({line for part in parts for line in part}) == 5
    assert "write i/n" in refused(vshift, *words, "3/2")


def test_a_sweep_without_its_images_is_one_error(vshift, config):
    sets = ["--set", "data={name: imagefolder, root: nowhere}", "--seed", 0, "--seed", 1]
    for more in ([], ["--slurm"]):
        err = refused(vshift, "sweep", config, *sets, *more)
        assert err.count("there is no folder") == 1


def test_options_of_slurm_are_checked(vshift, config):
    assert "--time 1h" in refused(vshift, "sweep", config, "--slurm", "--time", "1h")
    err = refused(vshift, "sweep", config, "--slurm", "--slurm-set", "array=3")
    assert "--slurm-set array=3: --jobs sets how many run at a time" in err


def test_sweep_runs_arms_also_the_one_that_changes_nothing(vshift, config):
    arms = ["--set", "arms={same: {}, quiet: {network.noise: null}}", "--set", "grid={epochs: [1]}"]
    code, _, err = vshift("sweep", config, *arms)
    assert code == 0, err
    names = {path.parent.parent.name for path in Path("runs").rglob("summary.json")}
    assert names == {"small-same-epochs=1", "small-quiet-epochs=1"}


def test_sweep_names_the_runs_that_failed(vshift, config):
    sets = ["--set", "norm={kind: none}", "--set", "optimizer={name: sgd, learning_rate: 1e30}"]
    code, _, err = vshift("sweep", config, *sets)
    assert code == 1
    assert "1 of 1 run failed:\n  small seed 0: diverged, see runs/small/seed-0.log" in err


def test_sweep_refuses_two_configs_of_one_name(vshift, config, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "small.yaml").write_text(CONFIG + "average: {kind: ema}\n")
    err = refused(vshift, "sweep", config, tmp_path / "more")
    assert "both make a run named small seed 0" in err
