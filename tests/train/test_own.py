"""Runs of one's own networks: tried before, resumed bit for bit, read without running anything."""

from __future__ import annotations

import json
import signal
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch

from tests.configs import make_config
from tests.soak.harness import Trainer
from vshift import load_runs
from vshift.config import load
from vshift.errors import ConfigError, RunError, TrainingFailed
from vshift.runs import RunFolder, next_action, prepare
from vshift.runs.checkpoint_file import load as load_checkpoint
from vshift.train.context import TrainingContext
from vshift.train.fast_steps import make_train_step
from vshift.train.progress import Reporter
from vshift.train.run import train_seeds

# Forty lines, as somebody writes them: a helper beside it, Python's random numbers, code that
# torch.fx cannot trace.
MY_MODEL = """
import random
import torch
import torch.nn as nn
import torch.nn.functional as F
from helper import widths

print("my_model.py runs")


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.training and random.random() < 0.2:  # stochastic depth, the same for all images
            return F.relu(self.skip(x))
        return F.relu(y + self.skip(x))


class MyNet(nn.Module):
    def __init__(self, num_classes, in_channels=3, depth=2):
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = in_channels
        for width in widths(depth):
            self.blocks.append(Block(channels, width, 2))
            channels = width
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).view(len(x), -1))
"""
HELPER = "def widths(depth):\n    return [4 * 2**i for i in range(depth)]\n"
CONFIG = """
name: own
data: {name: shapes, train: 96, test: 20, batch_size: 32}
network:
  name: my_model.py:MyNet
  args: {depth: 2}
  noise: {kind: dropout, rate: 0.3, before: "blocks.*.bn2"}
epochs: 2
measure: {eval_batches: 2, explain_batches: 2}
recalibration: {methods: [precise], batches: 2}
hardware: {device: cpu, precision: float32, threads: 1}
"""
RESNET = "{name: torchvision:resnet18, noise: {kind: dropout, rate: 0.3, before: layer*.bn2}}"
QUIET = Reporter(quiet=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.yaml").write_text(CONFIG)
    (tmp_path / "my_model.py").write_text(MY_MODEL)
    (tmp_path / "helper.py").write_text(HELPER)
    return tmp_path


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(run / "checkpoint.pt")["model"]
    return state


def assert_same_run(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (one / "layers.jsonl").read_text() == (other / "layers.jsonl").read_text()


def train(
    folder: Path, runs: str, *sets: str, config: str = "own.yaml", fresh: bool = False
) -> Path:
    train_seeds(load(folder / config, sets), folder / runs, fresh, QUIET)
    return folder / runs / "own/seed-0"


@pytest.mark.parametrize("network", ["", f"network={RESNET}"])
def test_a_run_killed_at_once_resumes_bit_for_bit(
    network: str, folder: Path, trainer: Trainer
) -> None:
    """By SIGKILL in mid-epoch, with Python's generator in use."""
    sets = [network, "data.train=64", "data.batch_size=16", "epochs=1"] if network else []
    whole = train(folder, "whole", *sets)
    often = [f"--set={text}" for text in (*sets, "checkpoint.minutes=1e-9")]
    words = ["train", str(folder / "own.yaml"), *often, "--runs-dir", str(folder / "killed")]
    trainer.start(words, folder / "messages")
    run = folder / "killed/own/seed-0"
    deadline = time.monotonic() + 120
    while not (run / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    trainer.kill(signal.SIGKILL)
    assert trainer.wait() == -signal.SIGKILL
    assert RunFolder(run).status == "running"
    assert load_checkpoint(run / "checkpoint.pt")["step"] > 0
    train(folder, "killed", *sets)
    assert RunFolder(run).run["resumes"] == 1
    assert_same_run(whole, run)


def test_the_config_in_a_run_folder_trains_anywhere(folder: Path, monkeypatch) -> None:
    whole = train(folder, "whole")
    for name in ("my_model.py", "helper.py"):
        (folder / name).unlink()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert_same_run(whole, train(folder, "elsewhere/runs", config="whole/own/seed-0/config.yaml"))


def test_a_module_of_the_working_folder_is_found_in_the_run_folder(
    folder: Path, monkeypatch
) -> None:
    monkeypatch.chdir(folder)
    config = load("own.yaml", ["network.name=my_model:MyNet"])
    run, _ = prepare(folder / "runs", config, 0)
    run.close()
    assert next_action(run, config) == "new"  # nothing was trained, and nothing differs
    monkeypatch.chdir("/")
    kept = load(run.path / "config.yaml").network
    assert kept.name == f"{run.path}/source/my_model.py:MyNet"


def test_a_run_folder_is_read_without_running_its_source(
    folder: Path, trainer: Trainer, capfd, monkeypatch
) -> None:
    """Beside a network of ours: table, report, live table and data frames; nothing prints."""
    run = train(folder, "runs")
    assert "my_model.py runs" in capfd.readouterr().err
    train(folder, "runs", "network={name: mlp, widths: [8]}", "name=ours")
    assert (run / "source/my_model.py").read_text() == MY_MODEL
    assert (run / "source/helper.py").read_text() == HELPER
    capfd.readouterr()
    for command in (
        ["compare", "runs", "--format", "json"],
        ["watch", "runs", "--once"],
        ["report", "runs", "--out", "report.html"],
    ):
        code, out, err = trainer.run(command, folder)
        assert code == 0, err
        assert "my_model.py runs" not in out + err
        if command[0] == "compare":
            assert {row["name"] for row in json.loads(out)} == {"own", "ours"}
    assert "my_model.py:MyNet" in (folder / "report.html").read_text()
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    frame = load_runs(folder / "runs").summary
    assert list(frame["network.name"]) == ["mlp", "my_model.py:MyNet"]
    assert capfd.readouterr() == ("", "")
    assert "my_model" not in sys.modules


def test_commands_that_run_the_network(folder: Path, trainer: Trainer) -> None:
    run = train(folder, "runs", "measure.sites=all")
    (folder / "my_model.py").unlink()  # its copy is there
    read = {}
    for command in (
        ["recalibrate", str(run), "--method", "precise", "--json"],
        ["audit", str(run), "--data", "train", "--format", "json"],
        ["inspect", str(run / "config.yaml"), "--json"],
    ):
        code, out, err = trainer.run(command, folder)
        assert code == 0, err
        assert "my_model.py runs" in err
        read[command[0]] = json.loads(out)
    assert [row["method"] for row in read["recalibrate"][str(run)]][:2] == ["none", "precise"]
    assert read["inspect"]["bn_layers"] == 4
    assert "blocks.0.bn2" in [layer["name"] for layer in read["inspect"]["layers"]]
    assert "blocks.0.bn2" in json.dumps(read["audit"])


def test_a_changed_file_is_named_and_the_run_refused(folder: Path) -> None:
    copies = train(folder, "runs") / "source"
    (folder / "helper.py").write_text(HELPER.replace("4 *", "8 *"))
    with pytest.raises(RunError) as error:
        train(folder, "runs")
    lines = str(error.value).splitlines()
    assert lines[1] == f"  network.source: helper.py changed since; {copies} has what it was"
    train(folder, "runs", fresh=True)
    assert (copies / "helper.py").read_text() != HELPER


def test_a_changed_file_of_one_of_several_noises_is_named(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    own = "{kind: noise.py:Dropout, after: head}"
    sets = [f"network.noise=[{{kind: dropout, rate: 0.3, before: 'blocks.*.bn2'}}, {own}]"]
    Path("noise.py").write_text("from torch.nn import Dropout\n")
    run, _ = prepare("runs", load("own.yaml", sets), 0)
    run.close()
    Path("noise.py").write_text("from torch.nn import Dropout2d as Dropout\n")
    with pytest.raises(RunError, match=r"\n  network.noise.1.source: noise.py changed since"):
        prepare("runs", load("own.yaml", sets), 0)


def test_two_folders_with_files_of_one_name(folder: Path, monkeypatch) -> None:
    (folder / "norms").mkdir()
    (folder / "norms/helper.py").write_text("from torch.nn import BatchNorm1d as Norm\n")
    sets = ["network={name: mlp, widths: [8]}", "norm={kind: norms/helper.py:Norm}"]
    sets += ["loss={name: helper.py:loss}"]
    (folder / "helper.py").write_text("from torch.nn.functional import cross_entropy as loss\n")
    monkeypatch.chdir(folder)
    run = train(folder, "runs", *sets)
    kept = {path.relative_to(run / "source").as_posix() for path in run.glob("source/**/*.py")}
    assert kept == {"helper.py", "2/helper.py"}
    again = load(run / "config.yaml")
    assert {again.norm.kind, again.loss.name} == {
        f"{run}/source/helper.py:Norm",
        f"{run}/source/2/helper.py:loss",
    }


FAILS = """
import torch
from torch import nn

class Fails(nn.Module):
    def __init__(self, classes, when):
        super().__init__()
        self.layer, self.when, self.steps = nn.Linear(3, classes), when, 0

    def forward(self, x):
        if self.training:
            self.steps += 1
            if self.steps == self.when:
                raise ValueError("of no use")
        return self.layer(x.mean((2, 3)))

class Stateful(Fails):
    def get_extra_state(self):
        return self.count if self.when else object()

    def set_extra_state(self, state):
        self.count = state

    count = 0

model = nn.Linear(3, 10)

class Pair(Fails):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)

class Twice(Fails):
    def forward(self, x):
        return super().forward(torch.cat([x, x]) if self.training else x)

class Narrow(Fails):
    def forward(self, x):
        return super().forward(x)[:, : 7 if self.training else 10]
"""


def test_what_fails_before_the_run_writes_nothing(folder: Path, monkeypatch) -> None:
    (folder / "fails.py").write_text(FAILS)
    monkeypatch.chdir(folder)
    first = ["network={name: fails.py:Fails, args: {when: 1}}"]
    with pytest.raises(ConfigError, match=r"a first step of training fails: ValueError: of no us"):
        train(folder, "runs", *first)
    pair = ["network={name: fails.py:Pair, args: {when: 0}}"]
    with pytest.raises(ConfigError, match=r"in training .*Pair gives a value of type tuple in"):
        train(folder, "runs", *pair)
    twice = ["network={name: fails.py:Twice, args: {when: 0}}"]
    with pytest.raises(ConfigError, match=r"in training .*Twice changes .* \[16, 10\], not \[8"):
        train(folder, "runs", *twice)
    narrow = ["network={name: fails.py:Narrow, args: {when: 0}}"]
    with pytest.raises(ConfigError, match=r"in training .* outputs \[8, 7\] .* needs \[8, 10\]"):
        train(folder, "runs", *narrow)
    state = ["network={name: fails.py:Stateful, args: {when: 0}}"]
    with pytest.raises(ConfigError, match=r"_extra_state in its state dict is a value of type obj"):
        train(folder, "runs", *state)
    with pytest.raises(ConfigError, match=r"fails.py:model is a module that exists already, and"):
        train(folder, "runs", "network={name: fails.py:model}")
    assert not (folder / "runs").exists()


PARTS = """
import torch
from torch import nn

class Pools(nn.Module):
    def forward(self, x):
        return x.mean((0, 1)) if self.training else x

class Views(nn.Module):
    def forward(self, x):
        return x.view(7, 7, 7) if self.training else x
"""


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (
            "Pools",
            r"network.noise: Pools turns a tensor \[8, 16, .*\] into \[.*\]; noise must return",
        ),
        ("Views", r"^\S*/odd.py:Views: a first step of training fails: RuntimeError: shape"),
    ],
)
def test_one_failing_part_accuses_no_other(
    noise: str, message: str, folder: Path, monkeypatch
) -> None:
    monkeypatch.chdir(folder)
    Path("odd.py").write_text(PARTS)
    Path("loss.py").write_text("from torch.nn.functional import cross_entropy as loss\n")
    Path("rate.py").write_text("def factor(step):\n    return 1.0\n")
    sets = ["loss={name: loss.py:loss}", "schedule={name: rate.py:factor}"]
    entry = f"{{kind: odd.py:{noise}, position: before_bn}}"
    sets += [f"network={{name: preresnet, depth: 8, noise: {entry}}}"]
    with pytest.raises(ConfigError, match=message) as error:
        train(folder, "runs", *sets)
    assert not any(name in str(error.value) for name in ("loss.py", "rate.py"))


def test_noise_by_pattern_must_keep_the_shape(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    Path("odd.py").write_text(PARTS)
    noise = "network.noise={kind: odd.py:Pools, before: 'blocks.*.bn2'}"
    with pytest.raises(
        ConfigError, match=r"^network.noise.before: Pools turns a tensor \[2, 4, 16"
    ):
        train(folder, "runs", noise)


def test_an_exception_outside_of_own_files_accuses_the_forward(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    Path("loss.py").write_text("from torch.nn.functional import cross_entropy as loss\n")
    sets = ["loss={name: loss.py:loss}", "network={name: odd.py:Net}"]
    Path("odd.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, classes):\n"
        "        super().__init__()\n        self.a = nn.Linear(3, classes)\n"
        "    def forward(self, x):\n        y = self.a(x.mean((2, 3)))\n"
        "        return y.detach() if self.training else y\n"
    )
    with pytest.raises(
        ConfigError, match=r"^\S*/odd.py:Net: a first step of training fails: Runtim"
    ):
        train(folder, "runs", *sets)


def test_what_fails_during_the_run_shows_its_own_frames(folder: Path, monkeypatch) -> None:
    (folder / "fails.py").write_text(FAILS)
    monkeypatch.chdir(folder)
    later = ["network={name: fails.py:Fails, args: {when: 5}}"]
    with pytest.raises(TrainingFailed) as error:
        train(Path(), "runs", *later)
    assert str(error.value).splitlines() == [
        "runs/own/seed-0: ValueError: of no use",
        f'  {folder}/fails.py:14, in forward: raise ValueError("of no use")',
    ]
    assert error.value.exit_code == 1
    assert RunFolder("runs/own/seed-0").status == "failed"


CHANGES = """
from torch import nn


class Changes(nn.Sequential):
    def __init__(self, num_classes, traced=True, good=10**9):
        super().__init__(nn.Flatten(), nn.Linear(3072, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.append(nn.Linear(4, num_classes))
        self.calls, self.traced, self.good = 0, traced, good

    def forward(self, x):
        self.calls += 1
        if self.calls > self.good:
            raise ValueError("of no use any more")
        y = super().forward(x)
        return y / 2 if not self.traced and self.calls > 8 and y.std() > 2 else y
"""


def test_a_forward_that_cannot_be_traced_any_more_is_trained_without_predictions(
    folder: Path, monkeypatch, capsys
) -> None:
    (folder / "changes.py").write_text(CHANGES)
    monkeypatch.chdir(folder)
    network = "network={name: changes.py:Changes, args: {traced: false}}"
    train_seeds(load("own.yaml", [network, "epochs=3"]), Path("runs"), False, Reporter())
    said = [line for line in capsys.readouterr().err.splitlines() if "torch.fx" in line]
    assert said == [
        "note: runs/own/seed-0: from here on without predictions, and without which noise reaches "
        "a layer: the model cannot be traced by torch.fx: symbolically traced variables cannot be "
        "used as inputs to control flow"
    ]
    rows = RunFolder("runs/own/seed-0").layers()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["lag_free_ratio"] >= 1
    assert (rows[-1]["total_ratio"], rows[-1]["noise_before"]) == (None, None)


def test_what_fails_only_when_tested_shows_its_own_frames(folder: Path, monkeypatch) -> None:
    (folder / "changes.py").write_text(CHANGES)
    monkeypatch.chdir(folder)
    # Calls from the last steps of an epoch to its measurements; one is the tracing.
    for good in range(12, 15):
        network = f"network={{name: changes.py:Changes, args: {{good: {good}}}}}"
        with pytest.raises(TrainingFailed) as error:
            train(Path(), f"runs-{good}", network)
        assert str(error.value).splitlines() == [
            f"runs-{good}/own/seed-0: ValueError: of no use any more",
            f'  {folder}/changes.py:14, in forward: raise ValueError("of no use any more")',
        ]


def test_code_that_draws_pythons_numbers_is_not_compiled(folder: Path) -> None:
    from vshift.data import load as load_images

    config = load(folder / "own.yaml")
    said: list[str] = []
    context = TrainingContext(config, 0, load_images(config.data))
    step = make_train_step("compiled", context, said.append)
    assert step.name == "eager"
    reason = "the network's code draws from Python's or NumPy's generator"
    assert said == [f"note: no compiled step: {reason}; using a slower one"]


def test_the_version_of_a_library_is_kept(tmp_path: Path) -> None:
    prepared, _ = prepare(tmp_path, make_config(network={"name": "timm:resnet10t"}), 0)
    prepared.close()
    assert prepared.run["timm"] == metadata.version("timm")
    assert "timm" not in prepare(tmp_path, make_config(name="ours"), 0)[0].run
