"""On a CUDA device: the same run as on the CPU, and no waiting inside an epoch."""

import json

import pytest
import torch

from tests.configs import make_config
from tests.gpu import no_synchronization
from tests.soak.harness import differences
from tests.train.test_checkpointer import attempt
from vshift.data import load
from vshift.networks.build import build
from vshift.runs import prepare
from vshift.shift.decompose import decompose
from vshift.shift.noise_graph import noise_in_front
from vshift.shift.recalibration import recalibrate
from vshift.shift.stats import running_moments
from vshift.train.context import TrainingContext
from vshift.train.fast_steps import make_train_step
from vshift.train.progress import Reporter
from vshift.train.run import train_in

pytestmark = pytest.mark.gpu
DATA = {"name": "shapes", "train": 620, "test": 50, "batch_size": 64}
NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}


def run(path, device, **sections):
    config = make_config(hardware={"device": device, "precision": "float32"}, **sections)
    folder, _ = prepare(path / device, config, 0)
    images = load(config.data, torch.device(device))
    status = train_in(folder, config, 0, images, Reporter(quiet=True))
    folder.mark_finished(status)
    folder.close()
    return folder


def test_the_gpu_trains_the_run_that_the_cpu_trains(tmp_path):
    """Without noise only rounding differs, and a small learning rate keeps it small."""
    sections = {"optimizer": {"name": "sgd", "learning_rate": 0.005}}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = [run(tmp_path, device, **sections).metrics() for device in ("cpu", "cuda")]
    for cpu, gpu in zip(*rows, strict=True):
        assert gpu["train_loss"] == pytest.approx(cpu["train_loss"], rel=2e-3)


@pytest.mark.parametrize(
    ("step", "optimizer"), [("eager", "sgd"), ("captured", "sgd"), ("captured", "adamw")]
)
def test_resuming_inside_an_epoch_gives_the_same_bits(step, optimizer, tmp_path, monkeypatch):
    """In PyTorch's deterministic mode: the generator of the device is put back too."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(True)
    try:
        config = make_config(
            hardware={"device": "cuda", "precision": "float32", "step": step},
            network={"name": "preresnet", "depth": 8, "noise": NOISE},
            optimizer={"name": optimizer, "learning_rate": 0.01},
            average={"kind": "ema", "decay": 0.9, "buffers": ["averaged", "precise"]},
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


def step_of(kind, noise=None, precision="float32", train=620, optimizer="sgd", **sections):
    """A step of this kind on the GPU, 9 full batches of 64 and a last one of 44, with an average
    of the weights."""
    network = {"name": "preresnet", "depth": 8, "noise": noise and {**NOISE, "kind": noise}}
    hardware = {"device": "cuda", "precision": precision}
    defaults = {
        "network": network, "data": {**DATA, "train": train}, "hardware": hardware,
        "optimizer": {"name": optimizer}, "average": {"kind": "ema", "decay": 0.9}, "epochs": 12,
    }  # fmt: skip
    config = make_config(**{**defaults, **sections})
    context = TrainingContext(config, 0, load(config.data, torch.device("cuda")))
    context.model.train()
    said = []
    step = make_train_step(kind, context, said.append)
    assert (step.name, said) == (kind, [])
    return step


def epoch(step, number, rate):
    torch.manual_seed(number)
    for _ in step.epoch(number, [rate] * step.context.stream.steps):
        pass


RENORM = {"kind": "renorm", "plain_steps": 4, "rmax_steps": 16, "dmax_steps": 10, "momentum": 0.1}


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("compiled", {}),
        ("captured", {}),
        ("captured", {"norm": {"kind": "batch", "freeze_after": 1}}),  # between the two epochs
        ("captured", {"norm": RENORM}),
        ("captured", {"network": {"name": "vit", "depth": 2, "width": 32}}),
    ],
    ids=str,
)
def test_every_step_trains_what_the_eager_one_trains(kind, sections):
    """Without noise: losses, what BN saw, and what it remembers, within rounding."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found = []
    for name in ("eager", kind):
        step = step_of(name, **sections)
        scores = []
        for number in range(2):
            if step.context.enter_epoch(number + 1):
                step.forget()
            epoch(step, number, 0.005)
            scores.append(step.context.metrics.compute_and_reset())
        found.append(
            (
                scores,
                step.context.layer_log.compute_and_reset(),
                running_moments(step.context.model),
                step.context.average.state_dict(),
            )
        )
    (eager, eager_log, eager_running, eager_average), (scores, log, running, average) = found
    assert int(average["step"]) == int(eager_average["step"]) == 20
    for name, tensor in eager_average["model"].items():
        torch.testing.assert_close(average["model"][name], tensor, rtol=2e-2, atol=5e-3)
    assert [score.count for score in scores] == [620, 620]
    for ours, theirs in zip(scores, eager, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=2e-3)
    for name in eager_log:
        for a, b in ((log, eager_log), (running, eager_running)):
            torch.testing.assert_close(a[name].variance, b[name].variance, rtol=2e-2, atol=1e-3)


NOISES = ["dropout", "gaussian", "uniform"]
# Every kind of noise, and no more compilations than that takes.
WITH_NOISE = [("compiled", "dropout"), *(("captured", noise) for noise in NOISES)]


@pytest.mark.parametrize(("kind", "noise"), WITH_NOISE)
def test_every_step_has_the_noise_that_it_should(kind, noise):
    """At learning rate 0 what a BN behind the noise sees varies by the noise alone: with s² = 1 its
    mean over epochs is the eager step's within 4 standard errors, and no epoch is like another."""
    found = []
    for name in ("eager", kind):
        step = step_of(name, noise)
        layer = next(n for n, behind in noise_in_front(step.context.model).items() if behind)
        seen = []
        for number in range(12):
            epoch(step, number, 0.0)
            seen.append(float(step.context.layer_log.compute_and_reset()[layer].variance.mean()))
        assert len(set(seen)) == len(seen)
        found.append(torch.tensor(seen, dtype=torch.float64))
    a, b = found
    error = float((a.var() / len(a) + b.var() / len(b)).sqrt())
    assert abs(float(a.mean() - b.mean())) < 4 * error


@pytest.mark.parametrize(
    ("kind", "noise"), [*(("eager", noise) for noise in NOISES), *WITH_NOISE[:2]]
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_synchronisation_inside_an_epoch(kind, noise, optimizer):
    step = step_of(kind, noise, "bf16", optimizer=optimizer)
    epoch(step, 0, 0.01)  # warm-up: cuDNN's search may wait
    step.context.metrics.compute_and_reset()
    with no_synchronization():
        epoch(step, 1, 0.01)
    assert step.context.metrics.compute_and_reset().count == 620


def test_steps_are_captured_on_one_stream_unless_they_run_at_the_same_time():
    """cuBLAS keeps a workspace for each stream; two graphs in one workspace race."""
    steps = [step_of("captured", train=64) for _ in range(2)]
    with torch.cuda.stream(torch.cuda.Stream()):
        steps.append(step_of("captured", train=64))
        own = torch.cuda.current_stream()
    assert steps[0]._side == steps[1]._side != steps[2]._side == own


def test_prediction_and_repair_on_the_device():
    network = {"name": "preresnet", "depth": 8, "noise": NOISE}
    model = build(make_config(network=network), classes=10, channels=3, size=16, seed=0).cuda()
    data = [torch.randn(128, 3, 16, 16, device="cuda") for _ in range(10)]
    for batch in data:
        model(batch)
    found = decompose(model, lambda: data)
    for e in found.values():
        if e.noises:
            assert abs(e.excess.value) < 4 * e.excess.error
    recalibrate(model, lambda: data, "layerwise", at_once=True)
    assert max(abs(e.total.value) for n, e in decompose(model, lambda: data).items()) > 1
