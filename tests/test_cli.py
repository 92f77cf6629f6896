"""The command line as a person uses it: output, exit codes, and what bad input gets."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

CONFIG = """
data: {name: shapes, train: 200, test: 100, batch_size: 50}
network:
  name: preresnet
  depth: 8
  noise: {kind: dropout, rate: 0.5, position: before_last_bn}
epochs: 1
measure: {eval_batches: 2}
hardware: {device: cpu, precision: float32, threads: 1}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


def refused(vshift, *words, runs=Path("runs")):
    """The message of a command that must end with exit code 2 and write nothing."""
    code, out, err = vshift(*words)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert not list(runs.rglob("*.json*")) if runs.exists() else True
    return err


def test_help_is_quick_and_imports_no_torch():
    command = [sys.executable, "-X", "importtime", "-m", "vshift", "--help"]
    took = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        took.append(time.perf_counter() - began)
    assert "train" in done.stdout
    for package in ("torch", "pydantic", "rich", "pandas", "vshift.config"):
        assert f" {package}\n" not in done.stderr
    assert min(took) < 0.5


@pytest.mark.parametrize("words", [["check"], ["train", "--dry-run"]])
def test_check_and_dry_run_import_no_torch(config, words):
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "vshift",
        words[0],
        str(config),
        *words[1:],
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert " torch\n" not in done.stderr


def test_version(vshift):
    from vshift import __version__

    assert vshift("--version") == (0, f"{__version__}\n", "")


def test_train_then_compare_then_train_again(vshift, config):
    code, out, err = vshift("train", config)
    assert (code, out) == (0, "")
    assert "small seed 0  epoch 1/1" in err
    assert "shift ratio" in err
    folder = Path("runs/small/seed-0")
    assert json.loads((folder / "run.json").read_text())["status"] == "done"

    code, out, err = vshift("compare", "runs", "--format", "json")
    row = json.loads(out)[0]
    assert (row["name"], row["n"]) == ("small", 1)

    before = (folder / "metrics.jsonl").read_bytes()
    code, _, err = vshift("train", config)
    assert code == 0
    assert "is done; --fresh trains it again" in err
    assert (folder / "metrics.jsonl").read_bytes() == before

    code, _, err = vshift("train", config, "--set", "network.noise.rate=0.3")
    assert code == 2
    assert "network.noise.rate: 0.5 there, 0.3 now" in err
    assert vshift("train", config, "--set", "network.noise.rate=0.3", "--fresh")[0] == 0


def test_the_saved_config_trains_the_same_run_again(vshift, config):
    vshift("train", config, "--seed", "3")
    saved = Path("runs/small/seed-3/config.yaml")
    assert vshift("train", saved, "--runs-dir", "again")[0] == 0
    rows = [json.loads(Path(d, "small/seed-3/layers.jsonl").read_text().split("\n")[0])
            for d in ("runs", "again")]  # fmt: skip
    assert rows[0] == rows[1]


def test_every_seed_of_the_config_is_trained(vshift, config):
    assert vshift("train", config, "--set", "seeds=[4, 5]")[0] == 0
    assert sorted(p.name for p in Path("runs/small").iterdir()) == ["seed-4", "seed-5"]


def test_seeds_of_the_command_line_are_repeatable_and_checked(vshift, config):
    assert vshift("train", config, "--seed", 4, "--seed", 5)[0] == 0
    assert sorted(p.name for p in Path("runs/small").iterdir()) == ["seed-4", "seed-5"]
    assert "seeds" in refused(vshift, "sweep", config, "--seed", "-1", runs=Path("elsewhere"))


def test_a_run_goes_on_with_the_threads_it_began_with(vshift, config, monkeypatch):
    from vshift.train.loop import TrainStep

    original, calls = TrainStep.__call__, []

    def stop(self, *args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        original(self, *args)

    words = ["train", config, "--set", "hardware.threads=null", "--set", "epochs=2"]
    torch.set_num_threads(1)
    monkeypatch.setattr(TrainStep, "__call__", stop)
    assert vshift(*words)[0] == 130
    monkeypatch.setattr(TrainStep, "__call__", original)
    torch.set_num_threads(2)
    code, _, err = vshift(*words)
    assert code == 0
    assert "with 1 thread, as it began" in err
    assert "threads: 1" in Path("runs/small/seed-0/config.yaml").read_text()


def test_data_fetch_of_an_unknown_set(vshift):
    err = refused(vshift, "data", "fetch", "cifar")
    assert "did you mean `cifar10`?" in err
    assert "shapes is drawn by code" in refused(vshift, "data", "fetch", "shapes")


def test_a_folder_of_folders_names_those_with_configs(vshift, config, tmp_path):
    (tmp_path / "all" / "mine").mkdir(parents=True)
    (tmp_path / "all" / "mine" / "a.yaml").write_text(CONFIG)
    assert "there are some in mine" in refused(vshift, "check", tmp_path / "all")


def test_quiet_says_nothing(vshift, config):
    assert vshift("train", config, "--quiet") == (0, "", "")


def test_dry_run_writes_nothing(vshift, config):
    code, out, _ = vshift("train", config, "--dry-run")
    assert code == 0
    assert "small/seed-0: new, 1 epoch of shapes" in out
    assert not Path("runs").exists()


def test_divergence_ends_with_exit_code_1(vshift, config):
    sets = ["--set", "norm={kind: none}", "--set", "optimizer={name: sgd, learning_rate: 1e30}"]
    code, _, err = vshift("train", config, *sets)
    assert code == 1
    assert "the loss became NaN or infinite with seed 0" in err
    assert json.loads(Path("runs/small/seed-0/run.json").read_text())["status"] == "diverged"
    assert Path("runs/small/seed-0/metrics.jsonl").read_text()
    code, _, err = vshift("train", config, *sets)
    assert code == 1
    assert "--fresh trains the run again" in err


def test_interrupt_ends_with_130_and_can_go_on(vshift, config, monkeypatch):
    from vshift.train.loop import TrainStep

    def stop(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainStep, "__call__", stop)
    code, _, err = vshift("train", config)
    assert code == 130
    assert "repeat the command to resume" in err
    assert json.loads(Path("runs/small/seed-0/run.json").read_text())["status"] == "interrupted"
    monkeypatch.undo()
    monkeypatch.chdir(config.parent)
    assert vshift("train", config)[0] == 0
    assert json.loads(Path("runs/small/seed-0/run.json").read_text())["status"] == "done"


def test_bad_configs_are_refused(vshift, config):
    err = refused(vshift, "train", config, "--set", "network.noize=1")
    assert "did you mean `noise`?" in err
    err = refused(vshift, "train", config, "--set", "network.noise.rate=1")
    assert "network.noise.rate" in err
    err = refused(vshift, "train", config, "--set", "network.block=bn relu")
    assert "no conv" in err
    err = refused(vshift, "train", config.with_name("missing.yaml"))
    assert "missing.yaml" in err


def test_a_grid_is_explained(vshift, config):
    err = refused(vshift, "train", config, "--set", "grid={network.noise.rate: [0.1, 0.3]}")
    assert "vshift sweep" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; the refusal cannot happen")
def test_cuda_where_there_is_none(vshift, config):
    err = refused(vshift, "train", config, "--device", "cuda")
    assert "hardware.device: cuda is not available" in err
    assert "--device cpu" in err


def test_missing_and_misfitting_images(vshift, config, tmp_path):
    err = refused(vshift, "train", config, "--set", "data={name: imagefolder, root: nowhere}")
    assert "nowhere" in err
    err = refused(
        vshift, "train", config, "--set", "network={name: vgg, depth: 11}",
        "--set", "norm={kind: group, groups: 7}",
    )  # fmt: skip
    assert "7 groups do not divide" in err


def test_a_last_batch_of_one_image_in_an_mlp(vshift, config):
    err = refused(
        vshift, "train", config, "--set", "network={name: mlp}", "--set", "data.batch_size=199"
    )
    assert "would hold a single one" in err


def test_a_runs_directory_that_cannot_be_written(vshift, config, tmp_path):
    (tmp_path / "file").write_text("")
    err = refused(vshift, "train", config, "--runs-dir", tmp_path / "file")
    assert str(tmp_path / "file") in err


def test_inspect_json(vshift, config):
    code, out, _ = vshift("inspect", config, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["parameters"] == 77850
    assert found["bn_layers"] == 7
    assert {"name", "op", "output_shape"} == set(found["layers"][0])


def test_inspect_text_shows_the_block_order(vshift, config):
    _, out, _ = vshift("inspect", config)
    assert "block order: bn relu conv3x3 noise1 bn relu conv3x3" in out
    assert "77,850 parameters" in out


def test_check_remarks_on_a_data_root_that_is_not_here(vshift, config, tmp_path):
    config.write_text(CONFIG.replace("{name: shapes, train: 200, test: 100, batch_size: 50}",
                                     "{name: imagefolder, root: elsewhere}"))  # fmt: skip
    code, out, err = vshift("check", config.name)
    assert (code, out) == (0, "small.yaml: ok, 1 run\n")
    missing = tmp_path / "elsewhere"
    assert err == f"warning: small.yaml: data.root: there is no folder {missing} on this machine\n"
    (tmp_path / "elsewhere").mkdir()
    assert vshift("check", config.name) == (0, "small.yaml: ok, 1 run\n", "")


def test_check_shows_the_problems_of_every_file(vshift, config, tmp_path):
    (tmp_path / "bad.yaml").write_text(CONFIG.replace("epochs", "epoch"))
    (tmp_path / "worse.yaml").write_text(CONFIG.replace("rate: 0.5", "rate: 2"))
    code, out, err = vshift("check", tmp_path)
    assert code == 2
    assert "small.yaml: ok, 1 run" in out
    assert "bad.yaml:" in err
    assert "worse.yaml:" in err


def test_recalibrate(vshift, config):
    vshift("train", config)
    code, out, _ = vshift("recalibrate", "runs/small/seed-0", "--method", "precise", "--batches", 3)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "runs/small/seed-0", "method", "none", "precise",
    ]  # fmt: skip
    code, out, _ = vshift("recalibrate", "runs", "--json", "--set", "recalibration.batches=2")
    (rows,) = json.loads(out).values()
    assert [row["method"] for row in rows] == ["none", "precise", "swap", "layerwise"]
    assert rows[1]["batches"] == 2
    code, _, err = vshift("recalibrate", "runs", "--method", "prcise")
    assert code == 2
    assert "did you mean `precise`" in err
    code, out, _ = vshift("recalibrate", Path("runs").rename("\x1b[1mruns"))
    assert code == 0
    assert out.startswith("\\x1b[1mruns/small/seed-0\n")


def test_schema_is_json(vshift):
    code, out, _ = vshift("schema")
    assert code == 0
    assert "network" in json.loads(out)["properties"]


def test_data_list_names_every_set(vshift):
    _, out, _ = vshift("data", "list")
    for name in ("shapes", "cifar10", "cifar100", "imagefolder"):
        assert name in out


def test_sweep_runs_a_grid_ends_with_its_table_and_skips_what_is_done(vshift, config):
    grid = ["--set", "grid={network.noise.rate: [0.1, 0.3]}"]
    code, out, err = vshift("sweep", config, *grid, "--dry-run")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "2 runs, 2 to do; the time of 2 of them is unknown" in err
    code, table, err = vshift("sweep", config, *grid, "--jobs", "2")
    assert code == 0, err
    assert "2 runs, 0 of them done" in err
    assert len(list(Path("runs").rglob("summary.json"))) == 2
    assert table == vshift("compare", "runs")[1]
    assert "small-rate=0.1" in table
    code, again, err = vshift("sweep", config, *grid, "--slurm")  # nothing to submit
    assert "2 runs: 2 done" in err
    assert (code, again) == (0, table)
    code, out, err = vshift("sweep", config, *grid, "--seed", 0, "--seed", 1, "--dry-run", "--json")
    rows = json.loads(out)
    assert [row["state"] for row in rows] == ["done", "new", "done", "new"]
    assert rows[1]["seconds_left"] > 0
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
    assert "1 of 1 runs failed:\n  small seed 0: diverged, see runs/small/seed-0.log" in err


def test_sweep_refuses_two_configs_of_one_name(vshift, config, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "small.yaml").write_text(CONFIG)
    err = refused(vshift, "sweep", config, tmp_path / "more")
    assert "both make a run named small seed 0" in err


def test_output_into_a_closed_pipe_is_quiet(config):
    done = subprocess.run(
        f"{sys.executable} -m vshift inspect {config} | head -1",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert "preresnet" in done.stdout


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
    assert (code, err) == (0, "--where keeps 4 of 4 runs\n")
    assert [row["network.noise.rate"] for row in json.loads(out)] == [0.5, None]


def test_compare_pivot_metrics_and_html(vshift, study):
    words = ["--rows", "network.noise.position", "--columns", "network.noise.rate"]
    code, out, _ = vshift("compare", "runs", *words, "--value", "difference", "--format", "md")
    assert code == 0
    assert "| none | baseline | – |" in out
    code, out, _ = vshift("compare", "runs", "--metrics", "shift_ratio_mean", "--format", "html")
    assert code == 0
    assert out.startswith('<table class="vshift">')
    assert "shift_ratio_mean" in out
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
        (["--by", "rate"], "did you mean `network.noise.rate`?"),
        (["--view", "table5"], "there are: figure4, table3, table4, table6"),
        (["--metrics", "accuracy"], "--metrics: no summary.json has a `accuracy`"),
        (["--difference", "nothing"], "--difference: no summary.json has a `nothing`"),
        (["--view", "figure4", "--by", "seed"], "--by cannot be combined with --view"),
    ):
        code, out, err = vshift("compare", "runs", *words)
        assert (code, out) == (2, ""), words
        assert message in err
        assert "Traceback" not in err
