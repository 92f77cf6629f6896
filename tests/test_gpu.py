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
from vshift.train.captured_step import CapturedStep
from vshift.train.compiled_step import CannotCompile
from vshift.train.context import TrainingContext
from vshift.train.device import configure
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
    torch.backends.cudnn.allow_tf32 = False
    rows = [run(tmp_path, device, **sections).metrics() for device in ("cpu", "cuda")]
    for cpu, gpu in zip(*rows, strict=True):
        assert gpu["train_loss"] == pytest.approx(cpu["train_loss"], rel=2e-3)


@pytest.mark.parametrize(
    ("step", "optimizer"), [("eager", "sgd"), ("captured", "sgd"), ("captured", "adamw")]
)
def test_resuming_inside_an_epoch_gives_the_same_bits(step, optimizer, tmp_path, monkeypatch):
    """With hardware.deterministic: the generator of the device is put back too."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    config = make_config(
        hardware={"device": "cuda", "precision": "float32", "step": step, "deterministic": True},
        network={"name": "preresnet", "depth": 8, "noise": NOISE},
        optimizer={"name": optimizer, "learning_rate": 0.01},
        average={"kind": "ema", "decay": 0.9, "buffers": ["averaged", "precise"]},
    )
    configure(config.hardware, torch.device("cuda"))
    assert torch.are_deterministic_algorithms_enabled()
    whole, status, _ = attempt(tmp_path / "whole", config, device="cuda")
    assert status == "done"
    _, status, _ = attempt(tmp_path / "parts", config, steps=7, device="cuda")
    assert status == "interrupted"
    parts, status, _ = attempt(tmp_path / "parts", config, device="cuda")
    assert status == "done"
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
    torch.backends.cudnn.allow_tf32 = False
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
    """At learning rate 0 what a BN behind the noise sees of the same batches varies by the noise
    alone: with s² = 1 its mean over epochs is the eager step's within 5 standard errors, and no
    replay is like another one. The generator is seeded once."""
    found = []
    for name in ("eager", kind):
        step = step_of(name, noise)
        layer = next(n for n, behind in noise_in_front(step.context.model).items() if behind)
        rates = [0.0] * step.context.stream.steps
        seen = {8: [], 9: [], 10: []}  # a graph of eight steps, one of one, one of the last
        torch.manual_seed(0)
        for _ in range(12):
            for done in step.epoch(0, rates):
                if done in seen:
                    moments = step.context.layer_log.compute_and_reset()[layer]
                    seen[done].append(float(moments.variance.mean()))
        assert all(len(set(values)) == len(values) == 12 for values in seen.values())
        found.append(torch.tensor(list(seen.values()), dtype=torch.float64))
    a, b = found
    errors = (a.var(1) / 12 + b.var(1) / 12).sqrt()
    assert ((a.mean(1) - b.mean(1)).abs() < 5 * errors).all()


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


class Waits(torch.nn.Module):
    def forward(self, x):
        return x if float(x.detach().sum()) > -1e9 else -x


@pytest.mark.parametrize("noise", NOISES)
def test_noise_works_after_a_capture_that_failed(noise):
    """The stream is the present one again and the generator out of its capturing mode."""
    step = step_of("eager", noise)
    present = torch.cuda.current_stream()
    captured = CapturedStep(step.context, compile=False)
    step.context.model.append(Waits())
    with pytest.raises(CannotCompile, match=r"\(\w+\.py, line \d+\)$"):
        captured.prepare()
    assert torch.cuda.current_stream() == present
    epoch(step, 0, 0.01)
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
