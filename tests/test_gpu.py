"""On a CUDA device: the same run as on the CPU, and no waiting inside an epoch."""

import json

import pytest
import torch

from tests.configs import make_config
from tests.soak.harness import differences
from tests.train.test_resume import attempt
from vshift.data import load
from vshift.networks import build
from vshift.progress import Reporter
from vshift.runs import prepare
from vshift.shift.explain import explain
from vshift.shift.probe import TrainingLog
from vshift.shift.recalibration import recalibrate
from vshift.step import EagerStep, Tally, make_optimizer
from vshift.train import train

pytestmark = pytest.mark.gpu
NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}


def run(path, device, **sections):
    config = make_config(hardware={"device": device, "precision": "float32"}, **sections)
    folder, _ = prepare(path / device, config, 0)
    images = load(config.data, torch.device(device))
    status = train(config, 0, images, folder, Reporter(quiet=True))
    folder.finish(status)
    folder.close()
    return folder


def test_the_gpu_trains_the_run_that_the_cpu_trains(tmp_path):
    """Without noise only rounding differs, and a small learning rate keeps it small."""
    sections = {"optimizer": {"name": "sgd", "learning_rate": 0.005}}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = [run(tmp_path, device, **sections).metrics() for device in ("cpu", "cuda")]
    for cpu, gpu in zip(*rows, strict=True):
        assert gpu["train_loss"] == pytest.approx(cpu["train_loss"], rel=2e-3)


def test_going_on_inside_an_epoch_gives_the_same_bits(tmp_path, monkeypatch):
    """In PyTorch's deterministic mode: the generator of the device is put back too."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(True)
    try:
        config = make_config(
            hardware={"device": "cuda", "precision": "float32"},
            network={"name": "preresnet", "depth": 8, "noise": NOISE},
        )
        whole, status, _ = attempt(tmp_path / "whole", config, device="cuda")
        assert status == "done"
        _, status, _ = attempt(tmp_path / "parts", config, steps=7, device="cuda")
        assert status == "interrupted"
        parts, status, _ = attempt(tmp_path / "parts", config, device="cuda")
        assert status == "done"
    finally:
        torch.use_deterministic_algorithms(False)
    assert differences(whole.path, parts.path) == []


def test_a_noisy_run_is_measured_to_the_end(tmp_path):
    folder = run(
        tmp_path, "cuda", network={"name": "preresnet", "depth": 8, "noise": NOISE},
        recalibration={"methods": ["swap", "precise", "layerwise"], "batches": 4},
        measure={"eval_batches": 4, "modes": True, "monte_carlo": 3},
    )  # fmt: skip
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["shift_ratio_mean"] > 1.05
    assert summary["monte_carlo_spread"] > 0


@pytest.mark.parametrize("kind", ["dropout", "gaussian", "uniform"])
def test_no_synchronisation_inside_an_epoch(kind):
    network = {"name": "preresnet", "depth": 8, "noise": {**NOISE, "kind": kind}}
    config = make_config(network=network)
    images = load(config.data, torch.device("cuda"))
    model = build(config, classes=10, channels=3, size=32, seed=0).cuda().train()
    from vshift.data import train_stream

    stream = train_stream(images, 64, 4, True)
    log, tally = TrainingLog(model), Tally(torch.device("cuda"))
    step = EagerStep(model, make_optimizer(model, config.optimizer), "bf16", tally, log)
    for pixels, labels in stream.epoch(0):  # warm-up: cuDNN's search may wait
        step(pixels, labels, 0.01)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for pixels, labels in stream.epoch(1):
            step(pixels, labels, 0.01)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tally.take().count == 600


def test_prediction_and_repair_on_the_device():
    network = {"name": "preresnet", "depth": 8, "noise": NOISE}
    model = build(make_config(network=network), classes=10, channels=3, size=16, seed=0).cuda()
    data = [torch.randn(128, 3, 16, 16, device="cuda") for _ in range(10)]
    for batch in data:
        model(batch)
    found = explain(model, lambda: data)
    for e in found.values():
        if e.noises:
            assert abs(e.excess.value) < 4 * e.excess.error
    recalibrate(model, lambda: data, "layerwise", at_once=True)
    assert max(abs(e.total.value) for n, e in explain(model, lambda: data).items()) > 1
