"""`vshift train` from the command line: output, exit codes, and what bad input gets."""

import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import refused


def test_train_then_compare_then_train_again(vshift, config):
    code, out, err = vshift("train", config)
    assert (code, out) == (0, "")
    assert "small seed 0  epoch 1/1" in err
    assert "  shift " in err
    folder = Path("runs/small/seed-0")
    assert json.loads((folder / "run.json").read_text())["status"] == "done"

    code, out, err = vshift("compare", "runs", "--format", "json")
    row = json.loads(out)[0]
    assert (row["name"], row["n"]) == ("small", 1)

    before = (folder / "metrics.jsonl").read_bytes()
    code, _, err = vshift("train", config)
    assert code == 0
    assert "note: runs/small/seed-0 is done; --fresh trains it again" in err
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
    code, _, err = vshift("train", config, "--set", "seeds=[4, 5]")
    assert code == 0
    assert err.count("next: ") == 1
    assert err.endswith("\nnext: vshift compare runs\n")
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
