"""Stopping anywhere and resuming: the same bits, and what happens if a checkpoint is damaged."""

from __future__ import annotations

import json
from contextlib import suppress
from signal import SIGTERM

import pytest
import torch

from tests.configs import make_config
from tests.soak.harness import differences
from vshift.data import load
from vshift.data.stream import Stream
from vshift.errors import RunError, Stopped
from vshift.runs import prepare
from vshift.train.progress import Reporter
from vshift.train.run import train_in
from vshift.train.signals import StopSignal

NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_bn"}
CONFIG = make_config(
    data={"name": "shapes", "train": 100, "test": 20, "batch_size": 20},
    network={"name": "mlp", "widths": [16, 16], "noise": NOISE},
    measure={
        "eval_batches": 2,
        "eval_epochs": "all",
        "modes": True,
        "monte_carlo": 2,
        "monte_carlo_bn": 2,
    },
    recalibration={"methods": ["swap", "precise", "layerwise", "dropout_on"], "batches": 2},
    average={"kind": "ema", "decay": 0.9, "buffers": ["own", "copied", "averaged", "precise"]},
    epochs=3,
)
STEPS = 5


class Watch(Reporter):
    """Keeps what is said, and asks to stop after the step of this number, over all epochs."""

    def __init__(self, stop: StopSignal, steps: int | None) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []
        self.stop, self.steps = stop, steps

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(self, step: int) -> None:
        if self.steps is not None:
            self.stop.number = SIGTERM if step >= self.steps else None


class Asked(StopSignal):
    """Asks to stop when it was looked at so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0


def attempt(runs, config=CONFIG, stop=None, steps=None, device="cpu"):
    """Train until a stop or the end; returns the folder, the status and what was said."""
    folder, _ = prepare(runs, config, 0)
    stop = stop or StopSignal()
    watch, status = Watch(stop, steps), "interrupted"
    try:
        with suppress(Stopped):
            status = train_in(folder, config, 0, load(config.data, device), watch, stop)
    finally:
        folder.mark_finished(status)
        folder.close()
    return folder, status, watch.said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, status, _ = attempt(tmp_path_factory.mktemp("whole"))
    assert status == "done"
    return folder


def test_a_step_of_another_device_is_not_resumed_with(tmp_path, whole):
    """A run may begin on a GPU and be resumed where there is none."""
    folder, status, _ = attempt(tmp_path, steps=7)
    assert status == "interrupted"
    assert folder.run["step"] == whole.run["step"] == "fused"
    words = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps({**words, "step": "captured"}))
    folder, status, _ = attempt(tmp_path)
    assert status == "done"
    assert folder.run["step"] == "fused"


@pytest.mark.parametrize("times", range(0, 115, 11))
def test_stopping_where_it_is_asked(tmp_path, whole, times):
    """It is asked after every step, before every batch of measuring, at the ends of epochs."""
    folder, status, _ = attempt(tmp_path, stop=Asked(times))
    assert status == "interrupted"
    folder, status, _ = attempt(tmp_path)
    assert status == "done"
    assert differences(whole.path, folder.path) == []


def test_it_is_asked_mostly_while_measuring(tmp_path):
    """15 steps, 3 ends of epochs, and all the rest before batches."""
    stop = Asked(1000)
    attempt(tmp_path, stop=stop)
    assert 1000 - stop.left > 115


@pytest.mark.parametrize("done", [1, 4, 5, 6, 10, 11, 15])
def test_stopping_after_a_step(tmp_path, whole, done):
    folder, status, _ = attempt(tmp_path, steps=done)
    assert status == "interrupted"
    state = folder.load_checkpoint()
    assert (state["epoch"], state["step"]) == ((done - 1) // STEPS, (done - 1) % STEPS + 1)
    folder, status, said = attempt(tmp_path)
    assert status == "done"
    assert f"step {state['step']} of 5" in said[0]
    assert differences(whole.path, folder.path) == []


def test_batches_that_were_trained_on_are_not_made_again(monkeypatch):
    images = load(CONFIG.data, "cpu")
    stream = Stream(images.train, images.mean, images.std, 20, CONFIG.data.augment)
    every = list(stream.epoch(7))
    made = []
    original = Stream.normalise

    def normalise(self, pixels):
        made.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(Stream, "normalise", normalise)
    rest = list(stream.epoch(7, skip=3))
    assert made == [20, 20]
    for (a, b), (c, d) in zip(every[3:], rest, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert list(stream.epoch(7, skip=5)) == []


def test_checkpoints_by_time_lie_inside_epochs(tmp_path):
    config = CONFIG.model_copy(
        update={"checkpoint": CONFIG.checkpoint.model_copy(update={"minutes": 1e-9, "keep": 9})}
    )
    folder, _, _ = attempt(tmp_path, config)
    from vshift.runs import checkpoint_file

    places = [(s["epoch"], s["step"]) for s in map(checkpoint_file.load, folder.checkpoints())]
    assert places == [(3, 0), (2, 5), (2, 4), (2, 3), (2, 2), (2, 1), (2, 0), (1, 5), (1, 4)]


@pytest.mark.parametrize(("every", "kept"), [(0, [3]), (1, [3, 2]), (2, [3, 2])])
def test_checkpoints_by_epochs(tmp_path, every, kept):
    when = {"every": every, "minutes": None}
    folder, _, _ = attempt(tmp_path, make_config(**{**CONFIG.model_dump(), "checkpoint": when}))
    from vshift.runs import checkpoint_file

    assert [checkpoint_file.load(path)["epoch"] for path in folder.checkpoints()] == kept


def test_other_checkpoint_settings_are_the_same_run(tmp_path, whole):
    attempt(tmp_path, steps=8)
    other = make_config(**{**CONFIG.model_dump(), "checkpoint": {"every": 2, "minutes": None}})
    folder, status, _ = attempt(tmp_path, other)
    assert status == "done"
    assert differences(whole.path, folder.path) == []


def interrupted_late(tmp_path, config=CONFIG):
    """A run in its third epoch, with checkpoints after epoch 2 and within epoch 3."""
    folder, _, _ = attempt(tmp_path, config, steps=2 * STEPS + 2)
    assert [p.name for p in folder.checkpoints()] == ["checkpoint.pt", "checkpoint-previous.pt"]
    return folder


@pytest.mark.parametrize("damage", ["flip", "short", "empty", "missing"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(tmp_path, whole, damage):
    folder = interrupted_late(tmp_path)
    path = folder.path / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes({"flip": data, "short": data[:-7], "empty": b""}[damage])
    folder, status, said = attempt(tmp_path)
    assert status == "done"
    if damage != "missing":
        assert said[0].startswith("warning: ")
        assert "checkpoint.pt is damaged" in said[0]
        assert "resuming from checkpoint-previous.pt" in said[0]
        assert "\n" not in said[0]
    assert "resuming after epoch 2" in " ".join(said)
    assert differences(whole.path, folder.path) == []


def test_two_damaged_checkpoints_say_what_to_do(tmp_path):
    folder = interrupted_late(tmp_path)
    for path in folder.checkpoints():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"all 2 checkpoints .* damaged; `--fresh`") as caught:
        attempt(tmp_path)
    assert "checkpoint-previous.pt" in str(caught.value)


def test_a_checkpoint_of_another_network_is_none_of_this_run(tmp_path):
    folder, _, _ = attempt(tmp_path, steps=3)
    state = folder.load_checkpoint()
    state["model"] = {"other": torch.ones(1)}
    folder.save_checkpoint(state, keep=1)
    with pytest.raises(RunError, match=r"checkpoint\.pt is damaged or not .*--fresh"):
        attempt(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"epoch": 99}, {"epoch": "1"}, {"step": -1}, {"inside": None}, {"inside": {}}, {"model": 3}],
    ids=str,
)
def test_a_sound_checkpoint_that_makes_no_sense(tmp_path, change):
    folder, _, _ = attempt(tmp_path, steps=3)
    folder.save_checkpoint({**folder.load_checkpoint(), **change}, keep=1)
    with pytest.raises(RunError, match="--fresh"):
        attempt(tmp_path)


def test_a_lost_summary_is_made_again(tmp_path, whole):
    folder, _, _ = attempt(tmp_path)
    (folder.path / "summary.json").write_text("{")
    folder, status, _ = attempt(tmp_path)
    assert status == "done"
    assert differences(whole.path, folder.path) == []


def test_lost_rows_are_noticed(tmp_path):
    folder = interrupted_late(tmp_path)
    rows = (folder.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder.path / "metrics.jsonl").write_text(rows[0])
    with pytest.raises(RunError, match=r"metrics\.jsonl lacks rows of epochs 1 to 2.*--fresh"):
        attempt(tmp_path)


def test_a_checkpoint_of_the_first_version_is_resumed(tmp_path):
    """It holds whole epochs, no checksum and no average."""
    config = CONFIG.model_copy(update={"average": None})
    whole, _, _ = attempt(tmp_path / "whole", config)
    folder = interrupted_late(tmp_path, config)
    from vshift.runs import checkpoint_file

    state = checkpoint_file.load(folder.path / "checkpoint-previous.pt")
    (folder.path / "checkpoint-previous.pt").unlink()
    old = {key: state[key] for key in ("epoch", "model", "optimizer")}
    torch.save({"version": 1, **old}, folder.path / "checkpoint.pt")
    folder, status, _ = attempt(tmp_path, config)
    assert status == "done"
    assert differences(whole.path, folder.path) == []


def test_the_random_generators_state_is_put_back(tmp_path):
    """What noise is drawn inside the epoch depends on all draws before it."""
    folder, _, _ = attempt(tmp_path, steps=3)
    saved = folder.load_checkpoint()["inside"]["random"]["cpu"]
    torch.manual_seed(123)
    from vshift.train.checkpointer import random_state, set_random_state

    set_random_state({"cpu": saved})
    assert torch.equal(random_state(torch.device("cpu"))["cpu"], saved)


def test_seconds_count_all_attempts_of_an_epoch(tmp_path):
    folder, _, _ = attempt(tmp_path, steps=3)
    state = folder.load_checkpoint()
    assert 0 < state["inside"]["seconds"] < 60
    state["inside"]["seconds"] = 1000.0
    folder.save_checkpoint(state)
    folder, _, _ = attempt(tmp_path)
    row = folder.metrics()[0]
    assert row["seconds"] > 1000
    assert row["images_per_second"] < 1


def test_the_configs_hash_does_not_know_checkpoints():
    from vshift.config import config_hash, json_schema

    other = make_config(**{**CONFIG.model_dump(), "checkpoint": {"keep": 5}})
    assert config_hash(other) == config_hash(CONFIG)
    keys = json_schema()["$defs"]["Checkpoint"]["properties"]
    assert json.dumps(sorted(keys)) == '["every", "keep", "minutes"]'


@pytest.mark.parametrize(
    "optimizer",
    [{"name": "adamw", "amsgrad": True}, {"name": "nadam"}, {"name": "sgd", "train": "norm"}],
    ids=str,
)
def test_every_optimizer_resumes_inside_an_epoch(tmp_path, optimizer):
    average = {"kind": "swa", "start": 0.5, "every": 2}
    config = make_config(**{**CONFIG.model_dump(), "optimizer": optimizer, "average": average})
    one, _, _ = attempt(tmp_path / "one", config)
    _, status, _ = attempt(tmp_path / "two", config, steps=STEPS + 2)
    assert status == "interrupted"
    two, status, said = attempt(tmp_path / "two", config)
    assert "step 2 of 5" in said[0]
    assert differences(one.path, two.path) == []
