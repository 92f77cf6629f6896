"""Timing some steps of a config that never ran."""

import time

import pytest
import torch

from vshift.config import Config
from vshift.sweep.estimates import dry_run
from vshift.sweep.timing import epoch_seconds

CPU = {"device": "cpu", "step": "eager"}


def config(data=None, network=None, **rest) -> Config:
    data = data or {"name": "shapes", "train": 6400, "batch_size": 64}
    network = network or {"name": "mlp", "widths": [8]}
    return Config.model_validate(
        {"name": "a", "data": data, "network": network, "epochs": 3, "hardware": CPU, **rest}
    )


def test_an_epochs_time_is_that_of_its_steps(monkeypatch):
    """With a step that takes a known time."""
    from vshift.train.loop import TrainStep

    monkeypatch.setattr(TrainStep, "__call__", lambda *_: time.sleep(0.02))
    assert epoch_seconds(config(), 1, print) == pytest.approx(100 * 0.02, rel=0.5)


def test_images_that_are_not_here_need_no_download(capsys, monkeypatch):
    monkeypatch.setattr("vshift.sweep.timing.LONG_ENOUGH", 0.01)
    threads = torch.get_num_threads()
    seconds = epoch_seconds(
        config({"name": "cifar100"}, norm={"kind": "renorm", "plain_steps": 1000}), 1, print
    )
    assert seconds > 0
    assert capsys.readouterr().out.startswith("timing some training steps of mlp-8 on cpu")
    assert torch.get_num_threads() == threads


def test_what_is_not_known_stays_unknown(tmp_path):
    missing = {"name": "imagefolder", "root": str(tmp_path / "none")}
    assert epoch_seconds(config(missing), 1, print) is None
    assert epoch_seconds(config(network={"name": "torchvision:resnet18"}), 1, print) is None


def test_a_dry_run_says_what_its_estimate_rests_on(bench):
    timed = []
    lines, _, total = dry_run(
        bench.jobs, bench.runs, 1, False, lambda config: timed.append(config) or 30.0
    )
    assert len(timed) == 1  # all seeds are of one kind
    assert lines.splitlines()[0].endswith("seed-0: new, about 60 s")
    assert total == (
        "3 runs, 3 to do: about 3 min; from training "
        "steps timed now on random images where no run is finished yet, without tests and "
        "measurements"
    )
