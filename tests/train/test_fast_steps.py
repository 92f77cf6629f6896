"""Which step a run takes, and the fused one against the eager one."""

import copy
import subprocess
import sys
import warnings

import pytest
import torch

from tests.configs import make_config
from vshift.data import load
from vshift.errors import ConfigError
from vshift.kernels import KernelsMissing
from vshift.train import fast_steps
from vshift.train.captured_step import CapturedStep
from vshift.train.compiled_step import CannotCompile, CompiledStep
from vshift.train.context import TrainingContext, derive_seed
from vshift.train.fast_steps import make_train_step

NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
LEFT_OVER = {"name": "shapes", "train": 620, "test": 50, "batch_size": 64}  # 9 batches and 44


def context_of(**sections):
    config = make_config(**sections)
    context = TrainingContext(config, 0, load(config.data, torch.device("cpu")))
    context.model.train()
    return context


def trained(step, epochs=2, skip=0, seed=0):
    """Scores, logged moments and weights after some epochs."""
    scores, context = [], step.context
    for epoch in range(epochs):
        torch.manual_seed(derive_seed(seed, epoch, "noise"))
        rates = [0.01 * (1 + i) for i in range(context.stream.steps)]
        done = list(step.epoch(derive_seed(seed, epoch, "data"), rates, skip))
        assert done[-1] == context.stream.steps
        scores.append(context.metrics.compute_and_reset())
    return scores, context.layer_log.compute_and_reset(), context.model.state_dict()


def equal(a, b):
    torch.testing.assert_close(dict(b), dict(a), rtol=0, atol=0)


def test_making_a_step_changes_nothing(monkeypatch):
    """Compiling runs a batch: weights, buffers, gradients and the random state are put back."""
    monkeypatch.setattr("vshift.train.compiled_step.compile_network", lambda model: model)
    context = context_of(network={"name": "preresnet", "depth": 8, "noise": NOISE})
    kept, random = copy.deepcopy(context.model.state_dict()), torch.get_rng_state()
    make_train_step("compiled", context, print)
    equal(kept, context.model.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in context.model.parameters())
    assert context.metrics.compute_and_reset().count == 0


def test_the_fused_step_agrees_within_rounding():
    results = []
    for kind in ("auto", "eager"):
        context = context_of(data={**LEFT_OVER, "train": 200})
        step = make_train_step(kind, context, print)
        assert step.name == {"auto": "fused", "eager": "eager"}[kind]
        results.append(trained(step, epochs=1))
    assert results[0][0][0].loss == pytest.approx(results[1][0][0].loss, rel=1e-3)
    torch.testing.assert_close(
        bn_state_of(results[0][2]), bn_state_of(results[1][2]), rtol=2e-2, atol=1e-2
    )


def bn_state_of(weights):
    return {key: value for key, value in weights.items() if "running" in key}


def test_no_compiler_is_one_line_and_a_slower_step(monkeypatch):
    def missing(model, with_relu):
        raise KernelsMissing("no C++ compiler (c++, g++ or clang++)")

    monkeypatch.setattr(fast_steps, "fuse", missing)
    context = context_of()
    said = []
    step = make_train_step("auto", context, said.append)
    assert step.name == "eager"
    assert said == [
        "note: no fused step: no C++ compiler (c++, g++ or clang++); using a slower one"
    ]


def test_a_failing_compiler_is_one_line_and_the_eager_step(monkeypatch):
    def broken(model):
        def forward(images):
            raise RuntimeError("\n  lowering failed\nand much more")

        return forward

    monkeypatch.setattr("vshift.train.compiled_step.compile_network", broken)
    context = context_of()
    with pytest.raises(CannotCompile, match=r"RuntimeError: lowering failed \(test_fast_steps"):
        CompiledStep(context).prepare()
    said = []
    assert make_train_step("compiled", context, said.append).name == "eager"
    assert len(said) == 1
    assert "lowering failed" in said[0]


def test_a_warning_turned_into_an_error_changes_no_step(monkeypatch):
    """As under `python -W error`, which pytest's settings here amount to."""

    def advising(model):
        def forward(images):
            warnings.warn("TensorFloat32 is available but not enabled", stacklevel=1)
            return model(images)

        return forward

    monkeypatch.setattr("vshift.train.compiled_step.compile_network", advising)
    context = context_of()
    said = []
    step = make_train_step("compiled", context, said.append)
    assert (step.name, said) == ("compiled", [])


@pytest.mark.parametrize("failing", [1, 2])
def test_a_captured_step_does_without_the_compiler_if_it_fails(monkeypatch, failing):
    """The first way that works: compiled and captured, captured, compiled."""
    tried = []

    def capture(self):
        tried.append(self._compile)
        # A further try is no part of handling the first one's error, which keeps what it computed.
        assert sys.exc_info() == (None, None, None)
        if len(tried) <= failing:
            raise CannotCompile(f"reason {len(tried)}")

    monkeypatch.setattr(CapturedStep, "prepare", capture)
    monkeypatch.setattr(CompiledStep, "compile", lambda *batch: None)
    monkeypatch.setitem(fast_steps.AUTO, "cpu", fast_steps.AUTO["cuda"])
    context = context_of()
    said = []
    step = make_train_step("auto", context, said.append)
    assert tried == [True, False]
    assert step.name == {1: "captured", 2: "compiled"}[failing]
    assert (
        said
        == [
            "note: captured step without the compiler: reason 1",
            "note: no captured step: reason 2; using a slower one",
        ][:failing]
    )


def test_a_step_for_another_device_is_refused():
    context = context_of()
    with pytest.raises(ConfigError, match=r"hardware\.step: captured works on cuda only"):
        make_train_step("captured", context, print)


def test_sums_continue_where_they_were_saved():
    context = context_of()
    whole = trained(make_train_step("eager", context, print), epochs=1)
    context = context_of()
    step = make_train_step("eager", context, print)
    torch.manual_seed(derive_seed(0, 0, "noise"))
    steps = step.epoch(derive_seed(0, 0, "data"), [0.01 * (1 + i) for i in range(5)])
    for _ in range(2):
        next(steps)
    saved = context.metrics.state_dict(), context.layer_log.state_dict()
    context.metrics.compute_and_reset()
    context.layer_log.compute_and_reset()
    context.metrics.load_state_dict(saved[0])
    context.layer_log.load_state_dict(saved[1])
    for _ in steps:
        pass
    assert context.metrics.compute_and_reset() == whole[0][0]
    for name, moments in context.layer_log.compute_and_reset().items():
        assert torch.equal(moments.variance, whole[1][name].variance)


def test_starting_does_not_import_the_compiler():
    """Two seconds of every run: PyTorch's own optimizers import it, and so might much else."""
    code = (
        "import sys, torch; from tests.train.test_fast_steps import *\n"
        "for name in ('sgd', 'adamw'):\n"
        "    c = context_of(optimizer={'name': name}); step = make_train_step('auto', c, print)\n"
        "    step(*next(c.stream.epoch(0)))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
